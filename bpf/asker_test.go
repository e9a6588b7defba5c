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
	for first, address := range map[uint32]string{ListenerUDP4: "127.0.0.1:0", ListenerUDP6: "[::1]:0"} {
		c := a.listen(address)
		raw, err := c.SyscallConn()
		n.must(err)
		for lane := range Lanes {
			var putErr error
			n.must(raw.Control(func(fd uintptr) { putErr = listeners.Put(first+lane, uint64(fd)) }))
			n.must(putErr)
		}
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
