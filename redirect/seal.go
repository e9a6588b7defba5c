package redirect

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/proxy/control"
)

// Inherited are the descriptors a confined proxy was born with.
type Inherited struct {
	// Listener is the control socket. Closing it leaves the file.
	Listener *net.UnixListener
	// Netns is the proxy's own network namespace.
	Netns *os.File
	// Statm tells the process's size; nil where /proc does not.
	Statm *os.File
	// Build is BuildOf of the launcher's binary, Managed what its options said.
	Build   string
	Managed bool
}

// Inherit takes over what Launch and Confine left. To be called once, in the
// process that Confine executed.
func Inherit() (*Inherited, error) {
	if _, ok := confinedUser(os.Getpid(), os.Getuid()); !ok {
		return nil, errors.New("inherit: not started by a launcher")
	}
	unix.CloseOnExec(fdLock) // kept open: it says that the place is taken
	f := os.NewFile(fdListener, "proxy.sock")
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("inherit control socket: %w", err)
	}
	ul, ok := l.(*net.UnixListener)
	if !ok {
		return nil, fmt.Errorf("inherit control socket: it is %T", l)
	}
	ul.SetUnlinkOnClose(false)
	unix.CloseOnExec(fdNetns)
	birth := originOf(os.Getenv)
	in := &Inherited{Listener: ul, Netns: os.NewFile(fdNetns, "netns"), Build: birth.build, Managed: birth.managed}
	if in.Statm, err = os.Open("/proc/self/statm"); err != nil {
		in.Statm = nil
	}
	return in, trim()
}

// Seal is the second half of Confine, for what has to hold for every thread
// of the running proxy: an empty directory as its root, no way to look into
// it for others of its user, and a filter on system calls. After it the
// process opens no file, runs no program, makes no namespace, and speaks to
// no part of the kernel but TCP, UDP, its routes, and its maps.
func Seal() error {
	// By its descriptor: the way to it may be closed to this user.
	if err := unix.Fchdir(fdRoot); err != nil {
		return fmt.Errorf("seal: change root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("seal: change root: %w", err)
	}
	if err := unix.Close(fdRoot); err != nil {
		return fmt.Errorf("seal: change root: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("seal: not dumpable: %w", err)
	}
	if err := dropChroot(); err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	files := unix.Rlimit{Cur: control.MaxCheckpoint, Max: control.MaxCheckpoint}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &files); err != nil {
		return fmt.Errorf("seal: let it write checkpoints: %w", err)
	}
	prog := filter()
	fprog := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	r, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&fprog)))
	runtime.KeepAlive(prog)
	if errno != 0 {
		return fmt.Errorf("seal: filter system calls: %w", errno)
	}
	if r != 0 {
		return fmt.Errorf("seal: filter system calls: thread %d does not follow", r)
	}
	return nil
}

// dropChroot gives up the capability that Seal itself needed. In a binary
// with cgo the Go runtime can't do that for all threads; the filter forbids
// the one system call it is good for.
func dropChroot() error {
	const version3 = 0x20080522
	var left uint32
	for c := range kept {
		if c != unix.CAP_SYS_CHROOT {
			left |= 1 << c
		}
	}
	head := unix.CapUserHeader{Version: version3}
	data := [2]unix.CapUserData{{Effective: left, Permitted: left}}
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&data[0])), 0)
	if errno != 0 && errno != syscall.ENOTSUP {
		return fmt.Errorf("drop capabilities: %w", errno)
	}
	_, _, errno = syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, unix.CAP_SYS_CHROOT, 0, 0, 0, 0)
	if errno != 0 && errno != syscall.ENOTSUP && errno != syscall.EPERM {
		return fmt.Errorf("drop capabilities: %w", errno)
	}
	return nil
}
