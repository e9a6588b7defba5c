package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy/dnsrules"
)

// nameSets spells the sets that somebody who applies every Delta knows.
func (tb *tables) nameSets() []string {
	var out []string
	for _, set := range tb.names {
		out = append(out, fmt.Sprint(set.Selectors))
	}
	slices.Sort(out)
	return out
}

func asks(who string, patterns ...string) Change {
	c := Change{Object: Object{Kind: KindNameSet, Name: who}}
	if len(patterns) == 0 {
		return c
	}
	set := &NameSet{}
	for _, p := range patterns {
		set.Selectors = append(set.Selectors, dnsrules.NewSelector("", p))
	}
	c.Value = set
	return c
}

func TestNames(t *testing.T) {
	e, tb := applied(t, Options{NodeName: "n1"}, world, policyYAML("cnp: egress: [{toFQDNs: [{matchName: A.example.test.}, {matchPattern: '*.example.test'}]}, {toFQDNs: [{matchPattern: '**.test'}, {matchPattern: 'a.example.test'}]}]"))
	check := func(what string, want ...string) {
		t.Helper()
		slices.Sort(want)
		if got := tb.nameSets(); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	own := []string{"[a.example.test]", "[*.example.test]", "[**.test]", "[**.test *.example.test a.example.test]", "[**.test *.example.test]"}
	check("at first", own...)
	numbers := maps.Clone(tb.names)

	step(t, e, tb, asks("x", "*.example.test", "a.example.test", "*.unknown.test"))
	check("asked for", append(own, "[*.example.test a.example.test]")...)
	d := step(t, e, tb, asks("y", "a.example.test", "*.example.test"))
	if len(d.Names)+len(d.Numbers.Identities) > 0 {
		t.Errorf("asked for again: %+v", d)
	}
	step(t, e, tb, asks("x"))
	check("asked for by one still", append(own, "[*.example.test a.example.test]")...)
	step(t, e, tb, asks("y", "*.unknown.test"))
	check("asked for by nobody", own...)

	// A selector more, and the ask for it counts.
	more := objects(t, strings.ReplaceAll(policyYAML("cnp: egress: [{toFQDNs: [{matchPattern: '*.unknown.test'}]}]"), "name: p0", "name: more"))
	step(t, e, tb, append(more, asks("x", "*.unknown.test", "a.example.test"))...)
	check("another selector", append(own, "[*.unknown.test]", "[**.test *.unknown.test]", "[*.unknown.test a.example.test]")...)
	for id, set := range numbers {
		if tb.names[id] != set {
			t.Errorf("identity %d was %v, is %v", id, set, tb.names[id])
		}
	}
	for id, set := range tb.names {
		if labels := e.IdentityLabels(id); len(labels) != len(set.Selectors) || labels[0] != "fqdn:"+set.Selectors[0].String() {
			t.Errorf("labels of %v: %v", set.Selectors, labels)
		}
	}
	step(t, e, tb, Change{Object: more[0].Object})
	check("without it", append(own, "[a.example.test]")[:len(own)]...)
	if err := func() error { _, err := e.Apply([]Change{{Object{Kind: KindNameSet}, "x"}}); return err }(); err == nil {
		t.Error("a text is taken for a set of names")
	}
}

func TestResolvers(t *testing.T) {
	dns := `apiVersion: v1
kind: Service
metadata: {name: dns, namespace: kube-system, labels: {k8s-app: kube-dns}}
spec: {clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10, "fd96::a"], selector: {k8s-app: kube-dns}, ports: [{name: dns, port: 53, targetPort: 5353, protocol: UDP}, {name: metrics, port: 9153, protocol: TCP}]}
---
apiVersion: v1
kind: Service
metadata: {name: other, namespace: shop, labels: {k8s-app: kube-dns}}
spec: {clusterIP: 10.96.0.11, ports: [{name: dns, port: 53, protocol: UDP}]}
`
	slice := `apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: dns-1, namespace: kube-system, labels: {kubernetes.io/service-name: dns}}
addressType: IPv4
ports: [{name: dns, port: 1053, protocol: UDP}, {name: metrics, port: 9153, protocol: TCP}]
endpoints: [{addresses: [10.0.9.1]}, {addresses: [10.0.9.2]}]
`
	pod := `apiVersion: v1
kind: Pod
metadata: {name: dns, namespace: kube-system, labels: {k8s-app: kube-dns}}
spec: {nodeName: n2, containers: [{name: c, image: x}]}
status: {podIPs: [{ip: 10.0.9.7}]}
`
	e, err := NewEngine(Options{NodeName: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	tb := newTables()
	for _, s := range []struct {
		what    string
		changes []Change
		want    string // "": no news
	}{
		{"nothing yet", nil, "[]"},
		{"others' objects", objects(t, world), ""},
		{"the service", objects(t, dns), "[10.96.0.10:53/17 [fd96::a]:53/17]"},
		{"a pod it selects", objects(t, pod), "[10.0.9.7:5353/17 10.96.0.10:53/17 [fd96::a]:53/17]"},
		{"its slice, which counts instead", objects(t, slice), "[10.0.9.1:1053/17 10.0.9.2:1053/17 10.96.0.10:53/17 [fd96::a]:53/17]"},
		{"the pod is gone", []Change{{Object: Object{KindPod, "kube-system", "dns"}}}, ""},
		{"the slice is gone", []Change{{Object: Object{KindEndpointSlice, "kube-system", "dns-1"}}}, "[10.96.0.10:53/17 [fd96::a]:53/17]"},
		{"the service is gone", []Change{{Object: Object{KindService, "kube-system", "dns"}}}, "[]"},
	} {
		d := step(t, e, tb, s.changes...)
		got := ""
		if d.Resolvers != nil {
			got = fmt.Sprint(d.Resolvers)
		}
		if got != s.want {
			t.Errorf("%s: %s, want %s", s.what, got, s.want)
		}
	}
	e, err = NewEngine(Options{Resolvers: ResolverServices{Labels: map[string]string{"k8s-app": "kube-dns"}}})
	if err != nil {
		t.Fatal(err)
	}
	if d := step(t, e, newTables(), objects(t, dns)...); fmt.Sprint(d.Resolvers) != "[10.96.0.10:53/17 10.96.0.11:53/17 [fd96::a]:53/17]" {
		t.Errorf("of any namespace: %v", d.Resolvers)
	}
}

// entryText finds what the policy of pod default/web says of a flow.
func (tb *tables) entryText(ids []identity.ID, proto uint8, port uint16) string {
	r := tb.policies[tb.endpoints[netip.MustParseAddr("10.0.0.11")].Policy]
	e, ok := Lookup(r.Entries, Egress, ids, proto, port)
	switch {
	case !ok:
		return "none"
	case e.Action != Redirect:
		return [...]string{"", "deny", "allow", "", "refuse"}[e.Action]
	}
	set := tb.ruleSets[e.RuleSet]
	text := [...]string{"HTTP", "DNS"}[set.Protocol]
	if set.AllowAll {
		text += " all"
	}
	for _, r := range set.DNS {
		text += " " + r.String()
	}
	if set.Teaches {
		text += " teaches " + teachesText(set)
	}
	return text
}

// TestObserved: where rules are about names, DNS that is let through is seen,
// and nothing else is let through for it.
func TestObserved(t *testing.T) {
	const names = "{toFQDNs: [{matchName: a.test}], toPorts: [{ports: [{port: '443', protocol: TCP}]}]}"
	for _, c := range []struct {
		policy string
		want   string // for UDP 53, TCP 53, UDP 54 to default/api
	}{
		{"cnp: egress: [" + names + "]", "none none none"},
		{"cnp: egress: [" + names + ", {toEndpoints: [{}]}]", "DNS all DNS all allow"},
		{"cnp: egress: [{toEndpoints: [{}]}]", "allow allow allow"},
		{"cnp: egress: [" + names + "];;np: policyTypes: [Egress], egress: [{}]", "DNS all DNS all allow"},
		{"cnp: egress: [" + names + ", {toPorts: [{ports: [{port: '53', protocol: UDP}]}]}]", "DNS all none none"},
		{"cnp: egress: [" + names + ", {toEndpoints: [{}], toPorts: [{ports: [{port: '50', endPort: 60}]}]}]", "DNS all DNS all allow"},
		{"cnp: egress: [" + names + ", {toEndpoints: [{}]}], egressDeny: [{toPorts: [{ports: [{port: '53', protocol: TCP}]}]}]", "DNS all deny allow"},
		{"cnp: egress: [" + names + ", {toEndpoints: [{}]}], egressDeny: [{toEndpoints: [{}], toPorts: [{ports: [{port: '53', protocol: ANY}]}]}]", "deny deny allow"},
		{"cnp: egress: [" + names + ", {toEndpoints: [{}], toPorts: [{ports: [{port: '53', protocol: TCP}], rules: {http: [{path: /}]}}]}]", "none HTTP none"},
		{"cnp: enableDefaultDeny: {egress: false}, egress: [" + names + "]", "DNS all DNS all allow"},
		{"cnp: egress: [" + names + ", {toEndpoints: [{}]}, {toEndpoints: [{}], toPorts: [{ports: [{port: '53', protocol: UDP}], rules: {dns: [{matchName: b.test}]}}]}]", "DNS b.test DNS all allow"},
		{"cnp: egress: [{toFQDNs: []}, {toEndpoints: [{}]}]", "allow allow allow"},
	} {
		e, tb := applied(t, Options{NodeName: "n1"}, world, policyYAML(c.policy))
		ids := []identity.ID{tb.endpoints[netip.MustParseAddr("10.0.0.12")].Identity}
		got := strings.Join([]string{tb.entryText(ids, protoUDP, 53), tb.entryText(ids, protoTCP, 53), tb.entryText(ids, protoUDP, 54)}, " ")
		if got != c.want {
			t.Errorf("%s: %s, want %s", c.policy, got, c.want)
		}
		// Names that come and go take it along.
		for _, o := range objects(t, policyYAML(c.policy)) {
			step(t, e, tb, Change{Object: o.Object})
		}
		if got := tb.entryText(ids, protoUDP, 53); len(tb.names)+len(tb.ruleSets) > 0 || got != "none" {
			t.Errorf("%s: gone, there is %v, %v, %s", c.policy, tb.names, tb.ruleSets, got)
		}
	}
}

// TestObservedServices: DNS behind a cluster IP is seen, whatever the port of
// the backends.
func TestObservedServices(t *testing.T) {
	service := func(port int, more string) string {
		return fmt.Sprintf(`---
apiVersion: v1
kind: Service
metadata: {name: dns, namespace: shop}
spec: {clusterIP: 10.96.0.10, ports: [{name: dns, port: 53, protocol: UDP}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: dns-1, namespace: shop, labels: {kubernetes.io/service-name: dns}}
addressType: IPv4
ports: [{name: dns, port: %d, protocol: UDP}]
endpoints: [{addresses: [10.0.0.12%s]}]
---
`, port, more)
	}
	const names = "{toFQDNs: [{matchName: a.test}]}"
	for _, c := range []struct {
		port         int
		more, policy string
		want         string
	}{
		{53, "", "cnp: egress: [" + names + ", {toEndpoints: [{}]}]", "DNS all"},
		{5353, "", "cnp: egress: [" + names + ", {toEndpoints: [{}]}]", "DNS all"},
		{5353, "", "cnp: egress: [{toEndpoints: [{}]}]", "allow"},
		{53, ", 10.1.0.12", "cnp: egress: [" + names + ", {toEndpoints: [{}]}]", "refuse"},
		{53, ", 10.1.0.12", "cnp: egress: [" + names + ", {toEndpoints: [{}]}, {toEndpoints: [{matchLabels: {'k8s:io.kubernetes.pod.namespace': shop}}]}]", "DNS all"},
		{53, "", "cnp: egress: [{toEndpoints: [{}], toPorts: [{ports: [{port: '53'}], rules: {dns: [{matchName: b.test}]}}]}]", "DNS b.test"},
		{53, "", "np: policyTypes: [Egress], egress: [{}];;cnp: egress: [" + names + "]", "DNS all"},
		{5353, "", "cnp: egress: [{toEndpoints: [{}], toPorts: [{ports: [{port: '5353'}]}]}, {toPorts: [{ports: [{port: '53'}], rules: {dns: [{matchName: b.test}]}}]}]", "DNS all"},
	} {
		_, tb := applied(t, Options{NodeName: "n1"}, world+service(c.port, c.more)+policyYAML(c.policy))
		if got := tb.entryText([]identity.ID{tb.who(netip.MustParseAddr("10.96.0.10")).Identity}, protoUDP, 53); got != c.want {
			t.Errorf("port %d%s %s: %s, want %s", c.port, c.more, c.policy, got, c.want)
		}
	}
}

// TestTeaches: servers are believed where a DNS rule is about them, not where
// it is about everybody.
func TestTeaches(t *testing.T) {
	for peers, want := range map[string]string{
		"toEndpoints: [{matchLabels: {app: api}}]": "teaches default",
		"toEndpoints: [{}]":                        "",
		"toEndpoints: [{matchLabels: {'k8s:io.kubernetes.pod.namespace': default}}]":                               "",
		"toEndpoints: [{matchExpressions: [{key: app, operator: NotIn, values: [x]}]}]":                            "",
		"toEndpoints: [{matchExpressions: [{key: app, operator: NotIn, values: [x]}]}, {matchLabels: {app: api}}]": "teaches default",
		"toEndpoints: [{}, {matchLabels: {app: web}}]":                                                             "",
		"toEntities: [all]":     "",
		"toEntities: [cluster]": "",
		"toServices: [{k8sService: {serviceName: ext, namespace: shop}}]": "none",
	} {
		_, tb := applied(t, Options{NodeName: "n1"}, world, policyYAML("cnp: egress: [{"+peers+", toPorts: [{ports: [{port: '53', protocol: UDP}], rules: {dns: [{matchName: b.test}]}}]}]"))
		got := tb.entryText([]identity.ID{tb.endpoints[netip.MustParseAddr("10.0.0.12")].Identity}, protoUDP, 53)
		if want != "none" {
			want = strings.TrimSpace("DNS b.test " + want)
		}
		if got != want {
			t.Errorf("%s, to a pod: %s, want %s", peers, got, want)
		}
	}
	for peers, want := range map[string]string{
		"":                                    "",
		"toEntities: [world]":                 "",
		"toCIDR: [0.0.0.0/0]":                 "",
		"toCIDR: [1.2.0.0/16]":                "teaches default",
		"toCIDR: [0.0.0.0/0, 1.2.0.0/16]":     "teaches default",
		"toEntities: [world, kube-apiserver]": "",
		"toCIDRSet: [{cidrGroupRef: g1}]":     "teaches default",
		"toFQDNs: [{matchName: dns.test}]":    "teaches default",
		"toFQDNs: [{matchPattern: '*'}]":      "",
		"toEndpoints: [{matchLabels: {'reserved:world-ipv4': ''}}]":       "",
		"toServices: [{k8sService: {serviceName: ext, namespace: shop}}]": "teaches default",
	} {
		if peers != "" {
			peers += ", "
		}
		_, tb := applied(t, Options{NodeName: "n1"}, world, policyYAML("cnp: egress: [{"+peers+"toPorts: [{ports: [{port: '53', protocol: UDP}], rules: {dns: [{matchName: b.test}]}}]}]"))
		ids := []identity.ID{tb.who(netip.MustParseAddr("1.2.3.4")).Identity}
		for id := range tb.names {
			ids = append(ids, id)
		}
		if got := tb.entryText(ids, protoUDP, 53); got != strings.TrimSpace("DNS b.test "+want) {
			t.Errorf("%s to 1.2.3.4: %s, want %s", peers, got, want)
		}
	}
}

// TestPairs: rules about addresses and rules about names are a union, too.
func TestPairs(t *testing.T) {
	for _, c := range []struct{ policy, ask, want string }{
		{"cnp: egress: [{toFQDNs: [{matchName: a.test}]}, {toCIDR: [1.2.3.0/24], toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{path: /a}]}}]}]", "TCP/80 [a.test] GET /b", "allowed"},
		{"cnp: egress: [{toFQDNs: [{matchName: a.test}]}, {toCIDR: [1.2.3.0/24], toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{path: /a}]}}]}]", "TCP/80 [b.test] GET /b", "denied"},
		{"cnp: egress: [{toFQDNs: [{matchName: a.test}], toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{path: /b}]}}]}, {toEntities: [world], toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{path: /a}]}}]}]", "TCP/80 [a.test] GET /b", "allowed"},
		{"cnp: egress: [{toFQDNs: [{matchName: a.test}], toPorts: [{ports: [{port: '53'}], rules: {dns: [{matchName: x.test}]}}]}, {toEntities: [world]}]", "UDP/53 [a.test] ? y.test", "denied"},
		{"cnp: egress: [{toFQDNs: [{matchName: a.test}]}, {toEntities: [world], toPorts: [{ports: [{port: '53'}], rules: {dns: [{matchName: x.test}]}}]}]", "UDP/53 [a.test] ? y.test", "denied"},
		{"cnp: egress: [{toFQDNs: [{matchName: a.test}]}], egressDeny: [{toEntities: [world], toPorts: [{ports: [{port: '80', protocol: TCP}]}]}]", "TCP/80 [a.test]", "denied"},
	} {
		e := newEngine(t, "n1", world+"---\n"+policyYAML(c.policy))
		if got, a := askText(t, e, "default/web > 1.2.3.77 "+c.ask); string(got) != c.want {
			t.Errorf("%s: %s is %s, want %s (%+v)", c.policy, c.ask, got, c.want, a.Egress)
		}
	}
	// A pair is there as long as it matters to some policy.
	looks := policyYAML("cnp: egress: [{toFQDNs: [{matchName: a.test}]}, {toCIDR: [1.2.3.0/24], toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{path: /a}]}}]}]")
	e, tb := applied(t, Options{NodeName: "n1"}, world, looks)
	outside := tb.who(netip.MustParseAddr("1.2.3.77")).Identity
	if len(tb.pairs) != 2 { // the prefix of a service's endpoint lies in that of the policy
		t.Fatalf("pairs %v", tb.pairs)
	}
	for p, id := range tb.pairs {
		if got := fmt.Sprint(e.IdentityLabels(id)); p.Outside == outside && got != "[cidr:1.2.3.0/24 reserved:world-ipv4 fqdn:a.test]" {
			t.Errorf("labels of the pair: %s", got)
		}
	}
	step(t, e, tb, objects(t, strings.Replace(looks, ", rules: {http: [{path: /a}]}", "", 1))...)
	if len(tb.pairs) != 0 {
		t.Errorf("nothing to look at: pairs %v", tb.pairs)
	}
}

// TestManyPairs: a policy with too many pairs has none, and lets less pass.
func TestManyPairs(t *testing.T) {
	var names strings.Builder
	for i := range maxPairs {
		fmt.Fprintf(&names, "{matchName: n%d.test}, ", i)
	}
	_, tb := applied(t, Options{NodeName: "n1"}, world, policyYAML("cnp: egress: [{toFQDNs: ["+names.String()+"], toPorts: [{ports: [{port: '53'}]}]}, {toEntities: [world], toPorts: [{ports: [{port: '53'}], rules: {dns: [{matchName: x.test}]}}]}]"))
	if len(tb.pairs) != 0 || len(tb.names) != maxPairs {
		t.Errorf("%d pairs of %d names", len(tb.pairs), len(tb.names))
	}
	for id := range tb.names {
		if got := tb.entryText([]identity.ID{tb.who(netip.MustParseAddr("9.9.9.9")).Identity, id}, protoUDP, 53); got != "DNS x.test" {
			t.Errorf("with names: %s", got)
		}
	}
}
