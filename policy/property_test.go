package policy

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy/dnsrules"
)

// naive judges a flow rule by rule, without tables.
type naive struct {
	action   Action // 0: default deny
	reason   RefuseReason
	protocol Protocol
	allowAll bool
	teaches  string   // for whom
	rules    []string // paths of HTTP rules, names and patterns of DNS rules
}

// naively says what the rules say of a flow between a pod and a peer.
func naively(e *Engine, subject, p *peer, d Direction, proto uint8, port uint16) naive {
	enforced, defaultDeny, observed, unseen := false, false, false, false
	var plain, looked []*portGrant
	anyone := false // some plain one is for every peer
	out := naive{}
	for _, pol := range e.policiesFor(subject) {
		for _, r := range pol.rules {
			if r.direction != d || !r.selects(subject) {
				continue
			}
			if r.closed {
				return naive{action: Refuse, reason: RefusedPolicy}
			}
			enforced, defaultDeny, observed = true, defaultDeny || r.defaultDeny, observed || r.fqdns
			unseen = unseen || p.kind == worldPeer && r.fqdns && slices.ContainsFunc(r.grants, func(g *portGrant) bool { return g.l7 != nil && g.l7.kind == l7DNS })
		}
	}
	for _, pol := range e.policiesFor(subject) {
		for _, r := range pol.rules {
			if r.direction != d || !r.selects(subject) {
				continue
			}
			if !r.any && !slices.ContainsFunc(r.peers, func(s *selector) bool { return naiveSelects(s, p) }) {
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
					plain, anyone = append(plain, g), anyone || r.any
				default:
					looked = append(looked, g)
					if g.l7.kind == l7DNS && !r.any && slices.ContainsFunc(r.peers, func(s *selector) bool { return s.particular && naiveSelects(s, p) }) {
						if out.teaches != "all" {
							out.teaches = cmp.Or(pol.object.Namespace, "all")
						}
					}
				}
			}
		}
	}
	if !enforced {
		return naive{action: Allow}
	}
	dnsPort := d == Egress && port == 53 && (proto == protoUDP || proto == protoTCP)
	switch {
	case len(plain)+len(looked) == 0 && defaultDeny:
		return naive{}
	// What names say must be found behind what an address is allowed as; but what
	// everybody is allowed is seen, and comes behind both.
	case len(looked) == 0 && observed && (dnsPort && (!unseen || anyone || !defaultDeny) || d == Egress && !unseen && naiveBehind(e, p, proto, port)):
		return naive{action: Redirect, protocol: ProtocolDNS, allowAll: true}
	case len(looked) == 0:
		return naive{action: Allow}
	case slices.ContainsFunc(looked, func(g *portGrant) bool { return g.l7.kind != looked[0].l7.kind }):
		return naive{action: Refuse, reason: RefusedL7Conflict}
	case looked[0].l7.kind == l7HTTP:
		out.allowAll = len(plain) > 0
	case looked[0].l7.kind == l7DNS && d == Egress:
		out.protocol = ProtocolDNS
		for _, g := range plain {
			out.allowAll = out.allowAll || slices.ContainsFunc(looked, func(l *portGrant) bool { return naiveSame(g, l, p, proto, port) })
		}
	default:
		return naive{action: Refuse, reason: RefusedL7Unsupported}
	}
	out.allowAll = out.allowAll || !defaultDeny
	if out.protocol == ProtocolDNS && proto != protoUDP && proto != protoTCP {
		if out.allowAll {
			return naive{action: Allow}
		}
		return naive{action: Refuse, reason: RefusedL7Unsupported}
	}
	for _, g := range looked {
		for _, h := range g.l7.http {
			out.rules = append(out.rules, h.Path)
			out.allowAll = out.allowAll || h.Path == ""
		}
		for _, r := range g.l7.dns {
			out.rules = append(out.rules, r.String())
		}
	}
	out.action = Redirect
	slices.Sort(out.rules)
	out.rules = slices.Compact(out.rules)
	return out
}

// naiveBehind tells whether a service's port 53 leads there.
func naiveBehind(e *Engine, p *peer, proto uint8, port uint16) (leads bool) {
	if p.kind == pairPeer {
		p = p.pair.outside // whatever its names
	}
	if proto != protoUDP && proto != protoTCP {
		return false
	}
	for _, s := range e.services {
		if s.src == nil {
			continue
		}
		for _, sp := range s.src.Ports {
			if sp.Port != 53 || sp.Protocol != proto {
				continue
			}
			e.behind(s, &sp, func(a netip.Addr, at uint16) {
				who, exact := e.prefixes.lookup(a)
				leads = leads || at == port && who.digest == p.digest && (exact || who.kind != worldPeer) && who.kind != unknownPeer
			})
		}
	}
	return leads
}

