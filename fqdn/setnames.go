package fqdn

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/policy/dnsrules"
)

// identitySets are identities with the selectors each stands for.
type identitySets = map[identity.ID][]dnsrules.Selector

// SetNames replaces the identities that addresses can have, with the selectors
// each stands for, and the servers that are believed for all policies. It returns when the
// kernel's table holds no other identity, and every address has the one that
// its names now ask for. An error tells what could not be written; it is tried
// again by itself, or by another call.
func (c *Cache) SetNames(ids map[identity.ID][]dnsrules.Selector, resolvers []policy.Server) error {
	c.setting.Lock()
	defer c.setting.Unlock()
	believed := make(map[policy.Server]struct{}, len(resolvers))
	for _, r := range resolvers {
		believed[unmapped(r)] = struct{}{}
	}
	c.resolvers.Store(&believed)

	c.mu.Lock()
	old, u, owed, retired := c.ids, c.u, c.owed, c.retired
	c.mu.Unlock()
	if u != nil && !owed && maps.EqualFunc(old, ids, slices.Equal) {
		return nil
	}
	ids = maps.Clone(ids) // their lists are never changed
	selectors := selectorsOf(ids)
	var fresh *universe
	if u == nil || !slices.Equal(u.selectors, selectors) {
		epoch := uint32(1)
		if u != nil {
			epoch = u.epoch + 1
		}
		fresh = newUniverse(selectors, epoch)
		fresh.identify(ids)
		c.foretell(fresh)
	}
	c.mu.Lock()
	c.ids, c.owed = ids, false
	if fresh == nil {
		c.u.identify(ids)
	} else {
		c.keepWants(fresh)
		c.u, c.next = fresh, nil
	}
	c.tell()
	close(c.changed)
	c.changed = make(chan struct{})
	c.mu.Unlock()

	if retired {
		return nil
	}
	err := c.settleEach()
	c.mu.Lock()
	c.u.ahead = nil // they were asked for
	c.mu.Unlock()
	if u == nil || gone(old, ids) {
		if e := c.inspect(context.Background()); e != nil {
			return e
		}
	}
	return err
}

// gone tells whether some identity is not what it was.
func gone(old, now identitySets) bool {
	for id, selectors := range old {
		if !slices.Equal(now[id], selectors) {
			return true
		}
	}
	return false
}

// foretell finds the sets of all names before others have to wait for that: one
// address may have hundreds of thousands.
func (c *Cache) foretell(u *universe) {
	c.mu.Lock()
	c.next = u
	c.mu.Unlock()
	c.through(func() uint32 { return c.names.end }, func(at uint32) int {
		n := c.names.at(at)
		if n.pairs == 0 {
			return 1
		}
		u.foretell(at, c.text(n), c.scopes.list[n.scope].namespace)
		return matchWork
	}, nil)
}

// matchWork is how much of a step's work it is to match a name.
const matchWork = 2

// Steps of what goes through all there is: how many places are looked at, and
// how many rows written at most, while Learn waits; and the time that others
// get in between.
const (
	stepPlaces = 2048
	stepWrites = 128
	stepPause  = 50 * time.Microsecond
)

// settleEach settles every address. The first error is returned.
func (c *Cache) settleEach() (failed error) {
	for at := uint32(0); ; {
		c.mu.Lock()
		now := c.clock()
		writes := 0
		for n := 0; n < stepPlaces && writes < stepWrites && at < c.addrs.end; n++ {
			if a := c.addrs.at(at); a.used {
				before, first := a.written, a.epoch != c.u.epoch
				if _, err := c.settle(at, now, true); err != nil && failed == nil {
					failed = err
				}
				if a.written != before {
					writes++
				}
				if first {
					n += 15 // its names were matched
				}
			}
			at++
		}
		end := at >= c.addrs.end
		c.mu.Unlock()
		if end {
			return failed
		}
		time.Sleep(stepPause)
	}
}

// inherit takes over the rows that are in the table. Those that nothing
// explains, because a predecessor died before its last checkpoint, get the time
// that they would have had at least.
func (c *Cache) inherit() {
	now := c.clock()
	rows, strange := 0, 0
	err := c.table.Walk(context.Background(), func(list []Row) {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, r := range list {
			rows++
			if c.adopt(r, now) {
				strange++
			}
		}
	})
	if err != nil {
		c.log.Error("read what names stood for before", "error", err)
	}
	if rows > 0 {
		c.doubt = now + doubtFor
		c.log.Info("took over the addresses of names", "rows", rows, "unexplained", strange)
	}
}

// adopt notes a row that another process wrote; true: no name explains it.
func (c *Cache) adopt(r Row, now uint32) (strange bool) {
	at, ok := c.findAddr(r.Addr.As16())
	if !ok {
		if c.addrs.len() >= maxPlaces {
			c.owed = true
			return true
		}
		at = c.addAddr(r.Addr.As16())
		c.addrs.at(at).inherited = now
	}
	c.addrs.at(at).written = uint32(r.Identity)
	return !ok
}

// inspect compares the table with what this cache wrote, and puts it right: a
// predecessor that is about to end may have written, too.
func (c *Cache) inspect(ctx context.Context) error {
	var failed error
	err := c.table.Walk(ctx, func(list []Row) {
		c.mu.Lock()
		defer c.mu.Unlock()
		now := c.clock()
		for _, r := range list {
			if at, ok := c.findAddr(r.Addr.As16()); ok && c.addrs.at(at).written == uint32(r.Identity) {
				continue
			}
			// It may have changed since it was read.
			id, there, err := c.table.Get(r.Addr)
			if err != nil {
				failed = err
			}
			if err != nil || !there {
				continue
			}
			c.adopt(Row{r.Addr, id}, now)
			if at, ok := c.findAddr(r.Addr.As16()); ok {
				if _, err := c.settle(at, now, true); err != nil {
					failed = err
				}
			}
		}
	})
	if err != nil {
		return err
	}
	return failed
}
