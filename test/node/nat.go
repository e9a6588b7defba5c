package node

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// applyNAT writes the host's one nftables table: pods reach the outside with
// the node's address, and the forwards there are.
func (n *Node) applyNAT(ctx context.Context) error {
	cidrs := n.PodCIDRs()
	var b strings.Builder
	fmt.Fprintf(&b, `add table inet node
delete table inet node
table inet node {
	chain postrouting {
		type nat hook postrouting priority srcnat;
		ip saddr %s ip daddr != %s oifname "up0" masquerade
		ip6 saddr %s ip6 daddr != %s oifname "up0" masquerade
		ct mark 0x1 masquerade
	}
	chain prerouting {
		type nat hook prerouting priority dstnat;
`, cidrs[0], podRangeV4, cidrs[1], podRangeV6)
	for _, f := range slices.Concat(n.forwards, n.services) {
		fmt.Fprintf(&b, "\t\t%s\n", f)
	}
	b.WriteString("\t}\n\tchain output {\n\t\ttype nat hook output priority -100;\n")
	for _, f := range n.services {
		fmt.Fprintf(&b, "\t\t%s\n", f)
	}
	b.WriteString("\t}\n")
	if n.DropInvalid {
		b.WriteString("\tchain forward {\n\t\ttype filter hook forward priority filter;\n\t\tct state invalid counter drop\n\t}\n")
	}
	b.WriteString("}\n")
	if _, err := n.Host.Run(ctx, b.String(), "nft", "-f", "-"); err != nil {
		return fmt.Errorf("write the nat rules: %w", err)
	}
	return nil
}

// Forward lets the outside reach a pod by a port of the node, as a NodePort
// does. masquerade: the pod sees the node's address instead of the client's
// (externalTrafficPolicy: Cluster); else the client's own.
func (n *Node) Forward(ctx context.Context, protocol string, port uint16, p *Pod, podPort uint16, masquerade bool) error {
	mark := ""
	if masquerade {
		mark = "ct mark set 0x1 "
	}
	protocol = strings.ToLower(protocol)
	n.mu.Lock()
	n.forwards = append(n.forwards,
		fmt.Sprintf(`iifname "up0" ip daddr %s %s dport %d %sdnat ip to %s`, n.Addrs()[0], protocol, port, mark, netip.AddrPortFrom(p.Addrs[0], podPort)),
		fmt.Sprintf(`iifname "up0" ip6 daddr %s %s dport %d %sdnat ip6 to %s`, n.Addrs()[1], protocol, port, mark, netip.AddrPortFrom(p.Addrs[1], podPort)))
	n.mu.Unlock()
	return n.applyNAT(ctx)
}

// Service lets the pods and the node itself reach other pods by addresses that
// nobody has, one of each family, as kube-proxy does it for cluster IPs: any of
// the backends, the same for all packets of a flow.
func (n *Node) Service(ctx context.Context, addrs []netip.Addr, protocols []string, port uint16, backends []*Pod, backendPort uint16) error {
	n.mu.Lock()
	for i, a := range addrs {
		family := map[bool]string{false: "ip", true: "ip6"}[a.Is6()]
		to := make([]string, len(backends))
		for j, b := range backends {
			to[j] = fmt.Sprintf("%d : %s", j, b.Addrs[i])
		}
		for _, p := range protocols {
			n.services = append(n.services, fmt.Sprintf("%s daddr %s %s dport %d dnat %s to numgen random mod %d map { %s } : %d",
				family, a, strings.ToLower(p), port, family, len(to), strings.Join(to, ", "), backendPort))
		}
	}
	n.mu.Unlock()
	return n.applyNAT(ctx)
}
