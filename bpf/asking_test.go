package bpf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/identity"
)

// asker does in a namespace what a proxy does with datagrams: it asks the server
// that each was for, in the name of who sent it, and passes the answer on.
type asker struct {
	t     *testing.T
	ns    *namespace
	entry Proxy
	seen  atomic.Int64 // datagrams that came
	busy  sync.RWMutex // held: it doesn't come to ask

	mu      sync.Mutex
	replies map[netip.AddrPort]*net.UDPConn // bound to servers' addresses
}

// newAsker wires one as a generation of n's proxy.
func (n *node) newAsker(generation uint8) *asker {
	n.t.Helper()
	t := n.t.(*testing.T)
	a := &asker{t: t, ns: newNamespace(t), replies: map[netip.AddrPort]*net.UDPConn{}}
	name := fmt.Sprintf("weir%d", generation)
	index := n.host.veth(t, name, a.ns, "eth0")
	gateway := linkMAC(n, n.host, name)
	a.ns.sh(t, fmt.Sprintf(`
		echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter
		echo 0 > /proc/sys/net/ipv4/conf/eth0/rp_filter
		ip link set lo up
		ip link set eth0 up
		ip addr add 169.254.77.2/32 dev eth0
		ip neigh replace 169.254.77.1 lladdr %[1]s dev eth0 nud permanent
		ip route add default via 169.254.77.1 dev eth0 onlink
		ip route add local default dev lo table 100
		ip rule add iif eth0 lookup 100 pref 10
		ip addr add fe80::2/64 dev eth0 nodad
		ip neigh replace fe80::1 lladdr %[1]s dev eth0 nud permanent
		ip -6 route add default via fe80::1 dev eth0 onlink
		ip -6 route add local default dev lo table 100
		ip -6 rule add iif eth0 lookup 100 pref 10`, gateway))
	n.host.untilUp(t, index)
	var err error
	n.host.do(func() { err = n.AttachProxy(generation, index, a.ns.file) })
	n.must(err)
	listeners, err := ebpf.LoadPinnedMap(filepath.Join(proxyDir(n.opts.Pins, generation), listenersPin), nil)
	n.must(err)
	defer letGo(listeners)
	for key, address := range map[uint32]string{ListenerUDP4: "127.0.0.1:0", ListenerUDP6: "[::1]:0"} {
		c := a.listen(address)
		raw, err := c.SyscallConn()
		n.must(err)
		var putErr error
		n.must(raw.Control(func(fd uintptr) { putErr = listeners.Put(key, uint64(fd)) }))
		n.must(putErr)
		go a.serve(c)
	}
	a.entry = Proxy{Ifindex: uint32(index), Alive: 1}
	copy(a.entry.Mac[:], linkMAC(n, a.ns, "eth0"))
	n.must(n.Proxies.Update(uint32(generation), a.entry))
	n.SetGeneration(generation)
	return a
}

func linkMAC(n *node, ns *namespace, name string) (mac net.HardwareAddr) {
	n.t.Helper()
	var err error
	ns.do(func() {
		var l netlink.Link
		if l, err = netlink.LinkByName(name); err == nil {
			mac = l.Attrs().HardwareAddr
		}
	})
	n.must(err)
	return mac
}

// transparent lets a socket have anyone's address, and tells what a datagram's was.
func transparent(network, _ string, c syscall.RawConn) (err error) {
	controlErr := c.Control(func(fd uintptr) {
		level, options := unix.SOL_IP, []int{unix.IP_TRANSPARENT, unix.IP_RECVORIGDSTADDR}
		if network == "udp6" {
			level, options = unix.SOL_IPV6, []int{unix.IPV6_TRANSPARENT, unix.IPV6_RECVORIGDSTADDR}
		}
		for _, o := range options {
			err = errors.Join(err, unix.SetsockoptInt(int(fd), level, o, 1))
		}
		err = errors.Join(err, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
	})
	return errors.Join(controlErr, err)
}

func network(a netip.Addr) string {
	if a.Is4() {
		return "udp4"
	}
	return "udp6"
}

func (a *asker) listen(address string) *net.UDPConn {
	a.t.Helper()
	var (
		c   net.PacketConn
		err error
	)
	a.ns.do(func() {
		lc := net.ListenConfig{Control: transparent}
		c, err = lc.ListenPacket(a.t.Context(), network(netip.MustParseAddrPort(address).Addr()), address)
	})
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { letGo(c) })
	return c.(*net.UDPConn)
}

