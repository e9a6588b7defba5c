package kube

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/policy/api"
)

func TestDirFollowsChanges(t *testing.T) {
	s := follow(t, map[string]string{
		"a.yaml":         podYAML("a", "10.0.0.1") + "---\n" + podYAML("b", "10.0.0.2"),
		"sub/deep/c.yml": podYAML("c", "10.0.0.3"),
		"p.json":         `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"shop"}}`,
		"readme.txt":     "not: [yaml",
		"b.yaml~":        podYAML("x", "10.0.0.9"),
		".b.yaml.swp":    "\x00\x01",
		".hidden/x.yaml": podYAML("x", "10.0.0.9"),
		"deploy.yaml":    "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n",
	})
	s.want("Namespace shop, Pod shop/a, Pod shop/b, Pod shop/c")
	s.wantNoProblem()
	if r := s.d.Report(); r.Ignored != 1 || r.Files != 4 || !r.Complete || r.Kinds["Pod"] != 3 {
		t.Errorf("report: %+v", r)
	}
	before := s.sink.changes

	s.write("a.yaml", podYAML("a", "10.0.0.1")+"---\n"+podYAML("b", "10.0.0.22"))
	s.sync()
	if got := s.sink.get("Pod", "shop", "b").(*policy.Pod).Addresses[0].String(); got != "10.0.0.22" {
		t.Errorf("b has %s", got)
	}
	if s.sink.changes != before+1 {
		t.Errorf("%d changes for one pod", s.sink.changes-before)
	}
	s.write("new/d.yaml", policyYAML)
	s.sync()
	s.want("Namespace shop, NetworkPolicy shop/web, Pod shop/a, Pod shop/b, Pod shop/c")
	s.remove("sub")
	s.remove("a.yaml")
	s.sync()
	s.want("Namespace shop, NetworkPolicy shop/web")
}

// Without Sync: the change must come by an event, soon.
func TestDirFollowsEvents(t *testing.T) {
	s := follow(t, map[string]string{"a.yaml": podYAML("a", "10.0.0.1")})
	soon := func(what, names string) {
		t.Helper()
		for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
			if s.sink.names() == names {
				return
			}
		}
		t.Fatalf("%s: still %s", what, s.sink.names())
	}
	s.write("b.yaml", podYAML("b", "10.0.0.2"))
	soon("new file", "Pod shop/a, Pod shop/b")
	s.write("dir/c.yaml", podYAML("c", "10.0.0.3"))
	soon("new directory", "Pod shop/a, Pod shop/b, Pod shop/c")
	s.write("dir/d.yaml", podYAML("d", "10.0.0.4"))
	soon("file in the new directory", "Pod shop/a, Pod shop/b, Pod shop/c, Pod shop/d")
	s.remove("dir")
	soon("directory gone", "Pod shop/a, Pod shop/b")
	s.write(".tmp", podYAML("e", "10.0.0.5"))
	if err := os.Rename(filepath.Join(s.path, ".tmp"), filepath.Join(s.path, "b.yaml")); err != nil {
		t.Fatal(err)
	}
	soon("atomic rename", "Pod shop/a, Pod shop/e")
	// A ConfigMap's volume: the files are links through ..data.
	s.write("..v1/f.yaml", podYAML("f", "10.0.0.6"))
	s.write("..v2/f.yaml", podYAML("g", "10.0.0.7"))
	link := func(to, from string) {
		t.Helper()
		tmp := filepath.Join(s.path, "..tmp")
		if err := os.Symlink(to, tmp); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(tmp, filepath.Join(s.path, from)); err != nil {
			t.Fatal(err)
		}
	}
	link("..v1", "..data")
	link("..data/f.yaml", "f.yaml")
	soon("linked file", "Pod shop/a, Pod shop/e, Pod shop/f")
	link("..v2", "..data")
	soon("new data", "Pod shop/a, Pod shop/e, Pod shop/g")
	outside := filepath.Join(t.TempDir(), "elsewhere.yaml")
	if err := os.WriteFile(outside, []byte(podYAML("h", "10.0.0.8")), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(s.path, "h.yaml")); err != nil {
		t.Fatal(err)
	}
	soon("link to a file elsewhere", "Pod shop/a, Pod shop/e, Pod shop/g, Pod shop/h")
	if err := os.WriteFile(outside, []byte(podYAML("i", "10.0.0.8")), 0o644); err != nil {
		t.Fatal(err)
	}
	soon("the file elsewhere changes", "Pod shop/a, Pod shop/e, Pod shop/g, Pod shop/i")
}

