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
				}
			}
		}
	}
	return flows + compareServices(t, e, tb)
}

// compareServices holds the entries for cluster IPs to the backends' verdicts.
func compareServices(t *testing.T, e *Engine, tb *tables) (flows int) {
	for _, svc := range e.services {
		if svc.src == nil || len(svc.src.ClusterIPs) == 0 || e.services[Object{KindService, "red", e.claims.services[svc.src.ClusterIPs[0]][0].object.Name}] != svc {
			continue
		}
		id := tb.who(svc.src.ClusterIPs[0])
		if labels := e.IdentityLabels(id.Identity); len(labels) != 1 || labels[0] != "service:red/"+svc.object.Name {
			continue // another service has the address
		}
		for _, s := range e.subjects {
			for _, sp := range svc.src.Ports {
				var wants []naive
				for _, sl := range e.slices {
					if sl.Service != svc.object.Name || sl.Namespace != "red" {
						continue
					}
					for _, p := range sl.Ports {
						for _, a := range sl.Addresses {
							if p.Name == sp.Name {
								wants = append(wants, naively(e, s.peer, naivePeers(e)[a], Egress, p.Protocol, p.Port))
							}
						}
					}
				}
				if len(wants) == 0 {
					continue
				}
				flows++
				want := wants[0]
				for _, w := range wants {
					if w.String() != want.String() {
						want = naive{action: Deny} // mixed
					}
				}
				got := looked(t, tb, tb.policies[s.id], Egress, id.Identity, sp.Protocol, sp.Port)
				denied := func(n naive) bool { return n.action == Deny || n.action == 0 }
				itself := naively(e, s.peer, newServicePeer(svc.object), Egress, sp.Protocol, sp.Port)
				switch {
				case got.String() == want.String(), denied(got) && denied(want):
				case want.action == Allow && got.action == Redirect && got.allowAll && len(got.http) == 0:
				case got.action == Deny && itself.action == Deny: // the rules for everybody deny that port
				case got.action == Refuse && want.action == Refuse:
				case got.action == Deny && want.action == Redirect && len(wants) > 1: // equal, but by other rules: another rule set
				default:
					t.Errorf("%v: service %s port %d: tables say %v, backends %v", s.peer.labels, svc.object.Name, sp.Port, got, wants)
				}
			}
		}
	}
	return flows
}

// naivePeers says who each address of the random clusters is, by itself and
// without prefixes.
func naivePeers(e *Engine) map[netip.Addr]*peer {
	out := map[netip.Addr]*peer{}
	for _, text := range []string{"1.2.3.4", "1.2.3.5", "1.2.3.9", "1.2.200.1", "1.200.0.1", "9.9.9.9", "10.0.0.99", "10.0.0.12", "10.200.0.1",
		"192.168.0.1", "192.168.0.2", "192.168.0.3", "2001:db8::1", "2002::1", "10.0.0.10", "10.0.0.11", "10.0.0.13", "fd00::a", "fd00::b", "fd00::10"} {
		a := netip.MustParseAddr(text)
		var owner *Pod
		for _, p := range e.pods {
			if !p.src.HostNetwork && slices.Contains(p.src.Addresses, a) && (owner == nil || p.src.Created > owner.Created ||
				p.src.Created == owner.Created && p.src.Namespace+"/"+p.src.Name < owner.Namespace+"/"+owner.Name) {
				owner = p.src
			}
		}
		nodes := map[string]int{}
		for _, n := range e.nodes {
			if slices.Contains(n.Addresses, a) {
				nodes[n.Name]++
			}
		}
		for _, p := range e.pods {
			if p.src.HostNetwork && slices.Contains(p.src.Addresses, a) {
				nodes[p.src.Node]++
			}
		}
		api := e.slices[Object{KindEndpointSlice, "default", "kubernetes"}]
		isAPI := api != nil && slices.Contains(api.Addresses, a)
		_, inRange := e.nodes["n1"]
		switch {
		case owner != nil:
			out[a] = e.podPeer(owner)
		case len(nodes) > 0:
			out[a] = e.nodePeerOf(nodes, isAPI)
		case isAPI:
			out[a] = newWorldPeer(hostPrefix(a), true)
		case inRange && netip.MustParsePrefix("10.0.0.0/25").Contains(a):
			out[a] = newUnknownPeer()
		default:
			out[a] = newWorldPeer(hostPrefix(a), false)
		}
	}
	return out
}
