package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// netnsDir is where iproute2 keeps named namespaces.
const netnsDir = "/run/netns"

// Netns is a named network namespace, as `ip netns add` makes them. All
// methods may be called concurrently; none after Close.
type Netns struct {
	Name string
	file *os.File
	nl   *netlink.Handle

	mu      sync.Mutex
	closers []io.Closer // servers inside
}

// NewNetns makes a namespace with its loopback up and IPv6 addresses usable at
// once (no duplicate address detection). The name must be free.
func NewNetns(name string) (_ *Netns, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("make network namespace %s: %w", name, err)
		}
	}()
	if err := shareNetnsDir(); err != nil {
		return nil, err
	}
	path := filepath.Join(netnsDir, name)
	mountpoint, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return nil, err
	}
	mountpoint.Close()
	defer func() {
		if err != nil {
			_ = DeleteNetns(name)
		}
	}()
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, "")
	})
	if err != nil {
		return nil, err
	}
	ns := &Netns{Name: name}
	if ns.file, err = os.Open(path); err != nil {
		return nil, err
	}
	if ns.nl, err = netlink.NewHandleAt(netns.NsHandle(ns.file.Fd())); err != nil {
		ns.file.Close()
		return nil, err
	}
	err = ns.Sysctl(
		"net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0",
		"net.ipv6.conf.default.router_solicitations=0",
		// An uplink or a pod that goes away must not leave its routes waiting.
		"net.ipv4.conf.all.ignore_routes_with_linkdown=0",
	)
	if err == nil {
		err = ns.linkUp("lo")
	}
	if err != nil {
		ns.nl.Close()
		ns.file.Close()
		return nil, err
	}
	return ns, nil
}

// shareNetnsDir makes the folder of named namespaces a shared mount, as
// iproute2 does: without that, a process in a mount namespace of its own would
// keep namespaces alive that are deleted here.
func shareNetnsDir() error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return err
	}
	err := unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) { // not a mount point yet
		if err := unix.Mount(netnsDir, netnsDir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("mount %s: %w", netnsDir, err)
		}
		err = unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "")
	}
	if err != nil {
		return fmt.Errorf("share %s: %w", netnsDir, err)
	}
	return nil
}

// DeleteNetns removes a namespace's name; the namespace itself goes with the
// last process or socket in it. A name that is not there is no error.
func DeleteNetns(name string) error {
	path := filepath.Join(netnsDir, name)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount network namespace %s: %w", name, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("delete network namespace %s: %w", name, err)
	}
	return nil
}

// Close stops the servers inside, deletes the namespace's name and lets go of
// it.
func (ns *Netns) Close() error {
	ns.mu.Lock()
	for _, c := range ns.closers {
		c.Close()
	}
	ns.closers = nil
	ns.mu.Unlock()
	ns.nl.Close()
	ns.file.Close()
	return DeleteNetns(ns.Name)
}

// Release lets go of the namespace, which stays until DeleteNetns; no method
// may be called after it.
func (ns *Netns) Release() {
	ns.nl.Close()
	ns.file.Close()
}

// Path is the file that stands for the namespace (nsenter --net=PATH).
func (ns *Netns) Path() string { return filepath.Join(netnsDir, ns.Name) }

// onThread runs f on a thread of its own choosing that is back in the
// namespace it came from when onThread returns.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		defer home.Close()
		err = f()
		if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
			// The thread stays locked, and so ends with this goroutine.
			done <- errors.Join(err, fmt.Errorf("return to the first network namespace: %w", back))
			return
		}
		runtime.UnlockOSThread()
		done <- err
	}()
	return <-done
}

// Do runs f inside the namespace, on a locked thread. What f starts in other
// goroutines does not run there.
func (ns *Netns) Do(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(ns.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", ns.Name, err)
		}
		return f()
	})
}

// Sysctl sets "name=value" pairs of net.*.
func (ns *Netns) Sysctl(pairs ...string) error {
	return ns.Do(func() error {
		for _, pair := range pairs {
			name, value, _ := strings.Cut(pair, "=")
			path := "/proc/sys/" + strings.ReplaceAll(name, ".", "/")
			if err := os.WriteFile(path, []byte(value), 0); err != nil {
				return fmt.Errorf("set sysctl %s: %w", pair, err)
			}
		}
		return nil
	})
}

// DialContext connects from inside the namespace; address must hold a literal
// IP address. It fits http.Transport.
func (ns *Netns) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return ns.Dial(ctx, &net.Dialer{}, network, address)
}

// Dial is DialContext with a dialer of the caller's (local address, control).
func (ns *Netns) Dial(ctx context.Context, d *net.Dialer, network, address string) (conn net.Conn, err error) {
	err = ns.Do(func() error {
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen listens inside the namespace.
func (ns *Netns) Listen(network, address string) (l net.Listener, err error) {
	err = ns.Do(func() error {
		l, err = net.Listen(network, address)
		return err
	})
	return l, err
}

// ListenPacket opens a datagram or raw ("ip4:icmp") socket inside the namespace.
func (ns *Netns) ListenPacket(network, address string) (c net.PacketConn, err error) {
	err = ns.Do(func() error {
		c, err = net.ListenPacket(network, address)
		return err
	})
	return c, err
}

// Start starts cmd inside the namespace; its mount namespace stays the
// caller's.
func (ns *Netns) Start(cmd *exec.Cmd) error { return ns.Do(cmd.Start) }

// Program finds a program as root's shell would, also where PATH is a user's.
func Program(name string) (string, error) {
	path, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if err == nil {
			break
		}
		if p, e := exec.LookPath(filepath.Join(dir, name)); e == nil {
			return p, nil
		}
	}
	return path, err
}

// Run runs a program inside the namespace with this standard input and
// returns what it printed. An error holds that, too.
func (ns *Netns) Run(ctx context.Context, stdin string, name string, args ...string) (string, error) {
	path, err := Program(name)
	if err != nil {
		return "", fmt.Errorf("run in %s: %w", ns.Name, err)
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := ns.Start(cmd); err != nil {
		return "", fmt.Errorf("start %s in %s: %w", name, ns.Name, err)
	}
	if err := cmd.Wait(); err != nil {
		return out.String(), fmt.Errorf("%s in %s: %w: %s", strings.Join(cmd.Args, " "), ns.Name, err, strings.TrimSpace(out.String()))
	}
	return out.String(), nil
}
