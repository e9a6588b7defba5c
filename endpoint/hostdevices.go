package endpoint

import (
	"fmt"
	"net"
	"regexp"
	"slices"
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
	ethernet bool // its packets have Ethernet headers
	veth     bool
	global   bool // has an address that counts beyond the link
	subnet   bool // such an address comes with a subnet
	route    bool // a default route goes by it
}

// joins tells whether the node is joined to a network by the interface. The host
// side of a veth that is a pod's, or a container's, has no address, or a gateway's
// with its full length.
func (d *hostDevice) joins(pattern *regexp.Regexp) bool {
	switch {
	case d.loopback || d.ours:
		return false
	case pattern != nil:
		return pattern.MatchString(d.name)
	case d.veth:
		return d.subnet || d.route
	}
	return d.global || d.route
}

// chooseHostDevices picks the interfaces that the node's own traffic is judged at,
// with their names. Skipped are those of them where it can't be.
func chooseHostDevices(all []hostDevice, isPod func(ifindex int) bool, pattern *regexp.Regexp) (chosen map[int]string, skipped []string) {
	chosen = map[int]string{}
	for i := range all {
		d := &all[i]
		switch {
		case isPod(d.index) || !d.joins(pattern):
		case !d.ethernet:
			skipped = append(skipped, d.name)
		default:
			chosen[d.index] = d.name
		}
	}
	slices.Sort(skipped)
	return chosen, skipped
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
			ours: strings.HasPrefix(a.Alias, proxyAlias), ethernet: a.EncapType == "ether", veth: l.Type() == "veth",
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
// default route, or if pattern is not nil those whose name it matches. isPod tells
// the veths of pods, which are none of them. Skipped are those without Ethernet
// headers, where Weir can't judge.
func HostDevices(isPod func(ifindex int) bool, pattern *regexp.Regexp) (chosen map[int]string, skipped []string, err error) {
	all, err := listHostDevices()
	if err != nil {
		return nil, nil, err
	}
	chosen, skipped = chooseHostDevices(all, isPod, pattern)
	return chosen, skipped, nil
}