// teachesText tells for whom a set teaches.
func teachesText(set *RuleSet) string {
	if !set.Teaches {
		return ""
	}
	return cmp.Or(set.TeachesFor, "all")
}

func naiveSelects(s *selector, p *peer) bool {
	if p.kind == pairPeer {
		return s.matches(p.pair.outside) || s.matches(p.pair.named)
	}
	return s.matches(p)
}

// naiveSame tells whether two port lists have an item in common that holds for
// the port.
func naiveSame(a, b *portGrant, p *peer, proto uint8, port uint16) bool {
	for _, s := range a.spans {
		if s.proto != proto || !slices.Contains(b.spans, s) {
			continue
		}
		if s.name == "" && s.first <= port && port <= s.last || s.name != "" && slices.Contains(p.named(s.name, proto), port) {
			return true
		}
	}
	return false
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
func looked(t *testing.T, tb *tables, r *Resolved, d Direction, ids []identity.ID, proto uint8, port uint16) naive {
	if !r.Enforced[d] {
		return naive{action: Allow}
	}
	en, ok := Lookup(r.Entries, d, ids, proto, port)
	if !ok {
		return naive{}
	}
	out := naive{action: en.Action, reason: en.Reason}
	if en.Action == Redirect {
		set := tb.ruleSets[en.RuleSet]
		if set == nil {
			t.Fatalf("rule set %d is not there", en.RuleSet)
		}
		out.protocol, out.allowAll, out.teaches = set.Protocol, set.AllowAll, teachesText(set)
		for _, h := range set.HTTP {
			out.rules = append(out.rules, h.Path)
		}
		for _, r := range set.DNS {
			out.rules = append(out.rules, r.String())
		}
		slices.Sort(out.rules)
	}
	return out
}

// passesAll tells whether nothing is denied, seen or not.
func (n naive) passesAll() bool {
	return n.action == Allow || n.action == Redirect && n.allowAll && len(n.rules) == 0
}

func (n naive) String() string {
	return fmt.Sprint(n.action, " ", n.reason, " ", n.protocol, " ", n.allowAll, " ", n.teaches, " ", n.rules)
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
				switch r.IntN(10) {
				case 9:
					c = Change{Object{Kind: KindNameSet, Name: fmt.Sprint(r.IntN(3))}, &NameSet{}}
					for range r.IntN(4) {
						f := r.fqdn()
						c.Value.(*NameSet).Selectors = append(c.Value.(*NameSet).Selectors, dnsrules.NewSelector(f.MatchName, f.MatchPattern))
					}
				case 0, 1, 2:
					c = r.pod(r.IntN(14))
				case 3, 4, 5:
					c = r.policy(r.IntN(12))
					if old, ok := objects[c.Object]; ok && r.some(70) {
						c = r.vary(old)
					}
				default:
					c = r.other(r.IntN(8))
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
			if r.some(50) {
				batch = append(batch, r.stranger())
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
		for name := range tb.strangers { // who they may be depends on the order
			step(t, e, tb, Change{Object{Kind: KindStranger, Name: name}, nil})
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
	{protoTCP, 80}, {protoTCP, 53}, {protoTCP, 81}, {protoTCP, 85}, {protoTCP, 8080}, {protoTCP, 9999}, {protoUDP, 80}, {protoUDP, 53}, {protoUDP, 5353},
	{protoSCTP, 80}, {protoICMP, 8}, {protoICMP, 0}, {protoICMPv6, 8}, {47, 0},
}

func compareFlows(t *testing.T, e *Engine, tb *tables) (flows int) {
	compareIdentities(t, e, tb)
	for _, s := range e.subjects {
		r := tb.policies[s.id]
		for a, p := range naivePeers(e) {
			for _, q := range askedPorts {
				for _, d := range []Direction{Ingress, Egress} {
					flows++
					who := tb.who(a)
					got, want := looked(t, tb, r, d, []identity.ID{who.Identity}, q.proto, q.port), naively(e, s.peer, p, d, q.proto, q.port)
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
			if p.kind == worldPeer && flows%3 == 0 {
				flows += compareNames(t, e, tb, s, a)
			}
		}
	}
	if got, want := frontsText(e, tb.fronts), naiveFronts(e); got != want {
		t.Errorf("fronts:\n%s\nwant\n%s", got, want)
	}
	if got, want := hostPortsText(tb), naiveHostPortsText(e); got != want {
		t.Errorf("host ports:\n%s\nwant\n%s", got, want)
	}
	return flows + compareServices(t, e, tb) + compareUnions(t, e, tb)
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
