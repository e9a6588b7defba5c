package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weirnet/weir/identity"
)

// nodes are three, with the API server on the third and a DNS server outside.
const nodes = `
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {kubernetes.io/hostname: n1, role: worker}}
spec: {podCIDRs: [10.0.0.0/16]}
status: {addresses: [{type: InternalIP, address: 192.168.5.1}, {type: InternalIP, address: "fd05::1"}]}
---
apiVersion: v1
kind: Node
metadata: {name: n2, labels: {kubernetes.io/hostname: n2, role: worker}}
status: {addresses: [{type: InternalIP, address: 192.168.5.2}]}
---
apiVersion: v1
kind: Node
metadata: {name: n3, labels: {kubernetes.io/hostname: n3, node-role.kubernetes.io/control-plane: ""}}
status: {addresses: [{type: InternalIP, address: 192.168.5.3}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: kubernetes, namespace: default, labels: {kubernetes.io/service-name: kubernetes}}
addressType: IPv4
ports: [{name: https, port: 6444, protocol: TCP}]
endpoints: [{addresses: [192.168.5.3]}, {addresses: [203.0.113.9]}]
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: default, labels: {app: web}}
spec: {nodeName: n1, containers: [{name: c, image: x}]}
status: {podIPs: [{ip: 10.0.0.11}]}
---
apiVersion: v1
kind: Pod
metadata: {name: api, namespace: default, labels: {app: api}}
spec: {nodeName: n1, containers: [{name: c, image: x}]}
status: {podIPs: [{ip: 10.0.0.12}]}
`

// nodeEngine is node n1 with these policies, and default fail-safe traffic.
func nodeEngine(t *testing.T, policies string) (*Engine, *tables) {
	t.Helper()
	e, tb := applied(t, Options{NodeName: "n1", Failsafe: DefaultFailsafe()}, nodes, policyYAML(policies))
	step(t, e, tb, Change{Object{Kind: KindHostAddresses}, &HostAddresses{
		Addresses: []netip.Addr{netip.MustParseAddr("192.168.5.1"), netip.MustParseAddr("172.17.0.1")},
		Resolvers: []Server{{netip.MustParseAddrPort("198.51.100.53:53"), protoUDP}, {netip.MustParseAddrPort("192.168.5.2:53"), protoUDP}},
	}})
	return e, tb
}

// lockedOut denies everything, both ways.
const lockedOut = "ccnp: nodeSelector: {}, ingress: [{}], ingressDeny: [{fromEntities: [all]}], egress: [{}], egressDeny: [{toEntities: [all]}]"

