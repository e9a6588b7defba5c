package redirect

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/bpf"
)

// inNamespace runs test as a process of its own, in network and mount
// namespaces of its own. The calling test must consist of it.
func inNamespace(t *testing.T, test func()) {
	t.Helper()
	needRoot(t)
	const mark = "WEIR_TEST_IN_NAMESPACE"
	if os.Getenv(mark) == t.Name() {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Fatal(err)
		}
		test()
		return
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.count=1", "-test.timeout=150s")
	cmd.Env = append(os.Environ(), mark+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("in a namespace of its own: %v", err)
	}
}

// mountPins makes a place for pins.
func mountPins(t *testing.T) string {
	t.Helper()
	pins := filepath.Join(t.TempDir(), "bpf")
	if err := bpf.MountPins(pins); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = bpf.UnmountPins(pins) })
	return pins
}

// loadDatapath loads the programs and tables, pinned in a new directory.
func loadDatapath(t *testing.T) *bpf.Datapath {
	t.Helper()
	return loadPinned(t, mountPins(t), false)
}

// loadPinned loads the programs and tables that are pinned there. clsact: for
// filters.
func loadPinned(t *testing.T, pins string, clsact bool) *bpf.Datapath {
	t.Helper()
	d, err := bpf.Load(bpf.Options{Pins: pins, ForceClsact: clsact, Sizes: bpf.Sizes{Conns: 1024, Conntrack: 1024, Policy: 1024}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}
