package kube

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weirnet/weir/policy"
)

// sink holds what was submitted.
type sink struct {
	mu      sync.Mutex
	objects map[policy.Object]any
	calls   int
	changes int
	fail    error
}

func (s *sink) Submit(_ context.Context, changes []policy.Change) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	if s.fail != nil {
		return s.fail
	}
	if s.objects == nil {
		s.objects = map[policy.Object]any{}
	}
	for _, c := range changes {
		s.changes++
		if c.Value == nil {
			delete(s.objects, c.Object)
		} else {
			s.objects[c.Object] = c.Value
		}
	}
	return nil
}

func (s *sink) names() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for o := range maps.Keys(s.objects) {
		out = append(out, Name(o))
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

func (s *sink) get(kind, namespace, name string) any {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.objects[policy.Object{Kind: kind, Namespace: namespace, Name: name}]
}

type story struct {
	t            *testing.T
	path, memory string
	d            *Dir
	sink         *sink
	stop         func()
}

func follow(t *testing.T, files map[string]string) *story {
	t.Helper()
	s := &story{t: t, path: t.TempDir()}
	for name, text := range files {
		s.write(name, text)
	}
	s.memory = filepath.Join(t.TempDir(), "memory")
	s.run()
	t.Cleanup(func() { s.stop() })
	return s
}

// run starts a source with a sink that knows nothing.
func (s *story) run() {
	s.t.Helper()
	s.sink = &sink{}
	s.d = NewDir(s.path, s.memory, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.d.Run(ctx, s.sink) }()
	s.stop = func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Errorf("Run: %v", err)
		}
	}
	s.sync()
}

func (s *story) write(name, text string) {
	s.t.Helper()
	p := filepath.Join(s.path, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

func (s *story) remove(name string) {
	s.t.Helper()
	if err := os.RemoveAll(filepath.Join(s.path, name)); err != nil {
		s.t.Fatal(err)
	}
}

func (s *story) sync() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := s.d.Sync(ctx); err != nil {
		s.t.Fatalf("sync: %v", err)
	}
}

func (s *story) want(names string) {
	s.t.Helper()
	if got := s.sink.names(); got != names {
		s.t.Fatalf("objects:\n got %s\nwant %s\nproblems: %v", got, names, s.d.Report().Problems)
	}
}

// problems are "kind place message" with the directory's name left out.
func (s *story) problems() []string {
	var out []string
	for _, p := range s.d.Report().Problems {
		out = append(out, string(p.Kind)+" "+strings.TrimPrefix(p.String(), s.path+"/"))
	}
	return out
}

func (s *story) wantProblem(parts ...string) {
	s.t.Helper()
	for _, p := range s.problems() {
		ok := true
		for _, part := range parts {
			ok = ok && strings.Contains(p, part)
		}
		if ok {
			return
		}
	}
	s.t.Fatalf("no problem with %q in %q", parts, s.problems())
}

func (s *story) wantNoProblem() {
	s.t.Helper()
	if p := s.problems(); len(p) > 0 {
		s.t.Fatalf("problems: %q", p)
	}
}

func podYAML(name, ip string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s, namespace: shop, labels: {app: %s}}\nspec: {nodeName: n1}\nstatus: {podIP: %s}\n", name, name, ip)
}

const policyYAML = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {}
  ingress: []
`
