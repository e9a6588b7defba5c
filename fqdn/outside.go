package fqdn

import (
	"net/netip"
	"slices"
)

// refused are addresses that clouds give to what serves the machine itself,
// credentials among it, where they are not link-local. No name of the outside
// stands for them.
var refused = [...]netip.Prefix{
	netip.MustParsePrefix("fd00:ec2::/32"),      // AWS: metadata is ::254
	netip.MustParsePrefix("fd20:ce::254/128"),   // Google Cloud
	netip.MustParsePrefix("fd00:42::42/128"),    // Scaleway
	netip.MustParsePrefix("100.100.100.200/32"), // Alibaba Cloud
	netip.MustParsePrefix("192.0.0.192/32"),     // Oracle Cloud
	netip.MustParsePrefix("168.63.129.16/32"),   // Azure
}

// outside tells whether an address in an answer can be an outside peer's. Those
// of pods, nodes and services are known to the kernel, not here.
func (c *Cache) outside(a netip.Addr) bool {
	switch {
	case !a.IsValid(), a.Zone() != "", a.Is4In6():
		return false // ::ffff:a.b.c.d in an AAAA record: no packet has it
	case a.IsUnspecified(), a.IsLoopback(), a.IsMulticast(), a.IsLinkLocalUnicast():
		return false
	}
	in := func(p netip.Prefix) bool { return p.Contains(a) }
	if slices.ContainsFunc(refused[:], in) || slices.ContainsFunc(c.settings.Deny, in) {
		return false
	}
	if a.Is4() {
		b := a.As4()
		return b[0] != 0 && b != [4]byte{255, 255, 255, 255}
	}
	b := a.As16()
	// ::a.b.c.d: another spelling of an IPv4 address, of long ago.
	return [12]byte(b[:12]) != [12]byte{}
}

// expel forgets addresses that can't be outside ones any more, also what a
// predecessor wrote of them and where a flow goes to them.
func (c *Cache) expel() {
	var touched []uint32
	settle := func() {
		c.settleLeft(touched)
		touched = touched[:0]
	}
	c.through(func() uint32 { return c.pairs.end }, func(at uint32) int {
		p := c.pairs.at(at)
		if p.learned == 0 || c.outside(addrOf(c.addrs.at(p.addr).ip)) {
			return 1
		}
		touched = append(touched, p.addr)
		c.forget(at)
		return writeWork
	}, settle)
	c.through(func() uint32 { return c.addrs.end }, func(at uint32) int {
		if a := c.addrs.at(at); !a.used || a.first != none || c.outside(addrOf(a.ip)) {
			return 1
		}
		touched = append(touched, at)
		return writeWork
	}, settle)
}
