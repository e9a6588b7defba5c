package policy

import (
	"cmp"
	"maps"
	"slices"

	"github.com/weirnet/weir/identity"
)

// strictest is a policy that lets pass only what each of these lets pass, and
// sends to the proxy what any of them sends there. Where several send a flow
// there with different rules, or one does and another denies, it is refused.
//
// For each peer that one of them names, and for every peer, it has an entry at
// the ports of every entry of theirs that may count there. At the narrowest of
// those that a flow lies in, each policy says the same as about the flow. What a
// policy says gets only stricter from wide to narrow (compiler.template), and so
// does what they say together: Lookup finds the narrowest first, and behind it
// nothing that is stricter.
func (e *Engine) strictest(all []*Resolved) *Resolved {
	out := &Resolved{Entries: map[Key]Entry{}}
	for d := range out.Enforced {
		dir := Direction(d)
		var holds []*Resolved
		for _, r := range all {
			out.Selecting[d] = append(out.Selecting[d], r.Selecting[d]...)
			out.Adding[d] = append(out.Adding[d], r.Adding[d]...)
			if r.Enforced[d] {
				holds = append(holds, r)
			}
		}
		out.Selecting[d] = distinctNames(out.Selecting[d])
		out.Adding[d] = distinctNames(out.Adding[d])
		out.Enforced[d] = len(holds) > 0
		out.Open[d] = len(holds) > 0 && !slices.ContainsFunc(holds, func(r *Resolved) bool { return !r.Open[d] })
		named := portsByPeer(holds, dir)
		hidden := e.namesThatHide(holds, dir)
		// Every peer first, and pairs last: who comes later is looked at with those
		// that it falls back to.
		ids := slices.SortedFunc(maps.Keys(named), func(a, b identity.ID) int {
			return cmp.Or(cmp.Compare(len(e.knownAs(a)), len(e.knownAs(b))), cmp.Compare(a, b))
		})
		for _, id := range ids {
			e.judgeTogether(out.Entries, holds, dir, id, named, hidden)
		}
	}
	return out
}

// judgeTogether writes what policies that are all to hold say about one peer.
func (e *Engine) judgeTogether(out map[Key]Entry, all []*Resolved, d Direction, id identity.ID, named map[identity.ID]map[ports]struct{}, hidden []identity.ID) {
	peers := e.knownAs(id)
	at := maps.Clone(named[id])
	for _, id := range append(slices.Clone(peers), identity.Any) {
		maps.Copy(at, named[id])
	}
	for _, p := range slices.SortedFunc(maps.Keys(at), widest) {
		v, ok := e.together(all, d, peers, p)
		if ok && v.Action == Redirect && e.hides(all, d, id, p, v, hidden) {
			if e.passesAll(v) {
				v = Entry{Action: Allow, Rule: v.Rule}
			} else {
				v = Entry{Action: Refuse, Reason: RefusedL7Conflict, Rule: v.Rule}
			}
		}
		if _, own := named[id][p]; !own {
			// Where it makes no difference the other identities of an address, if it
			// has any, are to be found before that for every peer.
			was, found := lookup(out, d, peers, p)
			if found == ok && was.Action == v.Action && was.RuleSet == v.RuleSet {
				continue
			}
		}
		if ok {
			k := p.key(d)
			k.Identity = id
			out[k] = v
		}
	}
}

// widest orders ports so that none comes before others that it lies in.
func widest(a, b ports) int {
	return cmp.Or(cmp.Compare(a.proto, b.proto), cmp.Compare(a.bits, b.bits), cmp.Compare(a.port, b.port))
}

func distinctNames(list []string) []string {
	slices.Sort(list)
	return slices.Compact(list)
}

// portsByPeer lists the ports of all entries of a direction.
func portsByPeer(list []*Resolved, d Direction) map[identity.ID]map[ports]struct{} {
	out := map[identity.ID]map[ports]struct{}{}
	for _, r := range list {
		for k := range r.Entries {
			if k.Direction != d {
				continue
			}
			if out[k.Identity] == nil {
				out[k.Identity] = map[ports]struct{}{}
			}
			out[k.Identity][ports{proto: k.Protocol, port: k.Port, bits: k.PortBits}] = struct{}{}
		}
	}
	return out
}

