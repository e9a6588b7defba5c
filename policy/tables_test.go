package policy

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/weirnet/weir/identity"
)

// tables is what somebody who applies every Delta ends up with.
type tables struct {
	prefixes  map[netip.Prefix]Peer
	policies  map[uint32]*Resolved
	endpoints map[netip.Addr]*Endpoint
	ruleSets  map[uint32]*RuleSet
	names     map[identity.ID]*NameSet
	pairs     map[Pair]identity.ID
	services  map[Frontend]*Backends
	fronts    map[Frontend]*Front
	nodeAddrs map[netip.Addr]bool
	strangers map[string]*Guess
	numbers   Seeds
	// entries are those of policies, brought along by what Deltas say was edited.
	entries map[uint32]map[Key]Entry
}

func newTables() *tables {
	return &tables{map[netip.Prefix]Peer{}, map[uint32]*Resolved{}, map[netip.Addr]*Endpoint{}, map[uint32]*RuleSet{},
		map[identity.ID]*NameSet{}, map[Pair]identity.ID{}, map[Frontend]*Backends{}, map[Frontend]*Front{}, map[netip.Addr]bool{}, map[string]*Guess{},
		Seeds{map[uint32]identity.Digest{}, map[uint32]identity.Digest{}, map[uint32]identity.Digest{}, map[uint32]identity.Digest{}},
		map[uint32]map[Key]Entry{}}
}

func (tb *tables) apply(t testing.TB, d Delta) {
	t.Helper()
	numbers := func(kind string, have, fresh, freed map[uint32]identity.Digest) {
		for id, digest := range fresh {
			if _, ok := have[id]; ok {
				t.Errorf("%s %d is given out twice", kind, id)
			}
			have[id] = digest
		}
		for id := range freed {
			if _, ok := have[id]; !ok {
				t.Errorf("%s %d is freed, but was not given out", kind, id)
			}
			delete(have, id)
		}
	}
	numbers("identity", tb.numbers.Identities, d.Numbers.Identities, d.Freed.Identities)
	numbers("policy", tb.numbers.Policies, d.Numbers.Policies, d.Freed.Policies)
	numbers("rule set", tb.numbers.RuleSets, d.Numbers.RuleSets, d.Freed.RuleSets)
	numbers("rule", tb.numbers.Rules, d.Numbers.Rules, d.Freed.Rules)
	for p, peer := range d.Prefixes {
		if peer.Identity == 0 {
			delete(tb.prefixes, p)
		} else {
			tb.prefixes[p] = peer
		}
	}
	put(tb.policies, d.Policies)
	put(tb.endpoints, d.Endpoints)
	put(tb.ruleSets, d.RuleSets)
	for f, b := range d.Services {
		if b.equal(tb.services[f]) {
			t.Errorf("%v is told again as it was", f)
		}
	}
	put(tb.services, d.Services)
	for f, now := range d.Fronts {
		if was := tb.fronts[f]; (now == nil) == (was == nil) && (now == nil || *now == *was) {
			t.Errorf("front %v is told again as it was", f)
		}
	}
	put(tb.fronts, d.Fronts)
	for a, serves := range d.NodeAddresses {
		if serves == tb.nodeAddrs[a] {
			t.Errorf("node address %v is told again", a)
		}
		if tb.nodeAddrs[a] = serves; !serves {
			delete(tb.nodeAddrs, a)
		}
	}
	for id, set := range d.Names {
		if set == nil && tb.names[id] == nil {
			t.Errorf("names %d are gone, but were not told", id)
		}
	}
	put(tb.names, d.Names)
	put(tb.strangers, d.Strangers)
	for p, id := range d.Pairs {
		if (tb.pairs[p] == 0) == (id == 0) {
			t.Errorf("pair %+v is %d, and was %d", p, id, tb.pairs[p])
		}
		if tb.pairs[p] = id; id == 0 {
			delete(tb.pairs, p)
		}
	}
	for id, r := range d.Policies {
		tb.edit(id, r)
	}
	for id, r := range tb.policies {
		if !maps.Equal(tb.entries[id], r.Entries) {
			t.Errorf("policy %d: what was edited makes %v of it, it is %v", id, tb.entries[id], r.Entries)
		}
	}
	tb.check(t)
}

// edit follows what happened to a policy.
func (tb *tables) edit(id uint32, r *Resolved) {
	switch {
	case r == nil:
		delete(tb.entries, id)
	case r.Edited == nil:
		tb.entries[id] = maps.Clone(r.Entries)
	default:
		for _, k := range r.Edited {
			if e, ok := r.Entries[k]; ok {
				tb.entries[id][k] = e
			} else {
				delete(tb.entries[id], k)
			}
		}
	}
}

func put[K comparable, V any](to map[K]*V, from map[K]*V) {
	for k, v := range from {
		if v == nil {
			delete(to, k)
		} else {
			to[k] = v
		}
	}
}

