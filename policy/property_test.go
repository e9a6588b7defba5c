package policy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/weirnet/weir/identity"
)

// naive judges a flow rule by rule, without tables.
type naive struct {
	action   Action // 0: default deny
	reason   RefuseReason
	allowAll bool
	http     []string
}

// naively says what the rules say of a flow between a pod and a peer.
func naively(e *Engine, subject, p *peer, d Direction, proto uint8, port uint16) naive {
	enforced, defaultDeny := false, false
	var kinds []l7Kind
	out := naive{}
	allowed := false
	for _, pol := range e.policiesFor(subject) {
		for _, r := range pol.rules {
			if r.direction != d || !r.selects(subject) {
				continue
			}
			if r.closed {
				return naive{action: Refuse, reason: RefusedPolicy}
			}
			enforced, defaultDeny = true, defaultDeny || r.defaultDeny
		}
	}
	for _, pol := range e.policiesFor(subject) {
		for _, r := range pol.rules {
			if r.direction != d || !r.selects(subject) {
				continue
			}
			if !r.any && !slices.ContainsFunc(r.peers, func(s *selector) bool { return s.matches(p) }) {
				continue
			}
			for _, g := range r.grants {
				if !naivePorts(g, d, subject, p, proto, port) {
					continue
				}
				switch {
				case r.deny:
					return naive{action: Deny}
				case g.l7 == nil:
					allowed, out.allowAll = true, true
				default:
					allowed = true
					kinds = append(kinds, g.l7.kind)
					for _, h := range g.l7.http {
						out.http = append(out.http, h.Path)
						out.allowAll = out.allowAll || h.Path == ""
					}
				}
			}
		}
	}
	if !enforced {
		return naive{action: Allow}
	}
	if !defaultDeny {
		allowed, out.allowAll = true, true
	}
	switch {
	case !allowed:
		return naive{}
	case len(kinds) == 0:
		return naive{action: Allow}
	case slices.ContainsFunc(kinds, func(k l7Kind) bool { return k != kinds[0] }):
		return naive{action: Refuse, reason: RefusedL7Conflict}
	case kinds[0] != l7HTTP:
		return naive{action: Refuse, reason: RefusedL7Unsupported}
	}
	out.action = Redirect
	slices.Sort(out.http)
	out.http = slices.Compact(out.http)
	return out
}

func naivePorts(g *portGrant, d Direction, subject, p *peer, proto uint8, port uint16) bool {
	if g.all {
		return true
	}
	for _, q := range g.ports {
		if q.proto == proto && (q.bits == 0 || port>>(16-q.bits) == q.port>>(16-q.bits)) {
			return true
		}
	}
	for _, n := range g.names {
		if !slices.Contains(n.protos, proto) {
			continue
		}
		who, end := p, uint16(0)
		if d == Ingress {
			who, end = subject, n.end
		}
		for _, np := range who.ports {
			if np.Name == n.name && np.Protocol == proto && port >= np.Port && port <= max(np.Port, end) {
				return true
			}
		}
	}
	return false
}

// looked is what the tables say of the same flow.
func looked(t *testing.T, tb *tables, r *Resolved, d Direction, id identity.ID, proto uint8, port uint16) naive {
	if !r.Enforced[d] {
		return naive{action: Allow}
	}
	en, ok := Lookup(r.Entries, d, []identity.ID{id}, proto, port)
	if !ok {
		return naive{}
	}
	out := naive{action: en.Action, reason: en.Reason}
	if en.Action == Redirect {
		set := tb.ruleSets[en.RuleSet]
		if set == nil {
			t.Fatalf("rule set %d is not there", en.RuleSet)
		}
		out.allowAll = set.AllowAll
		for _, h := range set.HTTP {
			out.http = append(out.http, h.Path)
		}
		slices.Sort(out.http)
	}
	return out
}

func (n naive) String() string {
	return fmt.Sprint(n.action, " ", n.reason, " ", n.allowAll, " ", n.http)
}