// knownAs lists the identities that an address with this one is looked up by.
func (e *Engine) knownAs(id identity.ID) []identity.ID {
	if id == identity.Any {
		return nil
	}
	if p := e.peers.byID[id]; p != nil && p.kind == pairPeer {
		return []identity.ID{id, p.pair.outside.id, p.pair.named.id}
	}
	return []identity.ID{id}
}

// namesThatHide lists the names about which some policy has L7 rules, or refuses.
func (e *Engine) namesThatHide(all []*Resolved, d Direction) []identity.ID {
	ids := map[identity.ID]struct{}{}
	for _, r := range all {
		for k, v := range r.Entries {
			if k.Direction != d || v.Action != Refuse && (v.Action != Redirect || e.passesAll(v)) {
				continue
			}
			if p := e.peers.byID[k.Identity]; p != nil && p.kind == namesPeer {
				ids[k.Identity] = struct{}{}
			}
		}
	}
	return slices.Sorted(maps.Keys(ids))
}

// hides tells whether a redirect for outside addresses would be found before what
// one of the policies says of those of them that have certain names. A single
// policy with DNS rules about names leaves such addresses to them
// (compiler.observe); but it may be together with one that has none.
func (e *Engine) hides(all []*Resolved, d Direction, id identity.ID, p ports, v Entry, names []identity.ID) bool {
	if who := e.peers.byID[id]; who == nil || !who.isWorld() {
		return false
	}
	return slices.ContainsFunc(names, func(n identity.ID) bool {
		both, ok := e.together(all, d, []identity.ID{id, n}, p)
		return !ok || both.Action != Deny && !e.alike(both, v)
	})
}

// passesAll tells of a redirect whether it is to see, and everything passes.
func (e *Engine) passesAll(v Entry) bool {
	u := e.ruleSets.byID[v.RuleSet]
	return u != nil && u.set.passesAll()
}

// alike tells whether two redirects come to the same, though by other rules.
func (e *Engine) alike(a, b Entry) bool {
	if a.Action != Redirect || b.Action != Redirect {
		return false
	}
	if a.RuleSet == b.RuleSet {
		return true
	}
	if !e.passesAll(a) || !e.passesAll(b) {
		return false
	}
	x, y := e.ruleSets.byID[a.RuleSet].set, e.ruleSets.byID[b.RuleSet].set
	return x.Protocol == y.Protocol && x.Teaches == y.Teaches && x.TeachesFor == y.TeachesFor
}

// together is what policies that are all to hold say about a peer and ports; not
// ok: at least one of them says nothing, and that denies.
func (e *Engine) together(all []*Resolved, d Direction, peers []identity.ID, p ports) (_ Entry, ok bool) {
	var allow, redirect, refuse Entry
	silent := false
	for _, r := range all {
		v, ok := lookup(r.Entries, d, peers, p)
		switch {
		case !ok:
			silent = true
		case v.Action == Deny:
			return v, true
		case v.Action == Refuse:
			refuse = cmp.Or(refuse, v)
		case v.Action == Allow:
			allow = cmp.Or(allow, v)
		case redirect == Entry{}:
			redirect = v
		case !e.alike(redirect, v):
			refuse = cmp.Or(refuse, Entry{Action: Refuse, Reason: RefusedL7Conflict, Rule: v.Rule})
		}
	}
	switch {
	case refuse != Entry{}:
		return refuse, true
	case redirect == Entry{}:
		return allow, !silent
	case silent:
		// An address may be known by another identity as well, which all of them
		// allow: that must not take it past the proxy.
		return Entry{Action: Refuse, Reason: RefusedL7Conflict, Rule: redirect.Rule}, true
	}
	return redirect, true
}