// TestNodePolicies: what policies for nodes mean, and that the kernel's search in
// the two policies of the node finds the same.
func TestNodePolicies(t *testing.T) {
	const pods = "ccnp: nodeSelector: {}, ingress: [{fromEndpoints: [{matchLabels: {app: web}}], toPorts: [{ports: [{port: '9100', protocol: TCP}]}]}]"
	cases := []struct {
		what, policies string
		from, to       string
		proto          string
		port           int
		want, reason   string // egress or ingress of n1
	}{
		{"none selects it", "ccnp: nodeSelector: {matchLabels: {role: other}}, ingress: [{}]", "203.0.113.1", "node:n1", "TCP", 80, "allowed", "no policy selects the node"},
		{"a policy for pods", "ccnp: endpointSelector: {}, ingress: [{}]", "203.0.113.1", "node:n1", "TCP", 80, "allowed", "no policy selects the node"},
		{"by label", "ccnp: nodeSelector: {matchLabels: {role: worker}}, ingress: [{}]", "203.0.113.1", "node:n1", "TCP", 80, "denied", "default deny"},
		{"by host name", "ccnp: nodeSelector: {matchLabels: {kubernetes.io/hostname: n1}}, ingress: [{}]", "203.0.113.1", "node:n1", "TCP", 80, "denied", "default deny"},
		{"at an address that no object has", pods, "203.0.113.1", "172.17.0.1", "TCP", 9100, "denied", "default deny"},
		{"a pod", pods, "default/web", "node:n1", "TCP", 9100, "allowed", "a rule allows it"},
		{"another pod", pods, "default/api", "node:n1", "TCP", 9100, "denied", "default deny"},
		{"only ingress is closed", pods, "node:n1", "203.0.113.1", "TCP", 443, "allowed", "not enforced"},
		{"a CIDR", "ccnp: nodeSelector: {}, ingress: [{fromCIDR: [203.0.113.0/24]}]", "203.0.113.1", "node:n1", "TCP", 80, "allowed", "a rule allows it"},
		{"to a pod of its own", "ccnp: nodeSelector: {}, egress: [{toEndpoints: [{matchLabels: {app: web}}]}]", "node:n1", "default/web", "TCP", 80, "allowed", "a rule allows it"},
		{"to another pod of its own", "ccnp: nodeSelector: {}, egress: [{toEndpoints: [{matchLabels: {app: web}}]}]", "node:n1", "default/api", "TCP", 80, "denied", "default deny"},
		{"remote node", "ccnp: nodeSelector: {}, ingress: [{fromEntities: [remote-node]}]", "node:n2", "node:n1", "TCP", 80, "allowed", "a rule allows it"},
		{"API server that is a node", "ccnp: nodeSelector: {}, ingress: [{fromEntities: [kube-apiserver]}]", "node:n3", "node:n1", "TCP", 80, "allowed", "a rule allows it"},
		{"a node that is none", "ccnp: nodeSelector: {}, ingress: [{fromEntities: [kube-apiserver]}]", "node:n2", "node:n1", "TCP", 80, "denied", "default deny"},
		{"the cluster is no world", "ccnp: nodeSelector: {}, ingress: [{fromEntities: [world]}]", "node:n2", "node:n1", "TCP", 80, "denied", "default deny"},
		{"deny wins", "ccnp: nodeSelector: {}, ingress: [{fromEntities: [all]}], ingressDeny: [{fromCIDR: [203.0.113.0/24]}]", "203.0.113.1", "node:n1", "TCP", 80, "denied", "deny rule"},
		{"DNS rules", "ccnp: nodeSelector: {}, egress: [{toEntities: [world], toPorts: [{ports: [{port: '53', protocol: UDP}], rules: {dns: [{matchPattern: '*'}]}}]}]", "node:n1", "203.0.113.53", "UDP", 53, "denied", "DNS rules"},
		{"a refused one", "ccnp: nodeSelector: {}, ingress: [{toPorts: [{ports: [{port: '80'}], rules: {http: [{}]}}]}]", "203.0.113.1", "node:n1", "TCP", 80, "denied", "refused"},
		{"to itself", lockedOut, "node:n1", "node:n1", "TCP", 80, "allowed", "itself"},

		{"kubelet", lockedOut, "203.0.113.1", "node:n1", "TCP", 10250, "allowed", "fail-safe, kubelet"},
		{"ssh", lockedOut, "203.0.113.1", "node:n1", "TCP", 22, "allowed", "fail-safe, ssh"},
		{"ssh, from a pod", lockedOut, "default/web", "node:n1", "TCP", 22, "allowed", "fail-safe, ssh"},
		{"ssh from it", lockedOut, "node:n1", "203.0.113.1", "TCP", 22, "denied", "deny rule"},
		{"API server on a node", lockedOut, "node:n1", "node:n3", "TCP", 6444, "allowed", "fail-safe, api-server"},
		{"API server outside", lockedOut, "node:n1", "203.0.113.9", "TCP", 6444, "allowed", "fail-safe, api-server"},
		{"its port elsewhere", lockedOut, "node:n1", "203.0.113.8", "TCP", 6444, "denied", "deny rule"},
		{"another port of it", lockedOut, "node:n1", "203.0.113.9", "TCP", 443, "denied", "deny rule"},
		{"etcd on a worker", lockedOut, "203.0.113.1", "node:n1", "TCP", 2379, "denied", "deny rule"},
		{"its resolver", lockedOut, "node:n1", "198.51.100.53", "UDP", 53, "allowed", "fail-safe, dns"},
		{"a node is its resolver", lockedOut, "node:n1", "node:n2", "UDP", 53, "allowed", "fail-safe, dns"},
		{"another server", lockedOut, "node:n1", "198.51.100.54", "UDP", 53, "denied", "deny rule"},
		{"a lease", lockedOut, "node:n1", "203.0.113.1", "UDP", 67, "allowed", "fail-safe, dhcp"},
		{"overlay", lockedOut, "node:n2", "node:n1", "UDP", 8472, "allowed", "fail-safe, overlay"},
		{"overlay from nowhere", lockedOut, "203.0.113.1", "node:n1", "UDP", 8472, "denied", "deny rule"},
		{"IP in IP", lockedOut, "node:n2", "node:n1", "4", 0, "allowed", "fail-safe, overlay"},
		{"IP in IP from nowhere", lockedOut, "203.0.113.1", "node:n1", "4", 0, "denied", "deny rule"},
		{"unreachable", lockedOut, "203.0.113.1", "node:n1", "ICMP", 3, "allowed", "fail-safe, icmp"},
		{"ping", lockedOut, "203.0.113.1", "node:n1", "ICMP", 8, "denied", "deny rule"},
	}
	for _, c := range cases {
		t.Run(c.what, func(t *testing.T) {
			e, tb := nodeEngine(t, c.policies)
			q := Question{From: c.from, To: c.to, Protocol: c.proto, Port: fmt.Sprint(c.port)}
			if c.proto == "ICMP" {
				q.Port, q.ICMPType = "", &c.port
			}
			a := e.Explain(q)
			side, d, other := a.Ingress, Ingress, c.from
			if c.from == "node:n1" {
				side, d, other = a.Egress, Egress, c.to
			}
			if a.Verdict == Failed || string(side.Verdict) != c.want || !strings.Contains(side.Reason, c.reason) {
				t.Fatalf("%s %s: %+v, want %s: %s", a.Verdict, a.Error, side, c.want, c.reason)
			}
			if other == "node:n1" {
				return
			}
			proto := map[string]uint8{"TCP": protoTCP, "UDP": protoUDP, "ICMP": protoICMP, "4": 4}[c.proto]
			if got := inKernel(t, e, tb, d, other, proto, uint16(c.port)); got != c.want {
				t.Errorf("the kernel would say %s, want %s", got, c.want)
			}
		})
	}
}

