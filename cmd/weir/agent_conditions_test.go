package main

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

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
	if err != nil || tell.conditions != nil || tell.definitions != nil {
		t.Fatal(tell, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := tell.run(ctx); err != nil {
		t.Error(err)
	}
}
