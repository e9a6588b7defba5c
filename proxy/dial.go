package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// connectTimeout is how long a server may take to answer a SYN. The client is
// connected already: it learns of a dead server by a reset, after this.
const connectTimeout = 10 * time.Second

// Keep-alive finds peers that are gone without a word.
const (
	keepAliveIdle     = 2 * time.Minute
	keepAliveInterval = 15 * time.Second
	keepAliveCount    = 5
)

// dialAs connects to server from the client's own address and port: its
// kernel made them unique towards that server, and peers see the pod. local:
// the server is a pod of this node.
func dialAs(ctx context.Context, client, server netip.AddrPort, local bool) (*net.TCPConn, error) {
	d := net.Dialer{
		Timeout:         connectTimeout,
		LocalAddr:       net.TCPAddrFromAddrPort(client),
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: keepAliveIdle, Interval: keepAliveInterval, Count: keepAliveCount},
		Control:         transparent,
	}
	if local {
		d.Control = func(network, address string, c syscall.RawConn) error {
			return errors.Join(transparent(network, address, c), onSocket(c, setLocal))
		}
	}
	d.SetMultipathTCP(false)
	var err error
	for range 3 {
		var c net.Conn
		if c, err = d.DialContext(ctx, network(server), server.String()); err == nil {
			return c.(*net.TCPConn), nil
		}
		// An earlier connection of the same ends: closed but for its
		// TIME_WAIT, in which the kernel sees a reason to refuse where the
		// ends send no timestamps. The client has begun anew, so it is over.
		if !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.EADDRINUSE) {
			break
		}
		if destroyErr := destroySocket(client, server); destroyErr != nil {
			return nil, fmt.Errorf("connect as %v: %w", client, errors.Join(err, destroyErr))
		}
	}
	return nil, fmt.Errorf("connect as %v: %w", client, err)
}

func network(a netip.AddrPort) string {
	if a.Addr().Is4() {
		return "tcp4"
	}
	return "tcp6"
}

// transparent lets a socket have an address that is not this namespace's, and
// a port that another connection has as well.
func transparent(network, _ string, c syscall.RawConn) (err error) {
	controlErr := c.Control(func(fd uintptr) {
		if network == "tcp4" {
			err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TRANSPARENT, 1)
		} else {
			err = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1)
		}
		if err == nil {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		}
	})
	return errors.Join(controlErr, err)
}
