package bpf

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/test/sockets"
)

func TestMain(m *testing.M) {
	sockets.Main()
	os.Exit(m.Run())
}

// cgroupRoot is where cgroup v2 is mounted.
func cgroupRoot(t testing.TB) string {
	t.Helper()
	needRoot(t)
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var fs unix.Statfs_t
		if unix.Statfs(dir, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
			return dir
		}
	}
	if os.Getenv("CI") != "" {
		t.Fatal("no cgroup v2, which CI must have")
	}
	t.Skip("no cgroup v2 is mounted")
	return ""
}

// newCgroup makes a cgroup of the test's own below dir.
func newCgroup(t testing.TB, dir string) string {
	t.Helper()
	path, err := os.MkdirTemp(dir, "weirtest-bpf-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Those that were in it are gone a little after they ended.
		err := os.Remove(path)
		for end := time.Now().Add(5 * time.Second); err != nil && time.Now().Before(end); err = os.Remove(path) {
			time.Sleep(10 * time.Millisecond)
		}
		if err != nil {
			t.Error(err)
		}
	})
	return path
}

// kernelServices lets the table of that name be reached.
type kernelServices = Services

// translated is a pod's namespace, with servers on its loopback, and a process
// in a cgroup with the programs.
type translated struct {
	*kernelServices
	t      *testing.T
	pod    *namespace
	cgroup string
	pins   string
}

// Backends: each answers with its own address, whatever it is asked.
var (
	servers4 = []netip.Addr{netip.MustParseAddr("10.3.0.1"), netip.MustParseAddr("10.3.0.2"), netip.MustParseAddr("10.3.0.3")}
	servers6 = []netip.Addr{netip.MustParseAddr("fd03::1"), netip.MustParseAddr("fd03::2"), netip.MustParseAddr("fd03::3")}
	cluster4 = netip.MustParseAddr("10.96.0.1")
	cluster6 = netip.MustParseAddr("fd96::1")
	node4    = netip.MustParseAddr("192.0.2.1")
	node6    = netip.MustParseAddr("2001:db8::1")
)

const serverPort = 8080

func newTranslated(t *testing.T) *translated {
	t.Helper()
	root := cgroupRoot(t)
	pins := mountPins(t)
	s, err := LoadServices(ServicesOptions{Pins: pins, Reverse: 1024})
	if err != nil {
		t.Fatal(err)
	}
	x := &translated{s, t, newNamespace(t), newCgroup(t, root), pins}
	t.Cleanup(func() {
		if err := errors.Join(s.Close(), RemoveServices(pins)); err != nil {
			t.Error(err)
		}
	})
	x.pod.do(func() {
		lo, e := netlink.LinkByName("lo")
		err = errors.Join(e, netlink.LinkSetUp(lo))
		for _, a := range append(append([]netip.Addr{}, servers4...), servers6...) {
			addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}, Flags: unix.IFA_F_NODAD}
			err = errors.Join(err, netlink.AddrAdd(lo, addr))
		}
		// The kernel makes addresses known a little later.
		for _, a := range servers6 {
			for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
				if r, err := netlink.RouteGet(a.AsSlice()); err == nil && len(r) > 0 && r[0].Type == unix.RTN_LOCAL {
					break
				}
			}
		}
	})
	x.must(err)
	for _, a := range append(append([]netip.Addr{}, servers4...), servers6...) {
		x.serve(netip.AddrPortFrom(a, serverPort))
	}
	x.must(s.Attach(x.cgroup))
	s.Alive()
	return x
}

func (x *translated) must(err error) {
	x.t.Helper()
	if err != nil {
		x.t.Fatal(err)
	}
}

func (x *translated) serve(at netip.AddrPort) {
	x.t.Helper()
	var l net.Listener
	var c net.PacketConn
	var err error
	x.pod.do(func() {
		if l, err = net.Listen("tcp", at.String()); err == nil {
			c, err = net.ListenPacket("udp", at.String())
		}
	})
	x.must(err)
	x.t.Cleanup(func() { l.Close(); c.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				b := make([]byte, 64)
				if _, err := conn.Read(b); err == nil {
					_, _ = io.WriteString(conn, at.Addr().String())
				}
			}()
		}
	}()
	go func() {
		b := make([]byte, 64)
		for {
			_, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = c.WriteTo([]byte(at.Addr().String()), from)
		}
	}()
}

