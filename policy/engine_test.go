package policy

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weirnet/weir/identity"
)

// applied makes an engine and its tables of objects, each in a batch of its own.
func applied(t *testing.T, o Options, yaml ...string) (*Engine, *tables) {
	t.Helper()
	e, err := NewEngine(o)
	if err != nil {
		t.Fatal(err)
	}
	tb := newTables()
	for _, y := range yaml {
		step(t, e, tb, objects(t, y)...)
	}
	return e, tb
}

func step(t *testing.T, e *Engine, tb *tables, c ...Change) Delta {
	t.Helper()
	d, err := e.Apply(c)
	if err != nil {
		t.Fatal(err)
	}
	tb.apply(t, d)
	return d
}

// TestRestart: a successor that is given the numbers makes the same tables,
// number for number, and gives back what nothing needs any more.
func TestRestart(t *testing.T) {
	policies := policyYAML("cnp: ingress: [{fromEndpoints: [{matchLabels: {app: api}}], toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{path: /a}]}}]}], egress: [{toCIDR: [1.2.3.0/24], toPorts: [{ports: [{port: '53', protocol: UDP}], rules: {dns: [{matchName: a.test}]}}]}, {toFQDNs: [{matchName: b.test}, {matchPattern: '*.test'}]}];;np: ingress: [{from: [{namespaceSelector: {}}]}]")
	first, tb := applied(t, Options{NodeName: "n1"}, world, policies)
	for _, c := range objects(t, world) { // a pod that is gone when the successor starts
		if c.Object.Name == "web" && c.Object.Kind == KindPod {
			p := *c.Value.(*Pod)
			p.Name, p.Labels, p.Addresses = "gone", map[string]string{"app": "web", "x": "y"}, []netip.Addr{netip.MustParseAddr("10.0.0.99")}
			step(t, first, tb, Change{Object{KindPod, "default", "gone"}, &p})
			seeds := Seeds{maps.Clone(tb.numbers.Identities), maps.Clone(tb.numbers.Policies), maps.Clone(tb.numbers.RuleSets), maps.Clone(tb.numbers.Rules)}
			step(t, first, tb, Change{Object{KindPod, "default", "gone"}, nil})
			second, err := NewEngine(Options{NodeName: "n1", Seeds: seeds})
			if err != nil {
				t.Fatal(err)
			}
			tb2 := newTables()
			tb2.numbers = Seeds{maps.Clone(seeds.Identities), maps.Clone(seeds.Policies), maps.Clone(seeds.RuleSets), maps.Clone(seeds.Rules)}
			d := step(t, second, tb2, append(objects(t, policies), objects(t, world)...)...)
			if n := len(d.Numbers.Identities) + len(d.Numbers.Policies) + len(d.Numbers.RuleSets) + len(d.Numbers.Rules); n > 0 {
				t.Errorf("%d numbers are new: %+v", n, d.Numbers)
			}
			if len(tb.names) != 6 || len(tb.pairs) != 12 || !maps.EqualFunc(tb.names, tb2.names, func(a, b *NameSet) bool { return slices.Equal(a.Selectors, b.Selectors) }) || !maps.Equal(tb.pairs, tb2.pairs) {
				t.Errorf("names %v, pairs %v\nwere %v, %v", tb2.names, tb2.pairs, tb.names, tb.pairs)
			}
			if !maps.Equal(tb.prefixes, tb2.prefixes) {
				t.Errorf("prefixes %v\nwere %v", tb2.prefixes, tb.prefixes)
			}
			for id, r := range tb.policies {
				if r2 := tb2.policies[id]; r2 == nil || !maps.Equal(r.Entries, r2.Entries) {
					t.Errorf("policy %d differs", id)
				}
			}
			second.DropUnusedSeeds()
			step(t, second, tb2)
			if !maps.Equal(tb2.numbers.Identities, tb.numbers.Identities) || !maps.Equal(tb2.numbers.Policies, tb.numbers.Policies) {
				t.Errorf("kept %v and %v, want %v and %v", tb2.numbers.Identities, tb2.numbers.Policies, tb.numbers.Identities, tb.numbers.Policies)
			}
			return
		}
	}
	t.Fatal("no pod default/web")
}

