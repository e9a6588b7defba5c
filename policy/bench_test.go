package policy

import (
	"fmt"
	"net/netip"
	"testing"
)

// bigCluster is 100 namespaces with 10 policies each, 100 pods on this node
// and 10,000 on 99 others: 100 workloads to a namespace have names of their
// own, so no two pods of a namespace share an identity.
func bigCluster(t testing.TB) []Change {
	const namespaces, perNamespace = 100, 101
	var out []Change
	for n := range 100 {
		name := fmt.Sprintf("node-%d", n)
		out = append(out, Change{Object{KindNode, "", name}, &Node{Name: name,
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 168, 0, byte(n)})},
			PodCIDRs:  []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n), 0, 0}), 16)}}})
	}
	for ns := range namespaces {
		out = append(out, Change{Object{KindNamespace, "", bigName("ns", ns)}, &Namespace{bigName("ns", ns), map[string]string{"team": bigName("team", ns%7)}}})
		for i := range perNamespace {
			out = append(out, bigPod(ns, i))
		}
		for i := range 10 {
			out = append(out, bigPolicy(t, ns, i, 8080))
		}
		s := &Service{Namespace: bigName("ns", ns), Name: "web", ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 200, 0, byte(ns)})},
			Ports: []ServicePort{{Name: "http", Protocol: protoTCP, Port: 80}}}
		sl := &EndpointSlice{Namespace: s.Namespace, Name: "web-1", Service: "web", Ports: []SlicePort{{"http", protoTCP, 8080}}}
		for i := range 10 {
			sl.Addresses = append(sl.Addresses, bigPod(ns, i).Value.(*Pod).Addresses[0])
		}
		out = append(out, Change{Object{KindService, s.Namespace, s.Name}, s}, Change{Object{KindEndpointSlice, s.Namespace, sl.Name}, sl})
	}
	return out
}

func bigName(what string, i int) string { return fmt.Sprintf("%s-%d", what, i) }

// bigPod: the first pod of each namespace is on this node.
func bigPod(ns, i int) Change {
	node := 0
	if i > 0 {
		node = 1 + (ns+i)%99
	}
	p := &Pod{Namespace: bigName("ns", ns), Name: bigName("pod", i), Node: fmt.Sprintf("node-%d", node),
		Labels:    map[string]string{"app": bigName("app", i%10), "name": bigName("name", i), "tier": bigName("tier", i%3)},
		Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(node), byte(ns), byte(i)})},
		Ports:     []NamedPort{{"http", protoTCP, 8080}}}
	return Change{Object{KindPod, p.Namespace, p.Name}, p}
}

func bigPolicy(t testing.TB, ns, i, port int) Change {
	return objects(t, fmt.Sprintf(`
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: policy-%[2]d, namespace: ns-%[1]d}
spec:
  endpointSelector: {matchLabels: {tier: tier-%[3]d}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: app-%[2]d}}]
    toPorts: [{ports: [{port: "%[4]d", protocol: TCP}], rules: {http: [{method: GET, path: "/v%[2]d/.*"}]}}]
  - fromEndpoints: [{matchLabels: {"k8s:io.kubernetes.pod.namespace": ns-%[5]d}}]
    toPorts: [{ports: [{port: http, protocol: TCP}, {port: "9000", endPort: 9100, protocol: TCP}]}]
  egress:
  - toEndpoints: [{}]
    toPorts: [{ports: [{port: "53", protocol: ANY}]}]
  - toCIDRSet: [{cidr: 203.0.%[1]d.0/24, except: [203.0.%[1]d.%[2]d/32]}]
`, ns, i, i%3, port, (ns+1)%100))[0]
}

func bigEngine(b testing.TB, extra ...Change) *Engine {
	e, err := NewEngine(Options{NodeName: "node-0"})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := e.Apply(append(bigCluster(b), extra...)); err != nil {
		b.Fatal(err)
	}
	return e
}

func apply(b testing.TB, e *Engine, c ...Change) Delta {
	d, err := e.Apply(c)
	if err != nil {
		b.Fatal(err)
	}
	return d
}

