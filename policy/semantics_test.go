package policy

import (
	"fmt"
	"strings"
	"testing"
)

// world is the cluster that the points of the semantics are tried in.
const world = `
apiVersion: v1
kind: Namespace
metadata: {name: default, labels: {team: core}}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: sales, env: prod}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: default, labels: {app: web, pod-template-hash: abc, topology.kubernetes.io/zone: a}}
spec:
  nodeName: n1
  serviceAccountName: webby
  containers: [{name: c, image: x, ports: [{name: http, containerPort: 80}, {name: admin, containerPort: 9000}]}]
status: {podIPs: [{ip: 10.0.0.11}, {ip: "fd00::11"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: api, namespace: default, labels: {app: api, app.kubernetes.io/name: api, pod-template-hash: abc}}
spec:
  nodeName: n1
  containers: [{name: c, image: x, ports: [{name: http, containerPort: 8080}]}]
status: {podIPs: [{ip: 10.0.0.12}, {ip: "fd00::12"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: api, namespace: shop, labels: {app: api}}
spec:
  nodeName: n2
  serviceAccountName: webby
  containers: [{name: c, image: x, ports: [{name: http, containerPort: 8081}, {name: http, containerPort: 53, protocol: UDP}]}]
status: {podIPs: [{ip: 10.1.0.12}]}
---
apiVersion: v1
kind: Pod
metadata: {name: agent, namespace: shop, labels: {app: agent}}
spec: {nodeName: n2, hostNetwork: true, containers: [{name: c, image: x}]}
status: {podIPs: [{ip: 192.168.5.2}]}
---
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {zone: east}}
spec: {podCIDRs: [10.0.0.0/16]}
status: {addresses: [{type: InternalIP, address: 192.168.5.1}]}
---
apiVersion: v1
kind: Node
metadata: {name: n2, labels: {zone: west}}
spec: {podCIDRs: [10.1.0.0/16]}
status: {addresses: [{type: InternalIP, address: 192.168.5.2}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: kubernetes, namespace: default, labels: {kubernetes.io/service-name: kubernetes}}
addressType: IPv4
ports: [{name: https, port: 6443}]
endpoints: [{addresses: [1.2.3.9]}]
---
apiVersion: v1
kind: Service
metadata: {name: api, namespace: shop, labels: {kind: internal}}
spec: {clusterIP: 10.96.0.7, selector: {app: api}, ports: [{name: http, port: 80, targetPort: 8081}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: api-1, namespace: shop, labels: {kubernetes.io/service-name: api}}
addressType: IPv4
ports: [{name: http, port: 8081}]
endpoints: [{addresses: [10.1.0.12]}]
---
apiVersion: v1
kind: Service
metadata: {name: ext, namespace: shop, labels: {kind: external}}
spec: {clusterIP: 10.96.0.8, ports: [{port: 443}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: ext-1, namespace: shop, labels: {kubernetes.io/service-name: ext}}
addressType: IPv4
ports: [{port: 443}]
endpoints: [{addresses: [1.2.3.4, 10.0.0.12]}]
---
apiVersion: cilium.io/v2
kind: CiliumCIDRGroup
metadata: {name: g1, labels: {city: berlin}}
spec: {externalCIDRs: [1.2.3.0/24]}
---
apiVersion: cilium.io/v2
kind: CiliumCIDRGroup
metadata: {name: g2, labels: {city: paris}}
spec: {externalCIDRs: [5.5.0.0/16]}
`

// A point is one statement about what policies mean, tried.
type point struct {
	number int
	policy string // kind and spec; see policyYAML
	// asks are "from > to protocol/port = verdict", of the side that the pod
	// default/web is at.
	asks []string
}

// policyYAML completes "cnp: ...", "ccnp: ..." (the spec, its subject
// default/web unless it has one) or "np: ...". Several are set apart by ";;".
func policyYAML(short string) string {
	var out []string
	for i, one := range strings.Split(short, ";;") {
		kind, spec, _ := strings.Cut(strings.TrimSpace(one), ":")
		version, name, meta := "cilium.io/v2", "", fmt.Sprintf("name: p%d, namespace: default", i)
		switch kind {
		case "cnp":
			name = "CiliumNetworkPolicy"
		case "ccnp":
			name, meta = "CiliumClusterwideNetworkPolicy", fmt.Sprintf("name: p%d", i)
		case "np":
			version, name = "networking.k8s.io/v1", "NetworkPolicy"
		}
		spec = strings.TrimSpace(spec)
		if !strings.HasPrefix(spec, "endpointSelector") && !strings.HasPrefix(spec, "nodeSelector") {
			subject := "endpointSelector: {matchLabels: {app: web}}, "
			if kind == "np" {
				subject = "podSelector: {matchLabels: {app: web}}, "
			}
			spec = subject + spec
		}
		out = append(out, fmt.Sprintf("apiVersion: %s\nkind: %s\nmetadata: {%s}\nspec: {%s}\n", version, name, meta, spec))
	}
	return strings.Join(out, "---\n")
}

// askText answers "from > to protocol/port", with "[names of to]", and "? name"
// or "METHOD path header=value" behind, with the verdict at default/web.
func askText(t *testing.T, e *Engine, text string) (Verdict, Answer) {
	t.Helper()
	from, rest, _ := strings.Cut(text, " > ")
	to, flow, _ := strings.Cut(rest, " ")
	flow, request, _ := strings.Cut(flow, " ")
	protocol, port, _ := strings.Cut(flow, "/")
	q := Question{From: from, To: to, Protocol: protocol, Port: port}
	if names, rest, ok := strings.Cut(request, "]"); ok {
		q.Names, request = strings.Split(strings.TrimPrefix(names, "["), ","), strings.TrimSpace(rest)
	}
	if name, ok := strings.CutPrefix(request, "? "); ok {
		q.DNS, request = &DNSQuestion{Name: name}, ""
	}
	if strings.HasPrefix(protocol, "ICMP") {
		n := 0
		if _, err := fmt.Sscan(port, &n); err != nil {
			t.Fatal(err)
		}
		q.Port, q.ICMPType = "", &n
	}
	if request != "" {
		method, path, _ := strings.Cut(request, " ")
		q.HTTP = &HTTPRequest{Method: method, Path: path, Host: "h"}
		if path, header, ok := strings.Cut(path, " "); ok {
			q.HTTP.Path = path
			name, value, _ := strings.Cut(header, "=")
			q.HTTP.Headers = map[string][]string{name: {value}}
		}
	}
	a := e.Explain(q)
	if a.Verdict == Failed {
		t.Fatalf("%s: %s", text, a.Error)
	}
	if from == "default/web" {
		return a.Egress.Verdict, a
	}
	return a.Ingress.Verdict, a
}

func TestSemantics(t *testing.T) {
	covered := map[int]bool{}
	for _, p := range append(peerPoints, portPoints...) {
		covered[p.number] = true
		t.Run(fmt.Sprintf("%d %s", p.number, p.policy), func(t *testing.T) {
			e := newEngine(t, "n1", world+"---\n"+policyYAML(p.policy))
			for _, ask := range p.asks {
				text, want, _ := strings.Cut(ask, " = ")
				if got, a := askText(t, e, text); string(got) != want {
					t.Errorf("%s: %s, want %s (egress %+v, ingress %+v)", text, got, want, a.Egress, a.Ingress)
				}
			}
		})
	}
	for n := 1; n <= 31; n++ {
		if !covered[n] {
			t.Errorf("point %d is not tried", n)
		}
	}
}