// TestNothingTwice: what is applied again changes nothing.
func TestNothingTwice(t *testing.T) {
	all := world + "---\n" + policyYAML("cnp: ingress: [{fromEntities: [world], toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{path: /a}]}}]}], egress: [{toServices: [{k8sService: {serviceName: api}}]}, {toFQDNs: [{matchName: a.test}, {matchPattern: '*'}]}, {toEntities: [world], toPorts: [{ports: [{port: '53', protocol: UDP}], rules: {dns: [{matchName: a.test}]}}]}]")
	e, tb := applied(t, Options{NodeName: "n1"}, all)
	d := step(t, e, tb, objects(t, all)...)
	if len(d.Prefixes)+len(d.Policies)+len(d.Endpoints)+len(d.RuleSets)+len(d.Names)+len(d.Pairs) > 0 || d.Resolvers != nil {
		t.Errorf("%+v", d)
	}
	// And all of it goes again.
	var gone []Change
	for _, c := range objects(t, all) {
		gone = append(gone, Change{Object: c.Object})
	}
	step(t, e, tb, gone...)
	if len(tb.policies)+len(tb.endpoints)+len(tb.ruleSets)+len(tb.names)+len(tb.pairs) > 0 || len(tb.prefixes) != 3 { // of the world, and link-local
		t.Errorf("left: %v %v %v %v", tb.policies, tb.endpoints, tb.ruleSets, tb.prefixes)
	}
	if n := tb.numbers; len(n.Identities)+len(n.Policies)+len(n.RuleSets)+len(n.Rules) > 0 {
		t.Errorf("numbers left: %+v", n)
	}
	if len(e.names.uses)+len(e.names.granted)+len(e.names.told)+len(e.pairs)+len(e.peers.names) > 0 {
		t.Errorf("left: %+v, %v", e.names, e.pairs)
	}
	if len(e.selectors.byKey) > 0 || len(e.claims.cidrs)+len(e.claims.pods)+len(e.claims.backends)+len(e.nodeKeys) > 0 {
		t.Errorf("left: %d selectors, %+v", len(e.selectors.byKey), e.claims)
	}
}

func TestIPCache(t *testing.T) {
	e, tb := applied(t, Options{NodeName: "n1"}, world, policyYAML("cnp: egress: [{toCIDRSet: [{cidr: 1.2.0.0/16, except: [1.2.3.0/24]}]}, {toCIDR: [10.0.7.0/24, 0.0.0.0/0]}]"))
	for addr, want := range map[string]string{
		"10.0.0.11":   "k8s:app=web",
		"fd00::11":    "k8s:app=web",
		"10.0.0.99":   "reserved:unknown-pod", // in a pod range, of no known pod
		"10.0.7.1":    "reserved:unknown-pod", // whatever a policy's prefix says
		"192.168.5.1": "reserved:host",
		"192.168.5.2": "reserved:remote-node",
		"192.168.5.9": "reserved:world-ipv4",
		"1.2.4.1":     "cidr:1.2.0.0/16",
		"1.2.3.1":     "cidr:1.2.3.0/24",
		"1.2.3.9":     "reserved:kube-apiserver",
		"8.8.8.8":     "reserved:world-ipv4",
		"2001:db8::1": "reserved:world-ipv6",
		"10.96.0.7":   "service:shop/api",
	} {
		p := tb.who(netip.MustParseAddr(addr))
		labels := e.IdentityLabels(p.Identity)
		if !slices.Contains(labels, want) {
			t.Errorf("%s is %d %v, want %s", addr, p.Identity, labels, want)
		}
		outside := slices.ContainsFunc(labels, func(l string) bool { return strings.HasPrefix(l, "reserved:world") })
		if p.World != outside {
			t.Errorf("%s: world is %v of %v", addr, p.World, labels)
		}
	}
	if id := tb.who(netip.MustParseAddr("192.168.5.1")).Identity; id != identity.Host {
		t.Errorf("the host is %d", id)
	}
}

// TestAddressChangesHands: of two pods with one address the newest has it.
func TestAddressChangesHands(t *testing.T) {
	e, tb := applied(t, Options{NodeName: "n1"}, world, policyYAML("cnp: ingress: [{}]"))
	a := netip.MustParseAddr("10.0.0.11")
	p := &Pod{Namespace: "default", Name: "heir", Node: "n1", Labels: map[string]string{"app": "heir"}, Addresses: []netip.Addr{a}, Created: 9}
	d := step(t, e, tb, Change{Object{KindPod, "default", "heir"}, p})
	if ep := d.Endpoints[a]; ep == nil || ep.Name != "heir" {
		t.Errorf("endpoint %+v", ep)
	}
	d = step(t, e, tb, Change{Object{KindPod, "default", "heir"}, nil})
	if ep := d.Endpoints[a]; ep == nil || ep.Name != "web" {
		t.Errorf("endpoint %+v", ep)
	}
}

