package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weirnet/weir/endpoint"
	"github.com/weirnet/weir/flow"
	"github.com/weirnet/weir/kube"
	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/redirect"
)

var updateGolden = flag.Bool("update", false, "write the golden files anew")

// golden compares with testdata/NAME.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *updateGolden {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s:\n got\n%s\nwant\n%s", path, got, want)
	}
}

func TestHostLine(t *testing.T) {
	var addrs []netip.Addr
	for i := range 20 {
		addrs = append(addrs, netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}))
	}
	addrs = append(addrs, netip.MustParseAddr("fe80::1"))
	line := hostLine(addrs)
	if !strings.HasPrefix(line, "10.0.0.0, 10.0.0.1, ") || !strings.HasSuffix(line, ", 10.0.0.15, 4 more, 1 link-local") {
		t.Error(line)
	}
	if line := hostLine(addrs[20:]); line != "1 link-local" {
		t.Error(line)
	}
}

func TestStatusText(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.Local)
	ip := netip.MustParseAddr
	st := agentStatus{
		Node: "node-1", State: "weir", PID: 42, Version: "v1",
		Reasons: []string{"never valid: objects/new.yaml:3: not YAML: did not find expected key", "proxy: no proxy is running (flows that need it wait)"},
		Objects: kube.Report{
			Path: "objects", Files: 3, Kinds: map[string]int{"Pod": 2, "NetworkPolicy": 1, "CiliumNetworkPolicy": 1}, Ignored: 4, Refused: 1,
			Problems: []kube.Problem{
				{Kind: kube.BrokenFile, File: "objects/new.yaml", Line: 3, Message: "not YAML: did not find expected key"},
				{Kind: kube.BrokenFile, File: "objects/pods.yaml", Message: "the file is empty; to take its objects away, delete it", Fallback: true},
				{Kind: kube.Refused, File: "objects/p.yaml", Line: 9, Object: "CiliumNetworkPolicy shop/web", Message: "spec.ingres: unknown field; did you mean ingress?"},
			},
		},
		Policy: endpoint.Status{
			Started: true, Realised: true, At: at, TookNs: 1234567, Revision: 17,
			Endpoints: []endpoint.EndpointStatus{
				{Namespace: "shop", Pod: "cart", Addresses: []netip.Addr{ip("10.0.0.2"), ip("fd00::2")}, Identity: 257, State: endpoint.EndpointWaiting},
				{Namespace: "shop", Pod: "web", Addresses: []netip.Addr{ip("10.0.0.1")}, Identity: 256, Ingress: true, IngressPolicies: []string{"a", "b"},
					EgressPolicies: []string{"c"}, Veth: "veth1", Ifindex: 4, State: endpoint.EndpointReady},
				{Namespace: "shop", Pod: "x", Addresses: []netip.Addr{ip("10.0.0.3")}, Identity: 258, Ingress: true, Veth: "veth2", Ifindex: 5, State: endpoint.EndpointPending, Error: "write policy: table full"},
			},
			Strangers: []endpoint.StrangerStatus{
				{Veth: "veth7", Addresses: []netip.Addr{ip("10.0.0.7"), ip("fe80::7")}, State: endpoint.StrangerStarting, Pods: []string{"shop/cart-0"}},
				{Veth: "veth8", State: endpoint.StrangerDoubtful, Pods: []string{"shop/a", "shop/b"}},
				{Veth: "veth9", Addresses: []netip.Addr{ip("10.0.0.9")}, State: endpoint.StrangerUnknown},
				{Veth: "docker1", Addresses: []netip.Addr{ip("172.17.0.2")}, State: endpoint.StrangerAlone},
			},
			Lost: endpoint.LostPrograms{Count: 2, At: at, Interface: "veth1"},
			Overtaken: endpoint.OvertakenPrograms{
				Count: 3, At: at, Interface: "veth2", By: "x", Now: []string{`veth2: filter "x" of priority 1`},
			},
			HostAddresses: []netip.Addr{ip("192.0.2.11"), ip("2001:db8::11"), ip("fe80::1"), ip("fe80::2")},
			Tables:        []endpoint.TableStatus{{Name: "endpoints", Entries: 1}, {Name: "policy", Entries: 30, Pending: 2, Error: "full"}},
		},
		Proxy: proxyStatus{Error: "no proxy is running", Tampered: redirect.Tampered{Overtaken: 1, Now: "weir1: x"}},
		Kernel: []flow.KernelCount{
			{Reason: "host", Direction: "ingress", Packets: 9},
			{Reason: "policy-denied", Direction: "ingress", Drop: true, Packets: 12, Bytes: 720},
			{Reason: "no-proxy", Direction: "egress", Drop: true, Packets: 1, Bytes: 60},
		},
		Lost:     lostStatus{Limited: 5},
		Services: endpoint.ServicesStatus{Why: "cgroup v2 is not mounted"},
	}
	var out bytes.Buffer
	if err := st.print(&out); err != nil {
		t.Fatal(err)
	}
	golden(t, "status_notready.txt", out.String())

	st.Ready, st.Reasons, st.Objects.Problems, st.Kernel, st.Lost = true, nil, nil, nil, lostStatus{}
	tampered := redirect.Tampered{Lost: 2, Overtaken: 1, At: at, Interface: "weir1"}
	st.Proxy = proxyStatus{Up: true, Tampered: tampered, Generation: 2, Connections: 1, Requests: 100, Denied: map[string]uint64{"http-denied": 3, "bad-request": 1},
		Replaced: []replacedProxy{{Generation: 1, Version: "v0", Connections: 3, HandedOver: 5, Until: at.Add(time.Hour)}},
		Held:     []heldConnections{{Generation: 1, Connections: 4}, {Generation: 255, Connections: 1}},
	}
	st.Services = endpoint.ServicesStatus{
		Cgroup: "/sys/fs/cgroup/kubepods", Services: 2, Frontends: 7, Backends: 1, Pods: 3, Outside: []string{"shop/vm"},
		Translated: 9, Refused: 1, Stale: 2, Missing: 3, Destroyed: 1, Error: "no room",
	}
	st.Policy.Endpoints, st.Policy.Strangers, st.Policy.Lost, st.Policy.Overtaken.Now = nil, nil, endpoint.LostPrograms{}, nil
	out.Reset()
	if err := st.print(&out); err != nil {
		t.Fatal(err)
	}
	golden(t, "status_ready.txt", out.String())
	if got := st.enforced(); got != "enforced: revision 17, 2 policies; 0 of this node's 0 pods are selected" {
		t.Error(got)
	}
	st.Policy.Endpoints = []endpoint.EndpointStatus{{EgressPolicies: []string{"a"}}, {}, {Ingress: true, IngressPolicies: []string{"a"}}}
	st.Objects.Kinds["CiliumCIDRGroup"] = 4
	if got := st.enforced(); got != "enforced: revision 17, 2 policies; 2 of this node's 3 pods are selected" {
		t.Error(got)
	}
}

