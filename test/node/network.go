package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
)

// DefaultMTU is the MTU of links that say nothing else.
const DefaultMTU = 1500

// Addresses of the world beyond the nodes.
var (
	routerV4, routerV6     = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	wanV4, wanV6           = netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8:1::1")
	outsideV4, outsideV6   = netip.MustParseAddr("198.51.100.2"), netip.MustParseAddr("2001:db8:1::2")
	linkLocalGateway       = netip.MustParseAddr("fe80::1")
	podRangeV4, podRangeV6 = netip.MustParsePrefix("10.77.0.0/16"), netip.MustParsePrefix("fd77::/32")
	worldV4, worldV6       = netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("2001:db8:2::/48")
)

// NetworkOptions of a Network.
type NetworkOptions struct {
	// Name is the beginning of every name; see UniqueName.
	Name string
	// WANMTU is the MTU between the router and the outside (0: DefaultMTU).
	WANMTU int
	Log    *slog.Logger // nil: nothing is logged
}

// Network is a world for nodes: a router, and beyond it the outside.
type Network struct {
	Name    string
	Outside *Netns
	Router  *Netns

	log   *slog.Logger
	mu    sync.Mutex
	nodes []*Node
}

// NewNetwork makes the router and the outside. Call Close in any case: also a
// Network that failed half way holds nothing then.
func NewNetwork(o NetworkOptions) (_ *Network, err error) {
	if o.WANMTU == 0 {
		o.WANMTU = DefaultMTU
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	w := &Network{Name: o.Name, log: o.Log}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("make network %s: %w", o.Name, err), w.Close())
		}
	}()
	if w.Router, err = NewNetns(o.Name + ".router"); err != nil {
		return nil, err
	}
	if w.Outside, err = NewNetns(o.Name + ".outside"); err != nil {
		return nil, err
	}
	return w, errors.Join(
		w.Router.Sysctl("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"),
		w.Router.bridge("br0", DefaultMTU),
		w.Router.address("br0", netip.PrefixFrom(routerV4, 24), netip.PrefixFrom(routerV6, 64)),
		w.Router.veth("wan", w.Outside, "eth0", o.WANMTU),
		w.Router.address("wan", netip.PrefixFrom(wanV4, 24), netip.PrefixFrom(wanV6, 64)),
		// The server's own MTU is a whole one: what is too big is the way, and
		// only the router's ICMP errors tell.
		w.Outside.SetMTU("eth0", DefaultMTU),
		w.Outside.address("eth0", netip.PrefixFrom(outsideV4, 24), netip.PrefixFrom(outsideV6, 64)),
		w.Outside.route(
			route{to: "0.0.0.0/0", link: "eth0", via: wanV4, mtu: o.WANMTU},
			route{to: "::/0", link: "eth0", via: wanV6, mtu: o.WANMTU},
			route{to: worldV4.String(), link: "lo", local: true},
			route{to: worldV6.String(), link: "lo", local: true}),
		w.Router.route(
			route{to: worldV4.String(), link: "wan", via: outsideV4},
			route{to: worldV6.String(), link: "wan", via: outsideV6}),
	)
}

// OutsideAddrs are the addresses of the outside, IPv4 first.
func (w *Network) OutsideAddrs() []netip.Addr { return []netip.Addr{outsideV4, outsideV6} }

// Nodes lists the nodes there are.
func (w *Network) Nodes() []*Node {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.nodes)
}

// Close stops what runs on the nodes and removes everything. It goes on where
// something fails, and may be called again.
func (w *Network) Close() error {
	var errs []error
	w.mu.Lock()
	nodes := w.nodes
	w.nodes = nil
	w.mu.Unlock()
	for _, n := range nodes {
		errs = append(errs, n.close())
	}
	for _, ns := range []*Netns{w.Outside, w.Router} {
		if ns != nil {
			errs = append(errs, ns.Close())
		}
	}
	w.Outside, w.Router = nil, nil
	return errors.Join(errs...)
}

// NodeOptions of a Node.
type NodeOptions struct {
	// Name is the Kubernetes name of the node.
	Name string
	// RPFilter is net.ipv4.conf.{all,default}.rp_filter: 0, 1 or 2.
	RPFilter int
	// UplinkMTU and PodMTU: 0 is DefaultMTU.
	UplinkMTU, PodMTU int
	// DropInvalid drops forwarded packets that the host's own connection
	// tracking calls invalid, as kube-proxy and many firewalls do.
	DropInvalid bool
}

// Node is one node: a host namespace and its pods.
type Node struct {
	NodeOptions
	Host *Netns
	// State is the --state of the Weir that runs here, unique on the machine.
	State string
	// Cgroup (v2) is that of the pods; only processes that Pod.Contain puts there
	// are in it. "": there is no cgroup v2.
	Cgroup string

	network *Network
	number  int

	mu        sync.Mutex
	pods      []*Pod
	made      int // pods made so far: the source of addresses and link names
	processes []*Process
	forwards  []string
	services  []string
	weir      *Weir
}

