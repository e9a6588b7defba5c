package bpf

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/flow"
)

// FuzzPacket gives the programs any bytes as a packet of, or for, a pod that is
// closed in both directions. Whatever they are: nothing passes but what finds
// neighbors and addresses, every drop is told once, and what is told is what is
// in the packet.
func FuzzPacket(f *testing.F) {
	k := newKernel(f)
	for _, ip := range []addresses{ipv4, ipv6} {
		quoted := ip.udp().reply(0)
		error := packet{src: ip.a, dst: ip.peer, proto: ip.icmp, icmp: 3, payload: quoted.ip()}
		if !ip.v4 {
			error.icmp = 1
		}
		for _, p := range []packet{
			ip.tcp(), ip.tcp().with(ack), ip.udp(), ip.ping(), ip.ping().reply(0), error,
			{src: ip.a, dst: ip.peer, proto: sctp, sport: 1, dport: 2},
			{src: ip.a, dst: ip.peer, proto: tcp, flags: syn, options: pad(12), ext: []ext{
				{unix.IPPROTO_HOPOPTS, pad(6)}, {unix.IPPROTO_ROUTING, pad(6)}, {unix.IPPROTO_AH, pad(10)}, {unix.IPPROTO_DSTOPTS, pad(14)},
			}},
			{src: ip.a, dst: ip.peer, proto: udp, fragment: true, fragMore: true, fragID: 1, payload: pad(16)},
			{src: ip.a, dst: ip.peer, proto: udp, fragment: true, fragOffset: 24, fragID: 1, payload: pad(16)},
			{src: ip.a, dst: ip.peer, proto: 47},
			{src: linkLocal, dst: allNodes, proto: unix.IPPROTO_ICMPV6, icmp: 135, ttl: 255},
			{src: linkLocal, dst: allRouters, proto: unix.IPPROTO_ICMPV6, icmp: 143, ttl: 1, ext: []ext{{unix.IPPROTO_HOPOPTS, pad(6)}}},
			{src: linkLocal, dst: allRouters, proto: udp, sport: 546, dport: 547},
		} {
			f.Add(p.bytes(), true)
			f.Add(p.bytes(), false)
			r := p
			r.src, r.dst = p.dst, p.src
			f.Add(r.bytes(), false)
		}
	}
	arp := ipv4.tcp().bytes()
	arp[12], arp[13] = 8, 6
	f.Add(arp, true)
	k.policy(policyA, closed)

	f.Fuzz(func(t *testing.T, data []byte, leaves bool) {
		if len(data) < 14 || len(data) > 2000 {
			return
		}
		k := *k
		k.t = t
		ours(data, leaves)
		where := k.fromA()
		if !leaves {
			where = k.toA()
		}
		k.drain()
		in := skb{IngressIfindex: uint32(where.ingress), Ifindex: uint32(where.ifindex)}
		var (
			verdict uint32
			err     error
		)
		k.ns.do(func() { verdict, err = where.prog.Run(&ebpf.RunOptions{Data: data, Context: in}) })
		if errors.Is(err, unix.EINVAL) {
			return // less than an IP header: the kernel runs no program on it
		}
		k.must(err)
		events := k.drain()
		if verdict == pass && mayPass(data, leaves) {
			return
		}
		if verdict != dropped {
			t.Fatalf("verdict %d, events %+v", int32(verdict), events)
		}
		if len(events) != 1 || events[0].Verdict != flow.Dropped || !events[0].Reason.Drops() || events[0].Reason.Explanation() == "" {
			t.Fatalf("events %+v", events)
		}
		checkTuple(t, data, events[0])
		checkPorts(t, data, events[0])
		if n, err := k.Conntrack.Snapshot(); err != nil || len(n) != 0 {
			t.Fatalf("entries %v, %v", n, err)
		}
	})
}

// ours makes the packet one of the pod's if it is nearly one: random addresses
// would hardly ever get beyond the first check.
func ours(b []byte, leaves bool) {
	at := func(src, dst int) int {
		if leaves {
			return src
		}
		return dst
	}
	switch {
	case len(b) >= 34 && b[12] == 8 && b[13] == 0 && b[at(26, 30)] == 10:
		copy(b[at(26, 30):], ipv4.a.AsSlice())
	case len(b) >= 54 && b[12] == 0x86 && b[13] == 0xdd && b[at(22, 38)] == 0xfd:
		copy(b[at(22, 38):], ipv6.a.AsSlice())
	}
}

// mayPass tells whether a closed pod may send, or be sent, this: ARP, ND, MLD
// and DHCP.
func mayPass(b []byte, leaves bool) bool {
	if b[12] == 8 && b[13] == 6 {
		return true
	}
	if b[12] == 8 && b[13] == 0 && b[23] == udp {
		l4 := 14 + int(b[14]&15)*4
		return len(b) >= l4+8 && dhcpPorts(b[l4:], leaves, 68, 67)
	}
	if b[12] != 0x86 || b[13] != 0xdd || len(b) < 54 {
		return false
	}
	proto, at := b[20], 54
	for len(b) >= at+8 {
		switch proto {
		case unix.IPPROTO_HOPOPTS, unix.IPPROTO_DSTOPTS, unix.IPPROTO_ROUTING:
			proto, at = b[at], at+(int(b[at+1])+1)*8
		case unix.IPPROTO_AH:
			proto, at = b[at], at+(int(b[at+1])+2)*4
		case unix.IPPROTO_FRAGMENT:
			proto, at = b[at], at+8
		case udp:
			return dhcpPorts(b[at:], leaves, 546, 547)
		case unix.IPPROTO_ICMPV6:
			switch b[at] {
			case 133, 135, 136:
				return b[21] == 255
			case 134, 137:
				return b[21] == 255 && !leaves
			case 130, 131, 132, 143:
				return b[21] == 1
			}
			return false
		default:
			return false
		}
	}
	return false
}

func dhcpPorts(b []byte, leaves bool, client, server uint16) bool {
	s, d := binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	if leaves {
		return s == client && d == server
	}
	return s == server && d == client
}

// checkPorts compares the ports of an event with those of an IPv4 packet, whose
// place is plain, where it is no part of a datagram.
func checkPorts(t *testing.T, b []byte, e Event) {
	t.Helper()
	if len(b) < 34 || b[12] != 8 || b[13] != 0 || b[14]>>4 != 4 || b[20]&0x3f != 0 || b[21] != 0 {
		return
	}
	l4 := 14 + int(b[14]&15)*4
	if e.Source.Port() == 0 && e.Dest.Port() == 0 {
		return // none, or not read
	}
	if len(b) < l4+4 || binary.BigEndian.Uint16(b[l4:]) != e.Source.Port() || binary.BigEndian.Uint16(b[l4+2:]) != e.Dest.Port() {
		t.Fatalf("event %v -> %v of packet %x", e.Source, e.Dest, b)
	}
}
