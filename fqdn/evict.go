package fqdn

import (
	"cmp"
	"slices"
)

// youth is how long a new address is safe from being evicted, in seconds: its
// pod got the answer, and is about to connect.
const youth = 10

// candidate is a pair that may be evicted.
type candidate struct {
	place, name, addr uint32
	set               uint32 // selectors that match the name
	last              uint32 // alive or learned
	expires           uint32
	rank              rank
}

// rank orders candidates before their age does. Idle ones are those to whose
// address nothing flows, and that were not learned in the last seconds.
type rank uint8

const (
	idleUnmatched rank = iota // idle, and no selector is for it
	idleTooMuch               // idle, and its pod has too much
	spare                     // too much, but the row of its address does not need it
	needed                    // too much
	idle
)

// candidate tells whether and when a pair may go. It does not tell what is
// spare because of another pair.
func (c *Cache) candidate(at, began, now uint32, x *excess) (candidate, bool) {
	p := c.pairs.at(at)
	if p.learned == 0 {
		return candidate{}, false
	}
	a := c.addrs.at(p.addr)
	out := candidate{place: at, name: p.name, addr: p.addr, last: max(p.learned, a.alive), expires: p.expires}
	matched := true
	if c.u != nil {
		out.set = c.setOfName(p.name)
		matched = out.set != 0
	}
	isIdle := p.learned+youth <= now && a.alive < began
	greedy := c.tooMuch(x, c.names.at(p.name).owner)
	switch {
	case isIdle && !matched:
		out.rank = idleUnmatched
	case isIdle && greedy:
		out.rank = idleTooMuch
	case greedy && !matched:
		out.rank = spare
	case greedy:
		out.rank = needed
	case isIdle:
		out.rank = idle
	default:
		return candidate{}, false
	}
	return out, true
}

// trim brings every name, and all of them, down to their bounds, as far as a
// look for flows that began then leaves candidates.
func (c *Cache) trim(began uint32) {
	for _, at := range c.large() {
		var list []candidate
		c.mu.Lock()
		now := c.clock()
		n := c.names.at(at)
		left := int(n.pairs) - c.settings.PerName
		for p := n.first; left > 0 && p != none; p = c.pairs.at(p).nextName {
			if x, ok := c.candidate(p, began, now, &excess{}); ok {
				list = append(list, x)
			}
		}
		c.mu.Unlock()
		c.evict(list, began, &excess{}, func() bool {
			left--
			return left >= 0
		})
	}
	c.mu.Lock()
	x := c.over()
	c.mu.Unlock()
	if !x.pairs.some && !x.text.some {
		return
	}
	var list []candidate
	c.through(func() uint32 { return c.pairs.end }, func(at uint32) int {
		if x, ok := c.candidate(at, began, c.clock(), &x); ok && x.rank != idle {
			list = append(list, x)
		}
		return 1
	}, nil)
	findSpare(list)
	c.evict(list, began, &x, func() bool { return c.much(&x) })
}

// findSpare finds candidates that another makes superfluous: it is for the same
// address, and the same selectors match its name. Of those the one that expires
// last is needed.
func findSpare(list []candidate) {
	slices.SortFunc(list, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.rank, b.rank), cmp.Compare(a.addr, b.addr), cmp.Compare(a.set, b.set),
			cmp.Compare(b.expires, a.expires), cmp.Compare(a.place, b.place))
	})
	for i, before := 1, 0; i < len(list); i++ {
		a, b := &list[before], &list[i]
		if a.rank == needed && b.rank == needed && a.addr == b.addr && a.set == b.set && a.set != 0 {
			b.rank = spare
		} else {
			before = i
		}
	}
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

// evict forgets candidates as long as more tells: in the order of their ranks,
// each time the least recently alive first. It sorts the list.
func (c *Cache) evict(list []candidate, began uint32, x *excess, more func() bool) {
	var later []candidate // came into use since
	var touched []uint32
	stop := false
	slices.SortFunc(list, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.rank, b.rank), cmp.Compare(a.last, b.last), cmp.Compare(a.place, b.place))
	})
	c.through(func() uint32 {
		if stop {
			return 0
		}
		return uint32(len(list))
	}, func(i uint32) int {
		was := &list[i]
		now, ok := c.candidate(was.place, began, c.clock(), x)
		switch {
		case !ok, now.name != was.name, now.addr != was.addr, now.rank == idle && was.rank != idle:
			return 1 // another one by now, or its pod has no more than others
		case now.rank > was.rank && was.rank != spare:
			later = append(later, now)
			return 1
		case !more():
			stop = true
			return 1
		}
		touched = append(touched, now.addr)
		c.forget(was.place)
		c.counts.Evicted++
		return writeWork
	}, func() {
		c.settleLeft(touched)
		if len(touched) > 0 {
			c.madeRoom()
		}
		touched = touched[:0]
	})
	if len(later) > 0 && !stop {
		c.evict(later, began, x, more)
	}
}
