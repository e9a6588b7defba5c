package fqdn

import (
	"cmp"
	"slices"
)

// youth is how long a new address is safe from being evicted, in seconds: its
// pod got the answer, and is about to connect.
const youth = 10

// candidate is a pair that may be evicted: nothing flows to its address, and it
// was not learned in the last seconds.
type candidate struct {
	place, name, addr uint32
	matched           bool   // by some selector
	greedy            bool   // its pod has more than its share
	last              uint32 // alive or learned
}

// rank orders candidates before their age does.
func (x *candidate) rank() int {
	switch {
	case !x.matched:
		return 0
	case x.greedy:
		return 1
	}
	return 2
}

func (c *Cache) candidate(at, began, now uint32) (candidate, bool) {
	p := c.pairs.at(at)
	if p.learned == 0 || p.learned+youth > now {
		return candidate{}, false
	}
	a := c.addrs.at(p.addr)
	if a.alive >= began {
		return candidate{}, false
	}
	return candidate{
		place: at, name: p.name, addr: p.addr, last: max(p.learned, a.alive),
		matched: c.u != nil && c.setOfName(p.name) != 0, greedy: c.pods.has(c.names.at(p.name).owner) > c.share(),
	}, true
}

// trim brings every name, and all of them, down to their bounds, as far as a
// look for flows that began then leaves candidates.
func (c *Cache) trim(began uint32) {
	for _, at := range c.large() {
		var list []candidate
		c.mu.Lock()
		now := c.clock()
		n := c.names.at(at)
		excess := int(n.pairs) - c.settings.PerName
		for p := n.first; excess > 0 && p != none; p = c.pairs.at(p).nextName {
			if x, ok := c.candidate(p, began, now); ok {
				list = append(list, x)
			}
		}
		c.mu.Unlock()
		c.evict(list, began, func() bool {
			excess--
			return excess >= 0
		})
	}
	c.mu.Lock()
	over := c.over()
	c.mu.Unlock()
	if !over {
		return
	}
	var list []candidate
	c.through(func() uint32 { return c.pairs.end }, func(at uint32) int {
		if x, ok := c.candidate(at, began, c.clock()); ok {
			list = append(list, x)
		}
		return 1
	}, nil)
	c.evict(list, began, func() bool {
		return c.pairs.len() > c.settings.trimmed() || c.texts.bytes > c.settings.textOf()*15/16
	})
}

// over tells whether there is more than there should be.
func (c *Cache) over() bool {
	return c.pairs.len() > c.settings.Addresses || c.texts.bytes > c.settings.textOf()
}

// large are names with too many addresses.
func (c *Cache) large() (out []uint32) {
	c.through(func() uint32 { return c.names.end }, func(at uint32) int {
		if int(c.names.at(at).pairs) > c.settings.PerName {
			out = append(out, at)
		}
		return 1
	}, nil)
	return out
}

// evict forgets candidates as long as more tells: first those that no selector
// is for, then those of pods that have more than their share, each time the least
// recently alive first. It sorts the list.
func (c *Cache) evict(list []candidate, began uint32, more func() bool) {
	slices.SortFunc(list, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.rank(), b.rank()), cmp.Compare(a.last, b.last), cmp.Compare(a.place, b.place))
	})
	var touched []uint32
	stop := false
	c.through(func() uint32 {
		if stop {
			return 0
		}
		return uint32(len(list))
	}, func(i uint32) int {
		was := list[i]
		p := c.pairs.at(was.place)
		if p.name != was.name || p.addr != was.addr {
			return 1 // another one by now
		}
		if x, ok := c.candidate(was.place, began, c.clock()); !ok || x.last != was.last {
			return 1
		}
		if !more() {
			stop = true
			return 1
		}
		touched = append(touched, p.addr)
		c.forget(was.place)
		c.counts.Evicted++
		return writeWork
	}, func() {
		c.settleLeft(touched)
		touched = touched[:0]
	})
}
