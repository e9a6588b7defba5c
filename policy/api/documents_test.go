package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// summary lists documents as "document:line apiVersion kind namespace/name".
func summary(docs []Document) []string {
	var out []string
	for _, d := range docs {
		out = append(out, fmt.Sprintf("%d:%d %s %s %s/%s", d.Source.Document, d.Source.Line, d.APIVersion, d.Kind, d.Namespace, d.Name))
	}
	return out
}

func TestDocuments(t *testing.T) {
	pod := "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: ns}\n"
	const aPod = "v1 Pod ns/a"
	tests := []struct {
		name, in string
		docs     []string
		errs     []string
	}{
		{"empty", "", nil, nil},
		{"only comments", "# nothing\n---\n# nothing\n...\n", nil, nil},
		{"one", pod, []string{"1:1 " + aPod}, nil},
		{"byte order mark", "\ufeff" + pod, []string{"1:1 " + aPod}, nil},
		{"crlf", strings.ReplaceAll(pod+"---\n"+pod, "\n", "\r\n"), []string{"1:1 " + aPod, "2:5 " + aPod}, nil},
		{"leading marker", "---\n" + pod, []string{"1:2 " + aPod}, nil},
		{"content on the marker line", "--- {apiVersion: v1, kind: Pod, metadata: {name: a, namespace: ns}}\n", []string{"1:1 " + aPod}, nil},
		{"empty documents are not counted", "---\n---\n# c\n---\n" + pod + "---\nnull\n---\n" + pod, []string{"1:5 " + aPod, "2:11 " + aPod}, nil},
		{"end marker", pod + "...\n---\n" + pod, []string{"1:1 " + aPod, "2:6 " + aPod}, nil},
		{"end marker alone", pod + "...\n" + pod, []string{"1:1 " + aPod, "2:5 " + aPod}, nil},
		{"marker inside a literal is indented", pod + "x: |\n  ---\n  a\n", []string{"1:1 " + aPod}, nil},
		{"directive", "%YAML 1.1\n---\n" + pod, []string{"1:3 " + aPod}, nil},
		{"broken one between", pod + "---\na: [\n---\n" + pod, []string{"1:1 " + aPod, "3:7 " + aPod}, []string{"5: not YAML: did not find expected node content"}},
		{"not an object", "- a\n", nil, []string{"1: not an object but a list"}},
		{"no kind", "a: b\n", nil, []string{"1: not a Kubernetes object: apiVersion and kind are needed"}},
		{"kind of a wrong type", "apiVersion: v1\nkind: [Pod]\n", nil, []string{"1: not a Kubernetes object: apiVersion and kind are needed"}},
		{"list", "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Pod\n  metadata: {name: a, namespace: ns}\n- {apiVersion: v1, kind: Node, metadata: {name: b}}\n",
			[]string{"1:4 " + aPod, "1:7 v1 Node /b"}, nil},
		{"typed list", "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicyList\nitems:\n- metadata: {name: a}\n", []string{"1:4 networking.k8s.io/v1 NetworkPolicy /a"}, nil},
		{"item of a list without kind", "apiVersion: v1\nkind: List\nitems:\n- metadata: {name: a}\n", nil, []string{"4: not a Kubernetes object: apiVersion and kind are needed"}},
		{"empty list", "apiVersion: v1\nkind: List\nitems: []\n", nil, nil},
		{"items are no list", "apiVersion: v1\nkind: List\nitems: {}\n", nil, []string{"3: items: must be a list, not an object"}},
		{"items twice", "apiVersion: v1\nkind: List\nitems: []\nitems: []\n", nil, []string{"4: items: is written twice, first on line 3"}},
		{"item that is no object", "apiVersion: v1\nkind: List\nitems: [1]\n", nil, []string{"3: not an object but a number"}},
		{"json", `{"apiVersion": "v1",` + "\n\t" + `"kind": "Pod", "metadata": {"name": "a", "namespace": "ns"}}`, []string{"1:1 " + aPod}, nil},
		{"json stream", "{\"apiVersion\":\"v1\",\"kind\":\"Node\"}\n{\"apiVersion\":\"v1\",\"kind\":\"Node\"}", []string{"1:1 v1 Node /", "2:2 v1 Node /"}, nil},
		{"json broken", "{\"apiVersion\":\"v1\",\n\"kind\":\"Node\"", nil, []string{"2: not JSON: ends before the value does"}},
		{"json, then rubbish", "{\"apiVersion\":\"v1\",\"kind\":\"Node\"}\n}", []string{"1:1 v1 Node /"}, []string{"2: not JSON: invalid character '}' looking for beginning of value"}},
		{"flow mapping", "{apiVersion: v1, kind: Node}", []string{"1:1 v1 Node /"}, nil},
		{"name that YAML takes for a boolean", "apiVersion: v1\nkind: Pod\nmetadata: {name: 010, namespace: n}\n", []string{"1:1 v1 Pod n/010"}, nil},
		{"not UTF-8", "a: \xff", nil, []string{"is not UTF-8 text"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			docs, errs := Documents("f", []byte(tt.in))
			if d := cmp.Diff(tt.docs, summary(docs)); d != "" {
				t.Errorf("documents (-want +got):\n%s", d)
			}
			if d := cmp.Diff(tt.errs, texts(errs)); d != "" {
				t.Errorf("errors (-want +got):\n%s", d)
			}
		})
	}
}