func TestDirBrokenFileKeepsLastValidContents(t *testing.T) {
	s := follow(t, map[string]string{"a.yaml": podYAML("a", "10.0.0.1"), "bad.yaml": "kind: [Pod\n---\n" + podYAML("z", "10.0.0.9")})
	s.want("Pod shop/a, Pod shop/z") // what can be read of a file that was never valid
	s.wantProblem("broken-file bad.yaml:")
	if s.d.Report().Complete {
		t.Error("complete, though a file was never valid")
	}
	s.write("bad.yaml", podYAML("b", "10.0.0.2"))
	s.sync()
	s.want("Pod shop/a, Pod shop/b")
	s.wantNoProblem()

	s.write("a.yaml", podYAML("c", "10.0.0.3")+"---\n: : :\n  - }\n")
	s.sync()
	s.want("Pod shop/a, Pod shop/b")
	s.wantProblem("broken-file a.yaml:")
	if r := s.d.Report(); !r.Complete || !r.Problems[0].Fallback {
		t.Errorf("report: %+v", r)
	}
	s.sync() // and stays so
	s.want("Pod shop/a, Pod shop/b")
	s.write("a.yaml", "")
	s.sync()
	s.want("Pod shop/a, Pod shop/b")
	s.wantProblem("broken-file a.yaml: the file is empty")
	s.write("a.yaml", "# nothing here any more\n")
	s.sync()
	s.want("Pod shop/b")
	s.wantNoProblem()
	s.write("a.yaml", "metadata: {name: x}\n")
	s.sync()
	s.wantProblem("broken-file a.yaml", "kind")
}

func TestDirBrokenObjectKeepsLastValidState(t *testing.T) {
	s := follow(t, map[string]string{"a.yaml": podYAML("a", "10.0.0.1") + "---\n" + podYAML("b", "10.0.0.256")})
	s.want("Pod shop/a")
	s.wantProblem("broken-object a.yaml:7: Pod shop/b", "10.0.0.256")
	if s.d.Report().Complete {
		t.Error("complete, though an object has no valid state")
	}
	s.write("a.yaml", podYAML("a", "300.0.0.1")+"---\n"+podYAML("b", "10.0.0.2"))
	s.sync()
	s.want("Pod shop/a, Pod shop/b")
	if got := s.sink.get("Pod", "shop", "a").(*policy.Pod).Addresses[0].String(); got != "10.0.0.1" {
		t.Errorf("a has %s", got)
	}
	if r := s.d.Report(); !r.Complete || len(r.Problems) != 1 || !r.Problems[0].Fallback {
		t.Errorf("report: %+v", r)
	}
	s.write("a.yaml", podYAML("b", "10.0.0.2"))
	s.sync()
	s.want("Pod shop/b")
	s.wantNoProblem()
}

func TestDirDuplicates(t *testing.T) {
	s := follow(t, map[string]string{"b.yaml": podYAML("a", "10.0.0.2"), "a.yaml": podYAML("x", "10.0.0.9") + "---\n" + podYAML("a", "10.0.0.1")})
	if got := s.sink.get("Pod", "shop", "a").(*policy.Pod).Addresses[0].String(); got != "10.0.0.1" {
		t.Errorf("a has %s, not what the first file says", got)
	}
	s.wantProblem("duplicate b.yaml:1: Pod shop/a", "a.yaml:7")
	s.remove("a.yaml")
	s.sync()
	s.want("Pod shop/a")
	s.wantNoProblem()
}

func TestDirRefusedPolicyIsAClosedOne(t *testing.T) {
	bad := strings.Replace(policyYAML, "podSelector: {}", "podSelector: {matchlabels: {a: b}}", 1)
	nameless := strings.Replace(policyYAML, "name: web, ", "", 1)
	s := follow(t, map[string]string{"p.yaml": bad, "q.yaml": nameless + "---\n" + nameless})
	p, ok := s.sink.get("NetworkPolicy", "shop", "web").(*api.Policy)
	if !ok || len(p.Refused) == 0 || len(p.Closed) == 0 {
		t.Fatalf("policy is %+v", p)
	}
	s.wantProblem("refused p.yaml:5: NetworkPolicy shop/web", "matchlabels")
	if r := s.d.Report(); r.Refused != 3 || r.Kinds["NetworkPolicy"] != 3 {
		t.Errorf("report: %+v: a policy without a name closes as well", r)
	}
	s.write("p.yaml", "# moved down\n\n"+bad)
	s.sync()
	s.wantProblem("refused p.yaml:7: NetworkPolicy shop/web")
	p = s.sink.get("NetworkPolicy", "shop", "web").(*api.Policy)
	if p.Source.Line != 3 || p.Refused[0].Line != 7 {
		t.Errorf("policy is at line %d, its error at %d", p.Source.Line, p.Refused[0].Line)
	}
}