// BenchmarkStart makes the tables from nothing.
func BenchmarkStart(b *testing.B) {
	all := bigCluster(b)
	for b.Loop() {
		e, err := NewEngine(Options{NodeName: "node-0"})
		if err != nil {
			b.Fatal(err)
		}
		apply(b, e, all...)
	}
}

// BenchmarkPolicyChange changes a port in one policy of 1,000.
func BenchmarkPolicyChange(b *testing.B) {
	e := bigEngine(b)
	versions := []Change{bigPolicy(b, 7, 3, 8081), bigPolicy(b, 7, 3, 8080)}
	for i := 0; b.Loop(); i++ {
		if d := apply(b, e, versions[i%2]); len(d.Policies) != 1 {
			b.Fatalf("%d policies changed", len(d.Policies))
		}
	}
}

// BenchmarkClusterwideChange changes a port in a policy that selects every pod.
func BenchmarkClusterwideChange(b *testing.B) {
	var versions []Change
	for _, port := range []int{81, 80} {
		versions = append(versions, objects(b, fmt.Sprintf(`
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: wide}
spec:
  endpointSelector: {}
  ingress: [{fromEntities: [host, remote-node], toPorts: [{ports: [{port: "%d", protocol: TCP}]}]}]
  ingressDeny: [{fromEntities: [world], toPorts: [{ports: [{port: "22", protocol: TCP}]}]}]
`, port))[0])
	}
	e := bigEngine(b, versions[1])
	for i := 0; b.Loop(); i++ {
		apply(b, e, versions[i%2])
	}
}

// BenchmarkPodAdded adds and removes a remote pod: of an identity that is
// known, and of a new one.
func BenchmarkPodAdded(b *testing.B) {
	for _, bench := range []struct{ name, label string }{{"known", "name-7"}, {"new", "name-new"}} {
		b.Run(bench.name, func(b *testing.B) {
			e := bigEngine(b)
			c := bigPod(5, 7)
			p := *c.Value.(*Pod)
			p.Name, p.Addresses = "another", []netip.Addr{netip.MustParseAddr("10.50.250.250")}
			p.Labels = map[string]string{"app": "app-7", "tier": "tier-1", "name": bench.label}
			o := Object{KindPod, p.Namespace, p.Name}
			for i := 0; b.Loop(); i++ {
				if i%2 == 0 {
					apply(b, e, Change{o, &p})
				} else {
					apply(b, e, Change{o, nil})
				}
			}
		})
	}
}

// BenchmarkWidePodAdded adds a pod of a new identity where every local policy
// names every pod of the cluster.
func BenchmarkWidePodAdded(b *testing.B) {
	wide := objects(b, `
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: wide}
spec:
  endpointSelector: {}
  ingress: [{fromEntities: [cluster]}]
`)[0]
	e := bigEngine(b, wide)
	c := bigPod(5, 7)
	p := *c.Value.(*Pod)
	p.Name, p.Addresses = "another", []netip.Addr{netip.MustParseAddr("10.50.250.250")}
	p.Labels = map[string]string{"name": "new"}
	o := Object{KindPod, p.Namespace, p.Name}
	for i := 0; b.Loop(); i++ {
		if i%2 == 0 {
			apply(b, e, Change{o, &p})
		} else {
			apply(b, e, Change{o, nil})
		}
	}
}

// BenchmarkExplain asks about pods of a large cluster, each pair anew.
func BenchmarkExplain(b *testing.B) {
	e, err := NewEngine(Options{})
	if err != nil {
		b.Fatal(err)
	}
	apply(b, e, bigCluster(b)...)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		q := Question{From: fmt.Sprintf("ns-%d/pod-%d", i%100, i/100%101), To: fmt.Sprintf("ns-%d/pod-%d", i*7%100, i/3%101), Port: "8080"}
		if a := e.Explain(q); a.Verdict == Failed {
			b.Fatal(a.Error)
		}
	}
}
