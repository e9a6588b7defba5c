package kube

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/weirnet/weir/policy"
)

const (
	// gather is how long a change waits for others that come with it.
	gather = time.Millisecond
	// A sink that fails is asked again after the first, at the longest after
	// the second.
	offerFirst, offerLast = 20 * time.Millisecond, time.Second
)

// outbox hands what changed in the inboxes to the sink: nothing before each
// kind is known, then everything, then differences.
type outbox struct {
	log  *slog.Logger
	wake chan struct{} // there is something to hand on, maybe

	mu      sync.Mutex
	inboxes []*inbox
	// changes are those that the sink has not taken yet, once it has taken the
	// first: the latest state of each object.
	changes map[policy.Object]any
	started bool
	// delivered: the sink took the first.
	delivered bool
	// complete is what the sink was told last.
	complete bool
	offering bool // the sink is asked just now
	err      error
	// ledger of what is in force; nil: that is not known yet.
	ledger *ledger
	news   chan struct{} // closed when anything is another; nil: nobody waits
	// interrupted is told that a watch of an optional kind begins anew.
	interrupted func()
}

func newOutbox(log *slog.Logger) *outbox {
	return &outbox{log: log, wake: make(chan struct{}, 1), interrupted: func() {}, changes: map[policy.Object]any{}}
}

// changed notes the new state of an object. mu is held.
func (o *outbox) changed(key policy.Object, value any) {
	if o.started {
		o.changes[key] = value
	}
	o.tell()
}

// interrupt tells whom it concerns that a watch of an optional kind begins anew.
func (o *outbox) interrupt() {
	o.mu.Lock()
	tell := o.interrupted
	o.mu.Unlock()
	tell()
}

// tell wakes whoever waits for anything. mu is held.
func (o *outbox) tell() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
	if o.news != nil {
		close(o.news)
		o.news = nil
	}
}

// wait returns when cond, called under the lock, is true.
func (o *outbox) wait(ctx context.Context, cond func() bool) error {
	for {
		o.mu.Lock()
		ok := cond()
		if o.news == nil {
			o.news = make(chan struct{})
		}
		news := o.news
		o.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-news:
		}
	}
}

// settled: the sink has taken everything that has come. mu is held.
func (o *outbox) settled() bool {
	return o.delivered && len(o.changes) == 0 && !o.offering
}

// whole tells whether all kinds are known or left out, so that nothing is missing
// which no earlier state stands in for. mu is held.
func (o *outbox) whole() bool {
	return !slices.ContainsFunc(o.inboxes, func(in *inbox) bool { return !in.status.read() && !in.status.LeftOut })
}

// intact: nothing that is there could never be read. mu is held.
func (o *outbox) intact() bool {
	for _, in := range o.inboxes {
		for _, list := range in.problems {
			for _, p := range list {
				if p.Kind == BrokenObject && !p.Fallback {
					return false
				}
			}
		}
	}
	return true
}

// take returns what the sink shall be asked to take, in a fixed order.
func (o *outbox) take() (changes []policy.Change, complete, news bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.started && !o.whole() && !o.leaveOut() {
		return nil, false, false
	}
	complete = o.whole() && o.intact()
	switch {
	case !o.started:
		for _, in := range o.inboxes {
			for n, e := range in.objects {
				if e.value != nil {
					changes = append(changes, policy.Change{Object: in.key(n), Value: e.value})
				}
			}
		}
		o.started = true
	case len(o.changes) == 0 && o.delivered && complete == o.complete:
		return nil, false, false
	default:
		for key, v := range o.changes {
			changes = append(changes, policy.Change{Object: key, Value: v})
		}
		o.changes = make(map[policy.Object]any)
	}
	o.offering = true
	if o.ledger != nil {
		o.ledger.note(o.known())
	}
	sortChanges(changes)
	return changes, complete, true
}

// took notes the sink's answer. What it did not take is offered again, together
// with what came in the meantime.
func (o *outbox) took(changes []policy.Change, complete bool, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.offering, o.err = false, err
	if err == nil {
		o.complete, o.delivered = complete, true
	} else {
		for _, c := range changes {
			if _, newer := o.changes[c.Object]; !newer {
				o.changes[c.Object] = c.Value
			}
		}
	}
	o.tell()
}

// run hands on until ctx is done.
func (o *outbox) run(ctx context.Context, sink Sink) {
	pause := offerFirst
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-o.wake:
		}
		timer.Reset(gather)
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		changes, complete, news := o.take()
		if !news {
			continue
		}
		start := time.Now()
		err := sink.Submit(ctx, changes)
		o.took(changes, complete, err)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			pause = offerFirst
			o.log.Debug("objects handed on", "changes", len(changes), "took", time.Since(start))
			continue
		}
		o.log.Warn("handing on objects; they are offered again", "changes", len(changes), "error", err)
		timer.Reset(pause)
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		pause = min(2*pause, offerLast)
	}
}

func sortChanges(changes []policy.Change) {
	slices.SortFunc(changes, func(a, b policy.Change) int {
		return cmp.Or(cmp.Compare(a.Object.Kind, b.Object.Kind),
			cmp.Compare(a.Object.Namespace, b.Object.Namespace), cmp.Compare(a.Object.Name, b.Object.Name))
	})
}
