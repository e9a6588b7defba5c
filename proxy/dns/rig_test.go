package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/fqdn"
	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/policy/dnsrules"
)

// needRoot ends a test that needs what only root has.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("needs root")
	}
	t.Skip("needs root")
}

// space is a network namespace with a thread in it.
type space struct {
	calls chan func()
	file  *os.File
}

func newSpace(t testing.TB) *space {
	t.Helper()
	s := &space{calls: make(chan func())}
	made := make(chan error)
	go func() {
		// The thread ends with the goroutine, and is no other's before.
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			s.file, err = os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
		}
		if err == nil { // addresses are good at once
			err = os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0)
		}
		made <- err
		for f := range s.calls {
			f()
		}
	}()
	if err := <-made; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(s.calls); s.file.Close() })
	return s
}

// twin is another thread in the namespace.
func (s *space) twin(t testing.TB) *space {
	t.Helper()
	other := &space{calls: make(chan func()), file: s.file}
	joined := make(chan error)
	go func() {
		runtime.LockOSThread()
		joined <- unix.Setns(int(s.file.Fd()), unix.CLONE_NEWNET)
		for f := range other.calls {
			f()
		}
	}()
	if err := <-joined; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(other.calls) })
	return other
}

// in calls f in the namespace; what f starts on other threads is not in it.
func (s *space) in(f func()) {
	done := make(chan struct{})
	s.calls <- func() { defer close(done); f() }
	<-done
}

// Addresses of the rig.
var (
	pod4, pod6       = netip.MustParseAddr("10.1.0.7"), netip.MustParseAddr("fd01::7")
	otherPod4        = netip.MustParseAddr("10.1.0.8")
	server4, server6 = netip.MustParseAddr("10.2.0.53"), netip.MustParseAddr("fd02::53")
)

// rig is a proxy between pods and servers:
//
//	pods ═══ veth ═══ proxy ═══ veth ═══ servers
type rig struct {
	t                    testing.TB
	pods, proxy, servers *space
	steering             *ebpf.Map
	relay                *relay
	server               *Server
	done                 chan error

	rules   atomic.Pointer[Rules]
	revoked atomic.Bool
	lives   atomic.Int32 // sessions of an earlier one are over
	quiet   atomic.Bool  // nothing is noted
	learner atomic.Pointer[learnerFunc]

	mu      sync.Mutex
	opened  int
	closed  int
	told    []Record
	dropped map[Reason]int
	changed chan struct{}
}

// newRig makes a rig and has the proxy serve.
func newRig(t testing.TB, prepare ...func(*rig)) *rig {
	t.Helper()
	needRoot(t)
	g := &rig{t: t, pods: newSpace(t), proxy: newSpace(t), servers: newSpace(t), dropped: map[Reason]int{}, changed: make(chan struct{})}
	g.rules.Store(&Rules{Egress: allow()})
	g.learn(func(context.Context, fqdn.Answer) error { return nil })
	g.join("pods", g.pods, []string{"10.1.0.7/24", "10.1.0.8/24", "fd01::7/64"}, "10.1.0.1/24", "fd01::1/64")
	g.join("servers", g.servers, []string{"10.2.0.53/24", "fd02::53/64"}, "10.2.0.1/24", "fd02::1/64")
	g.everythingLocal()
	g.serve(prepare)
	return g
}

func (g *rig) must(err error) {
	g.t.Helper()
	if err != nil {
		g.t.Fatal(err)
	}
}

// join connects the proxy's namespace with another.
func (g *rig) join(name string, with *space, theirs []string, ours ...string) {
	g.t.Helper()
	var err error
	do := func(f func() error) {
		if err == nil {
			err = f()
		}
	}
	g.proxy.in(func() {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		pair := netlink.NewVeth(attrs)
		pair.PeerName, pair.PeerNamespace = "eth0", netlink.NsFd(with.file.Fd())
		do(func() error { return netlink.LinkAdd(pair) })
		do(func() error { return address(name, ours) })
	})
	with.in(func() {
		do(func() error { return address("eth0", theirs) })
		for _, a := range ours {
			do(func() error {
				return netlink.RouteAdd(&netlink.Route{Gw: netip.MustParsePrefix(a).Addr().AsSlice()})
			})
		}
	})
	g.must(err)
}