// TestStatusInherited: an agent that has read nothing yet claims nothing of its
// own, and no writes that are due.
func TestStatusInherited(t *testing.T) {
	st := agentStatus{Policy: endpoint.Status{Inherited: true, Tables: []endpoint.TableStatus{{Name: "policy", Entries: 12, Pending: 12}}}}
	text := func() string {
		t.Helper()
		var out bytes.Buffer
		if err := st.print(&out); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	if got := text(); !strings.Contains(got, "policy   what a predecessor wrote is in force\n") || strings.Contains(got, "enforced, ") || strings.Contains(got, "to be written") {
		t.Error(got)
	}
	st.Policy.Inherited = false
	if got := text(); !strings.Contains(got, "policy   none\n") {
		t.Error(got)
	}
}

// answers serves the API of an agent that has seen three flows.
func answers(t *testing.T) *httptest.Server {
	t.Helper()
	ring := flow.NewRing(16)
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.Local)
	peer := func(pod, ip string, port uint16) flow.Peer {
		return flow.Peer{Addr: netip.MustParseAddr(ip), Port: port, Namespace: "shop", Pod: pod}
	}
	web, cart := peer("web", "10.0.0.1", 40000), peer("cart", "10.0.0.2", 80)
	for _, r := range []*flow.Record{
		{Time: at.Add(2 * time.Second), Layer: "L7", Verdict: flow.Dropped, Reason: "http-denied", Direction: "ingress", Source: web, Dest: cart, Protocol: "TCP",
			Policies: []string{"CiliumNetworkPolicy shop/cart"}, HTTP: &flow.HTTP{Method: "POST", Host: "cart", Path: "/admin", Status: 403}},
		{Time: at, Layer: "L3/L4", Verdict: flow.Redirected, Reason: "redirected", Direction: "ingress", Source: web, Dest: cart, Protocol: "TCP",
			Rule: &policy.RuleRef{Policy: "CiliumNetworkPolicy shop/cart", Rule: "spec.ingress[0].toPorts[0]", File: "p.yaml", Line: 9}},
		{Time: at.Add(3 * time.Second), Layer: "L3/L4", Verdict: flow.Forwarded, Reason: "not-enforced", Direction: "egress", Source: cart,
			Dest: flow.Peer{Addr: netip.MustParseAddr("192.0.2.1"), Port: 443, Labels: []string{"reserved:world-ipv4"}}, Protocol: "TCP"},
	} {
		ring.Publish(r)
	}
	s := &agentServer{ring: ring, lost: new(atomic.Uint64), registry: prometheus.NewRegistry(), log: slog.New(slog.DiscardHandler)}
	server := httptest.NewServer(s.private())
	t.Cleanup(server.Close)
	return server
}