// process starts one in a cgroup and a namespace.
func (x *translated) process(cgroup string, ns *namespace) *sockets.Process {
	x.t.Helper()
	dir, err := os.Open(cgroup)
	x.must(err)
	defer dir.Close()
	cmd := sockets.Command()
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	p, err := sockets.Start(cmd, func(cmd *exec.Cmd) (err error) {
		ns.do(func() { err = cmd.Start() })
		return err
	})
	x.must(err)
	x.t.Cleanup(p.Stop)
	return p
}

// service writes a service and its backends, as somebody careful does.
func (x *translated) service(id uint32, affinity uint32, protocol uint8, backends []netip.AddrPort, at ...netip.AddrPort) {
	x.t.Helper()
	for i, b := range backends {
		x.must(x.Backends.Update(Slot{Service: id, Number: uint32(i)}, BackendOf(b)))
		x.must(x.Members.Update(Member{Service: id, Backend: BackendOf(b)}, MemberReady))
	}
	for _, a := range at {
		x.must(x.Services.Update(ServiceKeyOf(a, protocol), Service{Id: id, Count: uint32(len(backends)), Affinity: affinity}))
	}
}

// way is one kind of socket and what there is of its family.
type way struct {
	family   sockets.Family
	servers  []netip.Addr
	cluster  netip.Addr
	node     netip.Addr
	wildcard netip.Addr
}

var ways = []way{
	{sockets.IPv4, servers4, cluster4, node4, netip.IPv4Unspecified()},
	{sockets.Mapped, servers4, cluster4, node4, netip.IPv4Unspecified()},
	{sockets.IPv6, servers6, cluster6, node6, netip.IPv6Unspecified()},
}

func (w way) backends(n int) (out []netip.AddrPort) {
	for _, a := range w.servers[:n] {
		out = append(out, netip.AddrPortFrom(a, serverPort))
	}
	return out
}

// kinds of sockets.
var kinds = []struct {
	name     string
	typ      int
	protocol uint8
	connects bool
}{
	{"tcp", unix.SOCK_STREAM, unix.IPPROTO_TCP, true},
	{"udp connected", unix.SOCK_DGRAM, unix.IPPROTO_UDP, true},
	{"udp", unix.SOCK_DGRAM, unix.IPPROTO_UDP, false},
}

// ask opens a socket, asks and tells who answered. What the socket is told of
// its peer must be what it named.
func ask(p *sockets.Process, f sockets.Family, typ int, connects bool, to netip.AddrPort) (string, error) {
	s, err := p.Open(f, typ)
	if err != nil {
		return "", err
	}
	defer s.Close()
	return askOn(s, typ, connects, to)
}

func askOn(s *sockets.Socket, typ int, connects bool, to netip.AddrPort) (string, error) {
	if connects {
		if err := s.Connect(to); err != nil {
			return "", fmt.Errorf("connect: %w", err)
		}
		if peer, err := s.Peer(); err != nil {
			return "", fmt.Errorf("peer: %w", err)
		} else if peer != to {
			return "", fmt.Errorf("connected to %v, but its peer is said to be %v", to, peer)
		}
		if err := s.Send("who"); err != nil {
			return "", fmt.Errorf("send: %w", err)
		}
	} else if err := s.SendTo("who", to); err != nil {
		return "", fmt.Errorf("send to: %w", err)
	}
	data, from, err := s.Receive()
	if err != nil {
		return "", fmt.Errorf("receive: %w", err)
	}
	if typ == unix.SOCK_DGRAM && from != to {
		return "", fmt.Errorf("asked %v, but the answer is said to be from %v", to, from)
	}
	return data, nil
}

// everyWay runs f for each family and kind of socket. The tables are empty.
func everyWay(t *testing.T, f func(x *translated, p *sockets.Process, w way, typ int, protocol uint8, connects bool)) {
	x := newTranslated(t)
	p := x.process(x.cgroup, x.pod)
	for _, w := range ways {
		for _, k := range kinds {
			t.Run(w.family.String()+" "+k.name, func(t *testing.T) {
				y := *x
				y.t = t
				y.clear()
				y.Alive()
				f(&y, p, w, k.typ, k.protocol, k.connects)
			})
		}
	}
}

func (x *translated) clear() {
	x.t.Helper()
	_, e1 := x.Services.Reconcile(nil)
	_, e2 := x.Backends.Reconcile(nil)
	_, e3 := x.Members.Reconcile(nil)
	_, e4 := x.Nodes.Reconcile(nil)
	x.must(errors.Join(e1, e2, e3, e4))
}

// links lists what is pinned of the programs.
func (x *translated) links() string {
	entries, err := os.ReadDir(filepath.Join(x.pins, serviceLinksDir))
	x.must(err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}