// address gives an interface addresses, and brings it up.
func address(name string, addrs []string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	for _, a := range addrs {
		p := netip.MustParsePrefix(a)
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
		if p.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(l, addr); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

// everythingLocal has all that comes into the proxy's namespace stay there, and
// datagrams go to its listeners.
func (g *rig) everythingLocal() {
	g.t.Helper()
	var err error
	g.proxy.in(func() {
		var lo netlink.Link
		if lo, err = netlink.LinkByName("lo"); err != nil {
			return
		}
		for _, f := range []int{unix.AF_INET, unix.AF_INET6} {
			all := netip.MustParsePrefix("0.0.0.0/0")
			if f == unix.AF_INET6 {
				all = netip.MustParsePrefix("::/0")
			}
			dst := &net.IPNet{IP: all.Addr().AsSlice(), Mask: net.CIDRMask(0, all.Addr().BitLen())}
			if err = netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: dst, Table: 100, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST}); err != nil {
				return
			}
			for _, dev := range []string{"pods", "servers"} {
				rule := netlink.NewRule()
				rule.Family, rule.IifName, rule.Table, rule.Priority = f, dev, 100, 10
				if err = netlink.RuleAdd(rule); err != nil {
					return
				}
			}
		}
	})
	g.must(err)
}

// otherLane is the key of another socket for questions, of pods with an odd
// address of IPv4.
const otherLane = 4

// steer gives what no connected socket is for to sockets of a map: by family,
// UDP's first.
func (g *rig) steer() *ebpf.Map {
	g.t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.SockMap, KeySize: 4, ValueSize: 8, MaxEntries: 5})
	g.must(err)
	g.t.Cleanup(func() { m.Close() })
	const family, protocol, remote = 8, 12, 16 // in struct bpf_sk_lookup
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SkLookup, AttachType: ebpf.AttachSkLookup, License: "GPL",
		Instructions: asm.Instructions{
			asm.Mov.Reg(asm.R6, asm.R1),
			asm.Mov.Imm(asm.R3, 0),
			asm.LoadMem(asm.R2, asm.R6, protocol, asm.Word),
			asm.JEq.Imm(asm.R2, unix.IPPROTO_UDP, "family"),
			asm.Mov.Imm(asm.R3, 2),
			asm.LoadMem(asm.R2, asm.R6, family, asm.Word).WithSymbol("family"),
			asm.JNE.Imm(asm.R2, unix.AF_INET6, "lane"),
			asm.Add.Imm(asm.R3, 1),
			asm.Ja.Label("store"),
			asm.JNE.Imm(asm.R3, 0, "store").WithSymbol("lane"),
			asm.LoadMem(asm.R2, asm.R6, remote, asm.Word), // the last byte is the highest
			asm.RSh.Imm(asm.R2, 24),
			asm.And.Imm(asm.R2, 1),
			asm.JEq.Imm(asm.R2, 0, "store"),
			asm.Mov.Imm(asm.R3, otherLane),
			asm.StoreMem(asm.RFP, -4, asm.R3, asm.Word).WithSymbol("store"),
			asm.LoadMapPtr(asm.R1, m.FD()),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -4),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "drop"),
			asm.Mov.Reg(asm.R7, asm.R0),
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.Mov.Reg(asm.R2, asm.R7),
			asm.Mov.Imm(asm.R3, 0),
			asm.FnSkAssign.Call(),
			asm.Mov.Reg(asm.R1, asm.R7),
			asm.FnSkRelease.Call(),
			asm.Mov.Imm(asm.R0, 1),
			asm.Return(),
			asm.Mov.Imm(asm.R0, 0).WithSymbol("drop"),
			asm.Return(),
		},
	})
	g.must(err)
	defer prog.Close()
	l, err := link.AttachNetNs(int(g.proxy.file.Fd()), prog)
	g.must(err)
	g.t.Cleanup(func() { l.Close() })
	return m
}

