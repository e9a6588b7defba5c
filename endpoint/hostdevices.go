package endpoint

import (
	"fmt"
	"net"
	"regexp"
	"strings"

	"github.com/vishvananda/netlink"
)

// hostDevice is an interface of the node, as far as it matters whether the node's
// own traffic goes by it.
type hostDevice struct {
	index    int
	name     string
	loopback bool
	ours     bool // leads to a proxy of Weir's
	veth     bool
	tunnel   bool // leads elsewhere over another interface, whatever its addresses, and is in use
	global   bool // has an address that counts beyond the link
	subnet   bool // such an address comes with a subnet
	route    bool // a default route goes by it
}

// joins tells whether the node is joined to a network by the interface. The host
// side of a veth that is a pod's, or a container's, has no address, or a gateway's
// with its full length. What comes out of a tunnel was judged only as what carries
// it, which is mostly fail-safe.
func (d *hostDevice) joins(pattern *regexp.Regexp) bool {
	switch {
	case d.loopback || d.ours:
		return false
	case pattern != nil:
		return pattern.MatchString(d.name)
	case d.veth:
		return d.subnet || d.route
	}
	return d.global || d.route || d.tunnel
}

// chooseHostDevices picks the interfaces that the node's own traffic is judged at,
// with their names.
func chooseHostDevices(all []hostDevice, isPod func(ifindex int) bool, pattern *regexp.Regexp) map[int]string {
	chosen := map[int]string{}
	for i := range all {
		if d := &all[i]; !isPod(d.index) && d.joins(pattern) {
			chosen[d.index] = d.name
		}
	}
	return chosen
}

// hasEthernet tells whether packets of an interface have Ethernet headers.
func hasEthernet(l netlink.Link) bool {
	if t, ok := l.(*netlink.Tuntap); ok && t.Mode == netlink.TUNTAP_MODE_TUN {
		return false // whatever it says it is
	}
	return l.Attrs().EncapType == "ether"
}

// isTunnel tells whether an interface leads elsewhere over another one, and is in
// use by itself: not down, and no port of a bridge.
func isTunnel(l netlink.Link) bool {
	a := l.Attrs()
	if a.Flags&net.FlagUp == 0 || a.MasterIndex != 0 {
		return false
	}
	switch l.Type() {
	case "vxlan", "geneve", "gretap", "ip6gretap":
		return true
	}
	return !hasEthernet(l)
}

// listHostDevices reads the interfaces of this network namespace.
func listHostDevices() ([]hostDevice, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	global, subnet, route := map[int]bool{}, map[int]bool{}, map[int]bool{}
	for _, a := range addrs {
		if a.IP.IsGlobalUnicast() {
			global[a.LinkIndex] = true
			if ones, bits := a.Mask.Size(); ones < bits {
				subnet[a.LinkIndex] = true
			}
		}
	}
	for _, r := range routes {
		if !isDefault(r.Dst) {
			continue
		}
		route[r.LinkIndex] = true
		for _, hop := range r.MultiPath {
			route[hop.LinkIndex] = true
		}
	}
	out := make([]hostDevice, 0, len(links))
	for _, l := range links {
		a := l.Attrs()
		out = append(out, hostDevice{index: a.Index, name: a.Name, loopback: a.Flags&net.FlagLoopback != 0,
			ours: strings.HasPrefix(a.Alias, proxyAlias), veth: l.Type() == "veth", tunnel: isTunnel(l),
			global: global[a.Index], subnet: subnet[a.Index], route: route[a.Index]})
	}
	return out, nil
}

func isDefault(dst *net.IPNet) bool {
	if dst == nil {
		return true
	}
	ones, _ := dst.Mask.Size()
	return ones == 0 && dst.IP.IsUnspecified()
}

// HostDevices tells as of now by which interfaces the node is joined to networks,
// in the network namespace it is called in: those with a global address or a
// default route, and tunnels, or if pattern is not nil those whose name it matches.
// isPod tells the veths of pods, which are none of them.
func HostDevices(isPod func(ifindex int) bool, pattern *regexp.Regexp) (map[int]string, error) {
	all, err := listHostDevices()
	if err != nil {
		return nil, err
	}
	return chooseHostDevices(all, isPod, pattern), nil
}
