package node

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func (ns *Netns) linkUp(name string) error {
	link, err := ns.nl.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s in %s: %w", name, ns.Name, err)
	}
	if err := ns.nl.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring link %s in %s up: %w", name, ns.Name, err)
	}
	return nil
}

// veth joins two namespaces: name on this side, peerName in peer; both are up.
func (ns *Netns) veth(name string, peer *Netns, peerName string, mtu int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, mtu
	pair := &netlink.Veth{
		LinkAttrs: attrs, PeerName: peerName, PeerMTU: uint32(mtu),
		PeerNamespace: netlink.NsFd(int(peer.file.Fd())),
	}
	if err := ns.nl.LinkAdd(pair); err != nil {
		return fmt.Errorf("make veth pair %s (%s) - %s (%s): %w", name, ns.Name, peerName, peer.Name, err)
	}
	if err := ns.linkUp(name); err != nil {
		return err
	}
	return peer.linkUp(peerName)
}

// bridge makes a bridge that is up and learns at once.
func (ns *Netns) bridge(name string, mtu int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, mtu
	if err := ns.nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("make bridge %s in %s: %w", name, ns.Name, err)
	}
	return ns.linkUp(name)
}

// enslave puts a link into a bridge.
func (ns *Netns) enslave(name, bridge string) error {
	link, err := ns.nl.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s in %s: %w", name, ns.Name, err)
	}
	master, err := ns.nl.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("find bridge %s in %s: %w", bridge, ns.Name, err)
	}
	if err := ns.nl.LinkSetMaster(link, master); err != nil {
		return fmt.Errorf("put %s into %s in %s: %w", name, bridge, ns.Name, err)
	}
	return nil
}

// address gives a link addresses, each with its prefix length.
func (ns *Netns) address(name string, prefixes ...netip.Prefix) error {
	link, err := ns.nl.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s in %s: %w", name, ns.Name, err)
	}
	for _, p := range prefixes {
		a := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := ns.nl.AddrAdd(link, a); err != nil {
			return fmt.Errorf("give %s in %s the address %s: %w", name, ns.Name, p, err)
		}
	}
	return nil
}

// route is one route of a namespace; a zero gateway means on the link, local
// that all of it is this namespace's own.
type route struct {
	to, link string
	via, src netip.Addr
	mtu      int
	local    bool
}

func (ns *Netns) route(routes ...route) error {
	for _, r := range routes {
		to, err := netip.ParsePrefix(r.to)
		if err != nil {
			return fmt.Errorf("add route in %s: %w", ns.Name, err)
		}
		link, err := ns.nl.LinkByName(r.link)
		if err != nil {
			return fmt.Errorf("find link %s in %s: %w", r.link, ns.Name, err)
		}
		nr := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(to), MTU: r.mtu}
		switch {
		case r.local:
			nr.Type, nr.Table, nr.Scope = unix.RTN_LOCAL, unix.RT_TABLE_LOCAL, unix.RT_SCOPE_HOST
		case r.via.IsValid():
			nr.Gw = r.via.AsSlice()
		default:
			nr.Scope = unix.RT_SCOPE_LINK
		}
		if r.src.IsValid() {
			nr.Src = r.src.AsSlice()
		}
		if err := ns.nl.RouteReplace(nr); err != nil {
			return fmt.Errorf("add route to %s in %s: %w", r.to, ns.Name, err)
		}
	}
	return nil
}

// Link returns what the kernel says about a link of the namespace.
func (ns *Netns) Link(name string) (netlink.Link, error) {
	link, err := ns.nl.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("find link %s in %s: %w", name, ns.Name, err)
	}
	return link, nil
}

// Links lists the names of the namespace's links.
func (ns *Netns) Links() ([]string, error) {
	links, err := ns.nl.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links of %s: %w", ns.Name, err)
	}
	var names []string
	for _, l := range links {
		names = append(names, l.Attrs().Name)
	}
	return names, nil
}

// SetMTU changes a link's MTU.
func (ns *Netns) SetMTU(name string, mtu int) error {
	link, err := ns.Link(name)
	if err != nil {
		return err
	}
	if err := ns.nl.LinkSetMTU(link, mtu); err != nil {
		return fmt.Errorf("set MTU of %s in %s: %w", name, ns.Name, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// host is the prefix of one address.
func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// AddAddress gives a link one more address.
func (ns *Netns) AddAddress(name string, a netip.Addr) error { return ns.address(name, host(a)) }
