package sockets

import (
	"encoding/json"
	"errors"
	"io"
	"net/netip"

	"golang.org/x/sys/unix"
)

// serve answers questions until there are no more.
func serve(in io.Reader, out io.Writer) {
	open := map[int]opened{}
	to, from := json.NewEncoder(out), json.NewDecoder(in)
	for {
		var q question
		if from.Decode(&q) != nil {
			return
		}
		var a answer
		if err := step(open, q, &a); err != nil && !errors.As(err, &a.Errno) {
			a.Errno = unix.EPROTO
		}
		if to.Encode(a) != nil {
			return
		}
	}
}

type opened struct {
	fd     int
	family Family
}

func step(open map[int]opened, q question, a *answer) error {
	if q.Op == "open" {
		domain := unix.AF_INET6
		if q.Family == IPv4 {
			domain = unix.AF_INET
		}
		fd, err := unix.Socket(domain, q.Type|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		open[q.Socket] = opened{fd, q.Family}
		wait := unix.Timeval{Sec: 2}
		return errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &wait))
	}
	s, ok := open[q.Socket]
	if !ok {
		return unix.EBADF
	}
	switch q.Op {
	case "connect":
		return unix.Connect(s.fd, s.address(q.Addr))
	case "peer":
		sa, err := unix.Getpeername(s.fd)
		a.Addr = addrPort(sa)
		return err
	case "send":
		if !q.Addr.IsValid() {
			_, err := unix.Write(s.fd, []byte(q.Data))
			return err
		}
		return unix.Sendto(s.fd, []byte(q.Data), 0, s.address(q.Addr))
	case "receive":
		b := make([]byte, 64<<10)
		n, sa, err := unix.Recvfrom(s.fd, b, 0)
		if err != nil {
			return err
		}
		a.Data, a.Addr = string(b[:n]), addrPort(sa)
		return nil
	case "close":
		delete(open, q.Socket)
		return unix.Close(s.fd)
	}
	return unix.EINVAL
}

func (s opened) address(a netip.AddrPort) unix.Sockaddr {
	if s.family == IPv4 {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().Unmap().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}
