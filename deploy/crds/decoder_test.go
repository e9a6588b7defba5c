package crds_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weirnet/weir/policy/api"
	"github.com/weirnet/weir/test/apiserver"
)

// testAgreesWithDecoder puts every policy object that the tests of this
// repository and its examples have to an API server.
//
// What the decoder takes the server takes, and keeps as it is. What it refuses
// the server refuses as well, or keeps so that the agent still refuses it:
// nothing may become another policy on the way.
func testAgreesWithDecoder(t *testing.T, s *apiserver.Server) {
	seen := map[string]bool{}
	taken, refused, hints, late := 0, 0, 0, map[string]int{}
	for _, text := range corpus(t) {
		docs, _ := api.Documents("", []byte(text))
		for i := range docs {
			doc := &docs[i]
			if !doc.IsPolicy() || doc.Kind == api.KindNetworkPolicy || !strings.HasPrefix(doc.APIVersion, "cilium.io/v2") || doc.APIVersion != "cilium.io/v2" && doc.Kind != api.KindCiliumCIDRGroup {
				continue
			}
			body, err := doc.JSON()
			if err != nil || seen[string(body)] {
				continue // no JSON: no client could send it
			}
			seen[string(body)] = true
			want, wrong := meaning(doc)
			status, answer := create(t, s, body)
			switch {
			case status == 404:
				if doc.Namespace != "" {
					apply(t, s, []byte("apiVersion: v1\nkind: Namespace\nmetadata: {name: "+doc.Namespace+"}\n"))
					status, answer = create(t, s, body)
				}
			case status == 400 && strings.Contains(answer, "cluster-scoped") || strings.Contains(answer, "must match the namespace"):
				continue
			}
			switch {
			case status == 201:
				got, _ := api.Documents("", []byte(answer))
				kept, keptWrong := meaning(&got[0])
				if (len(wrong) == 0) != (len(keptWrong) == 0) {
					t.Errorf("refused %q as written, %q as kept\n%s", wrong, keptWrong, body)
				} else if diff := cmp.Diff(want, kept); len(wrong) == 0 && diff != "" {
					t.Errorf("kept as another: %s\n%s", diff, body)
				}
				if len(wrong) > 0 {
					late[wrong[0].Message]++
				}
				taken++
			case len(wrong) == 0:
				t.Errorf("refused: %d %s\n%s", status, answer, body)
			default:
				refused++
				for _, e := range wrong {
					hints += sameHint(t, answer, e)
				}
			}
		}
	}
	n := 0
	for _, m := range late {
		n += m
	}
	t.Logf("%d taken, %d refused; of those taken the agent refuses %d", taken, refused, n)
	for m, n := range late {
		t.Logf("%4d %s", n, m)
	}
	if taken < 500 || refused < 500 || n > refused/3 || hints < 5 {
		t.Errorf("%d taken, %d refused, %d refused by the agent alone, %d hints", taken, refused, n, hints)
	}
}

// sameHint checks that what the server says of an unknown field, if anything, is
// what the agent says. It returns 1 if both have a hint.
func sameHint(t *testing.T, answer string, e *api.Error) int {
	t.Helper()
	const unknown = "unknown field"
	var status struct{ Message string }
	if json.Unmarshal([]byte(answer), &status) != nil || !strings.HasPrefix(e.Message, unknown) {
		return 0
	}
	_, said, ok := strings.Cut(" "+status.Message, " "+e.Field+": "+unknown)
	if !ok || strings.HasSuffix(status.Message, " ...") {
		return 0
	}
	hint := strings.TrimPrefix(e.Message, unknown)
	if next := strings.TrimPrefix(said, hint); !strings.HasPrefix(said, hint) || next != "" && !strings.HasPrefix(next, "; ") || hint == "" && strings.HasPrefix(said, "; did you mean") {
		t.Errorf("the server says %q of %q, the agent %q", said, e.Field, e.Message)
	}
	if hint == "" {
		return 0
	}
	return 1
}

// meaning is what an object says, and why it is refused.
func meaning(doc *api.Document) (any, []*api.Error) {
	if g := doc.CIDRGroup(); g != nil {
		return g.ExternalCIDRs, g.Refused
	}
	p := doc.Policy()
	return p.Rules, p.Refused
}

// corpus returns files with policies.
func corpus(t *testing.T) []string {
	t.Helper()
	var out []string
	lines := func(name string, r io.Reader) {
		scan := bufio.NewScanner(r)
		scan.Buffer(nil, 1<<22)
		for scan.Scan() {
			var c struct {
				YAML    string
				Objects json.RawMessage // a file, or a list of files
			}
			if err := json.Unmarshal(scan.Bytes(), &c); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			var one string
			var many []string
			if json.Unmarshal(c.Objects, &one) != nil {
				_ = json.Unmarshal(c.Objects, &many)
			}
			out = append(append(out, c.YAML, one), many...)
		}
		if err := scan.Err(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	root := "../.."
	files, err := filepath.Glob(root + "/policy/api/testdata/*.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	packed, err := filepath.Glob(root + "/policy/testdata/*.jsonl.gz")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range slices.Concat(files, packed) {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		var r io.Reader = bytes.NewReader(text)
		if strings.HasSuffix(f, ".gz") {
			if r, err = gzip.NewReader(r); err != nil {
				t.Fatal(err)
			}
		}
		lines(f, r)
	}
	examples, err := filepath.Glob(root + "/examples/*/*.yaml")
	if err != nil || len(examples) == 0 {
		t.Fatal(examples, err)
	}
	for _, f := range examples {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, string(text))
	}
	return out
}
