package fqdn

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Learn takes in an answer. It returns when the kernel's table says for each
// of its addresses who it is now: the identity of exactly those selectors that
// match one of the names the address stands for. The answer may be released
// then. An error tells what could not be entered, of an answer that may be
// released all the same: those addresses are then denied where names decide.
//
// Where there is no such identity yet, and an agent that makes some listens, or
// no room until Run has found what can go, it waits for a moment, or until ctx ends; then the address gets the identity of
// as many of these selectors as there is one for. Whoever must not wait calls it
// with a ctx that has ended: where it would have to, it fails with ctx's error,
// and has to be called again before the answer is released. Before the first SetNames it
// writes nothing. Addresses that can't be outside peers, and denied ones, are
// counted and left out; a pod's, a node's or a service's is written, and the kernel does not ask
// for it. Where nothing is new it takes a microsecond or two and allocates
// nothing.
func (c *Cache) Learn(ctx context.Context, a Answer) error {
	now := c.clock()
	c.mu.Lock()
	defer c.mu.Unlock()
	full, err := c.enter(&a, now)
	pod := c.pods.number(a.Pod)
	if full > 0 && c.mayWait(pod) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		full, err = c.awaitRoom(ctx, &a, pod)
		now = c.clock()
	}
	c.counts.Full += full
	c.use(a.Records, pod, now)
	until, settleErr := c.settleAll(a.Records, now, true)
	if !until.IsZero() {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		settleErr = c.await(ctx, a.Records, until)
	}
	if err == nil {
		return settleErr
	}
	return errors.Join(err, settleErr)
}

// enter notes what an answer says.
func (c *Cache) enter(a *Answer, now uint32) (full uint64, err error) {
	some := false
	for i := range a.Records {
		if c.outside(a.Records[i].Addr) {
			some = true
		} else {
			c.counts.Refused++
		}
	}
	if !some {
		return 0, nil
	}
	scope, ok := c.scopes.number(a.Namespace)
	if !ok {
		return 0, fmt.Errorf("too many namespaces to know what names stand for in %.100q", a.Namespace)
	}
	defer c.scopes.tidy(scope)
	pod := c.pods.number(a.Pod)
	full, err = c.enterName(a.Name, scope, a.Records, pod, now)
	for _, text := range a.Chain {
		if n, e := c.enterName(text, scope, a.Records, pod, now); e != nil {
			full, err = full+n, e
		}
	}
	return full, err
}

// enterName notes the addresses of one name. full counts those without room.
func (c *Cache) enterName(text string, scope uint16, records []Record, pod, now uint32) (full uint64, err error) {
	if len(text) > maxName {
		return 0, fmt.Errorf("a name of %d bytes", len(text))
	}
	n, known := c.findName(text, scope)
	if known {
		c.rescue(c.names.at(n), pod)
	}
	for i := range records {
		r := &records[i]
		if !c.outside(r.Addr) {
			continue
		}
		expires := now + c.seconds(r.TTL)
		ip := r.Addr.As16()
		a, there := c.findAddr(ip)
		if known && there {
			if p, ok := c.findPair(n, a); ok {
				c.renew(c.pairs.at(p), expires, now)
				continue
			}
		}
		owner := pod
		if known {
			owner = c.names.at(n).owner
		}
		if !c.room(known, owner) {
			full, err = full+1, fmt.Errorf("%s of %s: %w", r.Addr, text, ErrFull)
			continue
		}
		if !known {
			n, known = c.addName(text, scope, pod), true
		}
		if !there {
			a = c.addAddr(ip)
		}
		c.pair(n, a, expires, now)
	}
	if known {
		c.names.at(n).asked(pod)
	}
	return full, err
}

func (c *Cache) renew(p *pair, expires, now uint32) {
	p.learned = now
	if expires > p.expires {
		p.expires = expires
		c.renewed++
	}
}

// pair makes an address one of a name's.
func (c *Cache) pair(n, a, expires, now uint32) {
	c.pairs.at(c.attach(n, a, now, now)).expires = expires
	if int(c.names.at(n).pairs) > c.settings.PerName {
		c.look()
	}
}

// attach makes an address one of a name's that was learned then, and what is known
// of the address include it.
func (c *Cache) attach(n, a, learned, now uint32) (place uint32) {
	addr := c.addrs.at(a)
	if addr.first == none {
		c.stale(addr, now) // what a predecessor knew of it counts no more
	}
	place = c.addPair(n, a, learned)
	c.learned++
	if c.u != nil && addr.epoch == c.u.epoch {
		c.assign(addr, c.u.join(addr.set, c.setOfName(n)), now)
	}
	return place
}

// seconds is how long an address is believed.
func (c *Cache) seconds(ttl time.Duration) uint32 {
	ttl = min(max(ttl, c.settings.MinTTL), c.settings.MaxTTL)
	return uint32((ttl + time.Second - 1) / time.Second)
}

// settleAll settles the addresses of records, and tells until when an identity
// is waited for; zero: none is.
func (c *Cache) settleAll(records []Record, now uint32, patient bool) (until time.Time, err error) {
	for i := range records {
		if !c.outside(records[i].Addr) {
			continue
		}
		at, ok := c.findAddr(records[i].Addr.As16())
		if !ok {
			continue // no room
		}
		wait, e := c.settle(at, now, patient)
		if e != nil {
			err = e
		}
		if until.IsZero() || !wait.IsZero() && wait.Before(until) {
			until = wait
		}
	}
	return until, err
}

// await waits until the addresses are settled. It lets go of the lock meanwhile.
func (c *Cache) await(ctx context.Context, records []Record, until time.Time) (err error) {
	c.counts.Waited++
	for patient := true; !until.IsZero(); {
		changed := c.changed
		c.mu.Unlock()
		t := time.NewTimer(time.Until(until))
		select {
		case <-changed:
		case <-t.C:
		case <-ctx.Done():
			patient = false
		}
		t.Stop()
		now := c.clock()
		c.mu.Lock()
		until, err = c.settleAll(records, now, patient)
	}
	return err
}
