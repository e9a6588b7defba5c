package kube

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/policy/api"
)

// decodeOne decodes a document with one object.
func decodeOne(t *testing.T, text string) (object, []problem) {
	t.Helper()
	docs, broken := decodeFile("f.yaml", []byte(text), nil)
	if len(broken) > 0 || len(docs) != 1 || len(docs[0].objects) != 1 {
		t.Fatalf("documents %+v, broken %v", docs, broken)
	}
	return docs[0].objects[0], docs[0].problems
}

func ips(s ...string) (out []netip.Addr) {
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func TestCoreObjects(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       any
	}{
		{"pod", `
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: shop, uid: u1, labels: {app: web}, creationTimestamp: "2026-01-02T03:04:05Z"}
spec:
  nodeName: n1
  serviceAccountName: web
  containers:
  - name: c
    image: anything
    ports: [{name: http, containerPort: 8080}, {containerPort: 9090}, {name: dns, containerPort: 53, protocol: UDP}]
  initContainers:
  - {name: once, ports: [{name: setup, containerPort: 1}]}
  - {name: sidecar, restartPolicy: Always, ports: [{name: metrics, containerPort: 9000, protocol: SCTP}]}
status: {phase: Running, podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: "fd00::1"}]}
`, &policy.Pod{
			Namespace: "shop", Name: "a", UID: "u1", Node: "n1", Labels: map[string]string{"app": "web"}, ServiceAccount: "web", Created: 1767323045,
			Addresses: ips("10.0.0.1", "fd00::1"),
			Ports:     []policy.NamedPort{{Name: "http", Protocol: 6, Port: 8080}, {Name: "dns", Protocol: 17, Port: 53}, {Name: "metrics", Protocol: 132, Port: 9000}},
		}},
		{"host ports", `
apiVersion: v1
kind: Pod
metadata: {name: a}
spec:
  containers:
  - {name: c, ports: [{containerPort: 8080, hostPort: 8088}, {name: dns, containerPort: 5353, hostPort: 53, hostIP: 192.0.2.1, protocol: UDP}]}
  initContainers:
  - {name: once, ports: [{containerPort: 1, hostPort: 1}]}
  - {name: sidecar, restartPolicy: Always, ports: [{containerPort: 9000, hostPort: 9001, hostIP: "::", protocol: SCTP}]}
`, &policy.Pod{Namespace: "default", Name: "a", ServiceAccount: "default",
			Ports: []policy.NamedPort{{Name: "dns", Protocol: 17, Port: 5353}},
			HostPorts: []policy.HostPort{{HostPort: 8088, Port: 8080, Protocol: 6}, {HostIP: netip.MustParseAddr("192.0.2.1"), HostPort: 53, Port: 5353, Protocol: 17},
				{HostIP: netip.IPv6Unspecified(), HostPort: 9001, Port: 9000, Protocol: 132}}}},
		{"host ports on the host network", "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {hostNetwork: true, containers: [{name: c, ports: [{containerPort: 80, hostPort: 80}]}]}\n",
			&policy.Pod{Namespace: "default", Name: "a", ServiceAccount: "default", HostNetwork: true}},
		{"least pod", "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n", &policy.Pod{Namespace: "default", Name: "a", ServiceAccount: "default"}},
		{"pod that is being deleted", "apiVersion: v1\nkind: Pod\nmetadata: {name: a, deletionTimestamp: '2026-01-02T03:04:05Z'}\n",
			&policy.Pod{Namespace: "default", Name: "a", ServiceAccount: "default", Deleting: true}},
		{"static pod", "apiVersion: v1\nkind: Pod\nmetadata: {name: a, uid: u1, annotations: {kubernetes.io/config.mirror: h1}}\n",
			&policy.Pod{Namespace: "default", Name: "a", UID: "h1", ServiceAccount: "default"}},
		{"pod on the host network", "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {hostNetwork: true}\nstatus: {podIP: 192.0.2.1}\n",
			&policy.Pod{Namespace: "default", Name: "a", ServiceAccount: "default", HostNetwork: true, Addresses: ips("192.0.2.1")}},
		{"pod that has ended", "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nstatus: {phase: Succeeded, podIP: 10.0.0.1}\n", nil},
		{"pod that has failed", "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nstatus: {phase: Failed, podIP: 10.0.0.1}\n", nil},
		{"namespace", "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {a: b}}\n", &policy.Namespace{Name: "shop", Labels: map[string]string{"a": "b"}}},
		{"node", `
apiVersion: v1
kind: Node
metadata: {name: n1, namespace: ignored, labels: {zone: a}}
spec: {podCIDR: 10.1.0.5/24, podCIDRs: [10.1.0.5/24, "fd00:1::/64"]}
status:
  addresses: [{type: Hostname, address: n1}, {type: InternalIP, address: 192.0.2.1}, {type: ExternalIP, address: "2001:db8::1"}]
`, &policy.Node{Name: "n1", Labels: map[string]string{"zone": "a"}, Addresses: ips("192.0.2.1", "2001:db8::1"),
			PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd00:1::/64")}}},
		{"service", `
apiVersion: v1
kind: Service
metadata: {name: s, namespace: shop, labels: {a: b}}
spec:
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1, "fd00:96::1"]
  externalIPs: [198.51.100.1]
  selector: {app: web}
  ports: [{name: http, port: 80, nodePort: 30080}, {port: 53, protocol: UDP}]
status: {loadBalancer: {ingress: [{ip: 203.0.113.1}, {hostname: lb.example}]}}
`, &policy.Service{Namespace: "shop", Name: "s", Labels: map[string]string{"a": "b"}, Selector: map[string]string{"app": "web"},
			ClusterIPs: ips("10.96.0.1", "fd00:96::1"), ExternalIPs: ips("198.51.100.1", "203.0.113.1"),
			Ports: []policy.ServicePort{{Name: "http", Protocol: 6, Port: 80, NodePort: 30080}, {Protocol: 17, Port: 53}}}},
		{"how a service is served", `
apiVersion: v1
kind: Service
metadata: {name: s, labels: {service.kubernetes.io/service-proxy-name: other}}
spec:
  clusterIP: 10.96.0.1
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 7}}
  internalTrafficPolicy: Local
status: {loadBalancer: {ingress: [{ip: 203.0.113.1, ipMode: VIP}, {ip: 203.0.113.2, ipMode: Proxy}]}}
`, &policy.Service{Namespace: "default", Name: "s", Labels: map[string]string{"service.kubernetes.io/service-proxy-name": "other"},
			ClusterIPs: ips("10.96.0.1"), ExternalIPs: ips("203.0.113.1", "203.0.113.2"), ProxiedIPs: ips("203.0.113.2"),
			Affinity: 7 * time.Second, InternalLocal: true, OtherProxy: true}},
		{"service with affinity and no more said", "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {sessionAffinity: ClientIP}\n",
			&policy.Service{Namespace: "default", Name: "s", Affinity: 3 * time.Hour}},
		{"service that is a name", "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {type: ExternalName, externalName: a.test, clusterIP: 10.96.0.1}\n",
			&policy.Service{Namespace: "default", Name: "s"}},
		{"headless service", "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {clusterIP: None, clusterIPs: [None]}\n", &policy.Service{Namespace: "default", Name: "s"}},
		{"endpoint slice", `
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: s-1, namespace: shop, labels: {kubernetes.io/service-name: s}}
addressType: IPv4
ports: [{name: http, port: 8080}, {name: all}, {port: 53, protocol: UDP}]
endpoints:
- {addresses: [10.0.0.1], conditions: {ready: true}}
- {addresses: [10.0.0.2], conditions: {ready: false}}
- {addresses: [10.0.0.3], conditions: {ready: false, serving: true, terminating: true}}
- {addresses: [10.0.0.4], conditions: {ready: true, serving: false}}
- {addresses: [10.0.0.5], nodeName: n1}
- {addresses: [10.0.0.6], conditions: {ready: false, serving: false, terminating: true}}
- {addresses: [10.0.0.7], conditions: {ready: false, serving: true}}
`, &policy.EndpointSlice{Namespace: "shop", Name: "s-1", Service: "s", Addresses: ips("10.0.0.1", "10.0.0.3", "10.0.0.4", "10.0.0.5"),
			Backends: []policy.SliceBackend{
				{Addr: ips("10.0.0.1")[0]}, {Addr: ips("10.0.0.3")[0], Terminating: true}, {Addr: ips("10.0.0.4")[0]},
				{Addr: ips("10.0.0.5")[0], Node: "n1"},
			},
			Ports: []policy.SlicePort{{Name: "http", Protocol: 6, Port: 8080}, {Name: "all", Protocol: 6}, {Protocol: 17, Port: 53}}}},
		{"endpoint slice of names", "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s}\naddressType: FQDN\nendpoints: [{addresses: [a.example]}]\n",
			&policy.EndpointSlice{Namespace: "default", Name: "s"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			o, problems := decodeOne(t, c.text)
			if len(problems) > 0 || o.broken {
				t.Fatalf("problems: %v", problems)
			}
			if d := cmp.Diff(c.want, o.value, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestBrokenCoreObjects(t *testing.T) {
	for text, want := range map[string]string{
		"apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nstatus: {podIP: 10.0.0.256}\n":                                                          "status.podIPs",
		"apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nstatus: {podIP: 'fe80::1%eth0'}\n":                                                      "zone",
		"apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: []\n":                                                                             "",
		"apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c, ports: [{name: x, containerPort: 70000}]}]}\n":            "70000",
		"apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c, ports: [{name: x, containerPort: 1, protocol: tcp}]}]}\n": "tcp",
		"apiVersion: v1\nkind: Node\nmetadata: {name: a}\nspec: {podCIDRs: [10.0.0.0]}\n":                                                        "podCIDRs",
		"apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 0}]}\n":                                                       "ports[0]",
		"apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {clusterIP: x}\n":                                                             "clusterIPs",
		"apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a}\nendpoints: [{addresses: [x]}]\n":                             "endpoints",
		"apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nmetadata: {name: b}\n":                                                                  "twice",
	} {
		o, problems := decodeOne(t, text)
		if !o.broken || len(problems) != 1 || problems[0].Kind != BrokenObject || !strings.Contains(problems[0].Message, want) {
			t.Errorf("%s: object %+v, problems %v", text, o, problems)
		}
	}
}

func TestListsAndOtherKinds(t *testing.T) {
	docs, broken := decodeFile("f.yaml", []byte(`# first
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: a}}
- {apiVersion: v1, kind: Secret, metadata: {name: a}}
---
apiVersion: v1
kind: PodList
items:
- metadata: {name: p}
`), nil)
	if len(broken) > 0 || len(docs) != 2 || docs[0].unknown != 1 || len(docs[0].objects) != 1 || len(docs[1].objects) != 1 {
		t.Fatalf("%+v, %v", docs, broken)
	}
	if o := docs[1].objects[0]; o.key.Kind != "Pod" || o.key.Name != "p" || o.line != 11 {
		t.Errorf("object %+v", o)
	}
}

// What is decoded document by document is what is decoded as a whole.
func FuzzSplit(f *testing.F) {
	for _, s := range []string{
		podYAML("a", "10.0.0.1") + "---\n" + policyYAML, "# only\n---\n---\n# a comment\n", "--- {apiVersion: v1, kind: Pod, metadata: {name: a}}\n...\n" + policyYAML,
		`{"apiVersion":"v1","kind":"Pod"} {"apiVersion":"v1","kind":"Node"}`, "a: |\n ---\n b\n", "%YAML 1.1\n---\nkind: A\napiVersion: b\n", "\xef\xbb\xbfkind: A\napiVersion: b\n",
		"kind: A\r\napiVersion: b\r\n---\r\nkind: B\r\napiVersion: c\r\n", "---\tkind: A\n", "----\n", "x: 1\n--- \n", "null\n---\nkind: A\napiVersion: b\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		type place struct {
			kind, name     string
			line, document int
		}
		var whole, parts []place
		docs, errs := api.Documents("f", []byte(text))
		if len(errs) > 0 {
			return // then the file as a whole is broken
		}
		for _, d := range docs {
			whole = append(whole, place{d.Kind, d.Name, d.Source.Line, d.Source.Document})
		}
		for _, s := range api.Sections([]byte(strings.TrimPrefix(text, "\ufeff"))) {
			docs, errs := api.Documents("f", s.Text)
			if len(errs) > 0 {
				t.Fatalf("section %q is broken, the whole is not: %v", s.Text, errs)
			}
			for _, d := range docs {
				parts = append(parts, place{d.Kind, d.Name, d.Source.Line + s.Line - 1, d.Source.Document + s.Number - 1})
			}
		}
		ignore := cmpopts.IgnoreFields(place{}, "document") // a document that is null is not counted by the other
		if d := cmp.Diff(whole, parts, cmp.AllowUnexported(place{}), ignore); d != "" {
			t.Fatalf("%q: %s", text, d)
		}
	})
}
