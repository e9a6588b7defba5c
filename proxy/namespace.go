package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/proxy/dns"
)

// The namespace has one way out, by a neighbour that is given once and for
// all: nothing in it is ever asked for or answered. The addresses mean
// nothing outside.
var (
	ownAddr4    = netip.MustParsePrefix("169.254.77.2/32")
	gateway4    = netip.MustParseAddr("169.254.77.1")
	ownAddr6    = netip.MustParsePrefix("fe80::2/64")
	gateway6    = netip.MustParseAddr("fe80::1")
	everything4 = netip.MustParsePrefix("0.0.0.0/0")
	everything6 = netip.MustParsePrefix("::/0")
)

const (
	deviceName   = "eth0"
	localTable   = 100
	rulePriority = 10
	listenQueue  = 65535 // the kernel cuts it to somaxconn
)

// configureNamespace makes every address local for what comes in by eth0, and
// eth0 the way to everywhere. It may be repeated.
func configureNamespace(gateway net.HardwareAddr, mtu int) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("configure namespace: find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("configure namespace: lo up: %w", err)
	}
	eth, err := netlink.LinkByName(deviceName)
	if err != nil {
		return fmt.Errorf("configure namespace: find %s: %w", deviceName, err)
	}
	if mtu > 0 && eth.Attrs().MTU != mtu {
		if err := netlink.LinkSetMTU(eth, mtu); err != nil {
			return fmt.Errorf("configure namespace: MTU %d of %s: %w", mtu, deviceName, err)
		}
	}
	if err := netlink.LinkSetUp(eth); err != nil {
		return fmt.Errorf("configure namespace: %s up: %w", deviceName, err)
	}
	if err := configureFamily(unix.AF_INET, lo, eth, ownAddr4, everything4, gateway4, gateway); err != nil {
		return fmt.Errorf("configure namespace: IPv4: %w", err)
	}
	if !haveIPv6() {
		return nil
	}
	if err := configureFamily(unix.AF_INET6, lo, eth, ownAddr6, everything6, gateway6, gateway); err != nil {
		return fmt.Errorf("configure namespace: IPv6: %w", err)
	}
	return nil
}

func configureFamily(family int, lo, eth netlink.Link, own, all netip.Prefix, via netip.Addr, mac net.HardwareAddr) error {
	addr := &netlink.Addr{IPNet: ipNet(own), Scope: int(netlink.SCOPE_LINK)}
	if family == unix.AF_INET6 {
		addr.Flags = unix.IFA_F_NODAD
	}
	if err := netlink.AddrReplace(eth, addr); err != nil {
		return fmt.Errorf("add address: %w", err)
	}
	if err := netlink.NeighSet(&netlink.Neigh{
		LinkIndex: eth.Attrs().Index, Family: family, State: netlink.NUD_PERMANENT,
		IP: via.AsSlice(), HardwareAddr: mac,
	}); err != nil {
		return fmt.Errorf("set gateway: %w", err)
	}
	if err := netlink.RouteReplace(&netlink.Route{
		Family: family, LinkIndex: eth.Attrs().Index, Dst: ipNet(all), Gw: via.AsSlice(), Flags: int(netlink.FLAG_ONLINK),
	}); err != nil {
		return fmt.Errorf("set default route: %w", err)
	}
	if err := netlink.RouteReplace(&netlink.Route{
		Family: family, LinkIndex: lo.Attrs().Index, Dst: ipNet(all), Table: localTable,
		Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST,
	}); err != nil {
		return fmt.Errorf("make everything local: %w", err)
	}
	rule := netlink.NewRule()
	rule.Family, rule.IifName, rule.Table, rule.Priority = family, deviceName, localTable, rulePriority
	if err := netlink.RuleAdd(rule); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add rule: %w", err)
	}
	return nil
}

// haveIPv6 tells whether the machine has IPv6 at all.
func haveIPv6() bool {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	_ = unix.Close(fd)
	return true
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// openListeners listens on loopback, by TCP and, in the name of questions, by
// UDP, and puts the sockets into the sockmap: from there on what goes to whatever
// address comes to them.
func openListeners(questions *dns.Server, put func(index uint32, fd uintptr) error) (ls []*net.TCPListener, err error) {
	defer func() {
		if err != nil {
			for _, l := range ls {
				_ = l.Close()
			}
			ls = nil
		}
	}()
	addrs := []string{"127.0.0.1:0", "[::1]:0"}
	if !haveIPv6() {
		addrs = addrs[:1]
	}
	datagrams := []uint32{bpf.ListenerUDP4, bpf.ListenerUDP6}
	for i, a := range addrs {
		l, err := listenTCP(netip.MustParseAddrPort(a))
		if err != nil {
			return ls, err
		}
		ls = append(ls, l)
		raw, err := l.SyscallConn()
		if err != nil {
			return ls, fmt.Errorf("listen on %s: %w", a, err)
		}
		if err := onSocket(raw, func(fd int) error { return put(bpf.ListenerTCP4+uint32(i), uintptr(fd)) }); err != nil {
			return ls, fmt.Errorf("put listener on %s into the sockmap: %w", a, err)
		}
		for lane := range bpf.Lanes {
			if err := questions.Listen(i == 1, func(fd uintptr) error { return put(datagrams[i]+lane, fd) }); err != nil {
				return ls, err
			}
		}
	}
	return ls, nil
}

// listenTCP listens in the way redirected connections need. The socket must
// not be an MPTCP one (those don't go into a sockmap), and an IPv4 one must be
// transparent (or its answers find no route). Options set here pass on to
// what is accepted.
func listenTCP(a netip.AddrPort) (*net.TCPListener, error) {
	lc := net.ListenConfig{
		KeepAlive: -1, // set once, on the listener
		Control: func(network, _ string, c syscall.RawConn) (err error) {
			controlErr := c.Control(func(fd uintptr) {
				if network == "tcp4" {
					err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TRANSPARENT, 1)
				}
				if err == nil {
					err = setKeepAlive(int(fd))
				}
				if err == nil {
					err = setLocal(int(fd))
				}
			})
			return errors.Join(controlErr, err)
		},
	}
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(context.Background(), network(a), a.String())
	if err != nil {
		return nil, err
	}
	tl := l.(*net.TCPListener)
	// Again, with a longer queue than Go takes where it can't read /proc.
	raw, err := tl.SyscallConn()
	if err == nil {
		controlErr := raw.Control(func(fd uintptr) { err = unix.Listen(int(fd), listenQueue) })
		err = errors.Join(controlErr, err)
	}
	if err != nil {
		_ = tl.Close()
		return nil, fmt.Errorf("listen on %v: %w", a, err)
	}
	return tl, nil
}

func setKeepAlive(fd int) error {
	for _, o := range [...]struct{ level, name, value int }{
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{unix.SOL_TCP, unix.TCP_KEEPIDLE, int(keepAliveIdle.Seconds())},
		{unix.SOL_TCP, unix.TCP_KEEPINTVL, int(keepAliveInterval.Seconds())},
		{unix.SOL_TCP, unix.TCP_KEEPCNT, keepAliveCount},
	} {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return fmt.Errorf("set keep-alive: %w", err)
		}
	}
	return nil
}
