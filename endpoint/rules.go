package endpoint

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/policy"
)

// RuleSets takes the L7 rules to the proxy. It returns when a running proxy
// has them in force, or at once when none runs.
// Synced says, once, that the kernel speaks of no other sets than those given.
type RuleSets interface {
	SetRuleSets(ctx context.Context, upsert []*policy.RuleSet, remove []uint32) error
	Synced(ctx context.Context) error
}

const (
	// rulesPatience is how long a pass waits for the proxy to take rule sets or
	// names, once. A proxy that hangs must not hold up what the kernel enforces: then
	// the kernel speaks of sets that the proxy does not know, and denies.
	rulesPatience = 300 * time.Millisecond
	// rulesTimeout is how long the proxy has in all.
	rulesTimeout = 10 * time.Second
)

// ruleSets brings the rule sets to the proxy, one call at a time.
type ruleSets struct {
	proxy RuleSets
	want  map[uint32]*policy.RuleSet
	add   map[uint32]bool // to be sent
	drop  map[uint32]bool // to be taken back
	caller
	// synced: the proxy knows that it has all.
	synced bool
}

// caller calls the proxy, one call at a time.
type caller struct {
	call *proxyCall // that has not ended
}

// proxyCall is one call to the proxy.
type proxyCall struct {
	what   string
	ended  chan error
	waited bool // a pass waited for it
	failed func()
}

func newRuleSets(proxy RuleSets) *ruleSets {
	return &ruleSets{proxy: proxy, want: map[uint32]*policy.RuleSet{}, add: map[uint32]bool{}, drop: map[uint32]bool{}}
}

// set says what rule set id is to be; nil: gone.
func (s *ruleSets) set(id uint32, set *policy.RuleSet) {
	if set == nil {
		delete(s.want, id)
		delete(s.add, id)
		s.drop[id] = true
		return
	}
	s.want[id] = set
	s.add[id] = true
	delete(s.drop, id)
}

// start begins a call; failed is called from finish if it fails.
func (x *caller) start(ctx context.Context, what string, do func(context.Context) error, failed func()) {
	c := &proxyCall{what: what, ended: make(chan error, 1), failed: failed}
	x.call = c
	go func() {
		ctx, cancel := context.WithTimeout(ctx, rulesTimeout)
		defer cancel()
		c.ended <- do(ctx)
	}()
}

// finish ends the call that is under way, if there is one. It waits a moment
// for it, but only once.
func (x *caller) finish(ctx context.Context) error {
	c := x.call
	if c == nil {
		return nil
	}
	wait := time.Duration(0)
	if !c.waited {
		c.waited, wait = true, rulesPatience
	}
	select {
	case err := <-c.ended:
		x.call = nil
		if err != nil {
			c.failed()
			return fmt.Errorf("%s: %w", c.what, err)
		}
		return nil
	case <-time.After(wait):
		return fmt.Errorf("%s: it does not answer yet", c.what)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// update sends what is wanted, less the sets whose number is unrecorded: the
// kernel may speak of those already, and the proxy denies.
func (s *ruleSets) update(ctx context.Context, unrecorded func(kind, id uint32) bool) error {
	if err := s.finish(ctx); err != nil {
		return err
	}
	ids := slices.DeleteFunc(slices.Sorted(maps.Keys(s.add)), func(id uint32) bool { return unrecorded(bpf.NumberRuleSet, id) })
	if len(ids) == 0 {
		return nil
	}
	sets := make([]*policy.RuleSet, len(ids))
	for i, id := range ids {
		sets[i] = s.want[id]
		delete(s.add, id)
	}
	s.start(ctx, fmt.Sprintf("send %d rule sets to the proxy", len(ids)),
		func(ctx context.Context) error { return s.proxy.SetRuleSets(ctx, sets, nil) },
		func() {
			for _, id := range ids {
				if s.want[id] != nil {
					s.add[id] = true
				}
			}
		})
	return s.finish(ctx)
}

// prune takes back what is not wanted.
func (s *ruleSets) prune(ctx context.Context) error {
	if err := s.finish(ctx); err != nil || len(s.drop) == 0 {
		return err
	}
	ids := slices.Sorted(maps.Keys(s.drop))
	clear(s.drop)
	s.start(ctx, fmt.Sprintf("take %d rule sets from the proxy", len(ids)),
		func(ctx context.Context) error { return s.proxy.SetRuleSets(ctx, nil, ids) },
		func() {
			for _, id := range ids {
				if s.want[id] == nil {
					s.drop[id] = true
				}
			}
		})
	return s.finish(ctx)
}

// sync tells the proxy, once, that it has all rule sets.
func (s *ruleSets) sync(ctx context.Context) error {
	if err := s.finish(ctx); err != nil || s.synced {
		return err
	}
	s.synced = true
	s.start(ctx, "tell the proxy that it has all rule sets", s.proxy.Synced, func() { s.synced = false })
	return s.finish(ctx)
}

// settled tells whether the proxy has all.
func (s *ruleSets) settled() bool { return s.call == nil && len(s.add)+len(s.drop) == 0 && s.synced }
