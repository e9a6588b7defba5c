package e2e

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/miekg/dns"
)

// install does what the README says.
func (d *deployed) install() {
	d.kubectl("", "apply", "--server-side", "-f", crdsDir)
	d.kubectl("", "apply", "-f", manifest)
	d.kubectl("", "-n", "weir-system", "rollout", "status", "daemonset/weir", "--timeout=90s")
	if out := d.weir("status"); !strings.HasPrefix(out, "ready on node node1 ") {
		d.t.Errorf("weir status says:\n%s", out)
	}
}

// Tenants are apart: a tenant's pods are reached by those of the same namespace,
// the ingress controller and the monitoring, and by nobody else.
const networkPolicies = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: tenant, namespace: $TENANT}
spec:
  podSelector: {}
  policyTypes: [Ingress]
  ingress:
  - from:
    - podSelector: {}
    - namespaceSelector: {matchLabels: {role: ingress}}
    - namespaceSelector: {matchLabels: {role: monitoring}}
`

const ciliumPolicies = `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: tenant, namespace: $TENANT}
spec:
  endpointSelector: {}
  ingress:
  - fromEndpoints:
    - {}
    - matchLabels: {"k8s:io.cilium.k8s.namespace.labels.role": ingress}
    - matchLabels: {"k8s:io.cilium.k8s.namespace.labels.role": monitoring}
`

func (d *deployed) tenants(policy string) {
	d.enforced() // without the policies of the story before
	a, own, b := d.pod("tenant-a", "web"), d.pod("tenant-a", "client"), d.pod("tenant-b", "web")
	clients := []struct {
		name string
		from pod
		may  bool
	}{
		{"the same namespace", own, true}, {"ingress", d.pod("ingress", "controller"), true},
		{"monitoring", d.pod("monitoring", "prometheus"), true},
		{"another tenant", b, false}, {"a stranger", d.pod("stranger", "client"), false},
	}
	for _, c := range clients {
		d.expect(c.name+", before there are policies,", c.from.space, a.web(), true)
	}
	d.apply(strings.ReplaceAll(policy, "$TENANT", "tenant-a"))
	d.apply(strings.ReplaceAll(policy, "$TENANT", "tenant-b"))
	d.enforced()
	for _, c := range clients {
		d.expect(c.name+" to tenant a", c.from.space, a.web(), c.may)
	}
	d.expect("tenant a to tenant b", own.space, b.web(), false)
	d.expect("the node to tenant a", d.node, a.web(), true)
	// The other way is nobody's to close.
	d.expect("tenant a to monitoring", own.space, clients[2].from.web(), true)
}

const httpPolicy = `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: http}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: client}}]
    toPorts:
    - ports: [{port: "80", protocol: TCP}]
      rules: {http: [{method: GET, path: /hostname}]}
`

func (d *deployed) http() {
	web, client, other := d.pod("http", "web"), d.pod("http", "client"), d.pod("http", "other")
	d.apply(httpPolicy)
	d.enforced()
	for path, want := range map[string]int{"/hostname": 200, "/clientip": 403} {
		if status, err := client.get(web.web(), path); status != want {
			d.t.Errorf("%s: %d, %v; want %d", path, status, err, want)
		}
	}
	d.expect("another client", other.space, web.web(), false)
	// What became of the policy is written to it.
	if said := eventually(20*time.Second, func() string {
		out, err := d.Kubectl(d.t.Context(), "", "-n", "http", "get", "ciliumnetworkpolicy", "web", "--output=jsonpath={.status.conditions[*].status}")
		if err != nil || !strings.Contains(out, "True") {
			return fmt.Sprint("no condition: ", out, " ", err)
		}
		return ""
	}); said != "" {
		d.t.Error(said)
	}
}

const namesPolicy = `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: client, namespace: names}
spec:
  endpointSelector: {matchLabels: {app: client}}
  egress:
  - toEndpoints: [{matchLabels: {"k8s:io.kubernetes.pod.namespace": kube-system, k8s-app: kube-dns}}]
    toPorts:
    - ports: [{port: "53", protocol: ANY}]
      rules: {dns: [{matchPattern: "*"}]}
  - toFQDNs: [{matchPattern: "good-*.e2e.test"}]
    toPorts:
    - ports: [{port: "80", protocol: TCP}]
