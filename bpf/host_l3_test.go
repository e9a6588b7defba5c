package bpf

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/flow"
	"github.com/weirnet/weir/policy"
)

// tun makes an interface without Ethernet in ns, which says that it is of this
// kind, with these addresses and a route to a peer by it. What the kernel sends
// there is read from the file, and what is written to it comes in.
func (ns *namespace) tun(t *testing.T, name string, kind int, peer addressPair, addrs addressPair) (index int, file *os.File) {
	t.Helper()
	var err error
	ns.do(func() {
		err = func() error {
			fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
			if err != nil {
				return err
			}
			req, err := unix.NewIfreq(name)
			if err != nil {
				return err
			}
			req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
			if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
				return err
			}
			if err := unix.IoctlSetInt(fd, unix.TUNSETLINK, kind); err != nil {
				return err
			}
			l, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			index = l.Attrs().Index
			file = os.NewFile(uintptr(fd), "tun") // not before: it can be polled now
			return netlink.LinkSetUp(l)
		}()
	})
	if err != nil {
		t.Fatalf("make a tun: %v", err)
	}
	t.Cleanup(func() { file.Close() })
	ns.sh(t, fmt.Sprintf("echo 0 > /proc/sys/net/ipv6/conf/%s/disable_ipv6", name))
	for i, a := range addrs {
		nodad := [...]string{"", "nodad"}[i]
		ns.sh(t, fmt.Sprintf("ip addr add %s/%d dev %s %s\nip route add %s dev %s", a, a.BitLen(), name, nodad, peer[i], name))
	}
	return index, file
}

// addressPair is one of each family.
type addressPair [2]netip.Addr

// TestHostL3: the node's policy holds on interfaces without Ethernet, with real
// sockets at both ends of a tunnel, and leaves alone what is not the node's.
func TestHostL3(t *testing.T) {
	k := newKernel(t)
	node, peer := addressPair{ipv4.node, ipv6.node}, addressPair{ipv4.peer, ipv6.peer}
	for name, kind := range map[string]int{
		"tun and WireGuard": unix.ARPHRD_NONE, "ipip": unix.ARPHRD_TUNNEL, "sit": unix.ARPHRD_SIT,
		"gre": unix.ARPHRD_IPGRE, "ppp": unix.ARPHRD_PPP, "says it is Ethernet": unix.ARPHRD_ETHER,
	} {
		t.Run(name, func(t *testing.T) {
			k := *k
			k.t = t
			k.reset()
			far := newNamespace(t)
			far.sh(t, "ip link set lo up")
			k.ns.sh(t, "ip link set lo up")
			index, here := k.ns.tun(t, "t0", kind, peer, node)
			_, there := far.tun(t, "t0", kind, node, peer)
			defer here.Close() // it goes before the next one comes
			go func() { _, _ = io.Copy(here, there) }()
			go func() { _, _ = io.Copy(there, here) }()
			var err error
			if k.ns.do(func() { err = k.AttachHost(index, false) }); err != nil {
				t.Fatal(err)
			}
			defer k.ns.do(func() { k.must(k.DetachHost(index)) })
			reach := func(from, to *namespace, at netip.Addr, port uint16) bool {
				t.Helper()
				return reaches(t, from, to, "tcp", netip.AddrPortFrom(at, port)) && reaches(t, from, to, "udp", netip.AddrPortFrom(at, port))
			}
			for _, a := range []struct {
				from, to *namespace
				at       addressPair
			}{{far, k.ns, node}, {k.ns, far, peer}} {
				for _, at := range a.at {
					if !reach(a.from, a.to, at, 81) {
						t.Errorf("without a policy %v is not reached", at)
					}
				}
			}
			k.host(rules{port(in, idPeer, tcp, 80): allow(7), port(in, idPeer, udp, 80): allow(7),
				port(out, idPeer, tcp, 443): allow(8), port(out, idPeer, udp, 443): allow(8)}, nil)
			for i := range node {
				for _, c := range []struct {
					from, to *namespace
					at       netip.Addr
					port     uint16
					want     bool
				}{
					{far, k.ns, node[i], 80, true}, {far, k.ns, node[i], 81, false},
					{k.ns, far, peer[i], 443, true}, {k.ns, far, peer[i], 444, false},
				} {
					for _, network := range []string{"tcp", "udp"} {
						if got := reaches(t, c.from, c.to, network, netip.AddrPortFrom(c.at, c.port)); got != c.want {
							t.Errorf("%s to %v port %d: %v, want %v", network, c.at, c.port, got, c.want)
						}
					}
				}
			}
			for _, e := range k.drain() {
				if e.Verdict == flow.Dropped && e.Reason != flow.ReasonPolicyDenied {
					t.Errorf("dropped: %+v", e)
				}
			}
		})
	}
}