// TestNamedPortsTellPodsApart: pods with equal labels share a policy only if
// their names stand for the same ports.
func TestNamedPortsTellPodsApart(t *testing.T) {
	e, tb := applied(t, Options{NodeName: "n1"}, policyYAML("cnp: ingress: [{toPorts: [{ports: [{port: http, protocol: TCP}]}]}]"))
	var changes []Change
	for i, port := range []uint16{80, 8080, 80} {
		name := string(rune('a' + i))
		changes = append(changes, Change{Object{KindPod, "default", name}, &Pod{Namespace: "default", Name: name, Node: "n1",
			Labels: map[string]string{"app": "web"}, Ports: []NamedPort{{"HTTP", protoTCP, port}}, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})}}})
	}
	d := step(t, e, tb, changes...)
	id := func(i byte) uint32 { return d.Endpoints[netip.AddrFrom4([4]byte{10, 0, 0, i})].Policy }
	if id(0) == id(1) || id(0) != id(2) {
		t.Errorf("policies %d %d %d", id(0), id(1), id(2))
	}
	for i, port := range map[byte]uint16{0: 80, 1: 8080} {
		if en, ok := Lookup(tb.policies[id(i)].Entries, Ingress, []identity.ID{identity.WorldIPv4}, protoTCP, port); !ok || en.Action != Allow {
			t.Errorf("port %d of %d: %+v %v", port, i, en, ok)
		}
		if _, ok := Lookup(tb.policies[id(i)].Entries, Ingress, nil, protoTCP, 8160-port); ok {
			t.Errorf("%d takes the other's port", i)
		}
	}
}

// TestServices: a cluster IP is judged by the backends, by those of its slices
// or else by the pods it selects.
func TestServices(t *testing.T) {
	base := strings.Replace(world, "metadata: {name: api-1, namespace: shop, labels: {kubernetes.io/service-name: api}}", "metadata: {name: api-1, namespace: shop, labels: {kubernetes.io/service-name: other}}", 1)
	if base == world {
		t.Fatal("the slice is still there")
	}
	for _, c := range []struct{ policy, to, want string }{
		{"cnp: egress: [{toEndpoints: [{matchLabels: {'k8s:io.kubernetes.pod.namespace': shop}}], toPorts: [{ports: [{port: '8081', protocol: TCP}]}]}]", "10.96.0.7 TCP/80", "allowed"},
		{"cnp: egress: [{toEndpoints: [{matchLabels: {'k8s:io.kubernetes.pod.namespace': shop}}], toPorts: [{ports: [{port: '80', protocol: TCP}]}]}]", "10.96.0.7 TCP/80", "denied"},
		{"cnp: egress: [{toEndpoints: [{matchLabels: {'k8s:io.kubernetes.pod.namespace': shop}}], toPorts: [{ports: [{port: '8081', protocol: TCP}], rules: {http: [{path: /a}]}}]}]", "service:shop/api TCP/http", "l7"},
		{"cnp: egress: [{toCIDR: [10.96.0.0/12]}]", "10.96.0.7 TCP/80", "denied"}, // nobody can select it
		{"cnp: egress: [{toCIDR: [1.2.3.4/32]}]", "10.96.0.8 TCP/443", "denied"},  // one backend is, one is not
		{"cnp: egress: [{toCIDR: [1.2.3.4/32]}, {toEndpoints: [{}]}]", "10.96.0.8 TCP/443", "allowed"},
		{"cnp: egress: [{toEntities: [all]}], egressDeny: [{toCIDR: [1.2.3.4/32]}]", "10.96.0.8 TCP/443", "denied"},
		{"cnp: egress: [{toEntities: [all]}], egressDeny: [{toServices: [{k8sService: {serviceName: ext}}]}]", "10.96.0.8 TCP/443", "denied"},
		{"np: ingress: [{}]", "10.96.0.8 TCP/443", "allowed"},
	} {
		e, tb := applied(t, Options{NodeName: "n1"}, base, policyYAML(c.policy))
		got, a := askText(t, e, "default/web > "+c.to)
		if string(got) != c.want {
			t.Errorf("%s: %s is %s, want %s (%+v)", c.policy, c.to, got, c.want, a.Egress)
		}
		// The table says the same.
		addr, port := "10.96.0.7", uint16(80)
		if strings.HasPrefix(c.to, "10.96.0.8") {
			addr, port = "10.96.0.8", 443
		}
		r := tb.policies[tb.endpoints[netip.MustParseAddr("10.0.0.11")].Policy]
		en, ok := Lookup(r.Entries, Egress, []identity.ID{tb.who(netip.MustParseAddr(addr)).Identity}, protoTCP, port)
		verdict := "denied"
		switch {
		case !r.Enforced[Egress], ok && en.Action == Allow:
			verdict = "allowed"
		case ok && en.Action == Redirect:
			verdict = "l7"
		}
		if verdict != c.want {
			t.Errorf("%s: the table says %s of %s, want %s", c.policy, verdict, addr, c.want)
		}
	}
}

