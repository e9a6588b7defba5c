package main

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/endpoint"
	"github.com/weirnet/weir/kube"
)

func TestSourceFlags(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := write("kubeconfig", `apiVersion: v1
kind: Config
current-context: c
clusters: [{name: c, cluster: {server: "https://192.0.2.1:6443"}}]
users: [{name: c, user: {token: t}}]
contexts: [{name: c, context: {cluster: c, user: c}}]
`)
	for _, c := range []struct{ objects, kubeconfig, want, path string }{
		{"", "", "no source of objects: give --kubeconfig FILE or --objects DIR", ""},
		{dir, good, "exclude each other", ""},
		{dir, "", "", dir},
		{"", good, "", "https://192.0.2.1:6443"},
		{"", write("broken", "{"), "broken", ""},
		{"", filepath.Join(dir, "none"), "no such file", ""},
		{good, "", "is no directory", ""},
	} {
		o := agentOptions{objects: c.objects, kubeconfig: c.kubeconfig, state: "test-source"}
		err := o.checkSource()
		if c.want != "" {
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%+v: %v", c, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%+v: %v", c, err)
			continue
		}
		source, err := o.source(slog.New(slog.DiscardHandler))
		if err != nil {
			t.Errorf("%+v: %v", c, err)
		} else if got := source.Report().Path; got != c.path && c.objects == "" {
			t.Errorf("%+v: from %s", c, got)
		}
	}
	// In a pod, but without its account.
	t.Setenv("KUBERNETES_SERVICE_HOST", "192.0.2.1")
	t.Setenv("KUBERNETES_SERVICE_PORT", "443")
	if err := (&agentOptions{}).checkSource(); err == nil || errors.Is(err, kube.ErrNoCluster) || !strings.Contains(err.Error(), "service account") {
		t.Errorf("a pod without an account: %v", err)
	}
}

// TestReasonsOfForbiddenPolicies: an agent whose ClusterRole lacks a kind says
// so first, and is not ready though it enforces what it can.
func TestReasonsOfForbiddenPolicies(t *testing.T) {
	denied := `the API server forbids to list networkpolicies.networking.k8s.io: the agent's ClusterRole lacks apiGroups: ["networking.k8s.io"], resources: ["networkpolicies"], verbs: ["list"]`
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.Local)
	objects := kube.Report{
		Path: "https://192.0.2.1:6443", Complete: true, Kinds: map[string]int{"Pod": 10, "CiliumNetworkPolicy": 2},
		Watches: []kube.Watch{{Kind: "NetworkPolicy", LeftOut: true, Denied: true, Since: at, Error: denied}, {Kind: "Pod", Known: true}},
	}
	st := agentStatus{
		Node: "node-1", State: "weir", PID: 42, Version: "v1", Objects: objects, Reasons: sourceReasons(objects),
		Policy: endpoint.Status{Started: true, Realised: true}, Proxy: proxyStatus{Up: true, Generation: 1},
	}
	var out bytes.Buffer
	if err := st.print(&out); err != nil {
		t.Fatal(err)
	}
	golden(t, "status_forbidden.txt", out.String())
}

func TestStatusTextOfACluster(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.Local)
	refused := "no answer from the API server: dial tcp 192.0.2.1:6443: connect: connection refused"
	st := agentStatus{
		Node: "node-1", State: "weir", PID: 42, Version: "v1", Ready: true,
		Objects: kube.Report{
			Path: "https://192.0.2.1:6443", Complete: true, Kinds: map[string]int{"Pod": 10000, "Namespace": 1000, "CiliumNetworkPolicy": 2}, Refused: 1,
			Problems: []kube.Problem{{Kind: kube.Refused, Object: "CiliumNetworkPolicy shop/web", Message: "spec.ingres: unknown field; did you mean ingress?"}},
			Watches: []kube.Watch{
				{Kind: "Namespace", Known: true, Since: at, Error: refused}, {Kind: "Pod", Known: true, Since: at, Error: refused},
				{Kind: "CiliumNetworkPolicy", Known: true}, {Kind: "CiliumCIDRGroup", Missing: true},
			},
		},
		Policy: endpoint.Status{Started: true, Realised: true},
		Proxy:  proxyStatus{Up: true, Generation: 1},
	}
	var out bytes.Buffer
	if err := st.print(&out); err != nil {
		t.Fatal(err)
	}
	golden(t, "status_cluster.txt", out.String())
}
