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
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/proxy/control"
)

// attempt is something a confined process must not be able to do, or must.
type attempt struct {
	name string
	may  bool
	try  func() error
}

// prisoner is a proxy that was taken over: it tries all it can think of and
// tells the test, over the control socket.
func prisoner(mode, victim string) error {
	in, err := Inherit()
	if err != nil {
		return err
	}
	c, err := in.Listener.AcceptUnix()
	if err != nil {
		return err
	}
	wiring := &control.Wiring{}
	files, err := control.Receive(c, wiring)
	if err != nil {
		return err
	}
	if mode == "sealed" {
		if err := Seal(); err != nil {
			return err
		}
	}
	pid, err := strconv.Atoi(victim)
	if err != nil {
		return err
	}
	results := map[string]string{}
	for _, a := range attempts(mode == "sealed", pid, files[0], files[1]) {
		switch err := a.try(); {
		case err == nil && !a.may:
			results[a.name] = "it can"
		case err != nil && a.may:
			results[a.name] = "it can't: " + err.Error()
		}
	}
	b, err := json.Marshal(results)
	if err != nil {
		return err
	}
	return control.Send(c, &control.Wired{Error: string(b)})
}

func attempts(sealed bool, victim int, readOnly, readWrite *os.File) []attempt {
	mapOf := func(f *os.File) (*ebpf.Map, error) {
		fd, err := unix.Dup(int(f.Fd()))
		if err != nil {
			return nil, err
		}
		return ebpf.NewMapFromFD(fd)
	}
	put := func(f *os.File) error {
		m, err := mapOf(f)
		if err != nil {
			return err
		}
		defer m.Close()
		return m.Put(uint32(0), uint64(7))
	}
	socket := func(family, kind, protocol int) func() error {
		return func() error {
			fd, err := unix.Socket(family, kind, protocol)
			if err == nil {
				unix.Close(fd)
			}
			return err
		}
	}
	read := func(path string) func() error {
		return func() error { _, err := os.ReadFile(path); return err }
	}
	all := []attempt{
		{name: "load a program", try: func() error {
			p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
				Type: ebpf.SocketFilter, License: "GPL",
				Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
			})
			if err == nil {
				p.Close()
			}
			return err
		}},
		{name: "create a map", try: func() error {
			m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
			if err == nil {
				m.Close()
			}
			return err
		}},
		{name: "open a map by number", try: func() error {
			for id := ebpf.MapID(1); id < 4096; id++ {
				if m, err := ebpf.NewMapFromID(id); err == nil {
					m.Close()
					return nil
				}
			}
			return unix.EPERM
		}},
		{name: "read a table", may: true, try: func() error {
			m, err := mapOf(readOnly)
			if err != nil {
				return err
			}
			defer m.Close()
			var v uint64
			return m.Lookup(uint32(0), &v)
		}},
		{name: "write a table it may only read", try: func() error { return put(readOnly) }},
		{name: "map a table it may only read for writing", try: func() error {
			_, err := unix.Mmap(int(readOnly.Fd()), 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			return err
		}},
		{name: "make a table it mapped for reading writable", try: func() error {
			b, err := unix.Mmap(int(readWrite.Fd()), 0, os.Getpagesize(), unix.PROT_READ, unix.MAP_SHARED)
			if err != nil {
				return err
			}
			return unix.Mprotect(b, unix.PROT_READ|unix.PROT_WRITE)
		}},
		{name: "write its own table", may: true, try: func() error { return put(readWrite) }},
		{name: "see an interface of the host", try: func() error {
			links, err := netlink.LinkList()
			if err != nil {
				return err
			}
			if len(links) == 1 && links[0].Attrs().Name == "lo" {
				return errors.New("only its own lo")
			}
			return nil
		}},
		{name: "configure its own namespace", may: true, try: func() error {
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			return netlink.LinkSetUp(lo)
		}},
		{name: "enter the host's network", try: func() error {
			fd, err := unix.Open("/proc/1/ns/net", unix.O_RDONLY, 0)
			if err != nil {
				return err
			}
			return unix.Setns(fd, unix.CLONE_NEWNET)
		}},
		{name: "speak for a foreign address", may: true, try: func() error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1); err != nil {
				return err
			}
			return unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{192, 0, 2, 1}, Port: 80})
		}},
		{name: "read what only root may", try: read("/etc/shadow")},
		{name: "read another process's environment", try: read(fmt.Sprintf("/proc/%d/environ", victim))},
		{name: "signal a process of its own user", try: func() error { return unix.Kill(victim, 0) }},
		{name: "signal its launcher", try: func() error {
			if os.Getppid() == 0 {
				return unix.ESRCH
			}
			return unix.Kill(os.Getppid(), 0)
		}},
		{name: "trace a process of its own user", try: func() error { return unix.PtraceSeize(victim) }},
		{name: "become another user", try: func() error { return unix.Setresuid(1, 1, 1) }},
		{name: "mount", try: func() error { return unix.Mount("none", "/", "tmpfs", 0, "") }},
		{name: "set the host's name", try: func() error { return unix.Sethostname([]byte("x")) }},
		{name: "have an environment", try: func() error {
			for _, e := range os.Environ() {
				name, _, _ := strings.Cut(e, "=")
				if name != "GOTRACEBACK" && name != notesEnv {
					return nil
				}
			}
			return errors.New("only its own")
		}},
		{name: "raise its limit of files", try: func() error {
			var l unix.Rlimit
			if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
				return err
			}
			if l.Cur != l.Max {
				return nil // it should have had all of it
			}
			l.Max++
			return unix.Setrlimit(unix.RLIMIT_NOFILE, &l)
		}},
		{name: "write a file", try: func() error { return os.WriteFile("/tmp/weir-prisoner", []byte("x"), 0o600) }},
	}
	if !sealed {
		return all
	}
	return append(all,
		attempt{name: "read what everyone may", try: read("/etc/passwd")},
		attempt{name: "list its root", may: true, try: func() error {
			e, err := os.ReadDir("/")
			if err == nil && len(e) > 0 {
				return fmt.Errorf("it has %d entries", len(e))
			}
			return err
		}},
		attempt{name: "run a program", try: func() error {
			_, err := syscall.ForkExec("/bin/true", []string{"true"}, nil)
			return err
		}},
		attempt{name: "change its root", try: func() error { return unix.Chroot("/") }},
		attempt{name: "make a user namespace", try: onThread(func() error { return unix.Unshare(unix.CLONE_NEWUSER) })},
		attempt{name: "make a network namespace", try: onThread(func() error { return unix.Unshare(unix.CLONE_NEWNET) })},
		attempt{name: "clone into a namespace", try: func() error {
			_, _, errno := unix.RawSyscall6(unix.SYS_CLONE, unix.CLONE_NEWNET|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
			if errno != 0 {
				return errno
			}
			return nil
		}},
		attempt{name: "sniff packets", try: socket(unix.AF_PACKET, unix.SOCK_RAW, 0x300)},
		attempt{name: "send raw packets", try: socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)},
		attempt{name: "reach the packet filter", try: socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER)},
		attempt{name: "make a unix socket", try: socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)},
		attempt{name: "make a TCP socket", may: true, try: socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)},
		attempt{name: "make a UDP socket", may: true, try: socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, 0)},
		attempt{name: "use io_uring", try: func() error {
			var params [128]byte
			_, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 8, uintptr(unsafe.Pointer(&params[0])), 0)
			if errno != 0 {
				return errno
			}
			return nil
		}},
		attempt{name: "start goroutines and threads", may: true, try: func() error {
			done := make(chan struct{})
			for range 32 {
				go func() { runtime.LockOSThread(); <-done }()
			}
			time.Sleep(10 * time.Millisecond)
			close(done)
			return nil
		}},
	)
}

