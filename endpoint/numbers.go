package endpoint

import (
	"errors"
	"fmt"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy"
)

// The numbers that the tables speak of are written down, so that a successor
// means the same by them. Where that fails, the table being full, the policy
// is enforced all the same: a successor that finds a number it knows nothing
// about leaves it alone (blockUnrecorded). Only rule sets wait, since the proxy
// keeps what it was told of a number and shows it to nobody.

func seedsOf(s *policy.Seeds, kind uint32) map[uint32]identity.Digest {
	switch kind {
	case bpf.NumberIdentity:
		return s.Identities
	case bpf.NumberPolicy:
		return s.Policies
	case bpf.NumberRuleSet:
		return s.RuleSets
	case bpf.NumberRule:
		return s.Rules
	}
	return nil
}

var numberKinds = []uint32{bpf.NumberIdentity, bpf.NumberPolicy, bpf.NumberRuleSet, bpf.NumberRule}

// unrecorded tells whether a number is in use that is not written down.
func (r *realiser) unrecorded(kind, id uint32) bool {
	n := bpf.Number{Kind: kind, Id: id}
	_, wanted := r.numbers.want[n]
	_, open := r.numbers.open[n]
	return wanted && open
}

// named are the numbers that the kernel's tables speak of.
func (r *realiser) named() map[bpf.Number]bool {
	named := map[bpf.Number]bool{}
	note := func(kind, id uint32) {
		if id != 0 && (kind != bpf.NumberIdentity || id >= uint32(identity.FirstLocal)) {
			named[bpf.Number{Kind: kind, Id: id}] = true
		}
	}
	for _, p := range r.ipcache.have {
		note(bpf.NumberIdentity, p.Identity)
	}
	for _, e := range r.endpoints.have {
		note(bpf.NumberIdentity, e.Identity)
		note(bpf.NumberPolicy, e.Policy)
	}
	for _, d := range r.devices.have {
		note(bpf.NumberIdentity, d.Identity)
		note(bpf.NumberPolicy, d.Policy)
	}
	for id := range r.policies.infos.have {
		note(bpf.NumberPolicy, id)
	}
	for id := range r.names.have {
		note(bpf.NumberIdentity, id)
	}
	for id, h := range r.policies.have {
		note(bpf.NumberPolicy, id)
		for k, e := range h.entries {
			note(bpf.NumberIdentity, k.Identity)
			note(bpf.NumberRuleSet, e.RuleSet)
			note(bpf.NumberRule, e.Rule)
		}
	}
	return named
}

// blockUnrecorded keeps numbers from being given out that a predecessor's
// tables speak of and that it could not write down, until nothing does any more:
// nobody can tell what they stand for.
func (r *realiser) blockUnrecorded(seeds *policy.Seeds) {
	for n := range r.named() {
		if _, known := r.numbers.have[n]; !known {
			seedsOf(seeds, n.Kind)[n.Id] = identity.DigestOf(fmt.Appendf(nil, "unrecorded\x00%d %d", n.Kind, n.Id))
		}
	}
}

// pruneNumbers gives back the numbers that are free, once nothing can stand for
// them any more: when all is as wanted, else, if there is a need, those that no
// table speaks of.
func (r *realiser) pruneNumbers(settled, needed bool) error {
	hold := func(bpf.Number) bool { return false }
	switch {
	case settled:
	case needed:
		named := r.named()
		hold = func(n bpf.Number) bool {
			// The proxy may have it, and says nothing.
			inProxy := (n.Kind == bpf.NumberRuleSet || n.Kind == bpf.NumberRule) && !r.ruleSets.settled() ||
				n.Kind == bpf.NumberIdentity && !r.nameSets.settled()
			return named[n] || inProxy
		}
	default:
		return nil
	}
	gone, unnameErr := r.unname(hold)
	_, err := r.numbers.prune(func(n bpf.Number) bool {
		return hold(n) || unnameErr != nil && n.Kind == bpf.NumberIdentity && gone[n.Id]
	})
	return errors.Join(unnameErr, err)
}

// unname takes away what says that addresses have identities by their names
// which are about to be free, and returns these. A proxy does that before, but
// where none runs nobody has, and the number may be given out again by a
// successor before one does.
func (r *realiser) unname(hold func(bpf.Number) bool) (map[uint32]bool, error) {
	gone := map[uint32]bool{}
	for id := range r.mayBeNames {
		n := bpf.Number{Kind: bpf.NumberIdentity, Id: id}
		_, wanted := r.numbers.want[n]
		if _, isName := r.names.want[id]; !wanted && !isName && !hold(n) {
			gone[id] = true
		}
	}
	if len(gone) == 0 {
		return nil, nil
	}
	if err := r.k.unname(gone); err != nil {
		return gone, fmt.Errorf("forget addresses of %d identities of names: %w", len(gone), err)
	}
	for id := range gone {
		delete(r.mayBeNames, id)
	}
	return gone, nil
}
