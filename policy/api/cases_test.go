package api

import (
	"bufio"
	"encoding/json"
	"os"
	"testing"
)

// TestCases holds what Cilium's own admission answered to these objects. An
// object it takes must be taken, one it refuses or prunes must be refused.
func TestCases(t *testing.T) {
	f, err := os.Open("testdata/accept.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	n := 0
	for lines.Scan() {
		var c struct {
			ID, YAML, Verdict, Error, Note string
			MayRefuse                      string `json:"weir_may_refuse"`
		}
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			t.Fatal(err)
		}
		n++
		t.Run(c.ID, func(t *testing.T) {
			docs, errs := Documents("x.yaml", []byte(c.YAML))
			if len(errs) > 0 || len(docs) != 1 {
				t.Fatalf("documents: %d, errors: %v", len(docs), errs)
			}
			p := docs[0].Policy()
			if p == nil {
				t.Fatal("not a policy")
			}
			switch refused := len(p.Refused) > 0; {
			case c.Verdict == "accept" && refused && c.MayRefuse == "":
				t.Errorf("refused: %v\n%s", p.Refused, c.YAML)
			case c.Verdict != "accept" && !refused:
				t.Errorf("accepted, but: %s\n%s", c.Error, c.YAML)
			}
			for _, e := range p.Refused {
				if e.Line < 1 || e.Document != 1 || e.File != "x.yaml" || e.Field == "" || e.Message == "" {
					t.Errorf("error without place: %+v", e)
				}
				t.Logf("%v", e)
			}
			if (len(p.Refused) > 0) != (p.Rules == nil) {
				t.Errorf("refused %d, rules %d", len(p.Refused), len(p.Rules))
			}
		})
	}
	if err := lines.Err(); err != nil || n < 80 {
		t.Fatalf("read %d cases: %v", n, err)
	}
}