// TestRefusedGroup: a deny of a group that was refused closes its direction,
// since what it denies is not known; an allow of it allows nobody.
func TestRefusedGroup(t *testing.T) {
	base := strings.Replace(world, "externalCIDRs: [5.5.0.0/16]", "externalCIDRs: [5.5.0.0/99]", 1)
	for policy, asks := range map[string]map[string]string{
		"cnp: egress: [{toEntities: [world]}], egressDeny: [{toCIDRSet: [{cidrGroupRef: g2}]}]":                                  {"default/web > 8.8.8.8 TCP/80": "denied", "default/api > default/web TCP/80": "allowed"},
		"cnp: egress: [{toEntities: [world]}], egressDeny: [{toCIDRSet: [{cidrGroupRef: g1}]}]":                                  {"default/web > 8.8.8.8 TCP/80": "allowed", "default/web > 1.2.3.4 TCP/80": "denied"},
		"cnp: egress: [{toCIDRSet: [{cidrGroupSelector: {matchExpressions: [{key: city, operator: NotIn, values: [paris]}]}}]}]": {"default/web > 8.8.8.8 TCP/80": "denied"},
		"cnp: egress: [{toCIDRSet: [{cidrGroupRef: g2}]}]":                                                                       {"default/web > 5.5.5.5 TCP/80": "denied"},
	} {
		e := newEngine(t, "n1", base+"---\n"+policyYAML(policy))
		for ask, want := range asks {
			if got, a := askText(t, e, ask); string(got) != want {
				t.Errorf("%s: %s: %s, want %s (%+v)", policy, ask, got, want, a.Egress)
			}
		}
	}
}

// TestApplyErrors: what makes no sense is reported, and all else counts.
func TestApplyErrors(t *testing.T) {
	e, err := NewEngine(Options{NodeName: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	d, err := e.Apply([]Change{
		{Object{"Ingress", "a", "b"}, nil},
		{Object{KindPod, "a", "b"}, &Node{}},
		{Object{KindPod, "a", "none"}, nil},
		{Object{KindService, "a", "none"}, nil},
		{Object{KindEndpointSlice, "a", "none"}, nil},
		{Object{KindNode, "", "none"}, nil},
		{Object{KindPod, "a", "web"}, &Pod{Namespace: "a", Name: "web", Node: "n1", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1"), {}}}},
	})
	if err == nil || !strings.Contains(err.Error(), `unknown kind "Ingress"`) || !strings.Contains(err.Error(), "value is a *policy.Node") {
		t.Errorf("error %v", err)
	}
	if len(d.Endpoints) != 1 {
		t.Errorf("endpoints %v", d.Endpoints)
	}
}

// TestRule: who asks twice gets the same, and what was given out stays as it is
// when the policy moves in its file.
func TestRule(t *testing.T) {
	p := policyYAML("np: ingress: [{from: [{namespaceSelector: {}}]}]")
	e, tb := applied(t, Options{NodeName: "n1"}, world, p)
	if len(tb.numbers.Rules) != 1 {
		t.Fatalf("numbers of rules: %v", tb.numbers.Rules)
	}
	for id := range tb.numbers.Rules {
		before := e.Rule(id)
		if before == nil || before.Rule == "" || before != e.Rule(id) {
			t.Fatalf("rule %v, then %v", before, e.Rule(id))
		}
		was := *before
		step(t, e, tb, objects(t, "\n\n"+p)...)
		if after := e.Rule(id); after == nil || after.Line != was.Line+2 || *before != was {
			t.Errorf("two lines down it is %v, before %v, which was %v", after, before, was)
		}
		for _, c := range objects(t, p) {
			step(t, e, tb, Change{Object: c.Object})
		}
		if r := e.Rule(id); r != nil {
			t.Errorf("gone, it is %v", r)
		}
	}
}