// reaches serves at an address, sends there from another namespace, and tells
// whether an answer comes.
func reaches(t *testing.T, from, to *namespace, network string, at netip.AddrPort) bool {
	t.Helper()
	const patience = 300 * time.Millisecond
	var err error
	var server io.Closer
	to.do(func() {
		if network == "udp" {
			var c *net.UDPConn
			if c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at)); err == nil {
				server = c
				go func() {
					b := make([]byte, 64)
					for {
						n, from, err := c.ReadFromUDPAddrPort(b)
						if err != nil {
							return
						}
						_, _ = c.WriteToUDPAddrPort(b[:n], from)
					}
				}()
			}
			return
		}
		var l net.Listener
		if l, err = net.Listen("tcp", at.String()); err == nil {
			server = l
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					_, _ = io.Copy(c, c)
					c.Close()
				}
			}()
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	var c net.Conn
	from.do(func() { c, err = net.DialTimeout(network, at.String(), patience) })
	if err == nil {
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		if _, err = c.Write([]byte("hello")); err == nil {
			_, err = io.ReadFull(c, make([]byte, 5))
		}
	}
	var timeout net.Error
	if err != nil && (!errors.As(err, &timeout) || !timeout.Timeout()) {
		t.Errorf("%s to %v: %v", network, at, err)
	}
	return err == nil
}

// TestHostL3Offsets: where the IP header is, is what the kernel says. A packet that
// does not show it there is refused, if it is the node's.
func TestHostL3Offsets(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		k.host(rules{port(in, idPeer, tcp, 80): allow(7)}, nil)
		arrives := at{prog: k.objects.ToHostL3, ifindex: k.proxyIf, ingress: k.proxyIf}
		p := packet{src: ip.peer, dst: ip.node, proto: tcp, sport: 1, dport: 80, flags: syn}
		// PROG_RUN puts an Ethernet header before it, as some tunnels do theirs.
		k.want(arrives, p, pass, forwarded(flow.ReasonPolicyAllowed, in))
		p.dport = 81
		k.want(arrives, p, dropped, droppedFor(flow.ReasonPolicyDenied, in))
		// What is behind its end makes that doubtful.
		p.dport = 80
		p.mangle = func(b []byte) []byte { return append(b, 0, 0, 0, 0) }
		k.want(arrives, p, dropped, droppedFor(flow.ReasonInvalidPacket, in))
		q := packet{src: ip.world, dst: ip.a, proto: tcp, sport: 1, dport: 80, flags: syn, mangle: p.mangle}
		k.want(arrives, q, pass, silent)
		// The node's policy does not hold in this direction.
		k.policy(hostPolicy, nil, policy.Egress)
		k.want(arrives, p, pass, silent)
	})
}

// l3 is the same at an interface without Ethernet, if it is the node's own.
func (k *kernel) l3(a at) (_ at, ok bool) {
	is := map[*ebpf.Program]*ebpf.Program{k.objects.FromHost: k.objects.FromHostL3, k.objects.ToHost: k.objects.ToHostL3}
	other, ok := is[a.prog]
	a.prog = other
	return a, ok
}

// TestHostOvertaken: what runs before the programs of the node's own interfaces is
// told, and attaching again overtakes it.
func TestHostOvertaken(t *testing.T) {
	for _, ethernet := range []bool{true, false} {
		for _, force := range []bool{false, true} {
			ns := newNamespace(t)
			one := ns.veth(t, "one", newNamespace(t), "peer")
			d := load(t, mountPins(t), func(o *Options) { o.ForceClsact = force })
			other := passing(t)
			do := func(f func() error) {
				t.Helper()
				var err error
				ns.do(func() { err = f() })
				check(t, err)
			}
			do(func() error { return d.AttachHost(one, ethernet) })
			if got := ns.overtaken(t, d); len(got) != 0 {
				t.Errorf("overtaken at first: %q", got)
			}
			do(func() error {
				if force {
					return netlink.FilterAdd(&netlink.BpfFilter{
						FilterAttrs: filterAttrs(one, ebpf.AttachTCXIngress, spot{1, 1}), Fd: other.FD(), Name: "another", DirectAction: true})
				}
				l, err := link.AttachTCX(link.TCXOptions{Interface: one, Program: other, Attach: ebpf.AttachTCXIngress, Anchor: link.Head()})
				if err == nil {
					t.Cleanup(func() { letGo(l) })
				}
				return err
			})
			want := map[bool]string{true: progToHost, false: progToHostL3}[ethernet] + ": "
			if got := ns.overtaken(t, d); len(got) != 1 || !strings.HasPrefix(got[0], want) {
				t.Errorf("ethernet %v, filters %v: overtaken %q", ethernet, force, got)
			}
			do(func() error { return d.AttachHost(one, ethernet) })
			if got := ns.overtaken(t, d); len(got) != 0 {
				t.Errorf("ethernet %v, filters %v: overtaken afterwards %q", ethernet, force, got)
			}
			do(func() error { return d.DetachHost(one) })
		}
	}
}
