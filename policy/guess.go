package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/weirnet/weir/identity"
)

// union is the strictest of several policies together; of none, one that lets
// nothing pass.
type union struct {
	id       uint32
	digest   identity.Digest
	subjects []*subject
	users    int
	told     bool // it was in a Delta
	stale    bool // made, or of other subjects, since
}

// settleUnions puts strangers under their policies. Those of subjects are settled.
func (e *Engine) settleUnions() error {
	t := e.strangers
	var failed []error
	var before []*union
	for name, s := range t.byName {
		before = append(before, s.union)
		s.union = nil
		var g *Guess
		switch {
		case s.src == nil, s.alone:
		case s.sameSubject():
			g = &Guess{Identity: s.claim.id, Policy: s.pods[0].subject.id, Exact: true}
			if s.claim.kind == unknownPeer {
				g.Identity = identity.UnknownPod
			}
		default:
			u, err := e.unionOf(s.pods)
			if err != nil {
				failed = append(failed, err)
				continue
			}
			s.union = u
			g = &Guess{Identity: identity.UnknownPod, Policy: u.id}
		}
		if g != nil {
			for _, p := range s.pods {
				g.Pods = append(g.Pods, PodName{p.src.Namespace, p.src.Name, p.src.UID})
			}
			g.At = e.identitiesOf(s, g.Identity)
		}
		if !g.equal(s.told) {
			s.told = g
			e.delta.Strangers[name] = g
		}
		if s.src == nil {
			delete(t.byName, name)
		}
	}
	for _, u := range before {
		if u != nil {
			u.users--
		}
	}
	for digest, u := range t.unions {
		if u.users == 0 {
			delete(t.unions, digest)
			if u.told {
				e.delta.Policies[u.id] = nil
			}
			e.policyNumbers.release(u.id)
			continue
		}
		e.judgeUnion(u)
	}
	return errors.Join(failed...)
}

// identitiesOf lists the addresses of a stranger that are another identity.
func (e *Engine) identitiesOf(s *stranger, id identity.ID) map[netip.Addr]identity.ID {
	var out map[netip.Addr]identity.ID
	for _, a := range s.src.Addresses {
		a = a.Unmap()
		who := e.prefixes.peers[hostPrefix(a)]
		if e.strangers.at[a] != s || who == nil || who.plain().digest != s.claim.digest || who.id == id {
			continue
		}
		if out == nil {
			out = map[netip.Addr]identity.ID{}
		}
		out[a] = who.id
	}
	return out
}

// unionOf finds or makes the policy of a stranger that may be any of these pods.
func (e *Engine) unionOf(pods []*pod) (*union, error) {
	t := e.strangers
	var subjects []*subject
	for _, p := range pods {
		if !slices.Contains(subjects, p.subject) {
			subjects = append(subjects, p.subject)
		}
	}
	slices.SortFunc(subjects, func(a, b *subject) int { return slices.Compare(a.peer.digest[:], b.peer.digest[:]) })
	sum := []byte("any of\x00")
	for _, s := range subjects {
		sum = append(sum, s.peer.digest[:]...)
	}
	digest := identity.DigestOf(sum)
	u := t.unions[digest]
	if u == nil {
		id, err := e.policyNumbers.get(digest)
		if err != nil {
			return nil, fmt.Errorf("number a policy: %w", err)
		}
		u = &union{id: id, digest: digest, stale: true}
		t.unions[digest] = u
	}
	if !slices.Equal(u.subjects, subjects) {
		u.subjects, u.stale = subjects, true
	}
	u.users++
	return u, nil
}

// judgeUnion brings a union up to date with the policies that it is made of.
func (e *Engine) judgeUnion(u *union) {
	changed := u.stale
	all := make([]*Resolved, 0, len(u.subjects))
	for _, s := range u.subjects {
		_, now := e.delta.Policies[s.id]
		changed = changed || now
		if s.resolved != nil {
			all = append(all, s.resolved)
		}
	}
	if !changed {
		return
	}
	u.told, u.stale = true, false
	if len(u.subjects) == 0 || len(all) < len(u.subjects) { // one could not be computed
		e.delta.Policies[u.id] = &Resolved{Enforced: [2]bool{true, true}, Entries: map[Key]Entry{},
			Selecting: [2][]string{{unknownPods}, {unknownPods}}}
		return
	}
	e.delta.Policies[u.id] = e.strictest(all)
}

// unknownPods stands where the policies are named that put a pod under default
// deny, of one that is not known.
const unknownPods = "(no pod is known that it could be)"
