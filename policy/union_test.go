package policy

import (
	"cmp"
	"slices"
	"testing"

	"github.com/weirnet/weir/identity"
)

// compareUnions holds the strictest of policies to what each of them says, flow
// by flow: exactly for an address that is known as one thing, and for one that
// has names besides so that nothing passes which one of them would stop.
func compareUnions(t *testing.T, e *Engine, tb *tables) (flows int) {
	var ids []uint32
	for _, s := range e.subjects {
		ids = append(ids, s.id)
	}
	slices.Sort(ids)
	for i := range ids {
		some := ids[i:min(i+1+i%3, len(ids))]
		var all []*Resolved
		for _, id := range some {
			all = append(all, tb.policies[id])
		}
		u := e.strictest(all)
		for _, q := range askedPorts {
			for _, d := range []Direction{Ingress, Egress} {
				for a := range naivePeers(e) {
					flows++
					one := []identity.ID{tb.who(a).Identity}
					if got, want := verdictOf(u, d, one, q.proto, q.port), strictestOf(all, d, one, q.proto, q.port); got != want {
						t.Errorf("policies %v, %s, %s as %v, protocol %d port %d: %+v, want %+v", some, d, a, one, q.proto, q.port, got, want)
						return flows
					}
					for name := range tb.names {
						if !tb.who(a).World || d != Egress {
							break
						}
						many := []identity.ID{tb.who(a).Identity, name}
						if both, ok := tb.pairs[Pair{many[0], name}]; ok {
							many = slices.Insert(many, 0, both)
						}
						got, want := verdictOf(u, d, many, q.proto, q.port), strictestOf(all, d, many, q.proto, q.port)
						// Rules for everybody are stricter than with those for names.
						narrower := got.Action == Redirect && want.Action == Redirect && got == strictestOf(all, d, many[:1], q.proto, q.port)
						if got != want && got.Action != Deny && (!narrower || len(all) == 1) {
							t.Errorf("policies %v, %s, %s as %v, protocol %d port %d: %+v, want %+v or less", some, d, a, many, q.proto, q.port, got, want)
							return flows
						}
					}
				}
			}
		}
	}
	return flows
}

// verdictOf is what becomes of a flow, whatever rule says so.
func verdictOf(r *Resolved, d Direction, peers []identity.ID, proto uint8, port uint16) Entry {
	if !r.Enforced[d] {
		return Entry{Action: Allow}
	}
	v, ok := Lookup(r.Entries, d, peers, proto, port)
	if !ok || v.Action == Refuse {
		return Entry{Action: Deny}
	}
	return Entry{Action: v.Action, RuleSet: v.RuleSet}
}

func strictestOf(all []*Resolved, d Direction, peers []identity.ID, proto uint8, port uint16) Entry {
	out := Entry{Action: Allow}
	for _, r := range all {
		v := verdictOf(r, d, peers, proto, port)
		if v.Action == Deny || out.Action == Redirect && v.Action == Redirect && v.RuleSet != out.RuleSet {
			return Entry{Action: Deny}
		}
		if v.Action == Redirect {
			out = v
		}
	}
	return out
}

// TestStrictestNames: an address that one policy allows by its prefix and sends
// to the proxy by its name, and another one the other way round, passes neither
// unseen.
func TestStrictestNames(t *testing.T) {
	e, err := NewEngine(Options{NodeName: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	const prefix, name = identity.ID(300), identity.ID(301)
	at := func(id identity.ID) Key {
		return Key{Direction: Egress, Identity: id, Protocol: protoTCP, Port: 80, PortBits: 16}
	}
	enforced := [2]bool{false, true}
	first := &Resolved{Enforced: enforced, Entries: map[Key]Entry{at(prefix): {Action: Redirect, RuleSet: 7}, at(name): {Action: Allow}}}
	second := &Resolved{Enforced: enforced, Entries: map[Key]Entry{at(name): {Action: Allow}}}
	u := e.strictest([]*Resolved{first, second})
	if v := verdictOf(u, Egress, []identity.ID{prefix, name}, protoTCP, 80); v.Action == Allow {
		t.Errorf("both: %+v, but the first policy sends it to the proxy", v)
	}
	if v := verdictOf(u, Egress, []identity.ID{name}, protoTCP, 80); v.Action != Allow {
		t.Errorf("the name alone: %+v, both policies allow it", v)
	}
	if v := verdictOf(u, Ingress, nil, protoTCP, 80); v.Action != Allow || cmp.Or(u.Enforced[Ingress], !u.Enforced[Egress]) {
		t.Errorf("ingress: %+v, enforced %v", v, u.Enforced)
	}
}
