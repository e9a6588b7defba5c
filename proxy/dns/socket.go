package dns

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sockaddr is struct sockaddr_in or sockaddr_in6.
type sockaddr struct {
	family uint16
	port   [2]byte // network byte order
	flow   [4]byte // of IPv4: the address
	addr   [16]byte
	scope  uint32
}

func sockaddrOf(a netip.AddrPort) (s sockaddr) {
	binary.BigEndian.PutUint16(s.port[:], a.Port())
	if a.Addr().Is4() {
		s.family, s.flow = unix.AF_INET, a.Addr().As4()
		return s
	}
	s.family, s.addr = unix.AF_INET6, a.Addr().As16()
	return s
}

func (s *sockaddr) size() uint32 {
	if s.family == unix.AF_INET {
		return unix.SizeofSockaddrInet4
	}
	return unix.SizeofSockaddrInet6
}

// sameHost tells whether two have the same address, whatever their ports.
func (s *sockaddr) sameHost(o *sockaddr) bool {
	if s.family != o.family {
		return false
	}
	if s.family == unix.AF_INET {
		return s.flow == o.flow
	}
	return s.addr == o.addr
}

func (s *sockaddr) portNumber() uint16 { return binary.BigEndian.Uint16(s.port[:]) }

func (s *sockaddr) ip() netip.Addr {
	if s.family == unix.AF_INET {
		return netip.AddrFrom4(s.flow)
	}
	return netip.AddrFrom16(s.addr)
}

func (s *sockaddr) addrPort() netip.AddrPort { return netip.AddrPortFrom(s.ip(), s.portNumber()) }

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// What sockets ask the kernel for: room for a burst while the loop is busy. The
// kernel gives what its limit allows. There are many listeners, one of each family
// for a pod, but thousands of sockets to servers, any of which may be on the side
// of a pod that wants to fill the memory that all UDP of the node shares. Sockets
// that answer pods get nothing.
const (
	listenerBuffer = 2 << 20
	upstreamBuffer = 1 << 20
)

// openSocket makes a UDP socket that can have any address; buffer is what it
// receives into, 0 as the kernel likes.
func openSocket(family, buffer int) (fd int, err error) {
	fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("open a socket: %w", err)
	}
	level, transparent := unix.SOL_IP, unix.IP_TRANSPARENT
	if family == unix.AF_INET6 {
		level, transparent = unix.SOL_IPV6, unix.IPV6_TRANSPARENT
		err = unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if err == nil {
		err = unix.SetsockoptInt(fd, level, transparent, 1)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("make a socket transparent: %w", err)
	}
	if buffer > 0 {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, buffer)
	}
	return fd, nil
}

// openListener makes a socket for datagrams that are steered to it.
func openListener(family int) (fd int, err error) {
	fd, err = openSocket(family, listenerBuffer)
	if err != nil {
		return -1, err
	}
	own := netip.MustParseAddrPort("127.0.0.1:0")
	level, option := unix.SOL_IP, unix.IP_RECVORIGDSTADDR
	if family == unix.AF_INET6 {
		own = netip.MustParseAddrPort("[::1]:0")
		level, option = unix.SOL_IPV6, unix.IPV6_RECVORIGDSTADDR
	}
	if err = unix.SetsockoptInt(fd, level, option, 1); err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1)
	}
	if err == nil {
		err = bind(fd, own)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("listen on %v: %w", own, err)
	}
	return fd, nil
}

// openAs makes a socket with an address that others may have as well.
func openAs(local netip.AddrPort, buffer int) (fd int, err error) {
	fd, err = openSocket(familyOf(local.Addr()), buffer)
	if err != nil {
		return -1, err
	}
	if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err == nil {
		err = bind(fd, local)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("bind to %v: %w", local, err)
	}
	return fd, nil
}

// socketRoom is how many sockets the limit of open files leaves to UDP: an eighth
// of all (the rest is for connections).
func socketRoom() int {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return 128
	}
	return int(min(l.Cur, 1<<20) / 8)
}

func bind(fd int, a netip.AddrPort) error { return onSockaddr(unix.SYS_BIND, fd, a) }
func connect(fd int, a netip.AddrPort) error {
	return onSockaddr(unix.SYS_CONNECT, fd, a)
}

func onSockaddr(call uintptr, fd int, a netip.AddrPort) error {
	s := sockaddrOf(a)
	if _, _, errno := unix.Syscall(call, uintptr(fd), uintptr(unsafe.Pointer(&s)), uintptr(s.size())); errno != 0 {
		return errno
	}
	return nil
}
