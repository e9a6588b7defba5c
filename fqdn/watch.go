package fqdn

import (
	"context"
	"time"

	"github.com/weirnet/weir/policy/dnsrules"
)

// Watch calls tell with the combinations of selectors that addresses have or
// need: all of them at first, which waits for the first SetNames, and after
// each change. It returns when ctx ends or tell fails. While somebody watches,
// Learn waits for what is told.
func (c *Cache) Watch(ctx context.Context, tell func([][]dnsrules.Selector) error) error {
	c.mu.Lock()
	c.watchers++
	if c.u != nil {
		now := time.Now() // nobody was there to make them
		for i := range c.u.sets {
			c.u.sets[i].since = now
		}
	}
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.watchers--
		close(c.changed) // nobody answers those who wait
		c.changed = make(chan struct{})
		c.mu.Unlock()
	}()
	var told [][]dnsrules.Selector
	for first := true; ; {
		c.mu.Lock()
		news, known, wanted := c.news, c.u != nil, c.wanted()
		c.mu.Unlock()
		if known && (first || !sameLists(told, wanted)) {
			if err := tell(wanted); err != nil {
				return err
			}
			told, first = wanted, false
		}
		select {
		case <-news:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// wanted are the combinations that are told.
func (c *Cache) wanted() (out [][]dnsrules.Selector) {
	if c.u == nil {
		return nil
	}
	for _, set := range c.u.wants.sets {
		out = append(out, c.u.list(set))
	}
	return out
}

func sameLists(a, b [][]dnsrules.Selector) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if len(a[i]) != len(b[i]) {
			return false
		}
		for j := range a[i] {
			if a[i][j] != b[i][j] {
				return false
			}
		}
	}
	return true
}