// TestTablesSayWhatRulesSay compares the tables with the rules, one flow at a
// time, in random clusters that change; and what came of many changes with
// what comes of the same objects at once.
func TestTablesSayWhatRulesSay(t *testing.T) {
	rounds, flows := 30, 0
	if testing.Short() {
		rounds = 8
	}
	for seed := range rounds {
		r := random{rand.New(rand.NewPCG(uint64(seed), 1))}
		e, err := NewEngine(Options{NodeName: "n1"})
		if err != nil {
			t.Fatal(err)
		}
		tb := newTables()
		objects := map[Object]Change{}
		for range 12 {
			var batch []Change
			for range 1 + r.IntN(6) {
				var c Change
				switch r.IntN(3) {
				case 0:
					c = r.pod(r.IntN(14))
				case 1:
					c = r.policy(r.IntN(12))
					if old, ok := objects[c.Object]; ok && r.some(70) {
						c = r.vary(old)
					}
				default:
					c = r.other(r.IntN(7))
				}
				if r.some(15) {
					c.Value = nil
				}
				if batch = append(batch, c); c.Value == nil {
					delete(objects, c.Object)
				} else {
					objects[c.Object] = c
				}
			}
			d, err := e.Apply(batch)
			if err != nil {
				t.Fatal(err)
			}
			tb.apply(t, d)
			flows += compareFlows(t, e, tb)
			if t.Failed() {
				t.Fatalf("seed %d", seed)
			}
		}
		again, err := NewEngine(Options{NodeName: "n1", Seeds: tb.numbers})
		if err != nil {
			t.Fatal(err)
		}
		var all []Change
		for _, c := range objects {
			all = append(all, c)
		}
		d, err := again.Apply(all)
		if err != nil {
			t.Fatal(err)
		}
		tb2 := newTables()
		for id, digest := range tb.numbers.Rules { // what a predecessor handed over
			tb2.numbers.Rules[id] = digest
		}
		for id, digest := range tb.numbers.Identities {
			tb2.numbers.Identities[id] = digest
		}
		for id, digest := range tb.numbers.Policies {
			tb2.numbers.Policies[id] = digest
		}
		for id, digest := range tb.numbers.RuleSets {
			tb2.numbers.RuleSets[id] = digest
		}
		tb2.apply(t, d)
		same(t, fmt.Sprintf("seed %d: changes against all at once", seed), tb.text(e), tb2.text(again))
		if t.Failed() {
			t.FailNow()
		}
	}
	t.Logf("%d flows", flows)
}

var askedPorts = []struct {
	proto uint8
	port  uint16
}{
	{protoTCP, 80}, {protoTCP, 81}, {protoTCP, 85}, {protoTCP, 8080}, {protoTCP, 9999}, {protoUDP, 80}, {protoUDP, 53},
	{protoSCTP, 80}, {protoICMP, 8}, {protoICMP, 0}, {protoICMPv6, 8}, {47, 0},
}

func compareFlows(t *testing.T, e *Engine, tb *tables) (flows int) {
	for _, s := range e.subjects {
		r := tb.policies[s.id]
		for a, p := range naivePeers(e) {
			for _, q := range askedPorts {
				for _, d := range []Direction{Ingress, Egress} {
					flows++
					who := tb.who(a)
					got, want := looked(t, tb, r, d, who.Identity, q.proto, q.port), naively(e, s.peer, p, d, q.proto, q.port)
					if got.String() != want.String() {
						t.Errorf("%s %v %v: %s (%v) protocol %d port %d: tables say %v, rules %v", d, s.peer.labels, s.peer.ports, a,
							e.IdentityLabels(who.Identity), q.proto, q.port, got, want)
						return flows
					}
					if flows%8 == 0 {
						compareAsked(t, e, s, r, d, a, who.Identity, q.proto, q.port)
					}
				}
			}
		}
	}
	return flows + compareServices(t, e, tb)
}

// compareAsked holds what a question is answered with to the table.
func compareAsked(t *testing.T, e *Engine, s *subject, r *Resolved, d Direction, a netip.Addr, id identity.ID, proto uint8, port uint16) {
	f, err := e.asked(end{pod: s.peer}, d)
	if err != nil {
		t.Fatal(err)
	}
	p, _ := e.prefixes.lookup(a)
	got, gotOK, err := f.judge(p, proto, port)
	if err != nil {
		t.Fatal(err)
	}
	if p.kind == servicePeer {
		return // judged by its backends
	}
	if want, ok := Lookup(r.Entries, d, []identity.ID{id}, proto, port); got != want || gotOK != ok || f.enforced != r.Enforced[d] {
		t.Errorf("%s %v: %s protocol %d port %d: answered with %+v %v, table says %+v %v", d, s.peer.labels, a, proto, port, got, gotOK, want, ok)
	}
}