// serve takes questions until c is closed.
func (a *asker) serve(c *net.UDPConn) {
	b, oob := make([]byte, 65536), make([]byte, 256)
	for {
		size, n, _, client, err := c.ReadMsgUDPAddrPort(b, oob)
		if err != nil {
			return
		}
		a.seen.Add(1)
		server, err := destination(oob[:n])
		if err != nil {
			a.t.Error(err)
			continue
		}
		question := append([]byte{}, b[:size]...)
		client = netip.AddrPortFrom(client.Addr().Unmap(), client.Port())
		go func() {
			a.busy.RLock()
			defer a.busy.RUnlock()
			answer, err := a.ask(client.Addr(), server, question)
			if errors.Is(err, unix.ECONNREFUSED) {
				answer, err = []byte("refused"), nil
			}
			if err == nil {
				err = a.reply(server, client, answer)
			}
			var timeout net.Error
			late := errors.As(err, &timeout) && timeout.Timeout()
			if err != nil && !late && !errors.Is(err, net.ErrClosed) {
				a.t.Errorf("%v asks %v: %v", client, server, err)
			}
		}()
	}
}

// destination reads where a datagram was sent to.
func destination(oob []byte) (netip.AddrPort, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return netip.AddrPort{}, err
	}
	for i := range messages {
		to, err := unix.ParseOrigDstAddr(&messages[i])
		if err != nil {
			continue
		}
		switch to := to.(type) {
		case *unix.SockaddrInet4:
			return netip.AddrPortFrom(netip.AddrFrom4(to.Addr), uint16(to.Port)), nil
		case *unix.SockaddrInet6:
			return netip.AddrPortFrom(netip.AddrFrom16(to.Addr), uint16(to.Port)), nil
		}
	}
	return netip.AddrPort{}, errors.New("a datagram without its destination")
}

// ask sends a question in a pod's name and waits for the answer.
func (a *asker) ask(pod netip.Addr, server netip.AddrPort, question []byte) ([]byte, error) {
	var (
		c   net.Conn
		err error
	)
	a.ns.do(func() {
		d := net.Dialer{Control: transparent, LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(pod, 0))}
		c, err = d.Dial(network(pod), server.String())
	})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	if _, err := c.Write(question); err != nil {
		return nil, err
	}
	b := make([]byte, 65536)
	n, err := c.Read(b)
	return b[:n], err
}

// reply sends an answer in a server's name.
func (a *asker) reply(server, client netip.AddrPort, answer []byte) error {
	a.mu.Lock()
	c := a.replies[server]
	if c == nil {
		c = a.listen(server.String())
		a.replies[server] = c
	}
	a.mu.Unlock()
	_, err := c.WriteToUDPAddrPort(answer, client)
	return err
}

// Datagrams of real sockets by way of a proxy's.
func TestNodeQuestions(t *testing.T) {
	for _, clsact := range []bool{false, true} {
		t.Run(map[bool]string{false: "tcx", true: "clsact"}[clsact], func(t *testing.T) {
			n := newNode(t, clsact)
			for _, p := range []struct {
				ifindex int
				dev     string
				ns      *namespace
				policy  uint32
				id      uint32
				addrs   []netip.Addr
			}{
				{n.podA, "pod-a", n.a, policyA, idA, []netip.Addr{ipv4.a, ipv6.a}},
				{n.podB, "pod-b", n.b, policyB, idB, []netip.Addr{ipv4.b, ipv6.b}},
			} {
				e := Endpoint{Ifindex: uint32(p.ifindex), Policy: p.policy, Identity: p.id}
				copy(e.PodMac[:], linkMAC(n, p.ns, "eth0"))
				copy(e.HostMac[:], linkMAC(n, n.host, p.dev))
				for _, a := range p.addrs {
					n.must(n.Endpoints.Update(AddrOf(a), e))
				}
			}
			first := n.newAsker(1)
			for _, ip := range []addresses{ipv4, ipv6} {
				n.questions(ip, first)
			}
			n.succeed(first)
		})
	}
}

