package policy

import (
	"cmp"
	"net/netip"
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
					// What names say must be found, so what an outside address is sent to the
					// proxy for may not count for it.
					yields := tb.who(a).World && d == Egress && len(tb.names) > 0
					if got, want := tb.verdictOf(u, d, one, q.proto, q.port), tb.strictestOf(all, d, one, q.proto, q.port); got != want &&
						(!yields || want.Action != Redirect || got.Action != Deny && (want.RuleSet < seenOnly || got.Action != Allow)) {
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
						got, want := tb.verdictOf(u, d, many, q.proto, q.port), tb.strictestOf(all, d, many, q.proto, q.port)
						if got.Action == Allow && want.RuleSet >= seenOnly {
							continue
						}
						// Rules for everybody are stricter than with those for names.
						narrower := got.Action == Redirect && want.Action == Redirect && got == tb.strictestOf(all, d, many[:1], q.proto, q.port)
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

// seenOnly, and a protocol, stands for all rule sets that let everything pass.
const seenOnly = 1 << 30

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

// verdictOf is the same, where it makes no difference which rules let all pass.
func (tb *tables) verdictOf(r *Resolved, d Direction, peers []identity.ID, proto uint8, port uint16) Entry {
	v := verdictOf(r, d, peers, proto, port)
	if set := tb.ruleSets[v.RuleSet]; set != nil && set.AllowAll && len(set.HTTP)+len(set.DNS) == 0 && !set.Teaches {
		v.RuleSet = seenOnly + uint32(set.Protocol)
	}
	return v
}

func (tb *tables) strictestOf(all []*Resolved, d Direction, peers []identity.ID, proto uint8, port uint16) Entry {
	out := Entry{Action: Allow}
	for _, r := range all {
		v := tb.verdictOf(r, d, peers, proto, port)
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

// TestStrictestDNSOfNames: one policy sends all DNS to an outside address to the
// proxy, to see it; another one has DNS rules for that of a name's addresses. What
// may be either pod must not ask past these rules.
func TestStrictestDNSOfNames(t *testing.T) {
	for about, rule := range map[string]string{"the same addresses": "toCIDR: [9.9.9.0/24]", "all": "toPorts: [{ports: [{port: '50', endPort: 60, protocol: UDP}]}]"} {
		t.Run(about, func(t *testing.T) { strictestDNS(t, rule) })
	}
}

func strictestDNS(t *testing.T, rule string) {
	t.Helper()
	e, tb := applied(t, Options{NodeName: "n1"}, world, `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: sees, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: web}}
  egress: [{toFQDNs: [{matchName: x.test}]}, {toCIDR: [9.9.9.0/24]}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: strict, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: api}}
  egress:
    - toFQDNs: [{matchName: x.test}]
      toPorts: [{ports: [{port: "53", protocol: ANY}], rules: {dns: [{matchName: only.test}]}}]
    - `+rule+"\n")
	var both []*Resolved
	for _, a := range []string{"10.0.0.11", "10.0.0.12"} {
		both = append(both, tb.policies[tb.endpoints[netip.MustParseAddr(a)].Policy])
	}
	outside := tb.who(netip.MustParseAddr("9.9.9.9")).Identity
	if len(tb.names) == 0 {
		t.Fatal("no names")
	}
	for name := range tb.names {
		known := []identity.ID{outside, name}
		if both, ok := tb.pairs[Pair{outside, name}]; ok {
			known = slices.Insert(known, 0, both)
		}
		for i, want := range []bool{true, false} {
			if v, ok := Lookup(both[i].Entries, Egress, known, protoUDP, 53); !ok || v.Action != Redirect || tb.ruleSets[v.RuleSet].passesAll() != want {
				t.Fatalf("policy %d alone: %+v %v", i, v, ok)
			}
		}
		u := e.strictest(both)
		if v, ok := Lookup(u.Entries, Egress, known, protoUDP, 53); ok && (v.Action == Allow || v.Action == Redirect && tb.ruleSets[v.RuleSet].passesAll()) {
			t.Errorf("both: %+v passes any question", v)
		}
		if v, ok := Lookup(u.Entries, Egress, known, protoUDP, 54); ok && v.Action != Allow {
			t.Errorf("port 54: %+v %v", v, ok)
		}
		// Found before what the name's rules say, a redirect would take their place.
		if v, ok := Lookup(u.Entries, Egress, []identity.ID{outside}, protoUDP, 53); !ok || v.Action == Redirect {
			t.Errorf("an address without names: %+v %v", v, ok)
		}
	}
}
