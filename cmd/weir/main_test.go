package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestVersionAndHelp(t *testing.T) {
	ask := func(args ...string) string {
		t.Helper()
		var out bytes.Buffer
		root := newRoot()
		root.SetOut(&out)
		root.SetArgs(args)
		if err := root.Execute(); err != nil {
			t.Errorf("%v: %v", args, err)
		}
		return out.String()
	}
	for _, how := range []string{"version", "--version"} {
		if got := ask(how); got != "weir "+version+"\n" {
			t.Errorf("%s: %q", how, got)
		}
	}
	help := ask("--help")
	if strings.Contains(help, "completion") {
		t.Errorf("help lists what is no verb of Weir's:\n%s", help)
	}
	for _, c := range commands() {
		if strings.Contains(help, "\n  "+c.Name()+" ") == c.Hidden {
			t.Errorf("help does not list %s, or should not:\n%s", c.Name(), help)
		}
	}
	if got := ask("completion", "bash"); !strings.Contains(got, "weir") {
		t.Errorf("no completion: %.80q", got)
	}
}
