package endpoint

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/policy"
)

// HostAddresses returns, in order and each once, where packets of pods reach the
// namespace Veths were opened in, which is the node itself: the addresses of all
// its interfaces, be they up or not, link-local ones included, and beside them
// the IPv4 broadcast address and the IPv6 subnet-router address (RFC 4291, 2.6.1)
// of each subnet, at which it listens, too. Loopback addresses are not among
// them: no packet that comes from elsewhere goes there.
//
// It is read from the kernel when an event may have changed it. Like Scan it
// must not be called concurrently, and with an error the next call reads again.
func (v *Veths) HostAddresses() ([]netip.Addr, error) {
	v.mu.Lock()
	stale := v.hostStale
	v.hostStale = false
	v.mu.Unlock()
	if !stale {
		return v.host, nil
	}
	var found []netip.Addr
	subnet := map[int]bool{}
	err := v.dump(unix.RTM_GETADDR, unix.RTM_NEWADDR, nl.NewIfAddrmsg(unix.AF_UNSPEC), nil, func(h []byte, a map[uint16][]byte) {
		m := nl.DeserializeIfAddrmsg(h)
		found = append(found, reached(m, a)...)
		if at, ok := netip.AddrFromSlice(a[unix.IFA_ADDRESS]); ok && !at.IsLinkLocalUnicast() && int(m.Prefixlen) < at.BitLen() {
			subnet[int(m.Index)] = true
		}
	})
	if err != nil {
		v.mu.Lock()
		v.hostStale = true
		v.mu.Unlock()
		return nil, fmt.Errorf("list the node's addresses: %w", err)
	}
	slices.SortFunc(found, netip.Addr.Compare)
	v.host, v.subnet = slices.Compact(found), subnet
	return v.host, nil
}

// InSubnet tells, as of the last HostAddresses, whether an interface of the node
// has an address that comes with a subnet: then it is how the node itself is
// joined to a network. The host side of a pod's veth has no address, or a
// gateway's with its full length.
func (v *Veths) InSubnet(ifindex int) bool { return v.subnet[ifindex] }

// reached is where packets arrive because of one address of an interface.
func reached(h *nl.IfAddrmsg, attrs map[uint16][]byte) (out []netip.Addr) {
	flags := uint32(h.Flags)
	if f := attrs[unix.IFA_FLAGS]; len(f) >= 4 {
		flags = binary.NativeEndian.Uint32(f)
	}
	raw := attrs[unix.IFA_LOCAL] // IPv4, and IPv6 with a peer's address
	if raw == nil {
		raw = attrs[unix.IFA_ADDRESS]
	}
	addr, ok := netip.AddrFromSlice(raw)
	// One that another node has already is not used.
	if !ok || addr.IsLoopback() || addr.IsUnspecified() || flags&unix.IFA_F_DADFAILED != 0 {
		return nil
	}
	out = append(out, addr)
	if all, ok := netip.AddrFromSlice(attrs[unix.IFA_BROADCAST]); ok && all != netip.AddrFrom4([4]byte{255, 255, 255, 255}) && !all.IsUnspecified() {
		out = append(out, all)
	}
	// The longest two lengths have no such address (RFC 6164).
	if subnet, err := addr.Prefix(int(h.Prefixlen)); err == nil && addr.Is6() && h.Prefixlen > 0 && h.Prefixlen < 127 {
		out = append(out, subnet.Addr())
	}
	return out
}

// followHost tells the engine which addresses the node has, and whom it asks. Where they can't be
// read, what was known stays.
func (m *Manager) followHost() error {
	addrs, err := m.veths.HostAddresses()
	resolvers := m.r.nameSets.others()
	same := slices.Equal(addrs, m.host)
	if err != nil || m.hostKnown && same && slices.Equal(resolvers, m.resolvers) {
		return err
	}
	m.hostChanges++
	if m.hostKnown && !same {
		m.log.Info("the node's addresses changed", "before", len(m.host), "now", len(addrs))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	err = m.evaluate(policy.Change{
		Object: policy.Object{Kind: policy.KindHostAddresses}, Value: &policy.HostAddresses{Addresses: addrs, Resolvers: resolvers},
	})
	clear(m.labels)
	if err != nil {
		return fmt.Errorf("compute policy of the node's addresses: %w", err)
	}
	m.host, m.hostKnown, m.resolvers = addrs, true, resolvers
	return nil
}
