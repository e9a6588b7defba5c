package redirect

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// nobody is the user the proxy is, seen from the host.
const nobody = 65534

// Descriptors the child inherits, after standard input, output and error.
const (
	fdListener = 3 + iota // the listening control socket
	fdLock                // the launcher's lock: held as long as either lives
	fdRoot                // the directory that is to be the child's root
	fdNetns               // place for the child's own network namespace, which Confine opens
)

// Names below a run directory, which all launchers share.
const (
	logName   = "proxy.log"
	emptyName = "empty" // an empty directory, the proxy's root
)

// LogPath is where launchers log to that an agent started (Command).
func LogPath(runDir string) string { return filepath.Join(runDir, logName) }

// freshSuffix is that of a socket which has not got its mode yet.
const freshSuffix = ".new"

// Restart delays of a child that keeps dying.
const (
	quickDeath  = 3 * time.Second
	firstDelay  = 20 * time.Millisecond
	longestWait = 5 * time.Second
)

// LauncherOptions say what is launched.
type LauncherOptions struct {
	// RunDir holds the socket; it is created where it is missing.
	RunDir string
	// Child is the command line that calls Confine, less the program: this
	// very binary.
	Child []string
	// Managed: an agent starts it, and may replace it by one of its own binary.
	Managed bool
	// UserNamespace says whether the proxy gets one; auto if empty.
	UserNamespace UserNamespace
	// Drain is how long connections get when the launcher is told to go.
	Drain time.Duration
	// Log takes what the child writes to its standard error.
	Log io.Writer
	// Logger is told of the child's lives.
	Logger *slog.Logger
}

// Launch makes a control socket, starts the proxy as a child in namespaces of
// its own, and starts it anew whenever it dies. Where another proxy runs in the
// run directory, this one succeeds it: the agent sees to that. It returns when
// ctx ends and the child has drained, or when the child went because its agent
// said so. It needs root.
func Launch(ctx context.Context, o LauncherOptions) error {
	if err := os.MkdirAll(o.RunDir, 0o755); err != nil {
		return fmt.Errorf("make run directory: %w", err)
	}
	build, err := BuildOf("/proc/self/exe")
	if err != nil {
		return err
	}
	p, lock, err := takePlace(ctx, o.RunDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	// The place is held until this process is gone: who waits for its end waits
	// for that, and removes what is left of it. The descriptor is never closed.
	if _, err := unix.FcntlInt(lock.Fd(), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		return fmt.Errorf("hold a place: %w", err)
	}
	listener, err := listen(p.socket())
	if err != nil {
		return err
	}
	defer listener.Close()
	// It goes with the last proxy, so that nobody waits for an answer that can't
	// come.
	defer func() { _ = os.Remove(p.socket()) }()
	root, err := emptyDir(filepath.Join(o.RunDir, emptyName))
	if err != nil {
		return err
	}
	defer root.Close()
	if err := raiseFiles(); err != nil {
		return err
	}
	o.Logger = o.Logger.With("place", p.n)
	birth := origin{build: build, managed: o.Managed}
	delay := time.Duration(0) // flows wait: the first death is answered at once
	for {
		began := time.Now()
		done, err := o.life(ctx, birth, listener, lock, root)
		if done {
			return err
		}
		if time.Since(began) > quickDeath {
			delay = 0
		}
		o.Logger.Error("proxy died, starting a new one", "error", err, "lived", time.Since(began), "delay", delay)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(delay):
		}
		delay = min(max(delay*2, firstDelay), longestWait)
	}
}

// life runs one child to its end. done: it went because it was told to, or
// none can be started at all.
func (o *LauncherOptions) life(ctx context.Context, birth origin, listener, lock, root *os.File) (done bool, err error) {
	place, err := os.Open(os.DevNull)
	if err != nil {
		return false, fmt.Errorf("start the proxy: %w", err)
	}
	defer place.Close()
	cmd, err := o.startChild(func() *exec.Cmd {
		return &exec.Cmd{
			Path:       "/proc/self/exe",
			Args:       append([]string{os.Args[0]}, o.Child...),
			Env:        append([]string{"GOTRACEBACK=single"}, birth.environ()...),
			Dir:        "/",
			Stderr:     o.Log,
			ExtraFiles: []*os.File{listener, lock, root, place},
		}
	})
	if errors.Is(err, unix.EACCES) {
		return true, fmt.Errorf("start the proxy: %w (user %d must be allowed to execute this binary)", err, nobody)
	} else if err != nil {
		return true, fmt.Errorf("start the proxy: %w", err)
	}
	if err := writeHolders(lock, os.Getpid(), cmd.Process.Pid); err != nil {
		o.Logger.Error("an agent will not find the proxy should it hang", "error", err)
	}
	o.Logger.Info("proxy started", "pid", cmd.Process.Pid)
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		return err == nil, err
	case <-ctx.Done():
	}
	// Again and again: the first process of a namespace does not get signals
	// before it listens to them.
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(o.Drain + 2*time.Second)
	for {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case err := <-ended:
			o.Logger.Info("proxy ended", "status", err)
			return true, nil // however: it may not even have begun to listen to signals
		case <-tick.C:
		case <-limit:
			_ = cmd.Process.Kill()
			return true, fmt.Errorf("the proxy did not drain in time and was killed: %w", <-ended)
		}
	}
}

// listen makes the control socket. Only root may connect: the file has mode
// 0600 before it has its name. (The proxy can't check that itself: root has
// no number in its user namespace.)
func listen(path string) (*os.File, error) {
	fresh := path + freshSuffix
	if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("make control socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fresh, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("make control socket: %w", err)
	}
	defer func() { _ = l.Close() }()
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(fresh, 0o600); err != nil {
		return nil, fmt.Errorf("make control socket: %w", err)
	}
	f, err := l.File()
	if err != nil {
		return nil, fmt.Errorf("make control socket: %w", err)
	}
	if err := os.Rename(fresh, path); err != nil {
		f.Close()
		return nil, fmt.Errorf("make control socket: %w", err)
	}
	return f, nil
}

// emptyDir makes sure path is an empty directory that only root can change,
// and opens it.
func emptyDir(path string) (*os.File, error) {
	if err := os.Mkdir(path, 0o555); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("make the proxy's root: %w", err)
	}
	dir, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("make the proxy's root: %w", err)
	}
	entries, err := dir.ReadDir(1)
	if err == nil || len(entries) > 0 {
		err = errors.New("it is not empty")
	}
	if !errors.Is(err, io.EOF) {
		dir.Close()
		return nil, fmt.Errorf("make the proxy's root %s: %w", path, err)
	}
	return dir, nil
}

// raiseFiles raises the limit of open files as far as it goes. The child
// can't: it has no power over limits. Setting it here also keeps the Go
// runtime from handing the child the lower one this process started with.
func raiseFiles() error {
	const wanted = 1 << 20
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return fmt.Errorf("read limit of open files: %w", err)
	}
	if l.Max < wanted {
		high := syscall.Rlimit{Cur: wanted, Max: wanted}
		if syscall.Setrlimit(syscall.RLIMIT_NOFILE, &high) == nil {
			return nil
		} // needs CAP_SYS_RESOURCE: without it the hard limit stays
	}
	l.Cur = l.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return fmt.Errorf("raise limit of open files: %w", err)
	}
	return nil
}
