package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/proxy/control"
)

// tcpPair returns both ends of a connection.
func tcpPair(t testing.TB) (accepted, dialed *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	d, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	a, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); d.Close() })
	if err := d.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return a.(*net.TCPConn), d.(*net.TCPConn)
}

// serve runs the HTTP server of d until the test ends.
func serve(t testing.TB, d *dataSide) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- d.server.Run(ctx) }()
	go func() { done <- d.questions.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
	})
}

// failingDial never connects.
func failingDial(ctx context.Context, _, _ netip.AddrPort, _ bool) (*net.TCPConn, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// isReset reads to the end, which must be a reset.
func isReset(c *net.TCPConn) bool {
	_, err := io.Copy(io.Discard, c)
	return errors.Is(err, unix.ECONNRESET)
}

func TestAdmission(t *testing.T) {
	for name, tt := range map[string]struct {
		prepare func(*dataSide, *memoryFlows, bpf.Tuple)
		reason  string
		entries int // left in the table
	}{
		"no entry": {func(*dataSide, *memoryFlows, bpf.Tuple) {}, denyNoFlow, 0},
		"of another generation": {func(_ *dataSide, f *memoryFlows, tuple bpf.Tuple) {
			f.set(tuple, bpf.Conn{Id: 1, Generation: 2})
		}, denyNoFlow, 1},
		"of the other direction": {func(_ *dataSide, f *memoryFlows, tuple bpf.Tuple) {
			f.set(tuple.Reverse(), bpf.Conn{Id: 1, Generation: 3})
		}, denyNoFlow, 1},
		"too many": {func(d *dataSide, f *memoryFlows, tuple bpf.Tuple) {
			d.max = 0
			f.set(tuple, bpf.Conn{Id: 1, Generation: 3})
		}, denyFull, 0},
		"too many of its pod": {func(d *dataSide, f *memoryFlows, tuple bpf.Tuple) {
			d.share = 0
			f.set(tuple, bpf.Conn{Id: 1, Generation: 3, Ifindex: 9})
		}, denyFull, 0},
		"draining": {func(d *dataSide, f *memoryFlows, tuple bpf.Tuple) {
			d.draining.Store(true)
			f.set(tuple, bpf.Conn{Id: 1, Generation: 3})
		}, denyDrain, 1},
	} {
		t.Run(name, func(t *testing.T) {
			d, flows, _ := newData(t)
			accepted, dialed := tcpPair(t)
			client, server := ends(accepted)
			tt.prepare(d, flows, bpf.TupleOf(client, server, unix.IPPROTO_TCP))
			d.admit(accepted)
			if !isReset(dialed) {
				t.Error("the client was not reset")
			}
			if got := d.counters.denials(); got[tt.reason] != 1 || len(got) != 1 {
				t.Errorf("counted %v, want one %s", got, tt.reason)
			}
			if len(flows.entries) != tt.entries {
				t.Errorf("%d entries are left, want %d", len(flows.entries), tt.entries)
			}
			if d.pairs.len() != 0 {
				t.Error("a pair was made")
			}
		})
	}
}

// TestPortUsedAnew lets a client come again from the port of a connection
// that is open as far as the proxy knows.
func TestPortUsedAnew(t *testing.T) {
	d, flows, _ := newData(t)
	serve(t, d)
	first, dialedFirst := tcpPair(t)
	client, server := ends(first)
	tuple := bpf.TupleOf(client, server, unix.IPPROTO_TCP)
	flows.set(tuple, bpf.Conn{Id: 1, Generation: 3})
	d.admit(first)
	old := d.pairs.all()[0]
	// The same ends can't be had twice in one namespace: the second
	// connection is another one as far as the table goes.
	second, dialedSecond := tcpPair(t)
	flows.set(tuple, bpf.Conn{Id: 2, Generation: 3})
	p := d.newPair(tuple, bpf.Conn{Id: 2, Generation: 3})
	if before, ok := d.pairs.put(p, d.max, d.share); !ok || before != old {
		t.Fatalf("the pair before is %v, %v", before, ok)
	}
	old.abort()
	d.start(p, second, client, server)
	if !isReset(dialedFirst) {
		t.Error("the old connection was not reset")
	}
	if c, ok, _ := flows.get(tuple); !ok || c.Id != 2 {
		t.Errorf("entry of the new connection: %v, %v", c, ok)
	}
	if d.pairs.all()[0] != p {
		t.Error("the new pair is gone with the old one")
	}
	p.abort()
	if !isReset(dialedSecond) || d.pairs.len() != 0 || len(flows.entries) != 0 {
		t.Errorf("%d pairs, %d entries are left", d.pairs.len(), len(flows.entries))
	}
}

func TestDrain(t *testing.T) {
	d, flows, _ := newData(t)
	serve(t, d)
	accepted, dialed := tcpPair(t)
	client, server := ends(accepted)
	flows.set(bpf.TupleOf(client, server, unix.IPPROTO_TCP), bpf.Conn{Id: 1, Generation: 3})
	d.admit(accepted)
	if d.over() {
		t.Error("over, with a connection")
	}
	d.wane()
	d.wane()
	time.Sleep(50 * time.Millisecond)
	if d.over() || d.pairs.len() != 1 {
		t.Error("a connection that is not there yet is gone")
	}
	d.end()
	if !isReset(dialed) || d.pairs.len() != 0 || len(flows.entries) != 0 {
		t.Errorf("%d pairs, %d entries are left", d.pairs.len(), len(flows.entries))
	}
	if !d.over() {
		t.Error("not over, without connections")
	}
	if n := d.counters.denials()[denyLate]; n != 1 {
		t.Errorf("%d were counted as late", n)
	}
}

// TestDrainEndsIdleConnections long before its limit, and in good order.
func TestDrainEndsIdleConnections(t *testing.T) {
	d, flows, _ := newData(t)
	serve(t, d)
	server, upstream := tcpPair(t)
	d.dial = func(context.Context, netip.AddrPort, netip.AddrPort, bool) (*net.TCPConn, error) {
		return upstream, nil
	}
	accepted, dialed := tcpPair(t)
	client, dest := ends(accepted)
	flows.set(bpf.TupleOf(client, dest, unix.IPPROTO_TCP), bpf.Conn{Id: 1, Generation: 3})
	d.admit(accepted)
	ended := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, dialed)
		_ = dialed.Close()
		ended <- err
	}()
	d.wane()
	for end := time.Now().Add(4 * time.Second); !d.over(); time.Sleep(drainEvery) {
		if time.Now().After(end) {
			t.Fatal("it took until the limit")
		}
	}
	if err := <-ended; err != nil {
		t.Errorf("the client's end: %v", err)
	}
	if n, err := server.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("the server's end: %v", err)
	}
}