func onThread(f func() error) func() error {
	return func() error {
		result := make(chan error)
		go func() { runtime.LockOSThread(); result <- f() }()
		return <-result
	}
}

func TestConfinement(t *testing.T) {
	needRoot(t)
	for _, mode := range []string{"unsealed", "sealed"} {
		t.Run(mode, func(t *testing.T) {
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
			defer table.Close()
			readOnly, readWrite := descriptors(t, table)

			dir := t.TempDir()
			if err := os.Chmod(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			showLog(t, dir)
			launcher := exec.Command("/proc/self/exe", "proxy", "launch", dir, "proxy", "confine", "probe", mode, strconv.Itoa(victim.Process.Pid))
			launcher.Env = append(os.Environ(), "SECRET=token")
			if err := launcher.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = launcher.Process.Kill(); _ = launcher.Wait() }()
			c := dialRaw(t, dir)
			defer c.Close()
			if err := control.Send(c, &control.Wiring{}, readOnly, readWrite); err != nil {
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

// descriptors returns one for reading and one for all.
func descriptors(t *testing.T, m *ebpf.Map) (readOnly, readWrite *os.File) {
	t.Helper()
	fs := filepath.Join(t.TempDir(), "bpf")
	if err := os.Mkdir(fs, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("bpf", fs, "bpf", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(fs, unix.MNT_DETACH) })
	pin := filepath.Join(fs, "table")
	if err := m.Pin(pin); err != nil {
		t.Fatal(err)
	}
	ro, err := ebpf.LoadPinnedMap(pin, &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer ro.Close()
	file := func(m *ebpf.Map) *os.File {
		fd, err := unix.Dup(m.FD())
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "map")
		t.Cleanup(func() { f.Close() })
		return f
	}
	return file(ro), file(m)
}

// dialRaw connects to the control socket as soon as it is there.
func dialRaw(t *testing.T, dir string) *net.UnixConn {
	t.Helper()
	var c net.Conn
	waitFor(t, "control socket", 5*time.Second, func() (ok bool) {
		var err error
		c, err = net.Dial("unix", filepath.Join(dir, socketName))
		return err == nil
	})
	return c.(*net.UnixConn)
}

func TestProcessSeenFromHost(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	showLog(t, dir)
	launcher := startLauncher(t, dir, "serve")
	dialRaw(t, dir).Close()
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
		if err != nil || its == mine {
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
	dialRaw(t, dir).Close()
	err := asNobody(func() error {
		c, err := net.Dial("unix", filepath.Join(dir, socketName))
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
	cmd := exec.Command("/proc/self/exe", append([]string{"proxy", "launch", dir, "proxy", "confine"}, verb...)...)
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
