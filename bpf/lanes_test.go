package bpf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// lanes are the sockets that datagrams of a family come to.
type lanes struct {
	ns      *namespace
	sockets []*net.UDPConn
}

// newLanes listens in the namespace of a wired proxy.
func newLanes(t *testing.T, ns *namespace, listeners *ebpf.Map, first uint32, own string) *lanes {
	t.Helper()
	l := &lanes{ns: ns}
	for lane := range Lanes {
		var c *net.UDPConn
		var err error
		ns.do(func() { c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(own))) })
		check(t, err)
		t.Cleanup(func() { letGo(c) })
		raw, err := c.SyscallConn()
		check(t, err)
		var putErr error
		check(t, raw.Control(func(fd uintptr) { putErr = listeners.Put(first+lane, uint64(fd)) }))
		check(t, putErr)
		l.sockets = append(l.sockets, c)
	}
	return l
}

// of tells which lane a datagram from an address comes to.
func (l *lanes) of(t *testing.T, from netip.Addr, to string) int {
	t.Helper()
	var err error
	l.ns.do(func() {
		var c *net.UDPConn
		if c, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to))); err != nil {
			return
		}
		_, err = c.Write([]byte("x"))
		err = errors.Join(err, c.Close())
	})
	check(t, err)
	b := make([]byte, 16)
	for i, c := range l.sockets {
		raw, err := c.SyscallConn()
		check(t, err)
		n := -1
		check(t, raw.Control(func(fd uintptr) { n, _, err = unix.Recvfrom(int(fd), b, unix.MSG_DONTWAIT) }))
		if err == nil && n == 1 {
			return i
		}
	}
	t.Fatalf("no lane got what %v sent", from)
	return 0
}

// TestLanes: what an address sends comes to one lane, addresses are spread over
// all of them, and otherwise each time the program is loaded.
func TestLanes(t *testing.T) {
	pins := mountPins(t)
	ns, proxy := newNamespace(t), newNamespace(t)
	weir := ns.veth(t, "weir0", proxy, "eth0")
	d := load(t, pins, nil)
	var err error
	ns.do(func() { err = d.AttachProxy(3, weir, proxy.file) })
	check(t, err)
	listeners, err := ebpf.LoadPinnedMap(filepath.Join(proxyDir(pins, 3), listenersPin), nil)
	check(t, err)
	defer letGo(listeners)
	if n := listeners.MaxEntries(); n != Listeners {
		t.Fatalf("the table has room for %d listeners, Listeners says %d", n, Listeners)
	}
	proxy.do(func() { err = setUp("lo") })
	check(t, err)
	// Not as random as addresses of pods are: they come one after another.
	const pods = 200
	commands := ""
	for i := range pods {
		commands += fmt.Sprintf("ip addr add fd01::%x/128 dev lo nodad\n", i+1)
	}
	proxy.sh(t, commands)
	for _, f := range []struct {
		name  string
		first uint32
		own   string
		to    string
		pod   func(i int) netip.Addr
	}{
		{"IPv4", ListenerUDP4, "127.0.0.1:0", "127.9.9.9:53", func(i int) netip.Addr { return netip.AddrFrom4([4]byte{127, 1, 0, byte(i + 1)}) }},
		{"IPv6", ListenerUDP6, "[::1]:0", "[fd01::1]:53", func(i int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("fd01::%x", i+1)) }},
	} {
		l := newLanes(t, proxy, listeners, f.first, f.own)
		used, where := map[int]int{}, make([]int, pods)
		for i := range pods {
			where[i] = l.of(t, f.pod(i), f.to)
			used[where[i]]++
			if i < 8 && l.of(t, f.pod(i), f.to) != where[i] {
				t.Errorf("%s: %v has two lanes", f.name, f.pod(i))
			}
		}
		most := 0
		for _, n := range used {
			most = max(most, n)
		}
		// By chance 61 of 64 are used, and one of them by 9.
		if len(used) < int(Lanes)*3/4 || most > 16 {
			t.Errorf("%s: %d lanes of %d are used, one by %d of %d", f.name, len(used), Lanes, most, pods)
		}
		next := load(t, pins, nil)
		ns.do(func() { err = next.Activate() })
		check(t, err)
		moved := 0
		for i := range 50 {
			if l.of(t, f.pod(i), f.to) != where[i] {
				moved++
			}
		}
		if moved < 30 {
			t.Errorf("%s: of 50 addresses %d have another lane after the program was loaded anew", f.name, moved)
		}
	}
}
