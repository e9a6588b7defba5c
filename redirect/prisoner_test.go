package redirect

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
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
func prisoner(mode, victim, pin string) error {
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
	for _, a := range attempts(mode == "sealed", pid, pin, files[0], files[1], files[2]) {
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

func attempts(sealed bool, victim int, pin string, readOnly, readWrite, checkpoint *os.File) []attempt {
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
		defer func() { _ = m.Close() }()
		return m.Put(uint32(0), uint64(7))
	}
	socket := func(family, kind, protocol int) func() error {
		return func() error {
			fd, err := unix.Socket(family, kind, protocol)
			if err == nil {
				_ = unix.Close(fd)
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
				_ = p.Close()
			}
			return err
		}},
		{name: "create a map", try: func() error {
			m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
			if err == nil {
				_ = m.Close()
			}
			return err
		}},
		{name: "open a map by number", try: func() error {
			m, err := mapOf(readWrite)
			if err != nil {
				return fmt.Errorf("%w: its own table", err)
			}
			defer func() { _ = m.Close() }()
			own, err := numberOf(m)
			if err != nil {
				return err
			}
			for id := max(own, 1024) - 1023; id < own+1024; id++ {
				if m, err := ebpf.NewMapFromID(id); err == nil {
					_ = m.Close()
					return nil
				}
			}
			return unix.EPERM
		}},
		{name: "open a pinned map", try: func() error {
			m, err := ebpf.LoadPinnedMap(pin, nil)
			if err == nil {
				_ = m.Close()
			}
			return err
		}},
		{name: "read a table", may: true, try: func() error {
			m, err := mapOf(readOnly)
			if err != nil {
				return err
			}
			defer func() { _ = m.Close() }()
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
			defer func() { _ = unix.Close(fd) }()
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
				if !slices.Contains([]string{"GOTRACEBACK", notesEnv, buildEnv, managedEnv}, name) {
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
		attempt{name: "write a checkpoint", may: true, try: func() error {
			_, err := checkpoint.WriteAt([]byte("learned"), 0)
			return err
		}},
		attempt{name: "sync a checkpoint", may: true, try: checkpoint.Sync},
		attempt{name: "read a checkpoint", may: true, try: func() error {
			_, err := checkpoint.ReadAt(make([]byte, 7), 0)
			return err
		}},
		attempt{name: "cut a checkpoint", may: true, try: func() error { return checkpoint.Truncate(3) }},
		attempt{name: "make a checkpoint too large", try: func() error {
			_, err := checkpoint.WriteAt([]byte("x"), control.MaxCheckpoint)
			return err
		}},
		attempt{name: "make a checkpoint too large without writing", try: func() error {
			return checkpoint.Truncate(control.MaxCheckpoint + 1)
		}},
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

// numberOf is a map's number, which the kernel tells without /proc.
func numberOf(m *ebpf.Map) (ebpf.MapID, error) {
	var info struct{ kind, id uint32 }
	attr := struct {
		fd, size uint32
		info     uint64
	}{uint32(m.FD()), uint32(unsafe.Sizeof(info)), uint64(uintptr(unsafe.Pointer(&info)))}
	_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_OBJ_GET_INFO_BY_FD, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	runtime.KeepAlive(&info)
	if errno != 0 {
		return 0, errno
	}
	return ebpf.MapID(info.id), nil
}
