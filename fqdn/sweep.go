package fqdn

import (
	"context"
	"net/netip"
	"time"
)

const (
	// inheritance is how long an unexplained row of a predecessor stays: what an
	// answer of its last moment gives at least.
	inheritance = uint32(defaultMinTTL / time.Second)
	// blindFor is how long names stay believed beyond their time while nobody can
	// tell whether they are in use.
	blindFor = 60
	// podRounds is after how many sweeps pods that nobody remembers are forgotten.
	podRounds = 12
)

// scan finds out which addresses flows go to.
func (c *Cache) scan(ctx context.Context) (began uint32, err error) {
	c.scanning.Lock()
	defer c.scanning.Unlock()
	began = c.clock()
	err = c.flows.Walk(ctx, func(list []netip.Addr) {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, a := range list {
			if at, ok := c.findAddr(a.As16()); ok {
				c.addrs.at(at).alive = began
			}
		}
	})
	if err == nil {
		c.mu.Lock()
		c.scanned = began
		c.mu.Unlock()
	}
	return began, err
}

// scanIfOld is scan, unless the last one is a few seconds old.
func (c *Cache) scanIfOld(ctx context.Context) error {
	now := c.clock()
	c.mu.Lock()
	scanned := c.scanned
	c.mu.Unlock()
	if scanned != 0 && now < scanned+5 {
		return nil
	}
	_, err := c.scan(ctx)
	return err
}

// through calls visit for all places below end, many at a time with the lock
// held. visit returns how much work a place was: stepPlaces is a step's.
func (c *Cache) through(end func() uint32, visit func(at uint32) int, done func()) {
	for at := uint32(0); ; {
		c.mu.Lock()
		for work := 0; work < stepPlaces && at < end(); at++ {
			work += visit(at)
		}
		if done != nil {
			done()
		}
		last := at >= end()
		c.mu.Unlock()
		if last {
			return
		}
		time.Sleep(stepPause)
	}
}

const writeWork = stepPlaces / stepWrites

// expired tells whether there is something whose time is over.
func (c *Cache) expired(now uint32) (found bool) {
	until := func(end *uint32) func() uint32 {
		return func() uint32 {
			if found {
				return 0
			}
			return *end
		}
	}
	c.through(until(&c.pairs.end), func(at uint32) int {
		p := c.pairs.at(at)
		found = found || p.learned != 0 && p.expires < now
		return 1
	}, nil)
	c.through(until(&c.addrs.end), func(at uint32) int {
		a := c.addrs.at(at)
		found = found || a.used && a.first == none && a.inherited+inheritance < now
		return 1
	}, nil)
	return found
}

// sweep looks for flows, and then forgets what had expired by then and is not
// in use, and what is too much.
func (c *Cache) sweep(ctx context.Context) error {
	began, err := c.scan(ctx)
	c.mu.Lock()
	switch {
	case err == nil:
		c.blind = 0
	case c.blind == 0:
		c.blind = began
	}
	blind := c.blind
	c.mu.Unlock()
	if ctx.Err() != nil || blind != 0 && blind+blindFor > began {
		return err
	}
	// Else nobody will tell what is in use: time alone decides.
	c.tend(began)
	c.drop(began)
	c.trim(began)
	return err
}

// drop forgets what had expired when a look for flows began that saw none to it.
func (c *Cache) drop(began uint32) {
	var touched []uint32
	c.through(func() uint32 { return c.pairs.end }, func(at uint32) int {
		p := c.pairs.at(at)
		if p.learned == 0 || p.expires >= began || c.addrs.at(p.addr).alive >= began {
			return 1
		}
		touched = append(touched, p.addr)
		c.forget(at)
		return writeWork
	}, func() {
		c.settleLeft(touched)
		touched = touched[:0]
	})
}

// twinLooks is how many other names of an address are looked at to find one for
// the same selectors.
const twinLooks = 32

// superfluous tells whether it is plain that an address has the same set without
// one of its names: that is for no selector, or one near it in the list for the
// same. To make the set up anew takes all names of the address, of which there may
// be hundreds of thousands; one by one they must not be gone through for each.
func (c *Cache) superfluous(p *pair) bool {
	if c.u == nil || c.addrs.at(p.addr).epoch != c.u.epoch {
		return false // not known anyway
	}
	set := c.setOfName(p.name)
	if set == 0 {
		return true
	}
	older, newer := p.nextAddr, p.prevAddr
	for range twinLooks / 2 {
		if older != none {
			twin := c.pairs.at(older)
			if c.setOfName(twin.name) == set {
				return true
			}
			older = twin.nextAddr
		}
		if newer != none {
			twin := c.pairs.at(newer)
			if c.setOfName(twin.name) == set {
				return true
			}
			newer = twin.prevAddr
		}
	}
	return false
}

// forget removes a pair, and its name if it was the last. The address is to be
// settled.
func (c *Cache) forget(at uint32) {
	p := c.pairs.at(at)
	nameAt := p.name
	if !c.superfluous(p) {
		c.stale(c.addrs.at(p.addr), c.clock())
	}
	c.removePair(at)
	c.learned++
	if c.names.at(nameAt).pairs == 0 {
		c.unmatch(nameAt)
		c.removeName(nameAt)
	}
}

// settleLeft settles addresses that lost a name.
func (c *Cache) settleLeft(touched []uint32) {
	now := c.clock()
	for _, at := range touched {
		a := c.addrs.at(at)
		switch {
		case !a.used:
		case a.first != none:
			_, err := c.settle(at, now, true)
			c.note("settle", err)
		default:
			a.inherited = 0 // its time is over, should this fail
			c.note("settle", c.disown(at, a, now))
		}
	}
}

// tend looks after addresses that nobody asks for: rows of a predecessor whose
// time is over, those that could not be written, and those that wait for an
// identity.
func (c *Cache) tend(began uint32) {
	c.mu.Lock()
	owed := c.owed
	c.owed = false
	c.mu.Unlock()
	c.through(func() uint32 { return c.addrs.end }, func(at uint32) int {
		a := c.addrs.at(at)
		switch {
		case !a.used:
			return 1
		case a.first == none:
			if a.inherited+inheritance < began && a.alive < began {
				c.settleLeft([]uint32{at})
				return writeWork
			}
			return 1
		case c.u == nil:
			return 1
		case owed || a.epoch != c.u.epoch || a.set != 0 && c.u.sets[a.set].id == 0:
			_, err := c.settle(at, c.clock(), true)
			c.note("settle", err)
			return writeWork
		}
		return 1
	}, nil)
}

// tendPods forgets pods that asked for nothing that is still known.
func (c *Cache) tendPods() {
	c.through(func() uint32 { return c.names.end }, func(at uint32) int {
		if n := c.names.at(at); n.pairs > 0 {
			c.pods.met(n)
		}
		return 1
	}, nil)
	c.mu.Lock()
	c.pods.endRound()
	c.mu.Unlock()
}

// note logs an error, unless it was the last one of its kind.
func (c *Cache) note(what string, err error) {
	if err == nil {
		return
	}
	if text := err.Error(); c.said[what] != text {
		c.said[what] = text
		c.log.Error("names", "doing", what, "error", err)
	}
}
