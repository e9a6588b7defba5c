package endpoint

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/weirnet/weir/policy"
)

// RuleSets takes the L7 rules to the proxy. It returns when a running proxy
// has them in force, or at once when none runs.
// Synced says, once, that the kernel speaks of no other sets than those given.
type RuleSets interface {
	SetRuleSets(ctx context.Context, upsert []*policy.RuleSet, remove []uint32) error
	Synced(ctx context.Context) error
}

// rulesTimeout keeps a proxy that hangs from holding up what the kernel
// enforces. A rule set it does not know it denies.
const rulesTimeout = 2 * time.Second

func (r *realiser) sendRules(ctx context.Context) error {
	if len(r.rulesTo) == 0 {
		return nil
	}
	ids := keysOf(r.rulesTo)
	slices.Sort(ids)
	sets := make([]*policy.RuleSet, len(ids))
	for i, id := range ids {
		sets[i] = r.ruleSets[id]
	}
	ctx, cancel := context.WithTimeout(ctx, rulesTimeout)
	defer cancel()
	if err := r.rules.SetRuleSets(ctx, sets, nil); err != nil {
		return fmt.Errorf("send %d rule sets to the proxy: %w", len(sets), err)
	}
	clear(r.rulesTo)
	return nil
}

func (r *realiser) takeRules(ctx context.Context) error {
	if len(r.rulesOff) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, rulesTimeout)
	defer cancel()
	if err := r.rules.SetRuleSets(ctx, nil, slices.Sorted(maps.Keys(r.rulesOff))); err != nil {
		return fmt.Errorf("take %d rule sets from the proxy: %w", len(r.rulesOff), err)
	}
	clear(r.rulesOff)
	return nil
}

// syncRules tells the proxy that it has all rule sets, as soon as no entry in
// the kernel names another.
func (r *realiser) syncRules(ctx context.Context) error {
	if r.synced {
		return nil
	}
	for _, entries := range r.policies.have {
		for _, e := range entries {
			if e.RuleSet != 0 && r.ruleSets[e.RuleSet] == nil {
				return nil
			}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, rulesTimeout)
	defer cancel()
	if err := r.rules.Synced(ctx); err != nil {
		return fmt.Errorf("tell the proxy that it has all rule sets: %w", err)
	}
	r.synced = true
	return nil
}
