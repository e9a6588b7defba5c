package fqdn

import (
	"context"
	"errors"
	"time"
)

const (
	// A sweep comes often enough for short lives to end about in time.
	sweepLeast, sweepMost = time.Second, 5 * time.Second
	// Looking for flows takes a tenth of a second of a processor where there are
	// 250,000: it gets one part of so many of the time.
	sweepShare = 50
	// pressedEvery is how often it is looked for what can go where there is too
	// much: as an answer without room is a connection refused, it may then take
	// a third of the time.
	pressedEvery = time.Second
	pressedShare = 2
	// waitedEvery is pressedEvery while answers wait for room, or will soon: they
	// do no longer than patience, part of which a sweep takes.
	waitedEvery = 100 * time.Millisecond
	// inspectEvery is how often the whole table is compared with what it should
	// be: a predecessor may still have written to it.
	inspectEvery = time.Minute
	// doubtFor is how long after a predecessor was heard of it may still change
	// rows, in seconds: it retires as soon as this process has the new flows.
	doubtFor = 3 * 60
)

// runner is what Run remembers.
type runner struct {
	*Cache
	looked  time.Time // the last time
	looks   int
	swept   time.Time     // when the last sweep ended
	took    time.Duration // that it took
	pressed bool          // there is too much
	saving  saving
	// inspected is when the table was.
	inspected time.Time
}

// Run does what time brings until ctx ends: expiry, liveness, checkpoints. It
// writes a last checkpoint then. To be called once.
func (c *Cache) Run(ctx context.Context) error {
	r := &runner{Cache: c, inspected: time.Now()}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	c.setRunning(true)
	defer c.setRunning(false)
	for {
		var due <-chan time.Time
		if r.pressed {
			due = time.After(time.Until(r.due()))
		}
		select {
		case <-ctx.Done():
			if err := c.Save(); !errors.Is(err, errOthers) {
				return err
			}
			return nil
		case <-c.kick:
			r.pressed = true
		case <-due:
		case <-tick.C:
		}
		r.step(ctx)
	}
}

func (c *Cache) setRunning(on bool) {
	c.mu.Lock()
	c.running = on
	c.mu.Unlock()
}

// due is when the next sweep may be, if there is too much.
func (r *runner) due() time.Time {
	r.mu.Lock()
	soon := r.waiting > 0 || r.pairs.len() > (r.settings.Addresses+r.settings.greedy())/2
	r.mu.Unlock()
	if soon {
		return r.swept.Add(max(waitedEvery, min(r.took*pressedShare, patience/4)))
	}
	return r.swept.Add(max(pressedEvery, r.took*pressedShare))
}

// step does what is due.
func (r *runner) step(ctx context.Context) {
	c := r.Cache
	c.mu.Lock()
	settings, retired, doubt := c.settings, c.retired, c.doubt
	c.mu.Unlock()
	if retired {
		return
	}
	every := min(max(settings.MinTTL/4, sweepLeast), sweepMost)
	if r.pressed && !time.Now().Before(r.due()) {
		r.pressed = false
		r.sweep(ctx)
	}
	if time.Since(r.looked) >= every {
		r.looked = time.Now()
		now := c.clock()
		if time.Since(r.swept) >= max(every, r.took*sweepShare) && c.expired(now) {
			r.sweep(ctx)
		} else {
			c.tend(0)
		}
		c.tendWants(now)
		if r.looks++; r.looks%podRounds == 0 {
			c.tendPods()
		}
	}
	if time.Since(r.inspected) >= inspectEvery {
		r.inspected = time.Now()
		r.note("compare the table", c.inspect(ctx))
		if c.clock() < doubt {
			c.verify()
		}
	}
	r.save()
}

func (r *runner) sweep(ctx context.Context) {
	began := time.Now()
	r.note("look for what is in use", r.Cache.sweep(ctx))
	r.swept = time.Now()
	r.took = r.swept.Sub(began)
}
