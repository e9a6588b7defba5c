package redirect

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/proxy/control"
)

func TestConfinement(t *testing.T) {
	needRoot(t)
	for _, c := range []struct{ mode, launch string }{
		{"unsealed", "launch"}, {"sealed", "launch"}, {"sealed", "launch-nouserns"},
	} {
		mode, launch := c.mode, c.launch
		t.Run(mode+" "+launch, func(t *testing.T) {
			// A process of the same user as the proxy, on the host.
			victim := exec.Command("sleep", "60")
			victim.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
			if err := victim.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = victim.Process.Kill(); _ = victim.Wait() }()

			table, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1, Flags: unix.BPF_F_MMAPABLE})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = table.Close() }()
			readOnly, readWrite, pin := descriptors(t, table)

			dir := t.TempDir()
			if err := os.Chmod(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			showLog(t, dir)
			launcher := exec.Command("/proc/self/exe", "proxy", launch, dir, "proxy", "confine", "probe", mode, strconv.Itoa(victim.Process.Pid), pin)
			launcher.Env = append(os.Environ(), "SECRET=token")
			if err := launcher.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = launcher.Process.Kill(); _ = launcher.Wait() }()
			c := dialRaw(t, dir)
			defer func() { _ = c.Close() }()
			checkpoint, err := os.OpenFile(filepath.Join(dir, control.MapCheckpoint0), os.O_RDWR|os.O_CREATE, 0o600)
			if err != nil {
				t.Fatal(err)
			}
			defer checkpoint.Close()
			if err := control.Send(c, &control.Wiring{}, readOnly, readWrite, checkpoint); err != nil {
				t.Fatal(err)
			}
			answer := &control.Wired{}
			if _, err := control.Receive(c, answer); err != nil {
				t.Fatal(err)
			}
			var results map[string]string
			if err := json.Unmarshal([]byte(answer.Error), &results); err != nil {
				t.Fatalf("%q: %v", answer.Error, err)
			}
			for name, what := range results {
				t.Errorf("%s: %s", name, what)
			}
			var v uint64
			if err := table.Lookup(uint32(0), &v); err != nil || v != 7 {
				t.Errorf("what it wrote by the descriptor it may write: %d, %v", v, err)
			}
			if victim.ProcessState != nil {
				t.Error("the victim is dead")
			}
		})
	}
}

// descriptors returns one for reading and one for all, and where the map is
// pinned.
func descriptors(t *testing.T, m *ebpf.Map) (readOnly, readWrite *os.File, pin string) {
	t.Helper()
	fs := filepath.Join(t.TempDir(), "bpf")
	if err := os.Mkdir(fs, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("bpf", fs, "bpf", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(fs, unix.MNT_DETACH) })
	pin = filepath.Join(fs, "table")
	if err := m.Pin(pin); err != nil {
		t.Fatal(err)
	}
	ro, err := ebpf.LoadPinnedMap(pin, &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ro.Close() }()
	file := func(m *ebpf.Map) *os.File {
		fd, err := unix.Dup(m.FD())
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "map")
		t.Cleanup(func() { f.Close() })
		return f
	}
	return file(ro), file(m), pin
}

// dialRaw connects to the control socket as soon as it is there.
func dialRaw(t *testing.T, dir string) *net.UnixConn {
	t.Helper()
	var c net.Conn
	waitFor(t, "control socket", 5*time.Second, func() (ok bool) {
		var err error
		c, err = net.Dial("unix", place{dir, 1}.socket())
		return err == nil
	})
	return c.(*net.UnixConn)
}

func TestProcessSeenFromHost(t *testing.T) {
	needRoot(t)
	for _, launch := range []string{"launch", "launch-nouserns"} {
		t.Run(launch, func(t *testing.T) { seenFromHost(t, launch) })
	}
}

