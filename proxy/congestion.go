package proxy

import (
	"errors"
	"fmt"
	"net"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/policy"
)

// localCongestion is the congestion control of a connection to a pod of this
// node: one that does not pace. Such a connection has no path that could be
// congested, but where the host's default paces (BBR does), each segment of a
// body costs a timer. It is part of every kernel.
const localCongestion = "reno"

// setLocal is for a socket before it connects or listens: a socket that has
// been paced once stays so.
func setLocal(fd int) error {
	if err := unix.SetsockoptString(fd, unix.SOL_TCP, unix.TCP_CONGESTION, localCongestion); err != nil {
		return fmt.Errorf("set congestion control %s: %w", localCongestion, err)
	}
	return nil
}

// hostCongestion is the namespace's default, which it has from the host.
func hostCongestion() (string, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("read congestion control: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	name, err := unix.GetsockoptString(fd, unix.SOL_TCP, unix.TCP_CONGESTION)
	if err != nil {
		return "", fmt.Errorf("read congestion control: %w", err)
	}
	return name, nil
}

// onSocket calls f with c's descriptor.
func onSocket(c syscall.RawConn, f func(fd int) error) (err error) {
	controlErr := c.Control(func(fd uintptr) { err = f(int(fd)) })
	return errors.Join(controlErr, err)
}

// setRemote gives an accepted connection, which began as a local one, the
// host's way for connections that leave the node.
func setRemote(c *net.TCPConn, name string) error {
	raw, err := c.SyscallConn()
	if err == nil {
		err = onSocket(raw, func(fd int) error {
			return unix.SetsockoptString(fd, unix.SOL_TCP, unix.TCP_CONGESTION, name)
		})
	}
	if err != nil {
		return fmt.Errorf("set congestion control %s: %w", name, err)
	}
	return nil
}

// local tells whether an end of a flow is a pod of this node: the one whose
// direction that would be.
func local(e *bpf.Conn, end policy.Direction) bool {
	return e.L7&(bpf.ConnLocal<<end) != 0
}
