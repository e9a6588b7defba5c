package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// runPolicy runs `weir policy args...` and returns what it wrote and the exit
// status run would give.
func runPolicy(t *testing.T, stdin string, args ...string) (out string, status int) {
	t.Helper()
	var b bytes.Buffer
	cmd := newPolicyCommand()
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	cmd.SetOut(&b)
	cmd.SetErr(&b)
	cmd.SetIn(strings.NewReader(stdin))
	cmd.SetArgs(args)
	err := cmd.Execute()
	var code exitCode
	switch {
	case errors.As(err, &code):
		status = int(code)
	case err != nil:
		status = 2
	}
	return b.String(), status
}

const (
	goodPolicy = `apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: good, namespace: shop}
spec: {endpointSelector: {}, ingress: [{}]}
`
	badPolicy = `apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: bad, namespace: shop}
spec:
  endpointSelector: {matchlabels: {app: web}}
  ingress:
  - fromCIDR: [10.0.0.1]
`
	oddPolicy = `apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: odd, namespace: shop}
spec:
  endpointSelector: {}
  egress:
  - toPorts: [{ports: [{port: "443", protocol: TCP}], serverNames: [a.b]}]
`
	aPod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: shop}\n"
)

func writeFiles(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestPolicyCheckText(t *testing.T) {
	dir := writeFiles(t, map[string]string{
		"a.yaml":        goodPolicy + "---\n" + aPod + "---\n" + badPolicy,
		"sub/b.yml":     oddPolicy,
		"sub/c.json":    `{"apiVersion":"v1"`,
		"sub/notes.txt": badPolicy,
		".git/x.yaml":   badPolicy,
	})
	out, status := runPolicy(t, "", "check", dir)
	want := strings.ReplaceAll(`DIR/a.yaml:14: spec.endpointSelector.matchlabels: unknown field; did you mean matchLabels?
DIR/a.yaml:16: spec.ingress[0].fromCIDR[0]: "10.0.0.1" lacks the length of the prefix: write 10.0.0.1/32
DIR/sub/b.yml:7: spec.egress[0].toPorts[0].serverNames: warning: is not enforced by this version: the traffic is denied
DIR/sub/c.json:1: not JSON: ends before the value does
3 files: 2 accepted, 2 refused (3 errors), 1 warning; 1 other object passed over
`, "DIR", dir)
	if d := cmp.Diff(want, out); d != "" {
		t.Errorf("output (-want +got):\n%s", d)
	}
	if status != 1 {
		t.Errorf("status %d", status)
	}
}

func TestPolicyCheckStatus(t *testing.T) {
	dir := writeFiles(t, map[string]string{"good.yaml": goodPolicy, "odd.yaml": oddPolicy, "bad.conf": badPolicy})
	at := func(name string) string { return filepath.Join(dir, name) }
	tests := []struct {
		args   []string
		stdin  string
		status int
		out    string
	}{
		{[]string{"check", at("good.yaml")}, "", 0, "1 file: 1 accepted, 0 refused (0 errors), 0 warnings; 0 other objects passed over\n"},
		{[]string{"check", at("odd.yaml")}, "", 0, "1 warning"},
		{[]string{"check", "--strict", at("odd.yaml")}, "", 1, "1 warning"},
		{[]string{"check", at("bad.conf")}, "", 1, "2 errors"}, // named: read whatever its ending
		{[]string{"check", dir}, "", 0, "2 files: 2 accepted"},
		{[]string{"check", "-"}, badPolicy, 1, "stdin:5: spec.endpointSelector.matchlabels"},
		{[]string{"check", at("good.yaml"), "-"}, aPod, 0, "1 other object passed over"},
		{[]string{"check", at("good.yaml"), at("good.yaml")}, "", 0, "is defined already at " + at("good.yaml") + ":1"},
		{[]string{"check", "-"}, "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {name: a}\n", 0, "warning: GlobalNetworkPolicy of projectcalico.org is not enforced"},
		{[]string{"check", at("none.yaml")}, "", 2, ""},
		{[]string{"check", "-o", "xml", at("good.yaml")}, "", 2, ""},
		{[]string{"check"}, "", 2, ""},
	}
	for _, tt := range tests {
		out, status := runPolicy(t, tt.stdin, tt.args...)
		if status != tt.status || !strings.Contains(out, tt.out) {
			t.Errorf("%v: status %d, want %d; output %q, want %q", tt.args, status, tt.status, out, tt.out)
		}
		if strings.Contains(out, "\x1b") {
			t.Errorf("%v: colour without a terminal: %q", tt.args, out)
		}
	}
}

func TestPolicyCheckJSON(t *testing.T) {
	out, status := runPolicy(t, goodPolicy+"---\n"+badPolicy+"---\nx: [\n---\n"+aPod, "check", "-o", "json", "-")
	if status != 1 {
		t.Errorf("status %d", status)
	}
	var got []checkedObject
	dec := json.NewDecoder(strings.NewReader(out))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&got); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	none := []finding{}
	want := []checkedObject{
		{Kind: "CiliumNetworkPolicy", Namespace: "shop", Name: "good", File: "stdin", Document: 1, Line: 1, Accepted: true, Errors: none, Warnings: none},
		{Kind: "CiliumNetworkPolicy", Namespace: "shop", Name: "bad", File: "stdin", Document: 2, Line: 6, Errors: []finding{
			{10, "spec.endpointSelector.matchlabels", "unknown field; did you mean matchLabels?"},
			{12, "spec.ingress[0].fromCIDR[0]", `"10.0.0.1" lacks the length of the prefix: write 10.0.0.1/32`},
		}, Warnings: none},
		{File: "stdin", Document: 3, Line: 14, Errors: []finding{{14, "", "not YAML: did not find expected node content"}}, Warnings: none},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("objects (-want +got):\n%s", d)
	}
	if out, status := runPolicy(t, "", "check", "-o", "json", "-"); out != "[]\n" || status != 0 {
		t.Errorf("nothing: %q, %d", out, status)
	}
}