`

// clusterDNS is the service of CoreDNS.
const clusterDNS = "10.96.0.10:53"

// lookup asks CoreDNS for the address of a name.
func (s *space) lookup(name string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := s.dial(ctx, "udp", clusterDNS)
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	client := &dns.Conn{Conn: c}
	if err := client.WriteMsg(new(dns.Msg).SetQuestion(name, dns.TypeA)); err != nil {
		return "", err
	}
	m, err := client.ReadMsg()
	if err != nil {
		return "", err
	}
	for _, r := range m.Answer {
		if a, ok := r.(*dns.A); ok {
			return a.A.String(), nil
		}
	}
	return "", fmt.Errorf("%s: %s", name, dns.RcodeToString[m.Rcode])
}

func (d *deployed) names() {
	client := d.pod("names", "client")
	d.apply(namesPolicy)
	d.enforced()
	d.expect("the address of a name that nobody asked for", client.space, net.JoinHostPort(goodAddress, "80"), false)
	for name, want := range map[string]string{goodName: goodAddress, otherName: otherAddress} {
		if got, err := client.lookup(name); got != want {
			d.t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	d.expect("the address of the name", client.space, net.JoinHostPort(goodAddress, "80"), true)
	d.expect("that of another name", client.space, net.JoinHostPort(otherAddress, "80"), false)
	if out := d.weir("fqdn"); !strings.Contains(out, strings.TrimSuffix(goodName, ".")) {
		d.t.Errorf("weir fqdn says:\n%s", out)
	}
}

// shown is what a person sees who looks from inside.
func (d *deployed) shown() {
	web, client := d.pod("http", "web"), d.pod("http", "client")
	d.apply(httpPolicy)
	d.enforced()
	if status, err := client.get(web.web(), "/clientip"); status != 403 {
		d.t.Errorf("%d, %v; want 403", status, err)
	}
	if said := eventually(5*time.Second, func() string {
		out := d.weir("flows")
		if !strings.Contains(out, "/clientip") {
			return out
		}
		return ""
	}); said != "" {
		d.t.Errorf("weir flows does not show the request:\n%s", said)
	}
	out := d.weir("status")
	for _, want := range []string{"ready on node", "http/web", "services", "proxy    "} {
		if !strings.Contains(out, want) {
			d.t.Errorf("weir status does not say %q:\n%s", want, out)
		}
	}
}

// agentKilled: what was enforced stays so, and a successor goes on.
func (d *deployed) agentKilled() {
	web, client, other := d.pod("http", "web"), d.pod("http", "client"), d.pod("http", "other")
	d.apply(httpPolicy)
	d.enforced()
	before := d.agentPID(0)
	d.signal(0, before, syscall.SIGKILL)
	for began := time.Now(); time.Since(began) < 2*time.Second; {
		if status, err := client.get(web.web(), "/hostname"); status != 200 {
			d.t.Fatalf("without agent: %d, %v", status, err)
		}
		if status, err := client.get(web.web(), "/clientip"); status != 403 {
			d.t.Fatalf("without agent: %d, %v", status, err)
		}
	}
	d.expect("another client, without agent,", other.space, web.web(), false)
	if said := eventually(60*time.Second, func() string {
		if now := d.agentPID(0); now == before || d.machineKill(now, 0) != nil {
			return "no agent took its place"
		}
		return ""
	}); said != "" {
		d.t.Fatal(said)
	}
	d.kubectl("", "-n", "weir-system", "wait", "--for=condition=Ready", "pod", "-l", "app.kubernetes.io/name=weir", "--timeout=60s")
	d.enforced()
}

// agentPID is that of the agent which has a node's state, as that node counts.
func (d *deployed) agentPID(node int) int {
	d.t.Helper()
	out, err := d.Nodes[node].Command("cat", "/run/weir/weir/agent.lock").CombinedOutput()
	if err != nil {
		d.t.Fatal(string(out), err)
	}
	pid, err := strconv.Atoi(strings.Fields(string(out) + " none")[0])
	if err != nil {
		d.t.Fatal(err)
	}
	return pid
}

func (d *deployed) machineKill(pid int, signal syscall.Signal) error {
	_, err := d.inNode("kill", fmt.Sprintf("-%d", signal), strconv.Itoa(pid))
	return err
}