// check holds what must always be so: every number in a table is given out,
// and what it stands for is there.
func (tb *tables) check(t testing.TB) {
	t.Helper()
	identityKnown := func(where string, id identity.ID) {
		if _, ok := tb.numbers.Identities[uint32(id)]; !ok && id >= identity.FirstLocal {
			t.Errorf("%s: identity %d was not given out", where, id)
		}
	}
	for p, peer := range tb.prefixes {
		identityKnown(p.String(), peer.Identity)
	}
	for f, to := range tb.fronts {
		identityKnown(fmt.Sprint(f), to.Identity)
	}
	for a, e := range tb.endpoints {
		identityKnown(a.String(), e.Identity)
		identityKnown(a.String(), e.Labels)
		if tb.policies[e.Policy] == nil {
			t.Errorf("endpoint %s has policy %d, which is not there", a, e.Policy)
		}
	}
	for id := range tb.names {
		identityKnown("names", id)
	}
	for name, g := range tb.strangers {
		identityKnown(name, g.Identity)
		for a, id := range g.At {
			identityKnown(name+" "+a.String(), id)
		}
		if tb.policies[g.Policy] == nil {
			t.Errorf("stranger %s has policy %d, which is not there", name, g.Policy)
		}
	}
	for p, id := range tb.pairs {
		identityKnown("pair", id)
		if tb.names[p.Names] == nil {
			t.Errorf("pair %+v is of names that are not there", p)
		}
	}
	used := map[uint32]bool{}
	for id, r := range tb.policies {
		if _, ok := tb.numbers.Policies[id]; !ok {
			t.Errorf("policy %d was not given out", id)
		}
		for k, e := range r.Entries {
			identityKnown(fmt.Sprintf("policy %d %+v", id, k), k.Identity)
			if _, ok := tb.numbers.Rules[e.Rule]; !ok && e.Rule != 0 {
				t.Errorf("policy %d %+v: rule %d was not given out", id, k, e.Rule)
			}
			if e.Action == Redirect {
				if used[e.RuleSet] = true; tb.ruleSets[e.RuleSet] == nil {
					t.Errorf("policy %d %+v: rule set %d is not there", id, k, e.RuleSet)
				}
			}
			if k.Port&^mask(k.PortBits) != 0 || k.Protocol == 0 && k.PortBits != 0 {
				t.Errorf("policy %d: %+v is no key", id, k)
			}
		}
	}
	for id := range tb.ruleSets {
		if _, ok := tb.numbers.RuleSets[id]; !ok {
			t.Errorf("rule set %d was not given out", id)
		}
	}
}

// who finds the identity of an address as the kernel does.
func (tb *tables) who(a netip.Addr) Peer {
	for bits := a.BitLen(); bits >= 0; bits-- {
		p, _ := a.Prefix(bits)
		if peer, ok := tb.prefixes[p]; ok {
			return peer
		}
	}
	return Peer{}
}

// text spells the tables without their numbers, for comparison.
func (tb *tables) text(e *Engine) map[string]string {
	out := map[string]string{}
	name := func(id identity.ID) string {
		if id < identity.FirstLocal {
			return fmt.Sprint(id)
		}
		return fmt.Sprintf("%x", tb.numbers.Identities[uint32(id)])
	}
	rule := func(id uint32) string {
		r := e.Rule(id)
		if r == nil {
			if id != 0 {
				return fmt.Sprint("unknown rule ", id)
			}
			return "no rule"
		}
		return fmt.Sprint(*r)
	}
	set := func(id uint32) string {
		rs := tb.ruleSets[id]
		text := fmt.Sprint(rs.AllowAll, rule(rs.AllowRule))
		text += fmt.Sprint(rs.Protocol, rs.Teaches)
		for _, h := range rs.HTTP {
			at := rule(h.Rule)
			h.Rule = 0
			b, _ := json.Marshal(h)
			text += " " + at + string(b)
		}
		for _, d := range rs.DNS {
			text += " " + rule(d.Rule) + d.String()
		}
		return text
	}
	for p, peer := range tb.prefixes {
		out["prefix "+p.String()] = fmt.Sprint(name(peer.Identity), peer.World)
	}
	for id, set := range tb.names {
		out["names "+name(id)] = fmt.Sprint(set.Selectors)
	}
	for p, id := range tb.pairs {
		out["pair "+name(p.Outside)+" "+name(p.Names)] = name(id)
	}
	for a, ep := range tb.endpoints {
		out["endpoint "+a.String()] = fmt.Sprintf("%s/%s %s %x", ep.Namespace, ep.Name, name(ep.Identity), tb.numbers.Policies[ep.Policy])
	}
	for id, r := range tb.policies {
		at := fmt.Sprintf("policy %x", tb.numbers.Policies[id])
		out[at] = fmt.Sprint(r.Enforced, r.Selecting)
		for k, en := range r.Entries {
			text := fmt.Sprint(en.Action, en.Reason, rule(en.Rule))
			if en.Action == Redirect {
				text += " " + set(en.RuleSet)
			}
			out[fmt.Sprintf("%s %s %s %d %d/%d", at, k.Direction, name(k.Identity), k.Protocol, k.Port, k.PortBits)] = text
		}
	}
	return out
}

// same reports where two sets of tables differ.
func same(t testing.TB, what string, got, want map[string]string) {
	t.Helper()
	shown := 0
	for _, k := range slices.Sorted(maps.Keys(want)) {
		if got[k] != want[k] && shown < 5 {
			shown++
			t.Errorf("%s: %s\n got %q\nwant %q", what, k, got[k], want[k])
		}
	}
	for _, k := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[k]; !ok && shown < 5 {
			shown++
			t.Errorf("%s: %s\n got %q\nwant nothing", what, k, got[k])
		}
	}
}
