package bpf

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/weirnet/weir/flow"
	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy"
)

// Keys and values of the tables, as types.h lays them out.
type (
	// Addr is an IP address in network byte order, IPv4 as ::ffff:a.b.c.d.
	Addr = datapathAddr
	// Tuple is the forward direction of a flow; ports in network byte order.
	Tuple    = datapathTuple
	Endpoint = datapathEndpoint
	Device   = datapathDevice
	Prefix   = datapathPrefix
	Peer     = datapathPeer
	Pair     = datapathPair
	Front    = datapathFront
	// FrontKey is an address and port; the port is in network byte order.
	FrontKey    = datapathFrontKey
	PolicyInfo  = datapathPolicyInfo
	PolicyKey   = datapathPolicyKey
	PolicyEntry = datapathPolicyEntry
	Conntrack   = datapathConntrack
	Conn        = datapathConn
	Proxy       = datapathProxy
	Host        = datapathHost
	State       = datapathState
	// Share is what the kernel counts of one veth's entries in Conns, Grant what
	// a proxy lets it make. See share.h.
	Share = datapathShare
	Grant = datapathGrant
	// Number is a number the agent gave out, Digest what it stands for.
	Number = datapathNumber
	Digest = datapathDigest
)

// Kinds of Number.
const (
	NumberIdentity = uint32(datapathNumberKindNUMBER_IDENTITY)
	NumberPolicy   = uint32(datapathNumberKindNUMBER_POLICY)
	NumberRuleSet  = uint32(datapathNumberKindNUMBER_RULE_SET)
	NumberRule     = uint32(datapathNumberKindNUMBER_RULE)
)

// Bits of Peer.Flags.
const (
	PeerWorld uint32 = 1 // an outside address; what DNS taught about it counts as well
	PeerHost  uint32 = 2 // an address of this node, whatever its identity
	PeerNode  uint32 = 4 // an address of a node, this one or another: it may serve node ports
)

// Bits of Conntrack.Flags.
const (
	CTSwapped       uint32 = 1    // the initiator is the higher (address, port) of the key
	CTJudgedIngress uint32 = 2    // ingress policy of the responder allowed it
	CTJudgedEgress  uint32 = 4    // egress policy of the initiator allowed it
	CTRedirected    uint32 = 8    // goes through the proxy
	CTCut           uint32 = 16   // being reset
	CTReplied       uint32 = 32   // a reply was seen
	CTFinForward    uint32 = 64   // the initiator has sent all
	CTFinReply      uint32 = 128  // the responder has sent all
	CTRst           uint32 = 256  // either end aborted it
	CTMidstream     uint32 = 512  // its start was not seen
	CTAsked         uint32 = 1024 // begun by the proxy in a pod's name, to ask a server
	CTForeign       uint32 = 4096 // sent on with an address of the node's
	CTMayAsk        uint32 = 2048 // UDP: the responder's next answer may have to go to its proxy
)

// AddrOf converts an address; the zero netip.Addr gives the zero Addr, which
// is the IPv6 unspecified address. A zone is lost.
func AddrOf(a netip.Addr) (out Addr) {
	if a.IsValid() {
		b := a.As16()
		for i := range out.Word {
			out.Word[i] = binary.NativeEndian.Uint32(b[4*i:])
		}
	}
	return out
}

// bytes gives the address as on the wire.
func (a datapathAddr) bytes() (b [16]byte) {
	for i, w := range a.Word {
		binary.NativeEndian.PutUint32(b[4*i:], w)
	}
	return b
}

// Netip converts back; IPv4 comes out as IPv4.
func (a datapathAddr) Netip() netip.Addr { return netip.AddrFrom16(a.bytes()).Unmap() }

func (a datapathAddr) String() string { return a.Netip().String() }

// PrefixOf converts a prefix, masking host bits.
func PrefixOf(p netip.Prefix) Prefix {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	return Prefix{Bits: uint32(bits), Addr: AddrOf(p.Masked().Addr())}
}

// Netip converts back. It is invalid if the key is none PrefixOf makes.
func (p datapathPrefix) Netip() netip.Prefix {
	a, bits := p.Addr.Netip(), int(p.Bits)
	if a.Is4() {
		bits -= 96
	}
	return netip.PrefixFrom(a, bits)
}

// swap16 turns a port between host and network byte order.
func swap16(p uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], p)
	return binary.NativeEndian.Uint16(b[:])
}

// TupleOf returns the tuple of a flow from src to dst.
func TupleOf(src, dst netip.AddrPort, protocol uint8) Tuple {
	return Tuple{
		Saddr: AddrOf(src.Addr()), Daddr: AddrOf(dst.Addr()),
		Sport: swap16(src.Port()), Dport: swap16(dst.Port()),
		Proto: protocol,
	}
}

// Source is the initiator's end.
func (t datapathTuple) Source() netip.AddrPort {
	return netip.AddrPortFrom(t.Saddr.Netip(), swap16(t.Sport))
}

