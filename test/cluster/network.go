package cluster

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/weirnet/weir/test/node"
)

// Numbers of machines on the bridge, the last part of their addresses.
const (
	routerNumber  = 1
	controlNumber = 10
)

func nodeNumber(index int) int { return controlNumber + 1 + index }

// network is the cluster's network namespaces while they are being set up.
type network struct {
	lan, control *node.Netns
	nodes        []*node.Netns
}

// release lets go of the namespaces, which stay.
func (n *network) release() {
	for _, ns := range append(n.nodes, n.lan, n.control) {
		ns.Release()
	}
}

// netns is the name of a namespace of the cluster.
func (c *Cluster) netns(of string) string { return c.Name + "." + of }

// makeNetwork makes the namespaces and joins them.
func (c *Cluster) makeNetwork(ctx context.Context) (*network, error) {
	n := &network{}
	var err error
	if n.lan, err = node.NewNetns(c.netns("lan")); err != nil {
		return nil, err
	}
	if err := n.lan.Sysctl(forwarding...); err != nil {
		return nil, err
	}
	var b strings.Builder
	b.WriteString("link add br0 type bridge forward_delay 0\nlink set br0 up\n")
	for _, a := range c.lanAddrs(routerNumber) {
		fmt.Fprintf(&b, "addr add %s/%d dev br0\n", a, lanBits(a.Is6()))
	}
	b.WriteString("addr add 198.51.100.2/32 dev lo\nroute add local 198.18.0.0/15 dev lo\n")
	if c.DualStack {
		b.WriteString("addr add 2001:db8:1::2/128 dev lo\nroute add local 2001:db8:2::/48 dev lo\n")
	}
	if _, err := n.lan.Run(ctx, b.String(), "ip", "-batch", "-"); err != nil {
		return nil, fmt.Errorf("set up the bridge: %w", err)
	}
	if n.control, err = c.join(ctx, n, "control", controlNumber); err != nil {
		return nil, err
	}
	for i, m := range c.Nodes {
		ns, err := c.join(ctx, n, m.Name, nodeNumber(i))
		if err != nil {
			return nil, err
		}
		n.nodes = append(n.nodes, ns)
		if _, err := ns.Run(ctx, c.masquerade(), "nft", "-f", "-"); err != nil {
			return nil, fmt.Errorf("masquerade at %s: %w", m.Name, err)
		}
	}
	return n, nil
}

var forwarding = []string{"net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"}

func lanBits(v6 bool) int {
	if v6 {
		return 64
	}
	return 24
}

// join makes a machine's namespace with one interface, eth0, on the bridge.
func (c *Cluster) join(ctx context.Context, n *network, name string, number int) (*node.Netns, error) {
	ns, err := node.NewNetns(c.netns(name))
	if err != nil {
		return nil, err
	}
	if err := ns.Sysctl(forwarding...); err != nil {
		return nil, err
	}
	// What kube-proxy needs where pods hang on a bridge; it is on by default.
	if err := ns.Sysctl("net.bridge.bridge-nf-call-iptables=1", "net.bridge.bridge-nf-call-ip6tables=1"); err != nil && !os.IsNotExist(err) && c.CNI == "bridge" {
		return nil, err
	}
	wire := fmt.Sprintf("link add m%d type veth peer name eth0 netns %s\nlink set m%d master br0 up\n", number, ns.Name, number)
	if _, err := n.lan.Run(ctx, wire, "ip", "-batch", "-"); err != nil {
		return nil, fmt.Errorf("join %s to the bridge: %w", name, err)
	}
	var b strings.Builder
	b.WriteString("link set eth0 up\n")
	for _, a := range c.lanAddrs(number) {
		fmt.Fprintf(&b, "addr add %s/%d dev eth0\n", a, lanBits(a.Is6()))
	}
	for i, router := range c.lanAddrs(routerNumber) {
		fmt.Fprintf(&b, "route add default via %s\n", router)
		for other := range c.Nodes {
			if nodeNumber(other) != number {
				fmt.Fprintf(&b, "route add %s via %s\n", c.podCIDRs(other + 1)[i], c.lanAddrs(nodeNumber(other))[i])
			}
		}
	}
	if _, err := ns.Run(ctx, b.String(), "ip", "-batch", "-"); err != nil {
		return nil, fmt.Errorf("give %s its addresses: %w", name, err)
	}
	return ns, nil
}

// masquerade is how pods reach what knows no pod addresses.
func (c *Cluster) masquerade() string {
	cidrs := c.clusterCIDRs()
	rules := fmt.Sprintf("\t\tip saddr %s ip daddr != %s oifname eth0 masquerade\n", cidrs[0], cidrs[0])
	if c.DualStack {
		rules += fmt.Sprintf("\t\tip6 saddr %s ip6 daddr != %s oifname eth0 masquerade\n", cidrs[1], cidrs[1])
	}
	return "table inet cluster {\n\tchain postrouting {\n\t\ttype nat hook postrouting priority srcnat + 10;\n" + rules + "\t}\n}\n"
}
