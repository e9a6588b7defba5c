package proxy

import (
	"context"
	"sync"
	"time"
)

// departure is how and when a process ends. What asks for it may come again and
// again; the first to ask counts, but a later one may have it end sooner, or
// tell that there is a successor by now.
type departure struct {
	begun chan struct{} // closed when one has asked

	mu        sync.Mutex
	asked     bool
	until     time.Time
	restart   bool
	successor bool
}

// leave says why and how a proxy ends.
type leave struct {
	timeout   time.Duration
	restart   bool
	successor bool // new flows go to another proxy
}

func newDeparture() departure { return departure{begun: make(chan struct{})} }

func (d *departure) ask(why leave) {
	d.mu.Lock()
	defer d.mu.Unlock()
	until := time.Now().Add(why.timeout)
	if !d.asked || until.Before(d.until) {
		d.until = until
	}
	d.successor = d.successor || why.successor
	if !d.asked {
		d.asked, d.restart = true, why.restart
		close(d.begun)
	}
}

// plan is what was asked for last. The zero time: nothing was.
func (d *departure) plan() (until time.Time, successor, restart bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.until, d.successor, d.restart
}

// successorPatience is how long a process that is told to end goes on as before:
// an agent may bring a successor, also one that is only about to take the place
// of another. At most half of the process's time.
const successorPatience = 10 * time.Second

// lingering is how long a process with a successor stays at least: what came to
// its sockets before the kernel turned to the successor may not have been read
// yet where the machine is busy.
const lingering = time.Second

// tellEvery is how often the successor is told what was learned since: a row of
// the table that it can't explain is kept for longer.
const tellEvery = 15 * time.Second

// drainEvery is how often it is looked whether a drain is over.
const drainEvery = 20 * time.Millisecond

// depart accepts nothing new, or, where there is a successor, hands it what
// stands between two messages; lets the rest go on at most as long as was asked
// for; and returns when no connection is left. When ctx ends it gets no more
// than the usual drain.
func (p *process) depart(ctx context.Context, w *wired) {
	tick := time.NewTicker(drainEvery)
	defer tick.Stop()
	asked := ctx.Done()
	retire := sync.OnceFunc(func() {
		// The successor writes the table from now on, and the checkpoints.
		p.group.Go(func() error {
			if err := w.names.Retire(); err != nil {
				p.log.Error("leave what was learned to the successor", "error", err)
			}
			w.data.tellAgain()
			return nil
		})
	})
	until, _, _ := p.departure.plan()
	var succeeded, told time.Time
	hope := time.Now().Add(min(successorPatience, time.Until(until)/2))
	for p.ctx.Err() == nil {
		until, successor, restart := p.departure.plan()
		over := false
		switch {
		case successor:
			w.data.handOver()
			retire()
			if succeeded.IsZero() {
				succeeded, told = time.Now(), time.Now()
			}
			if time.Since(told) >= tellEvery { // what answers to old questions said
				told = time.Now()
				w.data.tellAgain()
			}
			over = w.data.over() && time.Since(succeeded) >= lingering
		case restart || time.Now().After(hope):
			w.refuse()
			w.data.wane()
			over = w.data.over()
		}
		if over || time.Now().After(until) {
			break
		}
		select {
		case <-asked:
			asked = nil
			p.departure.ask(leave{timeout: p.opts.Drain})
		case <-p.ctx.Done():
		case <-tick.C:
		}
	}
	w.data.end()
	for _, l := range w.listeners {
		_ = l.Close()
	}
}
