package api

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// FuzzRead reads anything as a file. Nothing panics; every error has a place
// in the text; what was read is valid JSON and reads the same from it; what is
// accepted means the same after it was encoded.
func FuzzRead(f *testing.F) {
	seeds, err := os.ReadFile("testdata/accept.jsonl")
	if err != nil {
		f.Fatal(err)
	}
	for line := range strings.Lines(string(seeds)) {
		var c struct{ YAML string }
		if err := json.Unmarshal([]byte(line), &c); err != nil {
			f.Fatal(err)
		}
		f.Add([]byte(c.YAML))
	}
	f.Add([]byte(npHead + "spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}], ports: [{port: a, protocol: UDP}, {port: 1, endPort: 2}]}]}\n"))
	f.Add([]byte(cnpHead + "spec: &s {endpointSelector: {}, ingress: [{}]}\nspecs: [*s, {<<: *s, egress: [{toFQDNs: [{matchPattern: '*.a'}]}]}]\n---\napiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: Pod}]\n"))
	f.Add([]byte(`{"apiVersion":"cilium.io/v2","kind":"CiliumCIDRGroup","metadata":{"name":"g"},"spec":{"externalCIDRs":["10.0.0.0/8"]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<16 {
			return
		}
		lines := 1 // YAML breaks lines at each of these
		for _, end := range []string{"\n", "\r", "\u0085", "\u2028", "\u2029"} {
			lines += strings.Count(string(data), end)
		}
		place := func(errs []*Error) {
			for _, e := range errs {
				if e.File != "f" || e.Line < 0 || e.Line > lines+1 || e.Message == "" {
					t.Errorf("error without its place: %+v", e)
				}
			}
		}
		docs, errs := Documents("f", data)
		place(errs)
		for i := range docs {
			d := &docs[i]
			text, err := d.JSON()
			if err == nil && !json.Valid(text) {
				t.Fatalf("not JSON: %s", text)
			}
			p := d.Policy()
			if p == nil {
				if g := d.CIDRGroup(); g != nil {
					place(append(g.Refused, g.Warnings...))
				}
				continue
			}
			place(append(p.Refused, p.Warnings...))
			if (len(p.Refused) > 0) != (p.Rules == nil && p.NetworkPolicy == nil) && p.Lines["specs"] == 0 {
				t.Fatalf("refused %v with rules %v", p.Refused, p.Rules)
			}
			if err != nil {
				if len(p.Refused) == 0 {
					t.Fatalf("accepted with a fault in its syntax: %v", err)
				}
				continue
			}
			samePolicy(t, p, text)
			if len(p.Refused) == 0 {
				samePolicy(t, p, encode(t, p))
			}
		}
	})
}

// samePolicy reads the text and compares what it means with p.
func samePolicy(t *testing.T, p *Policy, text []byte) {
	t.Helper()
	got := Read("f", text)
	if len(got.Policies) != 1 {
		t.Fatalf("%d policies, errors %v, in %s", len(got.Policies), got.Errors, text)
	}
	again := got.Policies[0]
	if (len(p.Refused) == 0) != (len(again.Refused) == 0) {
		t.Fatalf("refused %v, then %v\n%s", p.Refused, again.Refused, text)
	}
	fields := []string{"Source", "Lines", "Refused", "Warnings", "UID", "Paths"}
	if len(p.Refused) > 0 {
		// An unquoted name that YAML takes for another type is known as it
		// was written; JSON has no such thing.
		fields = append(fields, "Name", "Namespace")
	}
	ignore := cmpopts.IgnoreFields(Policy{}, fields...)
	if d := cmp.Diff(p, again, ignore); d != "" {
		t.Fatalf("differs (-first +again):\n%s\n%s", d, text)
	}
}

// encode writes an accepted policy as JSON.
func encode(t *testing.T, p *Policy) []byte {
	t.Helper()
	object := map[string]any{"kind": p.Kind, "metadata": map[string]string{"name": p.Name, "namespace": p.Namespace}}
	if p.Kind == KindNetworkPolicy {
		object["apiVersion"], object["spec"] = "networking.k8s.io/v1", p.NetworkPolicy
	} else {
		object["apiVersion"] = "cilium.io/v2"
		specs := p.Rules
		if specs == nil {
			specs = []*Rule{}
		}
		object["specs"] = specs
	}
	text, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