func TestFlowsText(t *testing.T) {
	server := answers(t)
	show := func(q flow.Query, output string) string {
		t.Helper()
		resp, err := http.Get(server.URL + "/flows?" + q.Values().Encode())
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var out, errOut bytes.Buffer
		if err := printFlows(t.Context(), resp.Body, q.Follow, output, &out, &errOut); err != nil || errOut.Len() > 0 {
			t.Fatalf("%v: %s", err, errOut.String())
		}
		return out.String()
	}
	golden(t, "flows.txt", show(flow.Query{Last: -1}, "text"))
	if got := show(flow.Query{Last: -1, Filter: flow.Filter{Method: []string{"POST"}}}, "text"); strings.Count(got, "\n") != 1 || !strings.Contains(got, "/admin 403") {
		t.Errorf("filtered: %q", got)
	}
	for line := range strings.Lines(show(flow.Query{Last: 2}, "json")) {
		var r flow.Record
		if err := json.Unmarshal([]byte(line), &r); err != nil || r.Time.IsZero() || r.Source.Pod == "" {
			t.Errorf("line %q: %v", line, err)
		}
	}
	resp, err := http.Get(server.URL + "/flows?verdcit=dropped")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusBadRequest {
		t.Errorf("an unknown filter: %s", resp.Status)
	}
}

func TestShowFlowTellsWhatIsMissing(t *testing.T) {
	var out, errOut bytes.Buffer
	if err := showFlow([]byte(`{"lost":7}`+"\n"), "json", false, &out, &errOut); err != nil {
		t.Fatal(err)
	}
	if out.Len() != 0 || !strings.Contains(errOut.String(), "7 records") {
		t.Errorf("out %q, error %q", out.String(), errOut.String())
	}
}

func TestParseSince(t *testing.T) {
	now := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	for s, want := range map[string]time.Time{
		"10m": now.Add(-10 * time.Minute), "-10m": now.Add(-10 * time.Minute),
		"2026-01-01T00:00:00Z": time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
	} {
		if got, err := parseSince(s, now); err != nil || !got.Equal(want) {
			t.Errorf("%s: %v, %v", s, got, err)
		}
	}
	if _, err := parseSince("yesterday", now); err == nil {
		t.Error("yesterday is taken")
	}
}

func TestStateNames(t *testing.T) {
	for name, ok := range map[string]bool{
		"weir": true, "node-1.a_b": true, "a": true, "": false, ".": false, "..": false, "../x": false, "a/b": false, "-a": false, strings.Repeat("a", 65): false,
	} {
		if err := state(name).check(); (err == nil) != ok {
			t.Errorf("state %q: %v", name, err)
		}
	}
}

func TestNoAgent(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	_, _, err := askStatus(ctx, "no-such-state-here", 0)
	if err == nil || !strings.Contains(err.Error(), "no agent is running") {
		t.Errorf("error %v", err)
	}
	start := time.Now()
	if _, _, err = askStatus(ctx, "no-such-state-here", 200*time.Millisecond); err == nil || time.Since(start) < 200*time.Millisecond || time.Since(start) > 3*time.Second {
		t.Errorf("waiting for an agent: %v after %v", err, time.Since(start))
	}
}