func TestDirWaitsForTheWriter(t *testing.T) {
	s := follow(t, map[string]string{"a.yaml": podYAML("a", "10.0.0.1") + "---\n" + podYAML("b", "10.0.0.2")})
	f, err := os.OpenFile(filepath.Join(s.path, "a.yaml"), os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(podYAML("a", "10.0.0.11") + "---\n"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond) // half of the file is there
	s.want("Pod shop/a, Pod shop/b")
	if _, err := f.WriteString(podYAML("c", "10.0.0.3")); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	s.sync()
	s.want("Pod shop/a, Pod shop/c")
}

func TestDirGoneLeavesEverythingInForce(t *testing.T) {
	s := follow(t, map[string]string{"a.yaml": podYAML("a", "10.0.0.1")})
	away := s.path + ".away"
	if err := os.Rename(s.path, away); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := s.d.Sync(ctx); err == nil {
		t.Error("sync of a directory that is gone succeeds")
	}
	s.want("Pod shop/a")
	if err := os.Rename(away, s.path); err != nil {
		t.Fatal(err)
	}
	s.write("b.yaml", podYAML("b", "10.0.0.2"))
	s.sync()
	s.want("Pod shop/a, Pod shop/b")
	s.write("c.yaml", podYAML("c", "10.0.0.3"))
	for end := time.Now().Add(3 * time.Second); s.sink.get("Pod", "shop", "c") == nil; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the directory is not followed any more")
		}
	}
}

func TestDirOffersAgainWhatWasNotTaken(t *testing.T) {
	s := follow(t, map[string]string{"a.yaml": podYAML("a", "10.0.0.1")})
	s.sink.mu.Lock()
	s.sink.fail = fmt.Errorf("busy")
	s.sink.mu.Unlock()
	s.write("b.yaml", podYAML("b", "10.0.0.2"))
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := s.d.Sync(ctx); err == nil {
		t.Error("sync succeeds though nothing was taken")
	}
	s.sink.mu.Lock()
	s.sink.fail = nil
	s.sink.mu.Unlock()
	s.sync()
	s.want("Pod shop/a, Pod shop/b")
}

func TestDirRemembersAcrossARestart(t *testing.T) {
	s := follow(t, map[string]string{"a.yaml": podYAML("a", "10.0.0.1"), "b.yaml": podYAML("b", "10.0.0.2"), "c.yaml": podYAML("c", "10.0.0.3"), "d.yaml": podYAML("d", "10.0.0.4")})
	s.write("a.yaml", podYAML("aa", "10.0.0.1")) // the latest counts
	s.sync()
	s.write("a.yaml", "{")
	s.sync()
	s.stop()
	s.write("b.yaml", "")
	s.write("d.yaml", podYAML("dd", "10.0.0.4"))
	s.remove("c.yaml")
	s.run()
	s.want("Pod shop/aa, Pod shop/b, Pod shop/dd")
	s.wantProblem("broken-file a.yaml")
	s.wantProblem("broken-file b.yaml", "empty")
	if r := s.d.Report(); !r.Complete {
		t.Errorf("not complete: %+v", r)
	}
	// What went is not remembered.
	s.stop()
	s.write("c.yaml", "{")
	s.run()
	s.want("Pod shop/aa, Pod shop/b, Pod shop/dd")
	if r := s.d.Report(); r.Complete {
		t.Errorf("complete, though c.yaml was never valid since it was made: %+v", r)
	}
	left, err := os.ReadDir(s.memory)
	if err != nil || len(left) != 3 {
		t.Errorf("%d files are remembered, want 3 (%v)", len(left), err)
	}
}

func TestReadDir(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.yaml"), []byte(podYAML("a", "10.0.0.1")+"---\n"+policyYAML), 0o644); err != nil {
		t.Fatal(err)
	}
	changes, report, err := ReadDir(t.Context(), dir)
	if err != nil || len(changes) != 2 || changes[0].Object.Kind != "NetworkPolicy" || !report.Complete {
		t.Errorf("%v, %+v, %v", changes, report, err)
	}
	if _, _, err := ReadDir(t.Context(), filepath.Join(dir, "none")); err == nil {
		t.Error("a directory that is not there is read")
	}
	if err := NewDir(filepath.Join(dir, "none"), "", slog.New(slog.DiscardHandler)).Run(t.Context(), &sink{}); err == nil {
		t.Error("a directory that is not there is followed")
	}
}

// TestDirTellsWhenItIsComplete: the sink takes nothing away before, so it has to
// hear of it, also where no object changes.
func TestDirTellsWhenItIsComplete(t *testing.T) {
	s := follow(t, map[string]string{"a.yaml": podYAML("a", "10.0.0.1"), "bad.yaml": "kind: [Pod\n"})
	s.want("Pod shop/a")
	calls := func() int {
		s.sink.mu.Lock()
		defer s.sink.mu.Unlock()
		return s.sink.calls
	}
	before := calls()
	s.sync()
	if got := calls(); got != before {
		t.Errorf("%d calls, %d before; nothing is new", got, before)
	}
	s.remove("bad.yaml")
	s.sync()
	if got := calls(); got != before+1 || !s.d.Report().Complete {
		t.Errorf("%d calls, %d before; report %+v", got, before, s.d.Report())
	}
	s.want("Pod shop/a")
}
