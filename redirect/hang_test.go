package redirect

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/policy"
)

// hang stops a process: it keeps all it has, and answers nobody.
func hang(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
}

// TestProxyHangs: one that stands still is replaced, whoever of the two it is
// that does, and whether an agent saw it begin.
func TestProxyHangs(t *testing.T) {
	inNamespace(t, func() {
		dir, d := setUpAgent(t)
		start := func() *agent {
			a := startAgent(t, dir, d)
			if err := a.SetRuleSets(t.Context(), []*policy.RuleSet{{ID: 1}}, nil); err != nil {
				t.Fatal(err)
			}
			if err := a.Synced(t.Context()); err != nil {
				t.Fatal(err)
			}
			return a
		}
		a := start()
		g := current(t, d, 0)
		replaced := func(what string, limit time.Duration) {
			t.Helper()
			old, began := g, time.Now()
			waitFor(t, what+": a new proxy", limit, func() bool {
				p, _, err := d.Proxies.Lookup(uint32(d.Generation()))
				return err == nil && d.Generation() != old && p.Alive == 1
			})
			g = d.Generation()
			t.Logf("%s: generation %d after %v", what, g, time.Since(began))
		}
		_, child := pids(t, dir)
		hang(t, child)
		replaced("the proxy hangs", 8*time.Second)

		_, child = pids(t, dir)
		a.stop()
		hang(t, child)
		start()
		replaced("it hung before the agent came", greetTimeout+5*time.Second)

		launcher, child := pids(t, dir)
		hang(t, launcher)
		hang(t, child)
		replaced("both hang", 8*time.Second+greetTimeout+5*time.Second)
	})
}

// TestRemoveWhatHangs: a proxy that does not hear that it is to go, and a
// launcher that does not see it end, are killed.
func TestRemoveWhatHangs(t *testing.T) {
	for name, which := range map[string]func(launcher, child int) []int{
		"proxy":    func(_, child int) []int { return []int{child} },
		"launcher": func(launcher, _ int) []int { return []int{launcher} },
		"both":     func(launcher, child int) []int { return []int{launcher, child} },
	} {
		t.Run(name, func(t *testing.T) {
			inNamespace(t, func() {
				dir, d := setUpAgent(t)
				a := startAgent(t, dir, d)
				if err := a.Synced(t.Context()); err != nil {
					t.Fatal(err)
				}
				current(t, d, 0)
				launcher, child := pids(t, dir)
				a.stop()
				for _, pid := range which(launcher, child) {
					hang(t, pid)
				}
				ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
				defer cancel()
				if err := Remove(ctx, "test", dir, 0); err != nil {
					t.Error(err)
				}
				for _, pid := range []int{launcher, child} {
					if stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil && !bytes.Contains(stat, []byte(") Z ")) {
						t.Errorf("process %d is left: %s", pid, stat)
					}
				}
				if left, _ := os.ReadDir(dir); len(left) > 0 {
					t.Errorf("left: %v", left)
				}
			})
		})
	}
}

// TestNoOtherIsKilled: a number in the lock file may be another process's by
// the time it is read.
func TestNoOtherIsKilled(t *testing.T) {
	dir := t.TempDir()
	p, lock, err := takePlace(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	sleep := exec.Command("sleep", "60")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = sleep.Process.Kill()
		_ = sleep.Wait()
	}()
	stranger := sleep.Process.Pid
	if err := writeHolders(lock, stranger, os.Getpid()); err != nil {
		t.Fatal(err)
	}
	h, err := readHolders(p)
	if err != nil || h.launcher != stranger || h.child != os.Getpid() {
		t.Fatalf("%+v, %v", h, err)
	}
	if did, err := h.kill(stranger); did || err != nil {
		t.Errorf("killed a stranger: %v, %v", did, err)
	}
	if err := syscall.Kill(stranger, 0); err != nil {
		t.Errorf("the stranger: %v", err)
	}
	if has, err := h.open(os.Getpid()); !has || err != nil {
		t.Errorf("this process has the lock: %v, %v", has, err)
	}
	if did, err := h.kill(0); did || err != nil {
		t.Errorf("nobody: %v, %v", did, err)
	}
	t.Run("unseen", func(t *testing.T) { needRoot(t); unseen(t, h, stranger) })
}

// unseen: an agent in a pod sees nothing of what a proxy has open.
func unseen(t *testing.T, h holders, stranger int) {
	without := func(f func() (bool, error)) (did bool, err error) {
		done := make(chan struct{})
		go func() { // its thread ends with it
			defer close(done)
			runtime.LockOSThread()
			head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			data := [2]unix.CapUserData{{Effective: 1 << unix.CAP_KILL, Permitted: 1 << unix.CAP_KILL}}
			if err = unix.Capset(&head, &data[0]); err == nil {
				did, err = f()
			}
		}()
		<-done
		return did, err
	}
	if has, err := without(func() (bool, error) { return h.open(stranger) }); has || !errors.Is(err, os.ErrPermission) {
		t.Fatalf("what another has open is seen: %v, %v", has, err)
	}
	for name, c := range map[string]struct {
		began map[int]uint64
		did   bool
	}{
		"another with its number": {map[int]uint64{stranger: h.began[stranger] - 1}, false},
		"the same":                {h.began, true},
	} {
		other := h
		other.began = c.began
		// Only looked at: the others need the stranger.
		if did, err := without(func() (bool, error) { return other.holds(stranger) }); did != c.did || err != nil {
			t.Errorf("%s: %v, %v", name, did, err)
		}
	}
	other := h
	other.began = nil
	if did, err := without(func() (bool, error) { return other.kill(stranger) }); did || !errors.Is(err, os.ErrPermission) {
		t.Errorf("one that nothing is known of: %v, %v", did, err)
	}
	if did, err := without(func() (bool, error) { return h.kill(stranger) }); !did || err != nil {
		// Nobody has waited for it, but it is dead.
		t.Errorf("who it is: %v, %v", did, err)
	}
}

// TestEndWaitsForLauncher: who ended a proxy finds neither of its processes,
// also where the launcher is slow to go when it has let go of the place.
func TestEndWaitsForLauncher(t *testing.T) {
	p, lock, err := takePlace(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	launcher := exec.Command("sh", "-c", "read go; exec 3>&-; sleep 0.5")
	launcher.ExtraFiles = []*os.File{lock}
	stdin, err := launcher.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := launcher.Start(); err != nil {
		t.Fatal(err)
	}
	gone := make(chan struct{})
	go func() {
		_ = launcher.Wait()
		close(gone)
	}()
	defer func() {
		_ = launcher.Process.Kill()
		<-gone
	}()
	if err := writeHolders(lock, launcher.Process.Pid, 0); err != nil {
		t.Fatal(err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(50*time.Millisecond, func() { _ = stdin.Close() })
	if err := p.end(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	select {
	case <-gone:
	case <-time.After(200 * time.Millisecond):
		t.Error("the launcher is still there")
	}
}
