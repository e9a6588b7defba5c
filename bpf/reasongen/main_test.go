package main

import (
	"os"
	"strings"
	"testing"
)

// The committed file is what the header gives.
func TestGeneratedIsCurrent(t *testing.T) {
	in, err := os.ReadFile("../reasons.h")
	if err != nil {
		t.Fatal(err)
	}
	reasons, err := parse(string(in))
	if err != nil {
		t.Fatal(err)
	}
	want, err := generate(reasons)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("../../flow/reason_gen.go")
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Error("flow/reason_gen.go is not what reasons.h gives: run make generate")
	}
}

func TestParseRefuses(t *testing.T) {
	const good = `REASON(1, A_B, "a-b", "means")`
	for name, in := range map[string]string{
		"no reason":    "/* nothing */",
		"no label":     `REASON(1, A_B, "means")`,
		"number again": good + "\n" + `REASON(1, C, "c", "means")`,
		"number falls": `REASON(2, A_B, "a-b", "means")` + "\n" + `REASON(1, C, "c", "means")`,
		"name again":   good + "\n" + `REASON(2, A_B, "c", "means")`,
		"label again":  good + "\n" + `REASON(2, C, "a-b", "means")`,
		"number large": strings.Replace(good, "1", "256", 1),
	} {
		if r, err := parse(in); err == nil {
			t.Errorf("%s: taken as %v", name, r)
		}
	}
	if _, err := parse(good); err != nil {
		t.Error(err)
	}
}