func (n *node) questions(ip addresses, a *asker) {
	t := n.t
	t.Helper()
	world := map[bool]identity.ID{true: identity.WorldIPv4, false: identity.WorldIPv6}[ip.v4]
	gateway := netip.MustParseAddr(map[bool]string{true: "10.1.255.1", false: "2001:db8::1"}[ip.v4])
	n.prefix(netip.PrefixFrom(gateway, gateway.BitLen()), identity.Host)
	const big = 4000
	n.forgetConns()
	asks := rules{}
	for _, id := range []identity.ID{idB, world, identity.Host} {
		asks[port(out, id, udp, echoPort)] = l7(1, 1)
		asks[port(out, id, udp, 9)] = l7(1, 1)
	}
	n.policy(policyA, asks)
	n.policy(policyB, rules{port(in, idA, udp, echoPort): allow(2), port(in, idA, udp, 9): allow(2)})
	for _, server := range []netip.Addr{ip.b, ip.world, gateway} {
		for _, size := range []int{1, 100, big} {
			before := a.seen.Load()
			n.can(n.a, "udp", server, echoPort, size)
			if a.seen.Load() == before {
				t.Errorf("%v was asked past the proxy", server)
			}
		}
		n.cannot(n.a, "udp", server, deniedPort, 100)
		// Nobody listens: the error reaches the socket that asked.
		c, err := n.dial(n.a, "udp", server, 9)
		n.must(err)
		got, err := say(c, "anyone?")
		if err != nil || got != "refused" {
			t.Errorf("%v, where nobody listens: %q, %v; %s", server, got, err, n.why())
		}
		letGo(c)
	}
	// What TCP there wants is another matter.
	n.cannot(n.a, "tcp", ip.b, echoPort, 100)
	n.cannot(n.b, "udp", ip.a, echoPort, 100)

	// One socket, and the policy moves under it.
	c, err := n.dial(n.a, "udp", ip.b, echoPort)
	n.must(err)
	defer letGo(c)
	talks := func(want bool, proxied bool) {
		t.Helper()
		var err error
		before := a.seen.Load()
		// What is on its way when policy moves is lost.
		for try := 0; try == 0 || want && err != nil && try < 3; try++ {
			err = exchange(c, []byte("hello"))
		}
		if (err == nil) != want || (a.seen.Load() != before) != proxied {
			t.Errorf("%v, the proxy saw %d datagrams; %s", err, a.seen.Load()-before, n.why())
		}
	}
	talks(true, true)
	n.policy(policyA, closed)
	talks(false, false)
	n.policy(policyA, rules{port(out, idB, udp, echoPort): allow(1)})
	talks(true, false)
	n.policy(policyA, asks)
	talks(true, true)
	n.policy(policyB, closed)
	talks(false, false)
	n.policy(policyB, nil)
	talks(true, true)
	// The proxy forgets the session.
	n.forgetConns()
	talks(true, true)
	// Conntrack forgets the flows.
	empty(n.kernel, n.Conntrack)
	talks(true, true)
	// The proxy is gone, and back.
	gone := a.entry
	gone.Alive = 0
	n.must(n.Proxies.Update(uint32(n.Generation()), gone))
	talks(false, false)
	n.must(n.Proxies.Update(uint32(n.Generation()), a.entry))
	talks(true, true)
}

// succeed: another proxy takes over, and the first one ends what it has begun.
func (n *node) succeed(first *asker) {
	t := n.t
	t.Helper()
	asks := rules{}
	for _, id := range []identity.ID{idB, identity.WorldIPv4, identity.WorldIPv6} {
		asks[port(out, id, udp, echoPort)] = l7(1, 1)
	}
	n.policy(policyA, asks)
	n.forgetConns()
	var sockets []net.Conn
	for _, server := range []netip.Addr{ipv4.b, ipv6.b, ipv4.world, ipv6.world} {
		c, err := n.dial(n.a, "udp", server, echoPort)
		n.must(err)
		defer letGo(c)
		if err := exchange(c, []byte("before")); err != nil {
			t.Errorf("%v: %v; %s", server, err, n.why())
		}
		sockets = append(sockets, c)
	}
	first.busy.Lock()
	saw := first.seen.Load() + int64(len(sockets))
	for _, c := range sockets {
		n.must(c.SetDeadline(time.Time{}))
		_, err := c.Write([]byte("in between"))
		n.must(err)
	}
	for deadline := time.Now().Add(5 * time.Second); first.seen.Load() != saw && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	second := n.newAsker(2)
	for _, c := range sockets {
		if err := exchange(c, []byte("after")); err != nil {
			t.Errorf("%v: %v; %s", c.RemoteAddr(), err, n.why())
		}
	}
	if first.seen.Load() != saw || second.seen.Load() != int64(len(sockets)) {
		t.Errorf("after its end the first one saw %d, the second %d", first.seen.Load()-saw, second.seen.Load())
	}
	first.busy.Unlock()
	for _, c := range sockets {
		b := make([]byte, 100)
		n.must(c.SetDeadline(time.Now().Add(2 * patience)))
		if size, err := c.Read(b); err != nil || string(b[:size]) != "in between" {
			t.Errorf("%v: the first one's answer: %q, %v; %s", c.RemoteAddr(), b[:size], err, n.why())
		}
	}
}

// say sends a datagram and returns what comes back.
func say(c net.Conn, what string) (string, error) {
	if err := c.SetDeadline(time.Now().Add(2 * patience)); err != nil {
		return "", err
	}
	if _, err := c.Write([]byte(what)); err != nil {
		return "", err
	}
	b := make([]byte, 100)
	size, err := c.Read(b)
	return string(b[:size]), err
}
