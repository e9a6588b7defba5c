package policy

import (
	"cmp"
	"math/bits"
	"slices"
)

// IANA numbers of the protocols that have a meaning here.
const (
	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58
	protoSCTP   = 132
)

// ports is a part of a Key: a protocol and a prefix of port numbers. All zero:
// everything.
type ports struct {
	proto uint8
	bits  uint8
	port  uint16
}

// covers tells whether every flow in q is in p.
func (p ports) covers(q ports) bool {
	if p.proto == 0 {
		return true
	}
	return p.proto == q.proto && p.bits <= q.bits && q.port&mask(p.bits) == p.port
}

// contains tells whether the flow is in p.
func (p ports) contains(proto uint8, port uint16) bool {
	return p.proto == 0 || p.proto == proto && port&mask(p.bits) == p.port
}

func (p ports) key(d Direction) Key {
	return Key{Direction: d, Protocol: p.proto, Port: p.port, PortBits: p.bits}
}

func mask(bits uint8) uint16 { return uint16(0xffff << (16 - bits)) }

// onePort is one port of a protocol, or one type of ICMP.
func onePort(proto uint8, port uint16) ports { return ports{proto: proto, port: port, bits: 16} }

// appendRange appends the fewest prefixes that are the ports first to last.
func appendRange(out []ports, proto uint8, first, last uint16) []ports {
	for from, end := uint32(first), uint32(last); from <= end; {
		size := 16 // log2 of the block
		if from != 0 {
			size = bits.TrailingZeros32(from)
		}
		for from+1<<size-1 > end {
			size--
		}
		out = append(out, ports{proto: proto, port: uint16(from), bits: uint8(16 - size)})
		from += 1 << size
	}
	return out
}

// sortPorts orders and removes repetition.
func sortPorts(ps []ports) []ports {
	slices.SortFunc(ps, ports.compare)
	return slices.Compact(ps)
}

func (p ports) compare(o ports) int {
	return cmp.Or(cmp.Compare(p.proto, o.proto), cmp.Compare(p.port, o.port), cmp.Compare(p.bits, o.bits))
}
