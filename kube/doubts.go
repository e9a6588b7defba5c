package kube

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/policy/api"
)

const (
	// lookPause gathers changes before policies are looked at again.
	lookPause = 2 * time.Second
	// missingFor is how long something must be missing before it is told: what comes
	// in one kubectl apply comes in any order, and pods are replaced. What is so
	// when the agent starts was so before.
	missingFor = 15 * time.Second
)

// Doubts tells of policies that refer to what is not there (policy.References): in
// a Report, and to Conditions. It tells nothing at once, and takes it back soon
// after it is no longer so.
type Doubts struct {
	wake  chan struct{}
	first chan struct{} // closed when what there was at the start has been looked at
	pause time.Duration
	after time.Duration

	mu      sync.Mutex
	pending []policy.Change
	changed func(policy.Object) // what is told of it has changed
	told    map[policy.Object][]*api.Error
}

// NewDoubts returns Doubts that tell nothing before they run.
func NewDoubts() *Doubts {
	return &Doubts{wake: make(chan struct{}, 1), first: make(chan struct{}), pause: lookPause, after: missingFor, changed: func(policy.Object) {}}
}

// After returns a sink that notes what next has taken.
func (d *Doubts) After(next Sink) Sink { return notingSink{next, d.note} }

func (d *Doubts) note(changes []policy.Change) {
	d.mu.Lock()
	d.pending = append(d.pending, changes...)
	d.mu.Unlock()
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// Run looks, until ctx is done. It runs once.
func (d *Doubts) Run(ctx context.Context) error {
	refs := policy.NewReferences()
	found := map[policy.Object][]*api.Error{}
	since := map[doubt]time.Time{}
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for first := true; ; first = false {
		select {
		case <-ctx.Done():
			return nil
		case <-d.wake:
		case <-timer.C:
		}
		timer.Reset(d.pause)
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		d.mu.Lock()
		changes := d.pending
		d.pending = nil
		d.mu.Unlock()
		if refs.Note(changes) {
			found = refs.Dangling()
		}
		after := d.after
		if first {
			after = 0
		}
		timer.Reset(d.tell(found, since, time.Now(), after))
		if first {
			close(d.first)
		}
	}
}

// doubt is one of an object.
type doubt struct {
	of          policy.Object
	field, text string
}

// tell tells what was found and is so for long enough, or, where it is new, will be
// after the given time. It returns when to look again if nothing changes.
func (d *Doubts) tell(found map[policy.Object][]*api.Error, since map[doubt]time.Time, now time.Time, after time.Duration) time.Duration {
	again := time.Hour
	told := map[policy.Object][]*api.Error{}
	still := map[doubt]bool{}
	for o, errs := range found {
		for _, e := range errs {
			id := doubt{o, e.Field, e.Message}
			still[id] = true
			if since[id].IsZero() {
				since[id] = now.Add(after - d.after)
			}
			if left := d.after - now.Sub(since[id]); left > 0 {
				again = min(again, left)
			} else {
				told[o] = append(told[o], e)
			}
		}
	}
	maps.DeleteFunc(since, func(id doubt, _ time.Time) bool { return !still[id] })
	d.mu.Lock()
	before, changed := d.told, d.changed
	d.told = told
	d.mu.Unlock()
	for o := range before {
		if told[o] == nil {
			changed(o)
		}
	}
	for o, errs := range told {
		if !slices.EqualFunc(errs, before[o], func(a, b *api.Error) bool { return a.Field == b.Field && a.Message == b.Message }) {
			changed(o)
		}
	}
	return again
}

// of lists what is told of an object.
func (d *Doubts) of(o policy.Object) []*api.Error {
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.told[o]
}

// Problems is what a Report says of them, ordered.
func (d *Doubts) Problems() []Problem {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []Problem
	for o, errs := range d.told {
		for _, e := range errs {
			out = append(out, policyProblem(Suspicious, o, e).Problem)
		}
	}
	sortProblems(out)
	return out
}
