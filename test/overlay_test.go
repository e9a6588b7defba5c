package test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/test/node"
)

// TestOverlay: nodes that are closed carry their pods' traffic to one another all
// the same, by VXLAN and by a tunnel of a program's, without Ethernet, as WireGuard
// is one; and what comes out of the tunnel for the node itself is judged.
func TestOverlay(t *testing.T) {
	for kind, join := range map[string]func(*testing.T, *node.Node, *node.Node){"vxlan": joinVXLAN, "tun": joinTun} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := tell(t, "setups/overlay.txtar")
			a, b := s.nodes[0], s.nodes[1]
			join(t, a, b)
			join(t, b, a)
			for _, way := range [][2]*node.Node{{a, b}, {b, a}} {
				for family, cidr := range way[1].PodCIDRs() {
					must(t, way[0], "ip route replace %s via %s dev over0 onlink src %s", cidr, overlayAddr(way[1], family), way[0].Addrs()[family])
				}
			}
			through := func() (packets int) {
				l, err := a.Host.Link("over0")
				if err != nil {
					t.Fatal(err)
				}
				return int(l.Attrs().Statistics.TxPackets)
			}
			pods := func() {
				t.Helper()
				for _, line := range []string{
					"shop/web tcp shop/far:7000 => ok", "shop/far tcp shop/web:7000 => ok", "shop/web udp shop/far:7000 size=1000 => ok",
					"shop/far GET shop/web:8080/ => 200", "shop/web ping shop/far => ok",
				} {
					s.check(line)
				}
			}
			reach := func(family int) error {
				_, err := b.Host.AskTCP(t.Context(), netip.AddrPortFrom(overlayAddr(a, family), 7000), "x")
				return err
			}
			before := through()
			pods()
			if through() == before {
				t.Fatal("this tests nothing: the pods' packets go another way")
			}
			for family := range 2 {
				if err := reach(family); err != nil {
					t.Fatalf("by the tunnel, without a policy: %v", err)
				}
			}
			s.must("apply lock.yaml")
			s.must("wait")
			s.must("status over0")
			pods()
			for family := range 2 {
				if err := reach(family); err == nil {
					t.Errorf("a node that is closed is reached by the tunnel, family %d", family)
				}
			}
			s.check("host-a tcp host-b:7000 => dropped")
			s.check("host-a tcp shop/far:7000 => dropped")
		})
	}
}

// overlayAddr is a node's address on the tunnel.
func overlayAddr(n *node.Node, family int) netip.Addr {
	last := n.Addrs()[0].As4()[3]
	return netip.MustParseAddr([]string{fmt.Sprintf("10.99.0.%d", last), fmt.Sprintf("fd99::%d", last)}[family])
}

func must(t *testing.T, n *node.Node, format string, args ...any) {
	t.Helper()
	words := strings.Fields(fmt.Sprintf(format, args...))
	if out, err := n.Host.Run(t.Context(), "", words[0], words[1:]...); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(words, " "), err, out)
	}
}

func addressOverlay(t *testing.T, n *node.Node) {
	t.Helper()
	must(t, n, "ip addr add %s/24 dev over0", overlayAddr(n, 0))
	must(t, n, "ip addr add %s/64 dev over0 nodad", overlayAddr(n, 1))
	must(t, n, "ip link set over0 mtu 1400 up")
}

func joinVXLAN(t *testing.T, n, to *node.Node) {
	t.Helper()
	must(t, n, "ip link add over0 type vxlan id 7 local %s remote %s dstport 8472", n.Addrs()[0], to.Addrs()[0])
	addressOverlay(t, n)
}

// joinTun carries what goes into a tun of the node as datagrams to the other one, at
// WireGuard's port.
func joinTun(t *testing.T, n, to *node.Node) {
	t.Helper()
	var tun *os.File
	if err := n.Host.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		req, err := unix.NewIfreq("over0")
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
			return err
		}
		tun = os.NewFile(uintptr(fd), "tun")
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	c, err := n.Host.ListenPacket("udp", node.To(n.Addrs()[0], 51820))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		tun.Close()
	})
	peer := &net.UDPAddr{IP: to.Addrs()[0].AsSlice(), Port: 51820}
	go func() {
		for b := make([]byte, 1<<16); ; {
			size, err := tun.Read(b)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(b[:size], peer) // the other one may not be there yet
		}
	}()
	go func() {
		for b := make([]byte, 1<<16); ; {
			size, _, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = tun.Write(b[:size])
		}
	}()
	addressOverlay(t, n)
}
