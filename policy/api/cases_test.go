package api

import (
	"bufio"
	"encoding/json"
	"os"
	"strings"
	"testing"
)

// readCases calls check for every line of a file of JSON lines.
func readCases(t *testing.T, file string, atLeast int, check func(line []byte)) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	n := 0
	for ; lines.Scan(); n++ {
		check(lines.Bytes())
	}
	if err := lines.Err(); err != nil || n < atLeast {
		t.Fatalf("read %d cases of %s, want %d: %v", n, file, atLeast, err)
	}
}

// TestCases holds what Cilium's admission answered to these objects. An object
// it takes must be taken, one it refuses or prunes must be refused.
func TestCases(t *testing.T) {
	readCases(t, "testdata/accept.jsonl", 80, func(line []byte) {
		var c struct {
			ID, YAML, Verdict, Error string
			MayRefuse                string `json:"weir_may_refuse"`
		}
		if err := json.Unmarshal(line, &c); err != nil {
			t.Fatal(err)
		}
		t.Run(c.ID, func(t *testing.T) {
			p := onePolicy(t, c.YAML)
			switch refused := len(p.Refused) > 0; {
			case c.Verdict == "accept" && refused && c.MayRefuse == "":
				t.Errorf("refused: %v\n%s", p.Refused, c.YAML)
			case c.Verdict != "accept" && !refused:
				t.Errorf("accepted, but: %s\n%s", c.Error, c.YAML)
			}
		})
	})
}

// TestAdmission holds the same for mutations of every field. They were made by
// a script and put to Cilium 1.20.2's own code: CRD schema with pruning and
// defaults, then Parse. "weir" is there where Weir's answer differs on purpose.
func TestAdmission(t *testing.T) {
	readCases(t, "testdata/admission.jsonl", 1500, func(line []byte) {
		var c struct{ YAML, Cilium, Weir string }
		if err := json.Unmarshal(line, &c); err != nil {
			t.Fatal(err)
		}
		var refused []*Error
		got := Read("x.yaml", []byte(c.YAML))
		switch {
		case len(got.Policies) == 1:
			refused = onePolicy(t, c.YAML).Refused
		case len(got.CIDRGroups) == 1:
			refused = got.CIDRGroups[0].Refused
		default:
			t.Errorf("not one object: %v\n%s", got.Errors, c.YAML)
			return
		}
		want := c.Weir
		if want == "" {
			if want = "refuse"; c.Cilium == "accept" {
				want = "accept"
			}
		}
		if (len(refused) == 0) != (want == "accept") {
			t.Errorf("want %s (%s there), refused: %v\n%s", want, c.Cilium, refused, c.YAML)
		}
	})
}

// onePolicy decodes a file with one policy and checks what holds for all.
func onePolicy(t testing.TB, text string) *Policy {
	t.Helper()
	got := Read("x.yaml", []byte(text))
	if len(got.Policies) != 1 || len(got.Errors) > 0 {
		t.Fatalf("%d policies, errors %v\n%s", len(got.Policies), got.Errors, text)
	}
	p := got.Policies[0]
	lines := strings.Count(text, "\n") + 1
	for _, e := range append(p.Refused, p.Warnings...) {
		if e.File != "x.yaml" || e.Document != 1 || e.Line < 1 || e.Line > lines || e.Field == "" || e.Message == "" {
			t.Errorf("error without its place: %+v\n%s", e, text)
		}
	}
	if refused := len(p.Refused) > 0; refused {
		if p.Rules != nil || p.NetworkPolicy != nil {
			t.Errorf("refused, but has rules\n%s", text)
		}
	} else {
		if p.Closed != nil {
			t.Errorf("accepted, but closes %+v\n%s", p.Closed, text)
		}
		if len(p.Rules) != len(p.Paths) && p.NetworkPolicy == nil {
			t.Errorf("%d rules, paths %v", len(p.Rules), p.Paths)
		}
	}
	for _, path := range p.Paths {
		if p.NetworkPolicy == nil && p.Lines[path] < 1 {
			t.Errorf("no line for %s\n%s", path, text)
		}
	}
	return p
}

// texts lists errors as "line field: message".
func texts(errs []*Error) []string {
	var out []string
	for _, e := range errs {
		e := *e
		e.File = ""
		out = append(out, strings.TrimPrefix(e.Error(), "line "))
	}
	return out
}

const cnpHead = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: t, namespace: default}\n"
const ccnpHead = "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {name: t}\n"
const npHead = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: t, namespace: default}\n"