func (g *rig) serve(prepare []func(*rig)) {
	g.t.Helper()
	listeners := g.steer()
	g.steering = listeners
	var err error
	g.proxy.in(func() {
		if g.server, err = New(Options{
			Open: g.open, Learner: g, Drop: g.drop,
			Log: slog.New(slog.NewTextHandler(testWriter{g.t}, &slog.HandlerOptions{Level: slog.LevelDebug})),
		}); err != nil {
			return
		}
		g.relay = g.server.relay
		for key, ipv6 := range map[uint32]bool{0: false, 1: true, otherLane: false} {
			if err == nil {
				err = g.server.Listen(ipv6, func(fd uintptr) error { return listeners.Update(key, uint64(fd), ebpf.UpdateAny) })
			}
		}
	})
	g.must(err)
	for _, f := range prepare {
		f(g)
	}
	g.done = make(chan error, 1)
	g.proxy.calls <- func() { g.done <- g.relay.run() } // opens sockets in there
	g.t.Cleanup(func() {
		g.relay.stop()
		g.server.pairs.stop()
		if err := <-g.done; err != nil {
			g.t.Error(err)
		}
	})
}

// connections has the server serve TCP as well.
func (g *rig) connections() {
	g.t.Helper()
	threads := g.proxy.twin(g.t)
	transparent := func(network, _ string, c syscall.RawConn) (err error) {
		controlErr := c.Control(func(fd uintptr) {
			if err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err == nil && network == "tcp4" {
				err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TRANSPARENT, 1)
			} else if err == nil {
				err = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1)
			}
		})
		return errors.Join(controlErr, err)
	}
	for i, a := range []string{"127.0.0.1:0", "[::1]:0"} {
		var l net.Listener
		var err error
		threads.in(func() {
			lc := net.ListenConfig{Control: transparent}
			lc.SetMultipathTCP(false)
			if l, err = lc.Listen(context.Background(), "tcp"+string("46"[i]), a); err != nil {
				return
			}
			raw, _ := l.(*net.TCPListener).SyscallConn()
			controlErr := raw.Control(func(fd uintptr) { err = g.steering.Update(uint32(2+i), uint64(fd), ebpf.UpdateAny) })
			err = errors.Join(controlErr, err)
		})
		g.must(err)
		g.t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				g.accepted(c.(*net.TCPConn), threads, transparent)
			}
		}()
	}
}

func (g *rig) accepted(c *net.TCPConn, threads *space, control func(string, string, syscall.RawConn) error) {
	client, server := c.RemoteAddr().(*net.TCPAddr), c.LocalAddr().(*net.TCPAddr)
	g.server.Start(Conn{
		Client: c, Pod: client.AddrPort().Addr().Unmap(),
		Dial: func(ctx context.Context) (up *net.TCPConn, err error) {
			threads.in(func() {
				d := net.Dialer{LocalAddr: client, Control: control, Timeout: time.Second}
				d.SetMultipathTCP(false)
				var c net.Conn
				if c, err = d.DialContext(ctx, "tcp", server.String()); err == nil {
					up = c.(*net.TCPConn)
				}
			})
			return up, err
		},
		Rules: func() Rules { return *g.rules.Load() }, Observe: g.observe,
	})
}

// loop calls f where everything of the relay may be touched.
func (g *rig) loop(f func(*relay)) {
	done := make(chan struct{})
	g.relay.post(func() { f(g.relay); close(done) })
	<-done
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", b)
	return len(b), nil
}

type learnerFunc func(context.Context, fqdn.Answer) error

// learn has f called for answers.
func (g *rig) learn(f learnerFunc) { g.learner.Store(&f) }

// Learn implements Learner.
func (g *rig) Learn(ctx context.Context, a fqdn.Answer) error { return (*g.learner.Load())(ctx, a) }

func (g *rig) open(pod netip.Addr, server netip.AddrPort) Session {
	if g.revoked.Load() {
		return nil
	}
	g.mu.Lock()
	g.opened++
	g.mu.Unlock()
	return &rigSession{g, pod, server, g.lives.Load()}
}

func (g *rig) drop(r Reason, n uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.dropped[r] += int(n)
	g.wake()
}

func (g *rig) wake() {
	close(g.changed)
	g.changed = make(chan struct{})
}

// rigSession is a Session; whose veth is by the pod's last byte.
type rigSession struct {
	*rig
	pod    netip.Addr
	server netip.AddrPort
	life   int32
}

func (s *rigSession) Owner() uint32 { return uint32(s.pod.AsSlice()[len(s.pod.AsSlice())-1]) }
func (s *rigSession) Rules() (Rules, bool) {
	return *s.rules.Load(), !s.revoked.Load() && s.life == s.lives.Load()
}
func (s *rigSession) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed++
	s.wake()
}

func (s *rigSession) Observe(r *Record) { s.observe(r) }

