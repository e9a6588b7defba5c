package test

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/flow"
)

// fetch reads a page of an HTTP server.
func fetch(c *http.Client, url string) (string, error) {
	resp, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.Status + "\n" + string(text), err
}

// TestMetricsAndHealth: the same over the socket and the node's own port, and
// the counters count.
func TestMetricsAndHealth(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/http.txtar")
	n := s.nodes[0]
	overSocket := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(n.Weir().RunDir, "agent.sock"))
	}}}
	for name, from := range map[string]*http.Client{"http://127.0.0.1:9964": n.Host.HTTPClient(patience), "http://agent": overSocket} {
		health, err := fetch(from, name+"/healthz")
		if err != nil || health != "200 OK\nok\n" {
			t.Errorf("%s/healthz: %q, %v", name, health, err)
		}
		metrics, err := fetch(from, name+"/metrics")
		if err != nil || !strings.HasPrefix(metrics, "200 OK") {
			t.Fatalf("%s/metrics: %.100q, %v", name, metrics, err)
		}
		// What the setup did: requests of which some were refused, drops.
		for _, want := range []string{`reason="policy-denied"`, "weir_", "go_goroutines"} {
			if !strings.Contains(metrics, want) {
				t.Errorf("%s/metrics has no %s", name, want)
			}
		}
		dropped := 0
		for line := range strings.Lines(metrics) {
			if strings.HasPrefix(line, "weir_") && strings.Contains(line, `reason="policy-denied"`) && !strings.HasSuffix(line, " 0\n") {
				dropped++
			}
		}
		if dropped == 0 {
			t.Errorf("%s/metrics counts no drop:\n%s", name, metrics)
		}
	}
	// The port is the node's own: no pod reaches it.
	if err := s.mustNotConnect("shop/client", "host-a", 9964); err != nil {
		t.Error(err)
	}
}

// mustNotConnect tries a flow that must be refused or unanswered.
func (s *story) mustNotConnect(from, to string, port uint16) error {
	ctx, cancel := context.WithTimeout(context.Background(), silence)
	defer cancel()
	conn, err := s.places[from].DialContext(ctx, "tcp", addrPort(s.places[to], 0, port).String())
	if err == nil {
		conn.Close()
		return net.ErrClosed
	}
	return nil
}

// TestStatus: text for people, JSON for programs, exit status for scripts.
func TestStatus(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/http.txtar")
	w := s.nodes[0].Weir()
	text, err := w.Command(t.Context(), "status")
	if err != nil || !strings.Contains(text, "shop/web2") {
		t.Errorf("%v: %s", err, text)
	}
	out, err := w.Command(t.Context(), "status", "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var status struct {
		Node   string `json:"node"`
		Ready  bool   `json:"ready"`
		Policy struct {
			Endpoints []struct {
				Namespace, Pod  string
				State           string
				Veth            string
				IngressPolicies []string
			} `json:"endpoints"`
		} `json:"policy"`
	}
	if err := json.Unmarshal([]byte(out), &status); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if status.Node != "a" || !status.Ready || len(status.Policy.Endpoints) != 6 {
		t.Errorf("%+v", status)
	}
	for _, e := range status.Policy.Endpoints {
		p := s.places[e.Namespace+"/"+e.Pod]
		if p == nil || e.State != "ready" || e.Veth != p.pod.HostLink {
			t.Errorf("endpoint %+v", e)
		}
		if strings.HasPrefix(e.Pod, "web") && !slices.Equal(e.IngressPolicies, []string{"CiliumNetworkPolicy shop/web"}) {
			t.Errorf("policies of %s: %v", e.Pod, e.IngressPolicies)
		}
	}
	w.Agent().Stop()
	if out, err := w.Command(t.Context(), "status"); err == nil {
		t.Errorf("status is content without an agent: %s", out)
	}
}

// TestFlows: what is kept can be asked for by filters, and names the policy
// that decided.
func TestFlows(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/http.txtar")
	w := s.nodes[0].Weir()
	time.Sleep(200 * time.Millisecond)
	for _, c := range []struct {
		args []string
		want func(flow.Record) bool
	}{
		{[]string{"--verdict", "dropped", "--layer", "l7"}, func(r flow.Record) bool {
			return r.Verdict == flow.Dropped && r.HTTP != nil && r.HTTP.Path == "/b" && r.HTTP.Status == 403 &&
				slices.Contains(r.Policies, "CiliumNetworkPolicy shop/web")
		}},
		{[]string{"--to", "shop/db", "--verdict", "forwarded", "--direction", "ingress"}, func(r flow.Record) bool {
			return r.Rule != nil && r.Rule.Policy == "NetworkPolicy shop/db" && strings.HasPrefix(r.Rule.Rule, "spec.ingress[0]") &&
				strings.HasSuffix(r.Rule.File, "db.yaml") && r.Rule.Line > 0 && r.Dest.Pod == "db" && r.Source.Pod == "client"
		}},
		{[]string{"--from", "shop/stranger", "--reason", "policy-denied", "--port", "5432"}, func(r flow.Record) bool {
			return r.Verdict == flow.Dropped && r.Source.Pod == "stranger" && slices.Contains(r.Source.Labels, "k8s:app=stranger") &&
				slices.Contains(r.Policies, "NetworkPolicy shop/db")
		}},
	} {
		out, err := w.Command(t.Context(), "flows", append(c.args, "-o", "json", "--last", "-1")...)
		if err != nil {
			t.Fatalf("%v: %v", c.args, err)
		}
		n := 0
		for line := range strings.Lines(out) {
			var r flow.Record
			if err := json.Unmarshal([]byte(line), &r); err != nil {
				t.Fatalf("%v: %v: %s", c.args, err, line)
			}
			if n++; !c.want(r) {
				t.Errorf("%v: %s", c.args, line)
			}
		}
		if n == 0 {
			t.Errorf("%v: no record", c.args)
		}
	}
	text, err := w.Command(t.Context(), "flows", "--last", "5")
	if err != nil || strings.Count(text, "\n") != 5 {
		t.Errorf("%v: %s", err, text)
	}
}
