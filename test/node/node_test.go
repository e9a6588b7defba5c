package node_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weirnet/weir/test/node"
)

var networks atomic.Int32

func newNetwork(t *testing.T, o node.NetworkOptions) *node.Network {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("needs root to make network namespaces")
		}
		t.Skip("needs root to make network namespaces")
	}
	o.Name = node.UniqueName("weirnode", int(networks.Add(1)))
	w, err := node.NewNetwork(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		if left, _ := os.ReadDir("/run/netns"); len(left) > 0 {
			for _, l := range left {
				if strings.HasPrefix(l.Name(), o.Name+".") {
					t.Errorf("namespace %s is left", l.Name())
				}
			}
		}
	})
	return w
}

func addNode(t *testing.T, w *node.Network, o node.NodeOptions) *node.Node {
	t.Helper()
	n, err := w.AddNode(o)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func addPod(t *testing.T, n *node.Node, name string, wiring node.Wiring) *node.Pod {
	t.Helper()
	p, err := n.AddPod(node.PodObject("default", name), wiring)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// end is a place that connects and is connected to.
type end struct {
	name  string
	ns    *node.Netns
	addrs []netip.Addr
	node  *node.Node // nil: outside
	pod   bool
}

// TestEveryPair connects every pair of places by every protocol and family and
// checks the address that the server sees.
func TestEveryPair(t *testing.T) {
	for _, rp := range []int{0, 1} {
		t.Run(fmt.Sprintf("rp_filter=%d", rp), func(t *testing.T) { everyPair(t, rp) })
	}
}

func everyPair(t *testing.T, rp int) {
	w := newNetwork(t, node.NetworkOptions{})
	ends := []end{{"outside", w.Outside, w.OutsideAddrs(), nil, false}}
	for _, name := range []string{"a", "b"} {
		n := addNode(t, w, node.NodeOptions{Name: name, RPFilter: rp, DropInvalid: true})
		ends = append(ends, end{"host-" + name, n.Host, n.Addrs(), n, false})
		for _, wiring := range []node.Wiring{node.Routed, node.Bridged} {
			for i := range 2 - len(w.Nodes())/2 {
				p := addPod(t, n, fmt.Sprintf("%s-%s-%d", wiring, name, i), wiring)
				ends = append(ends, end{p.Pod, p.Netns, p.Addrs, n, true})
			}
		}
	}
	for _, e := range ends {
		if err := e.ns.ServeTCP(7000); err != nil {
			t.Fatal(err)
		}
		if err := e.ns.ServeUDP(7000); err != nil {
			t.Fatal(err)
		}
	}
	pairs := 0
	for _, from := range ends {
		for _, to := range ends {
			if from.name == to.name || from.node == nil && to.pod {
				continue // the outside knows no pod addresses
			}
			for family := range 2 {
				pairs++
				t.Run(fmt.Sprintf("%s-%s-%d", from.name, to.name, family), func(t *testing.T) {
					connect(t, from, to, family)
				})
			}
		}
	}
	if want := (len(ends)*(len(ends)-1) - 6) * 2; pairs != want {
		t.Errorf("%d pairs were tried, not %d", pairs, want)
	}
}

func connect(t *testing.T, from, to end, family int) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	want := map[netip.Addr]bool{from.addrs[family]: true}
	switch {
	case from.pod && to.node == nil, from.pod && !to.pod && from.node != to.node:
		// Masqueraded.
		want = map[netip.Addr]bool{from.node.Addrs()[family]: true}
	case !from.pod && to.pod && from.node == to.node:
		// The gateway of the pods, an address of the host, or its first.
		for _, p := range []string{"10.77.1.1", "10.77.1.129", "10.77.2.1", "10.77.2.129", "fd77:0:1:2::1", "fd77:0:2:2::1"} {
			want[netip.MustParseAddr(p)] = true
		}
	}
	target := netip.AddrPortFrom(to.addrs[family], 7000)
	for name, ask := range map[string]func(context.Context, netip.AddrPort, string) (netip.AddrPort, error){
		"tcp": from.ns.AskTCP, "udp": from.ns.AskUDP,
	} {
		// Larger than a packet, so UDP goes in fragments.
		seen, err := ask(ctx, target, strings.Repeat("x", 4000))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if !want[seen.Addr()] {
			t.Errorf("%s: server saw %s, not one of %v", name, seen, want)
		}
	}
	if err := from.ns.Ping(ctx, to.addrs[family], 3000); err != nil {
		t.Error(err)
	}
}

func TestForward(t *testing.T) {
	w := newNetwork(t, node.NetworkOptions{})
	n := addNode(t, w, node.NodeOptions{Name: "a", RPFilter: 1})
	for i, wiring := range []node.Wiring{node.Routed, node.Bridged} {
		p := addPod(t, n, wiring.String(), wiring)
		if err := p.ServeTCP(7000); err != nil {
			t.Fatal(err)
		}
		for j, masquerade := range []bool{false, true} {
			port := uint16(30000 + 10*i + j)
			if err := n.Forward(t.Context(), "TCP", port, p, 7000, masquerade); err != nil {
				t.Fatal(err)
			}
			for family := range 2 {
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				seen, err := w.Outside.AskTCP(ctx, netip.AddrPortFrom(n.Addrs()[family], port), "hello")
				if err != nil {
					t.Fatalf("%s masquerade %v: %v", wiring, masquerade, err)
				}
				if masquerade == (seen.Addr() == w.OutsideAddrs()[family]) {
					t.Errorf("%s masquerade %v: server saw %s", wiring, masquerade, seen)
				}
			}
		}
	}
}

// TestService reaches pods of two nodes by addresses that nobody has, from a
// pod and from the node.
func TestService(t *testing.T) {
	w := newNetwork(t, node.NetworkOptions{})
	a := addNode(t, w, node.NodeOptions{Name: "a", RPFilter: 1})
	b := addNode(t, w, node.NodeOptions{Name: "b"})
	client := addPod(t, a, "client", node.Routed)
	backends := []*node.Pod{addPod(t, a, "near", node.Routed), addPod(t, b, "far", node.Bridged)}
	for _, p := range backends {
		if err := errors.Join(p.ServeTCP(7000), p.ServeUDP(7000)); err != nil {
			t.Fatal(err)
		}
	}
	addrs := []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd96::10")}
	if err := a.Service(t.Context(), addrs, []string{"TCP", "UDP"}, 53, backends, 7000); err != nil {
		t.Fatal(err)
	}
	for family := range 2 {
		for range 20 {
			to := netip.AddrPortFrom(addrs[family], 53)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			seen, err := client.AskUDP(ctx, to, "hello")
			if err != nil || seen.Addr() != client.Addrs[family] {
				t.Errorf("udp to %s: the server saw %s, %v", to, seen, err)
			}
			c, err := client.DialContext(ctx, "tcp", to.String())
			if err != nil {
				t.Fatal(err)
			}
			c.Close()
			if _, err := a.Host.AskTCP(ctx, to, "hello"); err != nil {
				t.Errorf("from the node: %v", err)
			}
			cancel()
		}
	}
}

// TestWorld connects to some addresses of the many that the outside has.
func TestWorld(t *testing.T) {
	w := newNetwork(t, node.NetworkOptions{})
	n := addNode(t, w, node.NodeOptions{Name: "a"})
	p := addPod(t, n, "client", node.Routed)
	if err := w.Outside.ServeTCP(7000); err != nil {
		t.Fatal(err)
	}
	for family, addr := range []string{"198.19.3.4", "2001:db8:2:7::9"} {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		seen, err := p.AskTCP(ctx, netip.AddrPortFrom(netip.MustParseAddr(addr), 7000), "hello")
		if err != nil || seen.Addr() != n.Addrs()[family] {
			t.Errorf("%s: the server saw %s, %v", addr, seen, err)
		}
	}
}

// TestSmallerMTU uploads over links that are narrower further on: only ICMP
// errors, by the own host or the router, tell the pod.
func TestSmallerMTU(t *testing.T) {
	for name, o := range map[string]struct{ wan, uplink int }{"uplink": {0, 1400}, "router": {1300, 0}} {
		t.Run(name, func(t *testing.T) {
			w := newNetwork(t, node.NetworkOptions{WANMTU: o.wan})
			n := addNode(t, w, node.NodeOptions{Name: "a", UplinkMTU: o.uplink, RPFilter: 1})
			if err := w.Outside.ServeHTTP(80, nil); err != nil {
				t.Fatal(err)
			}
			body := make([]byte, 1<<20)
			rand.Read(body)
			for _, wiring := range []node.Wiring{node.Routed, node.Bridged} {
				p := addPod(t, n, wiring.String(), wiring)
				for _, a := range w.OutsideAddrs() {
					resp, err := p.HTTPClient(10*time.Second).Post("http://"+node.To(a, 80)+"/upload", "", bytes.NewReader(body))
					if err != nil {
						t.Fatalf("%s to %s: %v", wiring, a, err)
					}
					var seen node.HTTPSeen
					err = json.NewDecoder(resp.Body).Decode(&seen)
					resp.Body.Close()
					if err != nil || seen.Length != int64(len(body)) || resp.StatusCode != http.StatusOK {
						t.Errorf("%s to %s: %d bytes arrived, %v", wiring, a, seen.Length, err)
					}
				}
			}
		})
	}
}

// TestDeletePod frees names and addresses at once.
func TestDeletePod(t *testing.T) {
	w := newNetwork(t, node.NetworkOptions{})
	n := addNode(t, w, node.NodeOptions{Name: "a"})
	first := addPod(t, n, "web", node.Routed)
	if err := first.Delete(); err != nil {
		t.Fatal(err)
	}
	again := node.PodObject("default", "web")
	again.Status.PodIPs = first.Object.Status.PodIPs
	second, err := n.AddPod(again, node.Routed)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Delete(); err != nil {
		t.Fatal(err)
	}
	third, err := n.AddPod(again, node.Routed)
	if err != nil {
		t.Fatal(err)
	}
	if third.Addrs[0] != first.Addrs[0] {
		t.Errorf("address %s, not %s", third.Addrs[0], first.Addrs[0])
	}
	if err := n.Host.Ping(t.Context(), third.Addrs[0], 10); err != nil {
		t.Error(err)
	}
}

// TestRemoveStale takes away what a process that is gone left, and nothing
// else.
func TestRemoveStale(t *testing.T) {
	w := newNetwork(t, node.NetworkOptions{})
	// No process has a number beyond the kernel's largest.
	stale := "weirnode-4194999-1"
	old, err := node.NewNetns(stale + ".pod-x")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = old.Close() }()
	if err := node.RemoveStale("weirnode"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(old.Path()); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", old.Path(), err)
	}
	if _, err := os.Stat(w.Outside.Path()); err != nil {
		t.Error(err)
	}
}
