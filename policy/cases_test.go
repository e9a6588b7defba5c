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

// A case is objects with questions about them, and the answers that Cilium's
// own policy code gave.
type testCase struct {
	ID, Title string
	Strict    bool
	LocalNode string `json:"local_node"`
	Objects   string
	DNS       map[string][]string
	Options   struct {
		EnablePolicy string `json:"enable-policy"`
		HostFirewall bool   `json:"enable-host-firewall"`
	}
	Questions []caseQuestion
}

type caseQuestion struct {
	From, To, Protocol string
	Port               int
	ICMPType           *int `json:"icmp_type"`
	Egress, Ingress    caseSide
	Weir, Or           map[string]string
	Queries            []struct{ Name, Egress string }
	Requests           []struct {
		Method, Path, Host string
		Headers            [][2]string
		Egress, Ingress    string
	}
}

type caseSide struct {
	Verdict string
	L7      string
	HTTP    *struct {
		AllowAll bool `json:"allow_all"`
	}
}

func readCases(t *testing.T) []testCase {
	t.Helper()
	f, err := os.Open("testdata/verdicts.jsonl.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var out []testCase
	s := bufio.NewScanner(z)
	s.Buffer(nil, 16<<20)
	for s.Scan() {
		var c testCase
		if err := json.Unmarshal(s.Bytes(), &c); err != nil {
			t.Fatal(err)
		}
		out = append(out, c)
	}
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}

func (c *testCase) question(q *caseQuestion) Question {
	out := Question{From: q.From, To: q.To, Protocol: q.Protocol, ICMPType: q.ICMPType, Others: true}
	for name, addresses := range c.DNS {
		if slices.Contains(addresses, strings.TrimPrefix(q.To, "ip:")) {
			out.Names = append(out.Names, name)
		}
	}
	if q.ICMPType == nil {
		out.Port = fmt.Sprint(q.Port)
	}
	return out
}

// notYet names the cases about what Weir does not do, and why.
func notYet(c *testCase, q *caseQuestion) string {
	switch {
	case c.Options.EnablePolicy == "always":
		return "Weir has no mode in which pods without policies are closed"
	case strings.Contains(c.Objects, "[world-ipv4]") || strings.Contains(c.Objects, "[world-ipv6]"):
		return "the CRD's schema refuses the entity, so Weir does"
	}
	return ""
}

// TestCilium holds the evaluator to the answers of Cilium's.
func TestCilium(t *testing.T) {
	asked, left := 0, map[string]int{}
	for _, c := range readCases(t) {
		e := newEngine(t, c.LocalNode, c.Objects)
		for i := range c.Questions {
			q := &c.Questions[i]
			if why := notYet(&c, q); why != "" {
				left[why]++
				continue
			}
			if !c.Strict && q.Weir == nil {
				left["no right answer"]++
				continue
			}
			asked++
			at := fmt.Sprintf("%s (%s): %s -> %s %s %d", c.ID, c.Title, q.From, q.To, q.Protocol, q.Port)
			question := c.question(q)
			a := e.Explain(question)
			if a.Verdict == Failed {
				t.Errorf("%s: %s", at, a.Error)
				continue
			}
			checkSide(t, at+" egress", a.Egress, q.Egress, q.Weir["egress"], q.Or["egress"])
			checkSide(t, at+" ingress", a.Ingress, q.Ingress, q.Weir["ingress"], q.Or["ingress"])
			for _, r := range q.Requests {
				question.HTTP = &HTTPRequest{Method: r.Method, Path: r.Path, Host: r.Host, Headers: map[string][]string{}}
				for _, h := range r.Headers {
					question.HTTP.Headers[h[0]] = append(question.HTTP.Headers[h[0]], h[1])
				}
				a := e.Explain(question)
				at := fmt.Sprintf("%s %s %s %v", at, r.Method, r.Path, r.Headers)
				checkRequest(t, at+" egress", a.Egress, r.Egress, q.Egress.L7)
				checkRequest(t, at+" ingress", a.Ingress, r.Ingress, q.Ingress.L7)
			}
			question.HTTP = nil
			for _, r := range q.Queries {
				question.DNS = &DNSQuestion{Name: r.Name, Type: "A"}
				a := e.Explain(question)
				checkRequest(t, at+" "+r.Name+" egress", a.Egress, r.Egress, q.Egress.L7)
			}
		}
	}
	t.Logf("%d questions; left out: %v", asked, left)
	if asked < 2900 {
		t.Errorf("only %d questions were asked", asked)
	}
}

func checkSide(t *testing.T, at string, got *Side, want caseSide, weir, or string) {
	t.Helper()
	verdict := want.Verdict
	switch {
	case weir != "":
		verdict = weir
	case want.L7 == "tls":
		verdict = "denied" // until those rules are enforced
	case want.L7 == "dns", want.L7 == "http" && !want.HTTP.AllowAll:
		verdict = "l7"
	}
	if string(got.Verdict) != verdict && (or == "" || string(got.Verdict) != or) {
		t.Errorf("%s: %s (%s %s: %s), want %s %s", at, got.Verdict, got.Policy, got.Rule, got.Reason, verdict, or)
	}
	if got.Reason == "" {
		t.Errorf("%s: no reason", at)
	}
}

func checkRequest(t *testing.T, at string, got *Side, want, l7 string) {
	t.Helper()
	switch {
	case l7 == "tls", want == "redirect", want == "rejected":
		want = "denied"
	}
	if string(got.Verdict) != want {
		t.Errorf("%s: %s (%s %s: %s), want %s", at, got.Verdict, got.Policy, got.Rule, got.Reason, want)
	}
}