func seenFromHost(t *testing.T, launch string) {
	dir := t.TempDir()
	showLog(t, dir)
	launcher := startLauncherBy(t, launch, dir, "serve")
	_ = dialRaw(t, dir).Close()
	var child int
	waitFor(t, "the sealed child", 5*time.Second, func() bool {
		child = childOf(launcher.Process.Pid)
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", child))
		return strings.Contains(string(b), "Seccomp:\t2")
	})
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", child))
	if err != nil || len(tasks) < 2 {
		t.Fatalf("%d threads, %v", len(tasks), err)
	}
	allowed := fmt.Sprintf("%016x", 1<<unix.CAP_NET_ADMIN|1<<unix.CAP_NET_BIND_SERVICE)
	if cgoEnabled() {
		allowed = fmt.Sprintf("%016x", 1<<unix.CAP_NET_ADMIN|1<<unix.CAP_NET_BIND_SERVICE|1<<unix.CAP_SYS_CHROOT)
	}
	for _, task := range tasks {
		b, err := os.ReadFile(task)
		if err != nil {
			continue // a thread that ended
		}
		for _, want := range []string{
			"Uid:\t65534\t65534\t65534\t65534\n", "Gid:\t65534\t65534\t65534\t65534\n", "Groups:\t \n",
			"NoNewPrivs:\t1\n", "Seccomp:\t2\n",
			"CapInh:\t0000000000000000\n", "CapPrm:\t" + allowed + "\n", "CapEff:\t" + allowed + "\n", "CapAmb:\t0000000000000000\n",
		} {
			if launch != "launch" && cgoEnabled() && (strings.HasPrefix(want, "CapInh") || strings.HasPrefix(want, "CapAmb")) {
				continue // as SYS_CHROOT: the runtime can't drop them for all threads then
			}
			if !strings.Contains(string(b), want) {
				t.Errorf("%s lacks %q:\n%s", task, want, b)
			}
		}
	}
	for _, ns := range []string{"user", "net", "pid", "ipc", "uts"} {
		mine, err := os.Readlink("/proc/self/ns/" + ns)
		if err != nil {
			t.Fatal(err)
		}
		its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", child, ns))
		if err != nil || (its == mine) != (ns == "user" && launch != "launch") {
			t.Errorf("%s namespace: %s, this one's is %s (%v)", ns, its, mine, err)
		}
	}
	if env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", child)); err != nil || strings.Contains(string(env), "PATH=") {
		t.Errorf("environment %q, %v", env, err)
	}
	if root, err := os.Readlink(fmt.Sprintf("/proc/%d/root", child)); err != nil || root != filepath.Join(dir, emptyName) {
		t.Errorf("its root is %q, %v", root, err)
	}
}

func TestOnlyRootMayConnect(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	for d := dir; d != "/tmp" && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	startLauncher(t, dir, "serve")
	_ = dialRaw(t, dir).Close()
	err := asNobody(func() error {
		c, err := net.Dial("unix", place{dir, 1}.socket())
		if err == nil {
			c.Close()
		}
		return err
	})
	if !errors.Is(err, unix.EACCES) {
		t.Fatalf("as nobody: %v, want EACCES", err)
	}
}

// asNobody calls f in a thread of that user, which ends afterwards.
func asNobody(f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		_, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, nobody, nobody, nobody)
		if errno != 0 {
			result <- errno
			return
		}
		result <- f()
	}()
	return <-result
}

// startLauncher starts a launcher whose child is the test binary's verb.
func startLauncher(t *testing.T, dir string, verb ...string) *exec.Cmd {
	t.Helper()
	return startLauncherBy(t, "launch", dir, verb...)
}

func startLauncherBy(t *testing.T, launch, dir string, verb ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", append([]string{"proxy", launch, dir, "proxy", "confine"}, verb...)...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		done := make(chan struct{})
		go func() { _ = cmd.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Error("the launcher did not end")
			_ = cmd.Process.Kill()
			<-done
		}
	})
	return cmd
}

func cgoEnabled() bool {
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_GETPID, 0, 0, 0)
	return errno == syscall.ENOTSUP
}