// AddNode makes a node that reaches the outside and the nodes made before.
func (w *Network) AddNode(o NodeOptions) (_ *Node, err error) {
	if o.UplinkMTU == 0 {
		o.UplinkMTU = DefaultMTU
	}
	if o.PodMTU == 0 {
		o.PodMTU = DefaultMTU
	}
	w.mu.Lock()
	n := &Node{NodeOptions: o, network: w, number: len(w.nodes) + 1, State: w.Name + "." + o.Name}
	w.nodes = append(w.nodes, n)
	others := slices.Clone(w.nodes[:len(w.nodes)-1])
	w.mu.Unlock()
	defer func() {
		if err != nil {
			err = fmt.Errorf("make node %s: %w", o.Name, err)
		}
	}()
	if err := n.makeCgroup(); err != nil {
		return nil, err
	}
	if n.Host, err = NewNetns(w.Name + ".host-" + o.Name); err != nil {
		return nil, err
	}
	addrs := n.Addrs()
	bridgeV4, bridgeV6 := n.bridgeRange()
	uplink := "node" + fmt.Sprint(n.number)
	err = errors.Join(
		n.Host.Sysctl("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1",
			fmt.Sprintf("net.ipv4.conf.all.rp_filter=%d", o.RPFilter),
			fmt.Sprintf("net.ipv4.conf.default.rp_filter=%d", o.RPFilter)),
		w.Router.veth(uplink, n.Host, "up0", o.UplinkMTU),
		w.Router.SetMTU(uplink, DefaultMTU),
		w.Router.enslave(uplink, "br0"),
		n.Host.address("up0", netip.PrefixFrom(addrs[0], 24), netip.PrefixFrom(addrs[1], 64)),
		n.Host.route(
			route{to: "0.0.0.0/0", link: "up0", via: routerV4},
			route{to: "::/0", link: "up0", via: routerV6}),
		n.Host.bridge("cni0", o.PodMTU),
		n.Host.address("cni0", bridgeV4, bridgeV6),
		n.applyNAT(context.Background()),
	)
	if err != nil {
		return nil, err
	}
	for _, other := range others {
		if err := errors.Join(n.routeTo(other), other.routeTo(n)); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// routeTo sends the pods of another node to that node.
func (n *Node) routeTo(other *Node) error {
	cidrs, addrs := other.PodCIDRs(), other.Addrs()
	return n.Host.route(
		route{to: cidrs[0].String(), link: "up0", via: addrs[0]},
		route{to: cidrs[1].String(), link: "up0", via: addrs[1]})
}

// Addrs are the node's own addresses, IPv4 first.
func (n *Node) Addrs() []netip.Addr {
	return []netip.Addr{
		netip.AddrFrom4([4]byte{192, 0, 2, byte(10 + n.number)}),
		netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", 10+n.number)),
	}
}

// PodCIDRs are the ranges of the node's pods, IPv4 first.
func (n *Node) PodCIDRs() []netip.Prefix {
	return []netip.Prefix{
		netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, byte(n.number), 0}), 24),
		netip.MustParsePrefix(fmt.Sprintf("fd77:0:%d::/48", n.number)),
	}
}

// bridgeRange is the bridge's address with the range of the pods on it.
func (n *Node) bridgeRange() (v4, v6 netip.Prefix) {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, byte(n.number), 129}), 25),
		netip.MustParsePrefix(fmt.Sprintf("fd77:0:%d:2::1/64", n.number))
}

// routedGateway is the gateway of routed pods, an address that the host side
// of every such veth has.
func (n *Node) routedGateway() netip.Addr {
	return netip.AddrFrom4([4]byte{10, 77, byte(n.number), 1})
}

// OutsideAddrs are the addresses of the outside, IPv4 first.
func (n *Node) OutsideAddrs() []netip.Addr { return n.network.OutsideAddrs() }

// Outside is the namespace of the outside.
func (n *Node) Outside() *Netns { return n.network.Outside }

// close removes the node.
func (n *Node) close() error {
	var errs []error
	if n.weir != nil {
		errs = append(errs, n.weir.Remove())
	}
	n.mu.Lock()
	processes, pods := n.processes, n.pods
	n.processes, n.pods = nil, nil
	n.mu.Unlock()
	for _, p := range processes {
		p.Stop()
	}
	for _, p := range pods {
		errs = append(errs, p.Netns.Close())
	}
	if n.Host != nil {
		errs = append(errs, n.Host.Close())
		n.Host = nil
	}
	return errors.Join(append(errs, removeCgroup(n.Cgroup))...)
}

// UniqueName is a Network name that no other process or call has, and that
// RemoveStale recognises: prefix, the process and a number.
func UniqueName(prefix string, number int) string {
	return fmt.Sprintf("%s-%d-%d", prefix, os.Getpid(), number)
}

// nameOwner returns the process that a name made by UniqueName belongs to.
func nameOwner(prefix, name string) (pid int, ok bool) {
	rest, ok := strings.CutPrefix(name, prefix+"-")
	if !ok {
		return 0, false
	}
	var number int
	if _, err := fmt.Sscanf(rest, "%d-%d", &pid, &number); err != nil {
		return 0, false
	}
	return pid, true
}