// foreign makes addresses that nobody has local, on loopback.
func foreign(t testing.TB) {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	for _, p := range []string{"198.51.100.0/24", "2001:db8::/64"} {
		if err == nil {
			dst := ipNet(netip.MustParsePrefix(p))
			err = netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: dst, Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST})
		}
	}
	if err != nil {
		t.Error(err)
	}
}

func TestDialAsTheClient(t *testing.T) {
	inNamespace(t, func() {
		foreign(t)
		// Time stamps would let the kernel see that a connection is a new one.
		if err := os.WriteFile("/proc/thread-self/net/../../../sys/net/ipv4/tcp_timestamps", []byte("0"), 0); err != nil {
			if err := os.WriteFile("/proc/sys/net/ipv4/tcp_timestamps", []byte("0"), 0); err != nil {
				t.Error(err)
				return
			}
		}
		for _, host := range []string{"127.0.0.1:0", "[::1]:0"} {
			l, err := listenTCP(netip.MustParseAddrPort(host))
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = l.Close() }()
			server := plain(l.Addr())
			client := netip.MustParseAddrPort("198.51.100.7:4711")
			if server.Addr().Is6() {
				client = netip.MustParseAddrPort("[2001:db8::7]:80") // a port below 1024
			}
			for round := range 20 {
				up, err := dialAs(t.Context(), client, server, false)
				if err != nil {
					t.Errorf("%v, round %d: %v", server, round, err)
					return
				}
				down, err := l.AcceptTCP()
				if err != nil {
					t.Error(err)
					return
				}
				if got := plain(down.RemoteAddr()); got != client {
					t.Errorf("the server sees %v, want %v", got, client)
				}
				// The proxy's end closes first and stays in TIME_WAIT.
				_ = up.Close()
				_, _ = io.Copy(io.Discard, down)
				_ = down.Close()
			}
			if _, err := (&net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(client), Control: transparent}).
				Dial(network(server), server.String()); !errors.Is(err, unix.EADDRNOTAVAIL) {
				t.Errorf("%v: without more ado: %v; this test tests nothing", server, err)
			}
			// A live one of the same ends gives way as well.
			for range 2 {
				if _, err := dialAs(t.Context(), client, server, false); err != nil {
					t.Errorf("%v beside a live one: %v", server, err)
				}
			}
		}
	})
}