// inKernel searches as the kernel does: what always passes first.
func inKernel(t *testing.T, e *Engine, tb *tables, d Direction, other string, proto uint8, port uint16) string {
	t.Helper()
	addr := strings.NewReplacer("node:n2", "192.168.5.2", "node:n3", "192.168.5.3", "default/web", "10.0.0.11", "default/api", "10.0.0.12").Replace(other)
	who := []identity.ID{tb.who(netip.MustParseAddr(addr)).Identity}
	h := e.host.told
	if h.Policy == 0 || !tb.policies[h.Policy].Enforced[d] {
		return "allowed"
	}
	if entry, ok := Lookup(tb.policies[h.Always].Entries, d, who, proto, port); ok && entry.Action == Allow {
		return "allowed"
	}
	if entry, ok := Lookup(tb.policies[h.Policy].Entries, d, who, proto, port); ok && entry.Action == Allow {
		return "allowed"
	}
	return "denied"
}

// TestNodeComesAndGoes: labels and policies change whether the node is a subject,
// and nothing is left of one that is not.
func TestNodeComesAndGoes(t *testing.T) {
	e, tb := applied(t, Options{NodeName: "n1", Failsafe: DefaultFailsafe()}, nodes)
	if h := e.host.told; h.Policy != 0 || h.Always != 0 {
		t.Fatalf("without policies: %+v", h)
	}
	before := len(tb.policies)
	closed := objects(t, policyYAML("ccnp: nodeSelector: {matchLabels: {role: worker}}, ingress: [{}];;ccnp: nodeSelector: {matchLabels: {role: edge}}, egress: [{}]"))
	d := step(t, e, tb, closed...)
	if d.Host == nil || d.Host.Policy == 0 || d.Host.Always == 0 || len(d.Host.Failsafe) == 0 {
		t.Fatalf("a policy selects it: %+v", d.Host)
	}
	first := *d.Host
	if r := tb.policies[first.Policy]; r.Enforced != [2]bool{true, false} {
		t.Errorf("enforced: %v", r.Enforced)
	}
	relabel := func(role string) Delta {
		return step(t, e, tb, Change{Object{KindNode, "", "n1"}, &Node{Name: "n1", Labels: map[string]string{"role": role},
			Addresses: []netip.Addr{netip.MustParseAddr("192.168.5.1")}}})
	}
	d = relabel("edge")
	if r := tb.policies[first.Policy]; d.Host != nil || r.Enforced != [2]bool{false, true} || !slices.Equal(r.Selecting[Egress], []string{"CiliumClusterwideNetworkPolicy p1"}) {
		t.Errorf("other labels: %+v %+v", d.Host, r)
	}
	d = relabel("none")
	if d.Host == nil || d.Host.Policy != 0 || d.Host.Always != 0 || len(tb.policies) != before {
		t.Errorf("no policy selects it any more: %+v, %d policies, were %d", d.Host, len(tb.policies), before)
	}
	d = relabel("worker")
	if d.Host == nil || tb.policies[d.Host.Policy].Enforced != [2]bool{true, false} {
		t.Errorf("again: %+v", d.Host)
	}
	for i := range closed {
		closed[i].Value = nil
	}
	d = step(t, e, tb, closed...)
	if d.Host == nil || d.Host.Policy != 0 || len(tb.policies) != before {
		t.Errorf("policies are gone: %+v", d.Host)
	}
}

