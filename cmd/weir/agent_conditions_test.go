package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/weirnet/weir/kube"
)

// TestNotesAreShown: what people must know of definitions that are not Weir's
// stands in the status.
func TestNotesAreShown(t *testing.T) {
	var out bytes.Buffer
	st := agentStatus{Objects: kube.Report{Notes: []string{"fields are dropped"}}}
	if err := st.print(&out); err != nil || !strings.Contains(out.String(), "\n         note: fields are dropped\n") {
		t.Errorf("%v\n%s", err, out.String())
	}
}

// TestNobodyToTell: with a directory of objects nothing asks for an API server.
func TestNobodyToTell(t *testing.T) {
	o := agentOptions{objects: t.TempDir()}
	tell, err := o.teller(nil)
	if tell != nil || err != nil {
		t.Fatal(tell, err)
	}
	if tell.noted(nil) != nil || tell.after(nil) != nil || tell.run(t.Context()) != nil {
		t.Error("the nil teller does something")
	}
}
