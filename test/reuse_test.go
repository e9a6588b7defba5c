package test

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weirnet/weir/test/node"
)

// TestAddressReused: the address of a pod that a policy lets reach another goes to
// one that it does not, at once, and this one goes on with the flows of the first.
// Not a packet of it arrives, on whichever node it is, whatever of the first one's
// object is still there; and who may have the address next gets through. On a node
// where the new one is not, the address is the first one's for as long as its object
// has it: a packet does not say of whom it is.
func TestAddressReused(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/reuse.txtar")
	a, b := s.nodes[0], s.nodes[1]
	for i, c := range []struct {
		name     string
		old, new *node.Node
		wiring   node.Wiring
		known    bool // the new one is on the node of who is reached
	}{
		{"same node, routed", a, a, node.Routed, true},
		{"same node, bridged", a, a, node.Bridged, true},
		{"another node", b, b, node.Routed, false},
		{"it comes to this node", b, a, node.Routed, true},
		{"it leaves this node", a, b, node.Routed, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.t = t
			// Addresses are of the cluster, as some CNIs have it, so any may go to
			// any node.
			pool := func(n int) []corev1.PodIP {
				if c.wiring == node.Bridged {
					return []corev1.PodIP{{IP: fmt.Sprintf("10.77.1.%d", 200+n)}, {IP: fmt.Sprintf("fd77:0:1:2::%x", 200+n)}}
				}
				return []corev1.PodIP{{IP: fmt.Sprintf("10.78.%d.%d", i, n)}, {IP: fmt.Sprintf("fd78:0:%d::%d", i, n)}}
			}
			add := func(at *node.Node, name, app string, addrs []corev1.PodIP) *node.Pod {
				t.Helper()
				obj := node.PodObject("shop", fmt.Sprintf("%s-%d", name, i), "app="+app)
				obj.Status.PodIPs = addrs
				p, err := at.AddPod(obj, c.wiring)
				if err != nil {
					t.Fatal(err)
				}
				for _, other := range []*node.Node{a, b} {
					for family, ip := range p.Addrs {
						if other == at || c.wiring == node.Bridged {
							continue
						}
						if out, err := other.Host.Run(t.Context(), "", "ip", "route", "replace", ip.String(), "via", at.Addrs()[family].String()); err != nil {
							t.Fatalf("%v: %s", err, out)
						}
					}
				}
				return p
			}
			put := func(p *node.Pod) {
				t.Helper()
				if err := s.objects.PutPod(p); err != nil {
					t.Fatal(err)
				}
				s.must("wait")
			}
			db := add(a, "db", "db", pool(1))
			put(db)
			old := add(c.old, "api", "api", pool(2))
			put(old)
			seen := arrivals(t, db, old.Addrs)
			stop := bombard(t, old, db)
			time.Sleep(silence)
			stop()
			if seen.Load() == 0 {
				t.Fatal("this tests nothing: what may pass does not")
			}

			// The next one's object is there before its interface, and before the old
			// one's is gone, whose address goes with its interface.
			thief := node.PodObject("shop", fmt.Sprintf("thief-%d", i), "app=thief")
			thief.Spec.NodeName, thief.Status.Phase = c.new.Name, corev1.PodPending
			if err := s.objects.Put("pod-shop-"+thief.Name, thief); err != nil {
				t.Fatal(err)
			}
			now := metav1.Now()
			old.Object.DeletionTimestamp = &now
			put(old)
			if err := old.Delete(); err != nil {
				t.Fatal(err)
			}
			p := add(c.new, "thief", "thief", pool(2))
			time.Sleep(startsAfter)
			seen.Store(0)
			stop = bombard(t, p, db)
			none := func(when string) {
				t.Helper()
				time.Sleep(silence)
				if n := seen.Load(); n > 0 {
					t.Errorf("%s: %d packets arrive", when, n)
				}
			}
			if c.known {
				none("the old one is being deleted")
			}
			if err := s.objects.RemovePod(old); err != nil {
				t.Fatal(err)
			}
			s.must("wait")
			time.Sleep(10 * time.Millisecond) // what was on its way
			if !c.known {
				seen.Store(0)
			}
			none("nobody's object has the address")
			put(p)
			none("the new one's object has it")
			stop()

			if err := p.Delete(); err != nil {
				t.Fatal(err)
			}
			if err := s.objects.RemovePod(p); err != nil {
				t.Fatal(err)
			}
			next := add(c.old, "next", "api", pool(2))
			put(next)
			stop = bombard(t, next, db)
			defer stop()
			time.Sleep(silence)
			if seen.Load() == 0 {
				t.Error("one that may does not get through with the address")
			}
		})
	}
}

// bombard sends from a pod what continues, and what begins, flows of the ports
// that it always uses, until it is stopped.
func bombard(t *testing.T, from, to *node.Pod) (stop func()) {
	t.Helper()
	type sender struct {
		c       net.PacketConn
		to      net.Addr
		packets [][]byte
	}
	var all []sender
	for family, a := range from.Addrs {
		dst := net.IP(to.Addrs[family].AsSlice())
		udp, err := from.ListenPacket("udp", netip.AddrPortFrom(a, 41001).String())
		if err != nil {
			t.Fatal(err)
		}
		raw, err := from.ListenPacket(fmt.Sprintf("ip%d:tcp", 4+2*family), a.String())
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, sender{udp, &net.UDPAddr{IP: dst, Port: 7000}, [][]byte{[]byte("x")}},
			sender{raw, &net.IPAddr{IP: dst}, [][]byte{segment(0x02), segment(0x10), segment(0x18)}})
	}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			for _, s := range all {
				for _, p := range s.packets {
					_, _ = s.c.WriteTo(p, s.to) // refused by a policy, maybe
				}
			}
			select {
			case <-done:
				return
			case <-time.After(2 * time.Millisecond):
			}
		}
	}()
	return func() {
		close(done)
		<-ended
		for _, s := range all {
			s.c.Close()
		}
	}
}

// segment is a TCP header from port 41000 to 7000, its checksum left out.
func segment(flags byte) []byte {
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b, 41000)
	binary.BigEndian.PutUint16(b[2:], 7000)
	b[12], b[13] = 5<<4, flags
	return b
}

// arrivals counts packets of TCP and UDP that come into a pod from addresses.
func arrivals(t *testing.T, at *node.Pod, from []netip.Addr) *atomic.Int64 {
	t.Helper()
	var fd int
	err := at.Do(func() (err error) {
		all := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(all))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	n, ended := new(atomic.Int64), make(chan struct{})
	done := new(atomic.Bool)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(ended)
		b := make([]byte, 2048)
		for !done.Load() {
			size, sender, err := unix.Recvfrom(fd, b, 0)
			if ll, ok := sender.(*unix.SockaddrLinklayer); err != nil || ok && ll.Pkttype == unix.PACKET_OUTGOING {
				continue
			}
			if src, proto := sourceOf(b[:size]); (proto == unix.IPPROTO_TCP || proto == unix.IPPROTO_UDP) && (src == from[0] || src == from[1]) {
				n.Add(1)
			}
		}
	}()
	t.Cleanup(func() {
		done.Store(true)
		<-ended
		_ = unix.Close(fd)
	})
	return n
}

// sourceOf reads where an IP packet comes from, and its protocol.
func sourceOf(b []byte) (src netip.Addr, proto byte) {
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		src, _ = netip.AddrFromSlice(b[12:16])
		proto = b[9]
	case len(b) >= 40 && b[0]>>4 == 6:
		src, _ = netip.AddrFromSlice(b[8:24])
		proto = b[6]
	}
	return src, proto
}
