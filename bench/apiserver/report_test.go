package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestReport: limits are judged, and people and machines are told the same.
func TestReport(t *testing.T) {
	r := newReport(t.Context(), size{Pods: 10, Nodes: 2, Namespaces: 3, Policies: 4, Own: 5})
	r.most(20, "at the limit", 20, "ms", "%d changes", 7)
	r.most(20, "over it", 20.01, "ms", "")
	r.least(95, "rate", 94.9, "/s", "")
	r.add("watches", 9, "", "")
	var text bytes.Buffer
	if err := r.print(&text); err != nil {
		t.Fatal(err)
	}
	// Less the padding of columns.
	words := strings.Join(strings.Fields(text.String()), " ")
	for _, want := range []string{
		"10 pods, 5 of them of this node, on 2 nodes in 3 namespaces, 4 policies",
		"| at the limit | 20 ms | <= 20: met | 7 changes |",
		"| over it | 20.0 ms | <= 20: **missed** | |",
		"| rate | 94.9 /s | >= 95: **missed** | |",
		"| watches | 9 | | |",
	} {
		if !strings.Contains(words, want) {
			t.Errorf("%q is not in:\n%s", want, text.String())
		}
	}
	dir := t.TempDir()
	if err := r.write(dir, false); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*-kube.json"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%v, %v", files, err)
	}
	kept, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	var again report
	if err := json.Unmarshal(kept, &again); err != nil {
		t.Fatal(err)
	}
	if len(again.Figures) != 4 || !*again.Figures[0].Met || *again.Figures[1].Met || again.Figures[3].Met != nil || again.Size != r.Size {
		t.Errorf("%s", kept)
	}
}

func TestNothingToMeasure(t *testing.T) {
	for _, args := range [][]string{{"--own=0"}, {"--own=11", "--pods=10"}, {"-o", "xml"}, {"--rate=0"}, {"--nodes=1"}} {
		if err := mainErr(t.Context(), args); err == nil {
			t.Errorf("%v is taken", args)
		}
	}
}