func (g *rig) observe(r *Record) {
	if g.quiet.Load() {
		return
	}
	kept := *r
	kept.Question = slices.Clone(r.Question)
	kept.Records = slices.Clone(r.Records)
	kept.Chain = nil
	for _, name := range r.Chain {
		kept.Chain = append(kept.Chain, string([]byte(name)))
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.told = append(g.told, kept)
	g.wake()
}

// wait waits until something has been told or dropped.
func (g *rig) wait(what string, is func() bool) {
	g.t.Helper()
	end := time.After(5 * time.Second)
	for {
		g.mu.Lock()
		ok, changed := is(), g.changed
		g.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-end:
			g.mu.Lock()
			defer g.mu.Unlock()
			g.t.Fatalf("%s: never; told %d, the first %v, dropped %v", what, len(g.told), g.told[:min(len(g.told), 3)], g.dropped)
		}
	}
}

// waitDropped waits for n of a reason.
func (g *rig) waitDropped(r Reason, n int) {
	g.t.Helper()
	g.wait(fmt.Sprintf("%d %v", n, r), func() bool { return g.dropped[r] == n })
}

// records waits for n records, and takes them.
func (g *rig) records(n int) (out []Record) {
	g.t.Helper()
	g.wait(fmt.Sprintf("%d records", n), func() bool { return len(g.told) >= n })
	g.mu.Lock()
	defer g.mu.Unlock()
	out, g.told = g.told, nil
	if len(out) > n {
		g.t.Errorf("%d records, want %d: %v", len(out), n, out[:min(len(out), n+3)])
	}
	return out
}

// allow is a rule set with rules, or one that lets all pass.
func allow(patterns ...string) *RuleSet {
	rs := &policy.RuleSet{AllowAll: len(patterns) == 0, AllowRule: 9}
	for i, p := range patterns {
		rs.DNS = append(rs.DNS, dnsrules.Rule{Selector: dnsrules.NewSelector("", p), Rule: uint32(i + 1)})
	}
	return NewRuleSet(rs)
}

// listen makes a server's socket.
func (g *rig) listen(addr netip.AddrPort) *net.UDPConn {
	g.t.Helper()
	var c *net.UDPConn
	var err error
	g.servers.in(func() { c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr)) })
	g.must(err)
	g.t.Cleanup(func() { c.Close() })
	return c
}

// miekg runs a server of miekg/dns by UDP.
func (g *rig) miekg(addr netip.AddrPort, h dns.HandlerFunc) {
	c := g.listen(addr)
	s := &dns.Server{PacketConn: c, Handler: h, UDPSize: maxMessage}
	started := make(chan struct{})
	s.NotifyStartedFunc = func() { close(started) }
	go s.ActivateAndServe()
	<-started
	g.t.Cleanup(func() { s.Shutdown() })
}

// dial makes a pod's socket to a server.
func (g *rig) dial(pod netip.Addr, server netip.AddrPort) *net.UDPConn {
	g.t.Helper()
	var c *net.UDPConn
	var err error
	g.pods.in(func() {
		c, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(pod, 0)), net.UDPAddrFromAddrPort(server))
	})
	g.must(err)
	g.t.Cleanup(func() { c.Close() })
	g.must(c.SetDeadline(time.Now().Add(5 * time.Second)))
	return c
}

func (g *rig) send(c *net.UDPConn, b []byte) {
	g.t.Helper()
	_, err := c.Write(b)
	g.must(err)
}

// receive reads a datagram; nil: none comes for a while.
func (g *rig) receive(c *net.UDPConn, within time.Duration) []byte {
	g.t.Helper()
	b := make([]byte, maxMessage)
	g.must(c.SetReadDeadline(time.Now().Add(within)))
	n, err := c.Read(b)
	if err != nil {
		return nil
	}
	return b[:n]
}

// ask sends a question and returns the answer.
func (g *rig) ask(c *net.UDPConn, m *dns.Msg) *dns.Msg {
	g.t.Helper()
	g.send(c, pack(g.t, m))
	b := g.receive(c, 5*time.Second)
	if b == nil {
		g.t.Fatalf("no answer to %v", m.Question)
	}
	a := new(dns.Msg)
	g.must(a.Unpack(b))
	if a.Id != m.Id || !a.Response {
		g.t.Fatalf("asked\n%v\nanswered\n%v", m, a)
	}
	return a
}
