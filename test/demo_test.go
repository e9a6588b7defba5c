package test

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/weirnet/weir/test/node"
)

// demoTraces lists what a demo of that name left.
func demoTraces(t *testing.T, name string) []string {
	t.Helper()
	var left []string
	for _, pattern := range []string{"/run/netns/" + name + ".*", "/run/weir/" + name + ".*", "/run/" + name} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		left = append(left, found...)
	}
	processes, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range processes {
		line, err := os.ReadFile(p)
		if err == nil && (bytes.Contains(line, []byte(name+".")) || bytes.Contains(line, []byte(name+"/"))) {
			left = append(left, strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return left
}

// demoCommand prepares `weir demo` under a name of its own.
func demoCommand(t *testing.T, name string, args ...string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	needRoot(t)
	if _, err := exec.LookPath("nginx"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("the demo needs nginx (apt-get install nginx-light)")
		}
		t.Skip("the demo needs nginx (apt-get install nginx-light)")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, program, append([]string{"demo", "--name", name}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &out
	t.Cleanup(func() {
		cancel()
		if err := node.RemoveNetwork(name); err != nil {
			t.Error(err)
		}
		_ = os.RemoveAll("/run/" + name)
	})
	return cmd, &out
}

// startDemo starts `weir demo`, and returns when it has begun: when it speaks.
// What it says is read from the pipe, its errors are in the buffer.
func startDemo(t *testing.T, name string) (*exec.Cmd, io.ReadCloser, *bytes.Buffer) {
	t.Helper()
	cmd, errs := demoCommand(t, name)
	cmd.Stdout = nil
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := pipe.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return cmd, pipe, errs
}

// TestDemo: every request comes out as the policies say, nothing is wider than
// a terminal of 100 columns, and nothing is left.
func TestDemo(t *testing.T) {
	t.Parallel()
	name := node.UniqueName(prefix, int(stories.Add(1)))
	cmd, out := demoCommand(t, name)
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if strings.Contains(out.String(), "✗") || !strings.Contains(out.String(), "DECIDED BY") {
		t.Errorf("not all is well:\n%s", out)
	}
	for line := range strings.Lines(out.String()) {
		if n := utf8.RuneCountInString(strings.TrimRight(line, "\n")); n > 100 {
			t.Errorf("%d columns: %s", n, line)
		}
		if strings.Contains(line, "\x1b") {
			t.Errorf("colours without a terminal: %q", line)
		}
	}
	if left := demoTraces(t, name); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// TestDemoInterrupted: at whatever moment, nothing is left.
func TestDemoInterrupted(t *testing.T) {
	t.Parallel()
	for _, after := range []time.Duration{0, 50 * time.Millisecond, 300 * time.Millisecond, 1500 * time.Millisecond} {
		name := node.UniqueName(prefix, int(stories.Add(1)))
		cmd, pipe, out := startDemo(t, name)
		copied := make(chan error, 1)
		go func() {
			_, err := io.Copy(io.Discard, pipe)
			copied <- err
		}()
		time.Sleep(after)
		_ = cmd.Process.Signal(syscall.SIGINT)
		if err := <-copied; err != nil {
			t.Error(err)
		}
		err := cmd.Wait()
		if err == nil || !strings.Contains(out.String(), "interrupted") {
			t.Errorf("interrupted after %v: %v\n%s", after, err, out)
		}
		if left := demoTraces(t, name); len(left) > 0 {
			t.Errorf("interrupted after %v: left behind: %q\n%s", after, left, out)
		}
	}
}

// Whoever pipes the demo into head closes the pipe under it.
func TestDemoUnread(t *testing.T) {
	t.Parallel()
	name := node.UniqueName(prefix, int(stories.Add(1)))
	cmd, pipe, errs := startDemo(t, name)
	_ = pipe.Close()
	if err := cmd.Wait(); err == nil {
		t.Error("a demo that nobody could read succeeded")
	}
	if left := demoTraces(t, name); len(left) > 0 {
		t.Errorf("left behind: %q\n%s", left, errs)
	}
}

// TestDemoKept runs on after the command has ended, until it is stopped.
func TestDemoKept(t *testing.T) {
	t.Parallel()
	name := node.UniqueName(prefix, int(stories.Add(1)))
	cmd, out := demoCommand(t, name, "--keep")
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// The first line it tells to try.
	_, line, _ := strings.Cut(out.String(), "ask        ")
	line, _, _ = strings.Cut(line, "\n")
	words := strings.Fields(line)
	if len(words) < 5 {
		t.Fatalf("nothing to try:\n%s", out)
	}
	got, err := exec.CommandContext(t.Context(), words[0], words[1:]...).CombinedOutput()
	if err != nil || !strings.Contains(string(got), "200 OK") {
		t.Errorf("%s: %v\n%s", line, err, got)
	}
	again, text := demoCommand(t, name)
	if err := again.Run(); err == nil || !strings.Contains(text.String(), "--stop") {
		t.Errorf("a second demo of the name: %v\n%s", err, text)
	}
	stop, text := demoCommand(t, name, "--stop")
	if err := stop.Run(); err != nil {
		t.Errorf("%v\n%s", err, text)
	}
	if left := demoTraces(t, name); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}
