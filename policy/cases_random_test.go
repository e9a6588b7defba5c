package policy

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// randomCase is random policies over one set of pods, nodes, services and CIDR
// groups, and what Cilium's own policy code answered. A flow is
// "from to protocol/port egress ingress". An end's answer is - (no policy is
// enforced at that end), n (none selects it), A (allowed), W (allowed, through
// the proxy), D (denied), or R and for each request 1 (allowed) or 0, or N and
// the same for each DNS question. What the first case has, all others have, too.
type randomCase struct {
	ID       string
	Objects  []string
	DNS      map[string][]string // addresses that names are known to stand for
	Requests [][3]string
	Queries  []string
	Flows    []string
}

// TestCiliumRandom holds the evaluator to Cilium's answers about policies that
// nobody would write on purpose.
func TestCiliumRandom(t *testing.T) { ciliumRandom(t, "testdata/random.jsonl.gz", 20000) }

// TestCiliumNames does the same for DNS rules and names.
func TestCiliumNames(t *testing.T) { ciliumRandom(t, "testdata/names.jsonl.gz", 50000) }

func ciliumRandom(t *testing.T, file string, atLeast int) {
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	s := bufio.NewScanner(z)
	s.Buffer(nil, 16<<20)
	var base *randomCase
	flows := 0
	for s.Scan() {
		var c randomCase
		if err := json.Unmarshal(s.Bytes(), &c); err != nil {
			t.Fatal(err)
		}
		if base == nil {
			base = &c
			continue
		}
		e := newEngine(t, "node-1", strings.Join(slices.Concat(base.Objects, c.Objects), "\n---\n"))
		c.DNS, c.Queries = base.DNS, base.Queries
		if base.Requests != nil {
			c.Requests = base.Requests
		}
		for _, flow := range c.Flows {
			flows++
			c.check(t, e, flow)
		}
	}
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	if flows < atLeast {
		t.Errorf("only %d flows were asked about", flows)
	}
}

func (c *randomCase) check(t *testing.T, e *Engine, flow string) {
	t.Helper()
	var q Question
	var target, egress, ingress string
	if _, err := fmt.Sscan(flow, &q.From, &q.To, &target, &egress, &ingress); err != nil {
		t.Fatalf("%s: flow %q: %v", c.ID, flow, err)
	}
	q.Protocol, q.Port, _ = strings.Cut(target, "/")
	if strings.HasPrefix(q.Protocol, "ICMP") {
		q.ICMPType = new(int)
		fmt.Sscan(q.Port, q.ICMPType)
		q.Port = ""
	}
	for name, addresses := range c.DNS {
		if slices.Contains(addresses, strings.TrimPrefix(q.To, "ip:")) {
			q.Names = append(q.Names, name)
		}
	}
	a := e.Explain(q)
	if a.Verdict == Failed {
		t.Errorf("%s: %s: %s", c.ID, flow, a.Error)
		return
	}
	for _, end := range [...]struct {
		name, want string
		got        func(*Answer) *Side
	}{
		{"egress", egress, func(a *Answer) *Side { return a.Egress }},
		{"ingress", ingress, func(a *Answer) *Side { return a.Ingress }},
	} {
		if end.want[0] == 'N' {
			c.checkQueries(t, e, flow, q, a.Egress, end.want[1:])
			continue
		}
		if end.name == "ingress" && selectedByAddress(c.ID+" "+flow) {
			end.want = "A"
		}
		want := map[byte]Verdict{'-': NotApplicable, 'n': Allowed, 'A': Allowed, 'W': Allowed, 'D': Denied, 'R': NeedsRequest}[end.want[0]]
		got := end.got(&a)
		if got.Verdict != want {
			t.Errorf("%s: %s: %s is %s (%s %s: %s), want %s", c.ID, flow, end.name, got.Verdict, got.Policy, got.Rule, got.Reason, want)
			continue
		}
		observed := strings.Contains(got.Reason, "DNS") && q.Port == "53"
		if proxied := strings.Contains(got.Reason, "proxy") && !observed; want == Allowed && proxied != (end.want == "W") {
			t.Errorf("%s: %s: %s goes through the proxy: %t (%s)", c.ID, flow, end.name, proxied, got.Reason)
		}
		if want != NeedsRequest {
			continue
		}
		for i, r := range c.Requests {
			q.HTTP = &HTTPRequest{Method: r[0], Path: r[1], Host: r[2]}
			a := e.Explain(q)
			if got := end.got(&a); (got.Verdict == Allowed) != (end.want[1+i] == '1') {
				t.Errorf("%s: %s: %s of %v is %s (%s)", c.ID, flow, end.name, r, got.Verdict, got.Reason)
			}
		}
		q.HTTP = nil
	}
}

// selectedByAddress tells of flows that Cilium denies and Weir allows on purpose:
// Cilium takes an ipBlock of a NetworkPolicy for a CIDR, and so for outside
// addresses. Kubernetes' own tests want it to select pods, and so nodes, by their
// addresses.
func selectedByAddress(flow string) bool {
	return slices.Contains([]string{
		"d-12-195 node:node-2 pod:red/p2 TCP/80 - D",
		"d-12-197 pod:red/p2 pod:green/p0 UDP/8080 D D",
		"d-12-197 pod:red/p2 pod:green/p0 UDP/80 D D",
		"d-21-485 pod:green/p0 pod:green/p0 SCTP/80 A D",
		"d-21-485 pod:green/p0 pod:green/p0 SCTP/443 A D",
		"d-21-485 pod:green/p0 pod:green/p0 UDP/80 A D",
		"d-21-485 pod:red/p1 pod:green/p0 UDP/8080 n D",
		"d-31-37 pod:green/p1 pod:red/p2 ICMPv6/128 D D",
	}, flow)
}

// checkQueries compares what becomes of DNS questions. Where a rule lifts DNS
// rules, Weir says at once that all are allowed; what is neither UDP nor TCP
// it can't look into.
func (c *randomCase) checkQueries(t *testing.T, e *Engine, flow string, q Question, got *Side, want string) {
	t.Helper()
	if q.Protocol == "SCTP" {
		if got.Verdict == NeedsRequest || got.Verdict == Allowed && strings.Contains(want, "0") {
			t.Errorf("%s: %s: %s (%s)", c.ID, flow, got.Verdict, got.Reason)
		}
		return
	}
	if got.Verdict != NeedsRequest && got.Verdict != Allowed {
		t.Errorf("%s: %s: %s (%s), want questions judged", c.ID, flow, got.Verdict, got.Reason)
		return
	}
	for i, name := range c.Queries {
		q.DNS = &DNSQuestion{Name: name, Type: "A"}
		if a := e.Explain(q); (a.Egress.Verdict == Allowed) != (want[i] == '1') || got.Verdict == Allowed && a.Egress.Verdict != Allowed {
			t.Errorf("%s: %s: %s is %s (%s)", c.ID, flow, name, a.Egress.Verdict, a.Egress.Reason)
		}
	}
}