// Destination is the responder's end.
func (t datapathTuple) Destination() netip.AddrPort {
	return netip.AddrPortFrom(t.Daddr.Netip(), swap16(t.Dport))
}

// Session returns the key in Conns of a redirected flow of UDP: all those of one
// pod to one server and port have one entry.
func (t datapathTuple) Session() Tuple {
	t.Sport = 0
	return t
}

// Reverse returns the tuple of the flow's replies.
func (t datapathTuple) Reverse() Tuple {
	t.Saddr, t.Daddr = t.Daddr, t.Saddr
	t.Sport, t.Dport = t.Dport, t.Sport
	return t
}

// Canonical returns the flow's key in conntrack, and whether that is the
// reverse of t (CTSwapped of an entry whose initiator is t's source).
func (t datapathTuple) Canonical() (key Tuple, swapped bool) {
	a, b := t.Saddr.bytes(), t.Daddr.bytes()
	c := bytes.Compare(a[:], b[:])
	if c > 0 || c == 0 && swap16(t.Sport) > swap16(t.Dport) {
		return t.Reverse(), true
	}
	return t, false
}

func (t datapathTuple) String() string {
	return fmt.Sprintf("%v -> %v proto %d", t.Source(), t.Destination(), t.Proto)
}

// FlowOf returns the forward tuple of a conntrack entry.
func FlowOf(key Tuple, ct Conntrack) Tuple {
	if ct.Flags&CTSwapped != 0 {
		return key.Reverse()
	}
	return key
}

// FrontKeyOf returns where a service may be reached. The unspecified address stands
// for all addresses of its family that are PeerNode.
func FrontKeyOf(at netip.AddrPort, protocol uint8) FrontKey {
	return FrontKey{Addr: AddrOf(at.Addr()), Port: swap16(at.Port()), Proto: protocol}
}

// PolicyKeyOf returns the key in the policy table of an entry of policy id.
func PolicyKeyOf(id uint32, k policy.Key) PolicyKey {
	return PolicyKey{
		Policy: id, Identity: uint32(k.Identity),
		Port: k.Port, PortBits: k.PortBits,
		Proto: k.Protocol, Direction: uint8(k.Direction),
	}
}

// PolicyEntryOf converts an entry's value.
func PolicyEntryOf(e policy.Entry) PolicyEntry {
	out := PolicyEntry{Action: uint8(e.Action), RuleSet: e.RuleSet, Rule: e.Rule}
	if e.Action == policy.Refuse {
		reason := flow.ReasonPolicyRefused
		switch e.Reason {
		case policy.RefusedL7Unsupported:
			reason = flow.ReasonL7Unsupported
		case policy.RefusedL7Conflict:
			reason = flow.ReasonL7Conflict
		case policy.RefusedBackends:
			reason = flow.ReasonServiceBackends
		}
		out.Reason = uint8(reason)
	}
	return out
}

// probeAllProtocols is PROBE_ALL_PROTOCOLS of types.h.
const probeAllProtocols = 1 << 17

// PolicyInfoOf computes what the kernel has to know before it searches the
// entries of r: it looks only where PolicyInfo says that entries exist, so it
// must be written before entries it announces matter, and may announce more
// than there is.
func PolicyInfoOf(r *policy.Resolved) PolicyInfo {
	var info PolicyInfo
	for d, on := range r.Enforced {
		if on {
			info.Enforced[d] = 1
		}
	}
	for k, e := range r.Entries {
		info = info.Union(announcement(k.Direction, k.Identity, k.Protocol, k.PortBits, e.Action))
	}
	return info
}

// Announcement is what PolicyInfo has to say for the sake of one entry.
func Announcement(k PolicyKey, e PolicyEntry) PolicyInfo {
	return announcement(policy.Direction(k.Direction), identity.ID(k.Identity), k.Proto, k.PortBits, policy.Action(e.Action))
}

func announcement(d policy.Direction, peer identity.ID, protocol, portBits uint8, action policy.Action) PolicyInfo {
	var info PolicyInfo
	if action == policy.Redirect {
		info.L7[d] = 1
	}
	bit := uint32(probeAllProtocols)
	if protocol != 0 {
		bit = 1 << portBits
	}
	if peer == identity.Any {
		info.AnyPortBits[d] = bit
	} else {
		info.PortBits[d] = bit
	}
	return info
}

// Union announces what either announces: what to write while entries of both
// are in the table. Enforced is i's.
func (i datapathPolicyInfo) Union(old PolicyInfo) PolicyInfo {
	for d := range i.PortBits {
		i.L7[d] |= old.L7[d]
		i.PortBits[d] |= old.PortBits[d]
		i.AnyPortBits[d] |= old.AnyPortBits[d]
	}
	return i
}

// ConnsShare is how many of the entries of Conns one veth may have: a quarter.
func ConnsShare(entries uint32) uint32 { return max(entries/4, 1) }

// ConnLocal << direction is a bit of Conn.L7: that end is a pod of this node.
const ConnLocal = uint8(datapathConnBitsCONN_LOCAL)
