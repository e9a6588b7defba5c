package policy

import "testing"

const sourcesCluster = `
apiVersion: v1
kind: Namespace
metadata: {name: a}
---
apiVersion: v1
kind: Namespace
metadata: {name: b}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: a, labels: {app: web}}
spec: {nodeName: n1}
status: {podIPs: [{ip: 10.0.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: a, labels: {app: db}}
spec: {nodeName: n1}
status: {podIPs: [{ip: 10.0.0.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: b, labels: {app: db}}
spec: {nodeName: n1}
status: {podIPs: [{ip: 10.0.0.3}]}
---
apiVersion: v1
kind: Node
metadata: {name: n1}
status: {addresses: [{type: InternalIP, address: 192.168.0.1}]}
---
apiVersion: cilium.io/v2
kind: CiliumCIDRGroup
metadata: {name: g, labels: {kind: x, io.cilium.k8s.kind: x}}
spec: {externalCIDRs: [1.2.3.0/24, "::ffff:9.9.9.0/120"]}
---
`

// groupsBy selects groups by one key.
func groupsBy(key, operator string) string {
	return `toCIDRSet: [{cidrGroupSelector: {matchExpressions: [{key: "` + key + `", operator: ` + operator + `}]}}]`
}

// TestSelectorSources: a key's source is part of what it asks for.
func TestSelectorSources(t *testing.T) {
	for _, c := range []struct {
		name, peer string
		allowed    []string
	}{
		{"unspec is any source", `toEndpoints: [{matchLabels: {"unspec:app": db}}]`, []string{"a/db"}},
		{"a source that no label of a pod has", `toEndpoints: [{matchLabels: {"container:app": db}}]`, nil},
		{"a key that merely begins like namespace labels stays in the namespace",
			`toEndpoints: [{matchExpressions: [{key: io.cilium.k8s.namespace.labels, operator: DoesNotExist}]}]`, []string{"a/web", "a/db"}},
		{"group, no source", `toCIDRSet: [{cidrGroupSelector: {matchLabels: {kind: x}}}]`, []string{"1.2.3.4"}},
		{"group, any source", `toCIDRSet: [{cidrGroupSelector: {matchLabels: {"any:kind": x}}}]`, []string{"1.2.3.4"}},
		{"group, its source", `toCIDRSet: [{cidrGroupSelector: {matchLabels: {"cidrgroup:kind": x}}}]`, []string{"1.2.3.4"}},
		{"group, a pod's source", `toCIDRSet: [{cidrGroupSelector: {matchLabels: {"k8s:kind": x}}}]`, nil},
		{"group, a pod's source, Exists", `toCIDRSet: [{cidrGroupSelector: {matchExpressions: [{key: "k8s:kind", operator: Exists}]}}]`, nil},
		{"group, a pod's source, NotIn", `toCIDRSet: [{cidrGroupSelector: {matchExpressions: [{key: "k8s:kind", operator: NotIn, values: [x]}]}}]`,
			[]string{"1.2.3.4", "1.2.4.4", "9.9.9.9", "fd01::1"}},
		{"group, a value of an address's own label", `toCIDRSet: [{cidrGroupSelector: {matchLabels: {"reserved:world-ipv4": ""}}}]`, nil},
		{"group, its name", groupsBy("io.cilium.policy.cidrgroupname/g", "Exists"), []string{"1.2.3.4"}},
		{"group, without a name", groupsBy("io.cilium.policy.cidrgroupname/g", "DoesNotExist"), []string{"1.2.4.4", "9.9.9.9", "fd01::1"}},
		{"group, a label that is Cilium's own", groupsBy("io.cilium.k8s.kind", "Exists"), nil},
		{"a prefix", groupsBy("cidr:1.2.0.0/16", "Exists"), []string{"1.2.3.4", "1.2.4.4"}},
		{"a prefix, host bits", groupsBy("cidr:1.2.9.9/16", "Exists"), []string{"1.2.3.4", "1.2.4.4"}},
		{"a prefix, a value", `toCIDRSet: [{cidrGroupSelector: {matchLabels: {"cidr:1.2.0.0/16": ""}}}]`, nil},
		{"outside of a prefix that holds a group", groupsBy("cidr:1.2.0.0/16", "DoesNotExist"), []string{"9.9.9.9", "fd01::1"}},
		{"outside of a prefix inside of a group", groupsBy("cidr:1.2.3.0/30", "DoesNotExist"), []string{"1.2.3.4", "1.2.4.4", "9.9.9.9", "fd01::1"}},
		{"outside of one address", groupsBy("cidr:1.2.3.4/32", "DoesNotExist"), []string{"1.2.4.4", "9.9.9.9", "fd01::1"}},
		{"outside of an IPv6 prefix", groupsBy("cidr:fd01--0/16", "DoesNotExist"), []string{"1.2.3.4", "1.2.4.4", "9.9.9.9"}},
		{"outside of nothing that is a prefix", groupsBy("cidr:1.2.3.4", "DoesNotExist"), []string{"1.2.3.4", "1.2.4.4", "9.9.9.9", "fd01::1"}},
		{"a prefix of outside peers", `toEndpoints: [{matchExpressions: [{key: "reserved:world-ipv4", operator: Exists}, {key: "cidr:1.2.0.0/16", operator: DoesNotExist}]}]`, []string{"9.9.9.9"}},
		{"a prefix of pods", `toEndpoints: [{matchLabels: {"cidr:10.0.0.0/8": ""}}]`, nil},
		{"IPv4 in IPv6 form", `toCIDR: ["::ffff:1.2.3.0/120"]`, nil},
		{"IPv4 in IPv6 form, in a set", `toCIDRSet: [{cidr: "::ffff:1.2.3.0/120"}]`, nil},
		{"IPv4 in IPv6 form, in a group", `toCIDRSet: [{cidrGroupRef: g}]`, []string{"1.2.3.4"}},
	} {
		e := newEngine(t, "n1", sourcesCluster+`
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: a}
spec:
  endpointSelector: {matchLabels: {app: web}}
  egress: [{`+c.peer+`}]
`)
		want := map[string]Verdict{}
		for _, to := range c.allowed {
			want[to] = Allowed
		}
		for _, to := range []string{"a/web", "a/db", "b/db", "1.2.3.4", "1.2.4.4", "9.9.9.9", "fd01::1", "node:n1"} {
			a := e.Explain(Question{From: "a/web", To: to, Port: "80"})
			if a.Verdict == Failed {
				t.Fatalf("%s: %s: %s", c.name, to, a.Error)
			}
			if got := a.Egress; (got.Verdict == Allowed) != (want[to] == Allowed) {
				t.Errorf("%s: to %s: %s (%s)", c.name, to, got.Verdict, got.Reason)
			}
		}
	}
}

// TestHostReachesInit: a pod that is being started is on this node, so the
// node reaches it; others don't.
func TestHostReachesInit(t *testing.T) {
	e := newEngine(t, "n1", sourcesCluster+`
apiVersion: v1
kind: Node
metadata: {name: n2}
status: {addresses: [{type: InternalIP, address: 192.168.0.2}]}
`)
	for from, want := range map[string]Verdict{"node:n1": Allowed, "entity:host": Allowed, "node:n2": Denied, "a/web": Denied} {
		a := e.Explain(Question{From: from, To: "entity:init", Port: "80"})
		if a.Verdict == Failed || a.Ingress.Verdict != want {
			t.Errorf("from %s: %s %+v, want %s", from, a.Error, a.Ingress, want)
		}
	}
}