// TestNodePorts: what goes on to pods is not the node's; what leads to the node
// itself is.
func TestNodePorts(t *testing.T) {
	e, tb := nodeEngine(t, lockedOut)
	serve := func(name string, port uint16, to string) {
		o := Object{KindService, "default", name}
		s := &Service{Namespace: "default", Name: name, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.7")},
			Ports: []ServicePort{{Protocol: protoTCP, Port: 80, NodePort: port}}}
		a := netip.MustParseAddr(to)
		step(t, e, tb, Change{o, s}, Change{Object{KindEndpointSlice, "default", name}, &EndpointSlice{Namespace: "default", Name: name, Service: name,
			Ports: []SlicePort{{Protocol: protoTCP, Port: 8080}}, Addresses: []netip.Addr{a}, Backends: []SliceBackend{{Addr: a}}}})
	}
	ask := func(port int) string {
		a := e.Explain(Question{From: "203.0.113.1", To: "node:n1", Protocol: "TCP", Port: fmt.Sprint(port)})
		if got := inKernel(t, e, tb, Ingress, "203.0.113.1", protoTCP, uint16(port)); got != string(a.Ingress.Verdict) {
			t.Errorf("port %d: explained as %s, the kernel would say %s", port, a.Ingress.Verdict, got)
		}
		return string(a.Ingress.Verdict) + ": " + a.Ingress.Reason
	}
	serve("pod", 30080, "10.0.0.11")
	serve("away", 30081, "192.168.5.2")
	serve("home", 30082, "192.168.5.1")
	if got := ask(30080); got != "allowed: a node port: it goes on to service default/pod" {
		t.Error(got)
	}
	if got := ask(30081); got != "allowed: a node port: it goes on to service default/away" {
		t.Error(got)
	}
	if got := ask(30082); !strings.HasPrefix(got, "denied") {
		t.Error(got)
	}
	serve("away", 30081, "172.17.0.1")
	if got := ask(30081); !strings.HasPrefix(got, "denied") {
		t.Errorf("once it leads home: %s", got)
	}
	step(t, e, tb, Change{Object{KindService, "default", "pod"}, nil})
	if got := ask(30080); !strings.HasPrefix(got, "denied") {
		t.Errorf("once it is gone: %s", got)
	}
}

func TestControlPlaneFailsafe(t *testing.T) {
	e, _ := applied(t, Options{NodeName: "n3", Failsafe: DefaultFailsafe()}, nodes, policyYAML(lockedOut))
	for port, want := range map[string]Verdict{"6443": Allowed, "2379": Allowed, "2380": Allowed, "2381": Denied} {
		if a := e.Explain(Question{From: "203.0.113.1", To: "node:n3", Protocol: "TCP", Port: port}); a.Ingress.Verdict != want {
			t.Errorf("port %s: %+v, want %s", port, a.Ingress, want)
		}
	}
}

func TestParseFailsafe(t *testing.T) {
	cases := []struct{ text, want string }{
		{"none", ""},
		{"ssh", "ssh: in TCP 22"},
		{"kubelet,SSH", "kubelet: in TCP 10250; ssh: in TCP 22"},
		{"ssh,in:tcp/9100", "ssh: in TCP 22; in TCP 9100"},
		{"out:udp/5000-5010", "out UDP 5000-5010"},
		{"in:icmp/8", "in ICMP type 8"},
		{"in:icmpv6/0", "in ICMPv6 type 0"},
		{"dns", "dns: out UDP to the node's resolvers; dns: out TCP to the node's resolvers"},
		{"out:sctp/1", "out SCTP 1"},
		{"none,ssh", "error"}, {"", "error"}, {"shh", "error"}, {"in:tcp", "error"}, {"in:tcp/", "error"}, {"in:tcp/0", "error"},
		{"in:tcp/70000", "error"}, {"in:tcp/9-8", "error"}, {"to:tcp/9", "error"}, {"in:any/9", "error"}, {"in:icmp/256", "error"}, {"in:tcp/-1", "error"},
		{"out:tcp", "error"},
	}
	for _, c := range cases {
		list, err := ParseFailsafe(strings.Split(c.text, ","))
		var parts []string
		for _, f := range list {
			parts = append(parts, f.String())
		}
		got := strings.Join(parts, "; ")
		if err != nil {
			got = "error"
		}
		if got != c.want {
			t.Errorf("%q: %q (%v), want %q", c.text, got, err, c.want)
		}
	}
	if list, err := ParseFailsafe([]string{"default"}); err != nil || !slices.Equal(list, DefaultFailsafe()) {
		t.Errorf("default: %v %v", list, err)
	}
}

func FuzzParseFailsafe(f *testing.F) {
	f.Add("ssh,in:tcp/9100")
	f.Add("out:icmpv6/1-2")
	f.Fuzz(func(t *testing.T, text string) {
		list, err := ParseFailsafe(strings.Split(text, ","))
		for _, s := range list {
			if err != nil || s.First > s.Last || s.Protocol == 0 || (s.First == 0 && s.Last > 255) {
				t.Errorf("%q: %+v, %v", text, s, err)
			}
		}
	})
}