// TestJSON checks what scalars mean: the same as to the API server.
func TestJSON(t *testing.T) {
	tests := []struct{ in, want string }{
		{"x", `"x"`}, {"'1'", `"1"`}, {"1", "1"}, {"010", "8"}, {"0x10", "16"}, {"1_000", "1000"}, {"-1", "-1"}, {"+1", "1"},
		{"1.5", "1.5"}, {"1e3", "1000"}, {".5", "0.5"}, {"18446744073709551615", "18446744073709551615"},
		{"yes", "true"}, {"on", "true"}, {"Off", "false"}, {"n", "false"}, {"True", "true"}, {"~", "null"}, {"", "null"},
		{"2001-01-02", `"2001-01-02"`}, {"1:30", `"1:30"`}, {"!!str 5", `"5"`}, {"!!int 5", "5"}, {"!!float 5", "5"},
		{`"a\"b\\\u00e9\n"`, `"a\"b\\é\u000a"`}, {"|\n  a\n  b\n", `"a\u000ab\u000a"`}, {"0.0.0.0/0", `"0.0.0.0/0"`}, {"1.2.3.4", `"1.2.3.4"`},
		{"[1, a]", `[1,"a"]`}, {"{a: {}}", `{"a":{}}`},
	}
	for _, tt := range tests {
		docs, errs := Documents("f", []byte("apiVersion: v1\nkind: A\nx: "+tt.in))
		if len(errs) > 0 || len(docs) != 1 {
			t.Errorf("%s: %v", tt.in, errs)
			continue
		}
		got, err := docs[0].JSON()
		want := `{"apiVersion":"v1","kind":"A","x":` + tt.want + `}`
		if err != nil || string(got) != want {
			t.Errorf("%s: got %s, %v; want %s", tt.in, got, err, want)
		}
		if !json.Valid(got) {
			t.Errorf("%s: not JSON: %s", tt.in, got)
		}
	}
}

func TestSyntaxFaults(t *testing.T) {
	tests := []struct{ in, want string }{
		{"a: 1\na: 2\n", "f:4: a: is written twice, first on line 3"},
		{"b:\n  a: 1\n  c: 3\n  a: 2\n", "f:6: b.a: is written twice, first on line 4"},
		{"b: [{a: 1, a: 2}]\n", "f:3: b[0].a: is written twice, first on line 3"},
		{"yes: 1\n", "f:3: key \"yes\" is a boolean, not a string: quote it"},
		{"1: 1\n", "f:3: key \"1\" is a number, not a string: quote it"},
		{"? [a]\n: 1\n", "f:3: key \"\" is an object, not a string: quote it"},
		{"a: !!binary aGk=\n", "f:3: a: YAML tag !!binary does not fit or is not supported"},
		{"a: !foo x\n", "f:3: a: YAML tag !foo does not fit or is not supported"},
		{"a: !!int x\n", "f:3: a: YAML tag !!int does not fit or is not supported"},
		{"a: !foo {}\n", "f:3: a: YAML tag !foo is not supported"},
		{"a: .nan\n", "f:3: a: .nan is no number JSON has"},
		{"a:\n  <<: 5\n", "f:4: a.<<: must refer to an object, not a number"},
	}
	for _, tt := range tests {
		docs, errs := Documents("f", []byte("apiVersion: v1\nkind: A\n"+tt.in))
		if len(errs) > 0 || len(docs) != 1 {
			t.Errorf("%q: %v", tt.in, errs)
			continue
		}
		if _, err := docs[0].JSON(); err == nil || err.Error() != tt.want {
			t.Errorf("%q: got %v, want %s", tt.in, err, tt.want)
		}
	}
}

