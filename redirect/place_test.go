package redirect

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
)

func TestPlaces(t *testing.T) {
	dir := t.TempDir()
	numbers := func() (out []int) {
		t.Helper()
		live, err := livePlaces(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range live {
			out = append(out, p.n)
		}
		return out
	}
	take := func() *os.File {
		t.Helper()
		p, f, err := takePlace(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		if p.launcher() != os.Getpid() {
			t.Errorf("place %d is said to be %d's", p.n, p.launcher())
		}
		return f
	}
	if got := numbers(); len(got) != 0 {
		t.Fatalf("places %v in an empty directory", got)
	}
	for _, name := range []string{"proxy-0.lock", "proxy-01.lock", "proxy--1.lock", "proxy-x.lock", "proxy-.lock", "proxy-7.sock", "proxy.lock"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	first, second := take(), take()
	if got := numbers(); !slices.Equal(got, []int{1, 2}) {
		t.Fatalf("places %v", got)
	}
	// One that was left is behind the others no more, and its files go.
	if err := os.WriteFile(place{dir, 1}.socket(), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	first.Close()
	if got := numbers(); !slices.Equal(got, []int{2}) {
		t.Errorf("places %v, the first is left", got)
	}
	for _, path := range []string{place{dir, 1}.lock(), place{dir, 1}.socket()} {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", path, err)
		}
	}
	take()
	if got := numbers(); !slices.Equal(got, []int{2, 3}) {
		t.Errorf("places %v", got)
	}
	// The number of one that went last may come again: nobody remembers it.
	second.Close()
	for range maxPlaces - 1 {
		take()
	}
	if _, _, err := takePlace(t.Context(), dir); !errors.Is(err, ErrCrowded) {
		t.Errorf("place %d: %v", maxPlaces+1, err)
	}
}

// TestPlacesAtOnce: launchers that start at the same moment, and agents that
// look, never have the same place.
func TestPlacesAtOnce(t *testing.T) {
	dir := t.TempDir()
	ctx, stop := context.WithCancel(t.Context())
	var looking, taking sync.WaitGroup
	for range 2 {
		looking.Go(func() {
			for ctx.Err() == nil {
				if _, err := livePlaces(dir); err != nil {
					t.Error(err)
				}
			}
		})
	}
	var mu sync.Mutex
	held := map[int]bool{}
	for range 4 {
		taking.Go(func() {
			for range 50 {
				p, f, err := takePlace(ctx, dir)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if held[p.n] {
					t.Errorf("place %d is another's", p.n)
				}
				held[p.n] = true
				mu.Unlock()
				if live, err := p.live(); !live || err != nil {
					t.Errorf("place %d is nobody's, %v", p.n, err)
				}
				mu.Lock()
				held[p.n] = false
				mu.Unlock()
				f.Close()
			}
		})
	}
	taking.Wait()
	stop()
	looking.Wait()
	if live, err := livePlaces(dir); len(live) > 0 || err != nil {
		t.Errorf("left: %v, %v", live, err)
	}
}

func TestBuildOf(t *testing.T) {
	self, err := BuildOf("/proc/self/exe")
	if err != nil || len(self) != 16 {
		t.Fatalf("%q, %v", self, err)
	}
	dir := t.TempDir()
	seen := map[string]string{self: "this one"}
	for name, text := range map[string]string{"empty": "", "text": "#!/bin/sh\n", "almost": "\x7fELF\x02\x01\x01"} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		build, err := BuildOf(path)
		if err != nil || seen[build] != "" {
			t.Errorf("%s: %q is that of %s, %v", name, build, seen[build], err)
		}
		seen[build] = name
		if again, _ := BuildOf(path); again != build {
			t.Errorf("%s: %q, and then %q", name, build, again)
		}
	}
	if _, err := BuildOf(filepath.Join(dir, "none")); err == nil {
		t.Error("a file that is not there has a build")
	}
}
