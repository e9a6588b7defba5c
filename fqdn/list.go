package fqdn

import (
	"bytes"
	"context"

	"github.com/weirnet/weir/identity"
)

// listStep is how many names are copied while Learn waits.
const listStep = 128

// List calls each for every name that contains match, in lower case ("" every
// name), in no order, until it returns an error. What comes or goes meanwhile
// may be listed or not. Which addresses are alive is looked up before, unless
// that was done a moment ago.
func (c *Cache) List(ctx context.Context, match string, each func(Name) error) error {
	if err := c.scanIfOld(ctx); err != nil {
		return err
	}
	for at, end := uint32(0), false; !end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		var batch []Name
		c.mu.Lock()
		for n := 0; n < stepPlaces && len(batch) < listStep && at < c.names.end; n++ {
			if name := c.names.at(at); name.pairs > 0 && bytes.Contains(c.text(name), []byte(match)) {
				batch = append(batch, c.show(at))
			}
			at++
		}
		end = at >= c.names.end
		c.mu.Unlock()
		for _, n := range batch {
			if err := each(n); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *Cache) show(at uint32) Name {
	n := c.names.at(at)
	out := Name{Name: string(c.text(n)), Namespace: c.scopes.list[n.scope].namespace, Addresses: make([]Address, 0, n.pairs)}
	for p := n.first; p != none; p = c.pairs.at(p).nextName {
		pair := c.pairs.at(p)
		a := c.addrs.at(pair.addr)
		out.Addresses = append(out.Addresses, Address{
			Addr: addrOf(a.ip), Expires: c.wall(pair.expires), Alive: c.isAlive(a), Identity: identity.ID(a.written),
		})
	}
	if c.u != nil {
		out.Selectors = c.u.list(c.setOfName(at))
	}
	for _, p := range n.pods {
		if p != none {
			out.Pods = append(out.Pods, c.pods.list[p].addr)
		}
	}
	return out
}

// isAlive tells whether the last whole look for flows saw one to the address.
func (c *Cache) isAlive(a *address) bool { return a.alive != 0 && a.alive >= c.scanned }

// Len is how many names there are, and how many addresses they stand for.
func (c *Cache) Len() (names, addresses int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.names.len(), c.addrs.len()
}
