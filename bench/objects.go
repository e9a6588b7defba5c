package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	nodeName  = "bench-node"
	namespace = "bench"
)

// writeObjects writes the Kubernetes objects of the node with Weir: node,
// namespace, pods, and the policies the cells are about.
func writeObjects(dir string, n *node) error {
	var b strings.Builder
	fmt.Fprintf(&b, `apiVersion: v1
kind: Namespace
metadata: {name: %[1]s, labels: {kubernetes.io/metadata.name: %[1]s}}
---
apiVersion: v1
kind: Node
metadata: {name: %[2]s}
spec: {podCIDR: %[3]s, podCIDRs: [%[3]s]}
status: {addresses: [{type: InternalIP, address: %[4]s}]}
`, namespace, nodeName, n.prefix, n.addr)
	for i, p := range n.pods {
		role, asks := "subject", i == 0 || slices.Contains(n.idlers(), p)
		switch i {
		case 0:
			role = "client"
		case 1:
			role = "server"
		}
		fmt.Fprintf(&b, `---
apiVersion: v1
kind: Pod
metadata:
  name: %[1]s
  namespace: %[2]s
  uid: 00000000-0000-0000-0000-%012[3]d
  labels: {app: %[1]s, role: %[4]s, asks: "%[7]t"}
spec: {nodeName: %[5]s, serviceAccountName: default, containers: [{name: main, image: none}]}
status: {phase: Running, podIP: %[6]s, podIPs: [{ip: %[6]s}]}
`, p.name, namespace, i+1, role, nodeName, p.addr, asks)
	}
	if err := os.WriteFile(filepath.Join(dir, "objects.yaml"), []byte(b.String()), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "client.yaml"), []byte(clientPolicy()), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "server.yaml"), []byte(serverPolicy()), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "dns.yaml"), []byte(dnsPolicy()), 0o644); err != nil {
		return err
	}
	for subject := range subjects {
		for number := range policiesPerSubject {
			if _, err := writeSubjectPolicy(dir, subject, number, false); err != nil {
				return err
			}
		}
	}
	return nil
}

// clientPolicy lets the client reach every pod, which the kernel decides.
func clientPolicy() string {
	return fmt.Sprintf(`apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: client, namespace: %s}
spec:
  podSelector: {matchLabels: {role: client}}
  policyTypes: [Egress]
  egress: [{to: [{podSelector: {}}]}]
`, namespace)
}

// serverPolicy lets the client and the idlers ask the server: on the plain ports for
// anything, on the others for what the port's rules allow.
func serverPolicy() string {
	var b strings.Builder
	fmt.Fprintf(&b, `apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: server, namespace: %s}
spec:
  endpointSelector: {matchLabels: {role: server}}
  ingress:
  - fromEndpoints: [{matchLabels: {asks: "true"}}]
    toPorts:
    - ports:
`, namespace)
	for _, p := range []int{l4Port, tcpPorts()[modeRR], tcpPorts()[modeCRR], tcpPorts()[modeStream]} {
		fmt.Fprintf(&b, "      - {port: \"%d\", protocol: TCP}\n", p)
	}
	for _, s := range ruleSets() {
		fmt.Fprintf(&b, "    - ports: [{port: \"%d\", protocol: TCP}]\n      rules:\n        http:\n", s.Port)
		for _, r := range s.Rules {
			fmt.Fprintf(&b, "        - {method: %q, path: %q}\n", r.Method, r.Path)
		}
	}
	return b.String()
}

// dnsPolicy lets the client ask the servers for the names of the bench, and
// connect to those that are made up.
func dnsPolicy() string {
	return fmt.Sprintf(`apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: dns, namespace: %s}
spec:
  endpointSelector: {matchLabels: {role: client}}
  egress:
  - toEndpoints: [{matchLabels: {role: server}}]
    toPorts:
    - ports: [{port: "%d", protocol: ANY}, {port: "%d", protocol: UDP}]
      rules:
        dns: [{matchPattern: "*.bench.test"}, {matchPattern: "*.pairs.test"}]
  - toFQDNs: [{matchPattern: "*.pairs.test"}]
    toPorts: [{ports: [{port: "%d", protocol: TCP}]}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: dns-server, namespace: %[1]s}
spec:
  endpointSelector: {matchLabels: {role: server}}
  ingress:
  - fromEndpoints: [{matchLabels: {role: client}}]
    toPorts: [{ports: [{port: "%[2]d", protocol: ANY}, {port: "%[3]d", protocol: UDP}]}]
`, namespace, dnsPort, madeUpPort, worldPort)
}

// Policies whose changes are timed: each subject pod has some of its own.
const (
	subjects           = nodePods - 2
	policiesPerSubject = 10
)

// writeSubjectPolicy writes one of a subject's policies as users' tools do,
// whole and then renamed into place, and returns when it was about to be
// renamed. With open the client may send to the probe port; a subject's other
// policies allow it ports of their own.
func writeSubjectPolicy(dir string, subject, number int, open bool) (time.Time, error) {
	p := subjectPolicyPath(dir, subject, number)
	if err := os.WriteFile(p+".new", []byte(subjectPolicy(subject, number, open)), 0o644); err != nil {
		return time.Time{}, err
	}
	begin := time.Now()
	return begin, os.Rename(p+".new", p)
}

func subjectPolicyPath(dir string, subject, number int) string {
	return filepath.Join(dir, fmt.Sprintf("subject-%03d-%d.yaml", subject+1, number))
}

func subjectPolicy(subject, number int, open bool) string {
	port := 20000 + number
	if open {
		port = probePort
	}
	return fmt.Sprintf(`apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: subject-%03d-%d, namespace: %s}
spec:
  endpointSelector: {matchLabels: {app: pod-%d}}
  ingress:
  - fromEndpoints: [{matchLabels: {role: client}}]
    toPorts: [{ports: [{port: "%d", protocol: UDP}]}]
`, subject+1, number, namespace, subject+3, port)
}
