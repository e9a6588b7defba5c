package bpf

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// packet builds the bytes of one packet.
type packet struct {
	src, dst     netip.Addr
	proto        uint8
	sport, dport uint16 // ICMP: sport is the identifier
	flags        uint8  // TCP
	icmp, code   uint8  // ICMP type and code
	payload      []byte // behind the transport header; of an error: the packet it quotes
	ttl          uint8

	options []byte // IPv4, a multiple of 4
	ext     []ext  // IPv6
	// A part of a datagram: offset in bytes, more to come.
	fragment   bool
	fragOffset int
	fragMore   bool
	fragID     uint32

	mangle func(b []byte) []byte // the last word, Ethernet header included
}

// ext is an IPv6 extension header; body must make it a multiple of 8.
type ext struct {
	proto uint8
	body  []byte // behind next header and length
}

const (
	fin = 0x01
	syn = 0x02
	rst = 0x04
	ack = 0x10
)

var (
	podMAC  = [6]byte{2, 0, 0, 0, 0, 1}
	hostMAC = [6]byte{2, 0, 0, 0, 0, 2}
)

// ethernet is the header of a packet from the pod; to_pod sees the addresses
// the other way round.
func ethernet(v4 bool) []byte {
	b := append(append([]byte{}, hostMAC[:]...), podMAC[:]...)
	if v4 {
		return append(b, 0x08, 0x00)
	}
	return append(b, 0x86, 0xdd)
}

// transport is the header and payload behind IP.
func (p packet) transport() []byte {
	var b []byte
	switch p.proto {
	case unix.IPPROTO_TCP:
		b = make([]byte, 20)
		binary.BigEndian.PutUint16(b, p.sport)
		binary.BigEndian.PutUint16(b[2:], p.dport)
		b[12] = 5 << 4
		b[13] = p.flags
	case unix.IPPROTO_UDP:
		b = make([]byte, 8)
		binary.BigEndian.PutUint16(b, p.sport)
		binary.BigEndian.PutUint16(b[2:], p.dport)
		binary.BigEndian.PutUint16(b[4:], uint16(8+len(p.payload)))
	case unix.IPPROTO_SCTP:
		b = make([]byte, 12)
		binary.BigEndian.PutUint16(b, p.sport)
		binary.BigEndian.PutUint16(b[2:], p.dport)
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		b = make([]byte, 8)
		b[0], b[1] = p.icmp, p.code
		binary.BigEndian.PutUint16(b[4:], p.sport)
	}
	return append(b, p.payload...)
}

// ip is the packet without its Ethernet header.
func (p packet) ip() []byte {
	body := p.transport()
	if p.fragment && p.fragOffset > 0 {
		body = p.payload
	}
	ttl := p.ttl
	if ttl == 0 {
		ttl = 64
	}
	if p.src.Is4() {
		b := make([]byte, 20, 20+len(p.options)+len(body))
		b[0] = 0x40 | byte(5+len(p.options)/4)
		binary.BigEndian.PutUint16(b[2:], uint16(20+len(p.options)+len(body)))
		if p.fragment {
			binary.BigEndian.PutUint16(b[4:], uint16(p.fragID))
			f := uint16(p.fragOffset / 8)
			if p.fragMore {
				f |= 0x2000
			}
			binary.BigEndian.PutUint16(b[6:], f)
		}
		b[8], b[9] = ttl, p.proto
		copy(b[12:], p.src.AsSlice())
		copy(b[16:], p.dst.AsSlice())
		return append(append(b, p.options...), body...)
	}
	// Headers are chained from the last to the first.
	next := p.proto
	if p.fragment {
		f := make([]byte, 8)
		f[0] = next
		v := uint16(p.fragOffset)
		if p.fragMore {
			v |= 1
		}
		binary.BigEndian.PutUint16(f[2:], v)
		binary.BigEndian.PutUint32(f[4:], p.fragID)
		body = append(f, body...)
		next = unix.IPPROTO_FRAGMENT
	}
	for i := len(p.ext) - 1; i >= 0; i-- {
		e := p.ext[i]
		length := byte((2+len(e.body))/8 - 1)
		if e.proto == unix.IPPROTO_AH {
			length = byte((2+len(e.body))/4 - 2)
		}
		body = append(append([]byte{next, length}, e.body...), body...)
		next = e.proto
	}
	b := make([]byte, 40, 40+len(body))
	b[0] = 0x60
	binary.BigEndian.PutUint16(b[4:], uint16(len(body)))
	b[6], b[7] = next, ttl
	copy(b[8:], p.src.AsSlice())
	copy(b[24:], p.dst.AsSlice())
	return append(b, body...)
}

// bytes is the packet as a veth carries it.
func (p packet) bytes() []byte {
	b := append(ethernet(p.src.Is4()), p.ip()...)
	if p.mangle != nil {
		b = p.mangle(b)
	}
	return b
}

// reply is the packet of the other direction, with these flags.
func (p packet) reply(flags uint8) packet {
	p.src, p.dst = p.dst, p.src
	switch p.proto {
	case unix.IPPROTO_ICMP:
		p.icmp = 0
	case unix.IPPROTO_ICMPV6:
		p.icmp = 129
	default:
		p.sport, p.dport = p.dport, p.sport
	}
	p.flags = flags
	return p
}

// with returns p with other TCP flags.
func (p packet) with(flags uint8) packet {
	p.flags = flags
	return p
}

// tuple is the flow's tuple if p is a forward packet.
func (p packet) tuple() Tuple {
	if p.proto == unix.IPPROTO_ICMP || p.proto == unix.IPPROTO_ICMPV6 {
		return TupleOf(netip.AddrPortFrom(p.src, p.sport), netip.AddrPortFrom(p.dst, 0), p.proto)
	}
	return TupleOf(netip.AddrPortFrom(p.src, p.sport), netip.AddrPortFrom(p.dst, p.dport), p.proto)
}
