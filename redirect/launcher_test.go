package redirect

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

func TestLauncherEndsWhenTold(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	showLog(t, dir)
	cmd := exec.Command("/proc/self/exe", "proxy", "launch", dir, "proxy", "confine", "serve")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = dialRaw(t, dir).Close()
	// At whatever moment of the child's start.
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ended with %v", err)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("it took %v", took)
	}
	if places, err := livePlaces(dir); len(places) > 0 || err != nil {
		t.Errorf("places are left: %v, %v", places, err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 2 { // the log, and the empty directory
		t.Errorf("left: %v", left)
	}
	if _, err := os.Stat(place{dir, 1}.socket()); !os.IsNotExist(err) {
		t.Errorf("the socket: %v", err)
	}
}

// TestCrashLoop: a child that can't live is started again and again, ever more
// slowly.
func TestCrashLoop(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	startLauncher(t, dir, "die")
	time.Sleep(3 * time.Second)
	log, err := os.ReadFile(filepath.Join(dir, logName))
	if err != nil {
		t.Fatal(err)
	}
	n := bytes.Count(log, []byte("died at once"))
	if n < 2 || n > 10 {
		t.Errorf("started %d times in 3 s:\n%s", n, log)
	}
}

// TestSocketIsTakenOver: the socket of a launcher that was killed is no
// obstacle, and it never has a mode that lets others in.
func TestSocketIsTakenOver(t *testing.T) {
	dir := t.TempDir()
	for range 2 {
		f, err := listen(filepath.Join(dir, "a.sock"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		st, err := os.Stat(filepath.Join(dir, "a.sock"))
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v", st.Mode(), err)
		}
		c, err := net.Dial("unix", filepath.Join(dir, "a.sock"))
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
}

func TestEmptyDir(t *testing.T) {
	path := filepath.Join(t.TempDir(), "empty")
	for range 2 {
		f, err := emptyDir(path)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	if err := os.Chmod(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(path, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := emptyDir(path); err == nil {
		t.Error("a directory with a file was taken")
	}
}

func TestLogFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := OpenLog(path, 100)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		if n, err := fmt.Fprintf(l, "line %02d of the log\n", i); n != 19 || err != nil {
			t.Fatalf("%d, %v", n, err)
		}
	}
	if n, err := l.Write(bytes.Repeat([]byte("x"), 1000)); n != 1000 || err != nil {
		t.Errorf("a line longer than the log: %d, %v", n, err)
	}
	fmt.Fprintln(l, "last")
	for _, p := range []string{path, path + ".1"} {
		b, err := os.ReadFile(p)
		if err != nil || len(b) > 100 || len(b) == 0 {
			t.Errorf("%s has %d bytes, %v", p, len(b), err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	// A new one goes on where it ended.
	if l, err = OpenLog(path, 100); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	fmt.Fprintln(l, "after")
	if b, _ := os.ReadFile(path); string(b) != "last\nafter\n" {
		t.Errorf("log reads %q", b)
	}
	// The file is taken away under it: it is made anew when it is full.
	if err := os.RemoveAll(filepath.Dir(path)); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if _, err := fmt.Fprintln(l, "nowhere to go"); err != nil {
			t.Fatal(err)
		}
	}
}