func TestDialReasons(t *testing.T) {
	inNamespace(t, func() {
		foreign(t)
		client := netip.MustParseAddrPort("198.51.100.7:4711")
		_, err := dialAs(t.Context(), client, netip.MustParseAddrPort("127.0.0.1:1"), false)
		if got := dialReason(err); got != denyRefused {
			t.Errorf("nobody listens: %v is %s", err, got)
		}
		_, err = dialAs(t.Context(), client, netip.MustParseAddrPort("203.0.113.1:80"), false)
		if got := dialReason(err); got != denyRefused {
			t.Errorf("no route: %v is %s", err, got)
		}
		ctx, cancel := context.WithDeadline(t.Context(), time.Now())
		defer cancel()
		_, err = dialAs(ctx, client, netip.MustParseAddrPort("127.0.0.1:1"), false)
		if got := dialReason(err); got != denyDead {
			t.Errorf("no answer in time: %v is %s", err, got)
		}
	})
}

func TestListenersAreNotMultipath(t *testing.T) {
	inNamespace(t, func() {
		foreign(t)
		d, _, _ := newData(t)
		var put []uint32
		ls, err := openListeners(d.questions, func(index uint32, fd uintptr) error {
			put = append(put, index)
			protocol, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PROTOCOL)
			if index >= bpf.ListenerUDP4 {
				if err != nil || protocol != unix.IPPROTO_UDP {
					t.Errorf("listener %d has protocol %d, %v", index, protocol, err)
				}
				return nil
			}
			if err != nil || protocol != unix.IPPROTO_TCP {
				t.Errorf("listener %d has protocol %d, %v", index, protocol, err)
			}
			keepAlive, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE)
			if err != nil || keepAlive == 0 {
				t.Errorf("listener %d has no keep-alive: %v", index, err)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
			return
		}
		for _, l := range ls {
			if !plain(l.Addr()).Addr().IsLoopback() {
				t.Errorf("it listens on %v", l.Addr())
			}
			_ = l.Close()
		}
		if slices.Sort(put); len(slices.Compact(put)) != int(bpf.Listeners) || put[0] != 0 || put[len(put)-1] != bpf.Listeners-1 {
			t.Errorf("put into the sockmap: %v", put)
		}
		failed := errors.New("full")
		if ls, err := openListeners(d.questions, func(uint32, uintptr) error { return failed }); !errors.Is(err, failed) || len(ls) != 0 {
			t.Errorf("%d listeners, %v", len(ls), err)
		}
	})
}

// TestAgentOfAnotherVersion: a table for fewer listeners is refused, before
// anything is set up, and the agent is told why.
func TestAgentOfAnotherVersion(t *testing.T) {
	needRoot(t)
	older, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.SockMap, KeySize: 4, ValueSize: 8, MaxEntries: 4})
	if err != nil {
		t.Fatal(err)
	}
	defer older.Close()
	w, err := (&process{}).setUp(&control.Wiring{Generation: 1}, &tables{listeners: older})
	if err == nil || w != nil || !strings.Contains(err.Error(), "another version") {
		t.Errorf("wired: %v, %v", w, err)
	}
}

func TestNamespaceIsConfiguredTwice(t *testing.T) {
	inNamespace(t, func() {
		if err := configureNamespace(nil, 0); err == nil {
			t.Error("without an interface")
		}
		mac := net.HardwareAddr{2, 0, 0, 0, 0, 9}
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "host"
		pair := netlink.NewVeth(attrs)
		pair.PeerName = deviceName
		if err := netlink.LinkAdd(pair); err != nil {
			t.Error(err)
			return
		}
		for round := range 2 {
			if err := configureNamespace(mac, 1400); err != nil {
				t.Errorf("round %d: %v", round, err)
			}
		}
		eth, err := netlink.LinkByName(deviceName)
		if err != nil || eth.Attrs().MTU != 1400 || eth.Attrs().Flags&net.FlagUp == 0 {
			t.Errorf("%v, %v", eth, err)
			return
		}
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			rules, err := netlink.RuleList(family)
			ours := 0
			for _, r := range rules {
				if r.Table == localTable && r.IifName == deviceName {
					ours++
				}
			}
			if err != nil || ours != 1 {
				t.Errorf("%d rules of ours, %v", ours, err)
			}
			neighbours, err := netlink.NeighList(eth.Attrs().Index, family)
			permanent := 0
			for _, n := range neighbours {
				if n.State == netlink.NUD_PERMANENT && n.HardwareAddr.String() == mac.String() {
					permanent++
				}
			}
			if err != nil || permanent != 1 {
				t.Errorf("%d gateways, %v", permanent, err)
			}
		}
	})
}