func TestAliasesAndMerges(t *testing.T) {
	in := "apiVersion: v1\nkind: A\nbase: &b {a: 1, c: 2}\nmore: &m {d: 4, a: 9}\n" +
		"x: *b\nw: {<<: *b, c: 3}\nz: {<<: [*b, *m]}\n"
	docs, errs := Documents("f", []byte(in))
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	got, err := docs[0].JSON()
	want := `{"apiVersion":"v1","kind":"A","base":{"a":1,"c":2},"more":{"d":4,"a":9},"x":{"a":1,"c":2},"w":{"c":3,"a":1},"z":{"a":1,"c":2,"d":4}}`
	if err != nil || string(got) != want {
		t.Errorf("got  %s, %v\nwant %s", got, err, want)
	}
}

// TestBounds checks that small inputs can't ask for much.
func TestBounds(t *testing.T) {
	var bomb strings.Builder
	bomb.WriteString("apiVersion: v1\nkind: A\na0: &a0 [x, x, x, x, x, x, x, x, x, x]\n")
	for i := 1; i < 12; i++ {
		fmt.Fprintf(&bomb, "a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d, ", i-1), 10), ", "))
	}
	tests := []struct{ name, in, want string }{
		{"alias bomb", bomb.String(), "aliases expand it to more than"},
		{"alias of itself", "apiVersion: v1\nkind: A\na: &a [*a]\n", "nested deeper than"},
		{"deep flow", "apiVersion: v1\nkind: A\na: " + strings.Repeat("[", 5000) + strings.Repeat("]", 5000), "nested deeper than"},
		{"deep json", `{"apiVersion":"v1","kind":"A","a":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + "}", "nested deeper than"},
		{"deep json objects", strings.Repeat(`{"a":`, 100000), "nested deeper than"},
		{"too large", strings.Repeat("# comment\n", MaxFileSize/10+1), "is larger than 64 MiB"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			start := time.Now()
			docs, errs := Documents("f", []byte(tt.in))
			if len(docs) > 0 || len(errs) == 0 || !strings.Contains(errs[0].Message, tt.want) {
				t.Errorf("%d documents, errors %v", len(docs), errs)
			}
			if took := time.Since(start); took > 20*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
	// Many keys must not cost their square.
	var wide strings.Builder
	wide.WriteString("apiVersion: v1\nkind: A\nx:\n")
	for i := range 200_000 {
		fmt.Fprintf(&wide, "  k%d: 1\n", i)
	}
	start := time.Now()
	if docs, errs := Documents("f", []byte(wide.String())); len(docs) != 1 || len(errs) > 0 {
		t.Fatal(errs)
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("200,000 keys took %v", took)
	}
}

// TestEveryPrefix reads a file cut off after every byte: nothing panics, and
// what is cut off is never taken for a whole policy with less in it, except at
// the end of a line, where YAML can't tell.
func TestEveryPrefix(t *testing.T) {
	text := cnpHead + "spec:\n  endpointSelector: {matchLabels: {\"k8s:app\": web}}\n  ingress:\n  - fromEndpoints: [{}]\n    toPorts:\n    - ports: [{port: \"80\", protocol: TCP}]\n      rules: {http: [{path: \"/a\"}]}\n"
	doc, errs := Documents("f", []byte(text))
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	asJSON, err := doc[0].JSON()
	if err != nil {
		t.Fatal(err)
	}
	for _, whole := range [][]byte{[]byte(text), asJSON} {
		for i := range whole {
			got := Read("f", whole[:i])
			if bytes.HasPrefix(whole, []byte("{")) && (len(got.Policies) > 0 || len(got.Others) > 0) {
				t.Errorf("JSON cut at %d gives objects: %s", i, whole[:i])
			}
		}
		if got := Read("f", whole); len(got.Policies) != 1 || len(got.Policies[0].Refused) > 0 {
			t.Errorf("whole: %+v", got)
		}
	}
}
