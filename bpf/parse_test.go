package bpf

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/flow"
)

// cutTo shortens the packet without a word in its headers.
func cutTo(n int) func([]byte) []byte {
	return func(b []byte) []byte { return b[:n] }
}

// poke sets one byte.
func poke(at int, v byte) func([]byte) []byte {
	return func(b []byte) []byte { b[at] = v; return b }
}

func pad(n int) []byte { return make([]byte, n) }

// Headers of all shapes, under a policy that allows port 80 of TCP and UDP and
// echo: what is odd but right passes, what is wrong is dropped with its reason,
// and without a policy everything passes.
func TestParse(t *testing.T) {
	k := newKernel(t)
	hop := ext{unix.IPPROTO_HOPOPTS, pad(6)}
	dst := ext{unix.IPPROTO_DSTOPTS, pad(14)}
	type shape struct {
		name string
		p    packet
		want flow.Reason // 0: passes
	}
	const off4, off6 = 14 + 20, 14 + 40
	v4 := []shape{
		{"plain", ipv4.tcp(), 0},
		{"options", packet{options: pad(4)}, 0},
		{"40 bytes of options", packet{options: pad(40)}, 0},
		{"header length 4", packet{mangle: poke(14, 0x44)}, flow.ReasonInvalidPacket},
		{"version 5", packet{mangle: poke(14, 0x55)}, flow.ReasonInvalidPacket},
		{"version 6", packet{mangle: poke(14, 0x65)}, flow.ReasonInvalidPacket},
		{"options beyond the packet", packet{mangle: poke(14, 0x4f)}, flow.ReasonInvalidPacket},
		{"total length of nothing", packet{mangle: func(b []byte) []byte { b[16], b[17] = 0, 0; return b }}, flow.ReasonInvalidPacket},
		{"total length within the header", packet{mangle: poke(17, 19)}, flow.ReasonInvalidPacket},
		{"total length within TCP", packet{mangle: poke(17, 39)}, flow.ReasonInvalidPacket},
		{"total length beyond the packet", packet{mangle: poke(17, 41)}, flow.ReasonInvalidPacket},
		{"padding behind the packet", packet{mangle: func(b []byte) []byte { return append(b, pad(6)...) }}, 0},
		{"nothing behind IP", packet{mangle: cutTo(14 + 20)}, flow.ReasonInvalidPacket},
		{"TCP offset 4", packet{mangle: poke(off4+12, 0x40)}, flow.ReasonInvalidPacket},
		{"TCP offset beyond the packet", packet{mangle: poke(off4+12, 0x60)}, flow.ReasonInvalidPacket},
		{"SYN and FIN", packet{flags: syn | fin}, flow.ReasonInvalidPacket},
		{"SYN and RST", packet{flags: syn | rst}, flow.ReasonInvalidPacket},
		{"all flags but these", packet{flags: 0xff &^ (fin | rst)}, 0},
		{"ICMPv6 over IPv4", packet{proto: unix.IPPROTO_ICMPV6, icmp: 128}, flow.ReasonPolicyDenied},
		{"ARP", packet{mangle: func(b []byte) []byte { b[12], b[13] = 8, 6; return b }}, 0},
		{"VLAN tag", packet{mangle: func(b []byte) []byte {
			return append(append(append([]byte{}, b[:12]...), 0x81, 0, 0, 5), b[12:]...)
		}}, flow.ReasonUnknownL3},
		{"LLC", packet{mangle: func(b []byte) []byte { b[12], b[13] = 0, 20; return b }}, flow.ReasonUnknownL3},
		{"MPLS", packet{mangle: func(b []byte) []byte { b[12], b[13] = 0x88, 0x47; return b }}, flow.ReasonUnknownL3},
	}
	v6 := []shape{
		{"plain", ipv6.tcp(), 0},
		{"hop-by-hop", packet{ext: []ext{hop}}, 0},
		{"hop-by-hop and destination", packet{ext: []ext{hop, dst}}, 0},
		{"six headers", packet{ext: []ext{hop, dst, dst, dst, dst, dst}}, 0},
		{"seven headers", packet{ext: []ext{hop, dst, dst, dst, dst, dst, dst}}, flow.ReasonIPv6Headers},
		{"routing that ends here", packet{ext: []ext{{unix.IPPROTO_ROUTING, pad(6)}}}, 0},
		{"routing that goes on", packet{ext: []ext{{unix.IPPROTO_ROUTING, append([]byte{2, 1}, pad(4+16)...)}}}, flow.ReasonIPv6Headers},
		{"authentication", packet{ext: []ext{{unix.IPPROTO_AH, pad(10)}}}, 0},
		{"authentication of 20 bytes", packet{ext: []ext{{unix.IPPROTO_AH, pad(18)}}}, 0},
		{"whole, in a fragment header", packet{fragment: true}, 0},
		{"version 4", packet{mangle: poke(14, 0x40)}, flow.ReasonInvalidPacket},
		{"header beyond the packet", packet{ext: []ext{hop}, mangle: poke(off6+1, 9)}, flow.ReasonInvalidPacket},
		{"header cut off", packet{ext: []ext{hop}, mangle: func(b []byte) []byte { b[18], b[19] = 0, 2; return b[:off6+2] }}, flow.ReasonInvalidPacket},
		{"payload length beyond the packet", packet{mangle: poke(19, 21)}, flow.ReasonInvalidPacket},
		{"payload length within TCP", packet{mangle: poke(19, 19)}, flow.ReasonInvalidPacket},
		{"payload length 0", packet{mangle: poke(19, 0)}, flow.ReasonInvalidPacket},
		{"nothing behind IP", packet{mangle: cutTo(14 + 40)}, flow.ReasonInvalidPacket},
		{"an IPv4 address in IPv6 form", packet{dst: netip.AddrFrom16(ipv4.peer.As16())}, flow.ReasonInvalidPacket},
		{"nothing behind", packet{proto: unix.IPPROTO_NONE}, flow.ReasonUnknownL4},
		{"ESP", packet{proto: 50}, flow.ReasonUnknownL4},
		{"ICMP over IPv6", packet{proto: unix.IPPROTO_ICMP, icmp: 8}, flow.ReasonPolicyDenied},
	}
	// What both families share.
	both := []shape{
		{"UDP", packet{proto: udp}, 0},
		{"UDP length 7", packet{proto: udp, mangle: func(b []byte) []byte { b[len(b)-3] = 7; return b }}, flow.ReasonInvalidPacket},
		{"UDP length beyond", packet{proto: udp, mangle: func(b []byte) []byte { b[len(b)-3] = 9; return b }}, flow.ReasonInvalidPacket},
		{"UDP length short of the packet", packet{proto: udp, payload: pad(8), mangle: func(b []byte) []byte { b[len(b)-8-3] = 10; return b }}, 0},
		{"truncated UDP", packet{proto: udp, mangle: shorten(1)}, flow.ReasonInvalidPacket},
		{"truncated TCP", packet{mangle: shorten(1)}, flow.ReasonInvalidPacket},
		{"TCP of its ports only", packet{mangle: shorten(16)}, flow.ReasonInvalidPacket},
		{"SCTP", packet{proto: sctp}, flow.ReasonPolicyDenied},
		{"truncated SCTP", packet{proto: sctp, mangle: shorten(1)}, flow.ReasonInvalidPacket},
		{"truncated echo", packet{proto: 1, mangle: shorten(1)}, flow.ReasonInvalidPacket},
		{"UDP-Lite", packet{proto: 136}, flow.ReasonUnknownL4},
	}
	for _, f := range []struct {
		ip     addresses
		shapes []shape
	}{{ipv4, append(v4, both...)}, {ipv6, append(v6, both...)}} {
		for _, s := range f.shapes {
			t.Run(f.ip.family+" "+s.name, func(t *testing.T) {
				k := *k
				k.t = t
				p := s.p
				if !p.src.IsValid() {
					p.src = f.ip.a
				}
				if !p.dst.IsValid() {
					p.dst = f.ip.peer
				}
				if p.proto == 0 {
					p.proto = tcp
				}
				if p.proto == 1 && s.name == "truncated echo" {
					p.proto, p.icmp = f.ip.icmp, f.ip.echo
				}
				if p.flags == 0 {
					p.flags = syn
				}
				if p.sport == 0 {
					p.sport, p.dport = 1000, 80
				}
				empty(&k, k.Conntrack)
				k.policy(policyA, allowed)
				verdict, _, _ := k.run(k.fromA(), p.bytes())
				events := k.drain()
				if s.want == 0 {
					if verdict != pass || len(events) > 0 && events[0].Reason.Drops() {
						t.Fatalf("verdict %d, events %+v, want it to pass", int32(verdict), events)
					}
				} else if verdict != dropped || len(events) != 1 || events[0].Reason != s.want {
					t.Fatalf("verdict %d, events %+v, want %v", int32(verdict), events, s.want)
				}
				// Without a policy nothing is dropped, wrong or not.
				empty(&k, k.Conntrack)
				k.policy(policyA, nil)
				if verdict, _, _ := k.run(k.fromA(), p.bytes()); verdict != pass {
					t.Errorf("dropped without a policy: %+v", k.drain())
				}
				k.drain()
			})
		}
	}
}

// Packets of segments: beyond 64 KiB they have no length of their own, and those
// of UDP may have one segment's.
func TestParseSegments(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		k.policy(policyA, allowed)
		segments := k.fromA()
		segments.gso = 100
		p := ip.tcp()
		p.mangle = func(b []byte) []byte {
			at := 16
			if !ip.v4 {
				at = 18
			}
			b[at], b[at+1] = 0, 0
			return b
		}
		k.want(k.fromA(), p, dropped, droppedFor(flow.ReasonInvalidPacket, out))
		verdict, _, _ := k.run(segments, p.bytes())
		told := k.drain()
		if verdict != pass || len(told) != 1 || told[0].Bytes != uint32(len(p.bytes())-14) {
			t.Errorf("verdict %d, told %+v", int32(verdict), told)
		}
		u := ip.udp()
		u.mangle = func(b []byte) []byte { b[len(b)-len(u.payload)-3] = 200; return b }
		k.want(k.fromA(), u, dropped, droppedFor(flow.ReasonInvalidPacket, out))
		k.want(segments, u, pass, forwarded(flow.ReasonPolicyAllowed, out))
	})
}

// shorten takes n bytes off the end and tells the IP header so.
func shorten(n int) func([]byte) []byte {
	return func(b []byte) []byte {
		b = b[:len(b)-n]
		if b[14]>>4 == 4 {
			binary.BigEndian.PutUint16(b[16:], uint16(len(b)-14))
		} else {
			binary.BigEndian.PutUint16(b[18:], uint16(len(b)-14-40))
		}
		return b
	}
}

// A packet cut at every length: closed, so nothing may pass, and no event may
// tell of what is not there.
func TestParseEveryLength(t *testing.T) {
	k := newKernel(t)
	k.policy(policyA, closed)
	for _, ip := range []addresses{ipv4, ipv6} {
		quoted := ip.udp()
		quoted.src, quoted.dst = ip.peer, ip.a
		for _, p := range []packet{
			ip.tcp(), ip.udp(), ip.ping(),
			{src: ip.a, dst: ip.peer, proto: udp, options: pad(8), ext: []ext{{unix.IPPROTO_HOPOPTS, pad(14)}}},
			{src: ip.a, dst: ip.peer, proto: ip.icmp, icmp: map[bool]uint8{true: 3, false: 1}[ip.v4], payload: quoted.ip()},
			{src: ip.a, dst: ip.peer, proto: udp, fragment: true, fragMore: true, fragID: 5, payload: pad(64)},
		} {
			whole := p.bytes()
			// The kernel runs no program on less than an IP header.
			for n := 14 + len(packet{src: ip.a, dst: ip.peer}.ip()); n <= len(whole); n++ {
				for _, told := range []bool{false, true} {
					b := append([]byte{}, whole[:n]...)
					if told {
						b = shorten(0)(b)
					}
					if v, _, _ := k.run(k.fromA(), b); v != dropped {
						t.Fatalf("proto %d cut to %d of %d bytes: verdict %d", p.proto, n, len(whole), int32(v))
					}
					events := k.drain()
					if len(events) != 1 {
						t.Fatalf("proto %d cut to %d bytes: %d events", p.proto, n, len(events))
					}
					checkTuple(t, b, events[0])
				}
			}
		}
	}
}

// checkTuple fails if an event's tuple is not that of the packet.
func checkTuple(t *testing.T, b []byte, e Event) {
	t.Helper()
	if !e.Source.Addr().IsValid() {
		if e.Dest.Addr().IsValid() || e.Source.Port() != 0 || e.Dest.Port() != 0 {
			t.Fatalf("half a tuple: %+v", e)
		}
		return
	}
	var src, dst netip.Addr
	switch {
	case len(b) >= 34 && b[14]>>4 == 4:
		src, dst = netip.AddrFrom4([4]byte(b[26:30])), netip.AddrFrom4([4]byte(b[30:34]))
	case len(b) >= 54 && b[14]>>4 == 6:
		src, dst = netip.AddrFrom16([16]byte(b[22:38])).Unmap(), netip.AddrFrom16([16]byte(b[38:54])).Unmap()
	}
	if e.Source.Addr() != src || e.Dest.Addr() != dst {
		t.Fatalf("event of %v -> %v, packet of %v -> %v", e.Source, e.Dest, src, dst)
	}
	ported := e.Protocol == tcp || e.Protocol == udp || e.Protocol == sctp
	if !ported && (e.Source.Port() != 0 || e.Dest.Port() != 0) {
		t.Fatalf("ports of protocol %d: %+v", e.Protocol, e)
	}
}

// Datagrams in parts.
func TestFragments(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		k.policy(policyA, allowed)
		part := func(id uint32, offset int, more bool, dport uint16) packet {
			p := ip.udp()
			p.fragment, p.fragID, p.fragOffset, p.fragMore = true, id, offset, more
			p.dport, p.payload = dport, pad(64)
			return p
		}
		// In order.
		k.want(k.fromA(), part(1, 0, true, 80), pass, forwarded(flow.ReasonPolicyAllowed, out))
		k.want(k.fromA(), part(1, 72, true, 0), pass, silent)
		k.want(k.fromA(), part(1, 136, false, 0), pass, silent)
		// A later one before the first, and after it.
		k.want(k.fromA(), part(2, 72, false, 0), dropped, droppedFor(flow.ReasonFragmentUnknown, out))
		k.want(k.fromA(), part(2, 0, true, 80), pass, silent)
		k.want(k.fromA(), part(2, 72, false, 0), pass, silent)
		// To a port that is not allowed.
		k.want(k.fromA(), part(3, 0, true, 81), dropped, droppedFor(flow.ReasonPolicyDenied, out))
		k.want(k.fromA(), part(3, 72, false, 0), dropped, droppedFor(flow.ReasonPolicyDenied, out))
		// Of another datagram.
		k.want(k.fromA(), part(4, 72, false, 0), dropped, droppedFor(flow.ReasonFragmentUnknown, out))
		// A reply in parts.
		r := ip.udp().reply(0)
		r.fragment, r.fragMore, r.fragID, r.payload = true, true, 9, pad(64)
		k.want(k.toA(), r, pass, silent)
		r.fragMore, r.fragOffset = false, 72
		k.want(k.toA(), r, pass, silent)
		// Echo in parts is judged by its type all through.
		e := ip.ping()
		e.fragment, e.fragMore, e.fragID, e.payload = true, true, 11, pad(64)
		k.want(k.fromA(), e, pass, forwarded(flow.ReasonPolicyAllowed, out))
		e.fragMore, e.fragOffset = false, 72
		k.want(k.fromA(), e, pass, silent)

		// Too small for what has to be judged.
		tiny := ip.tcp()
		tiny.fragment, tiny.fragMore, tiny.fragID = true, true, 12
		tiny.mangle = shorten(4)
		k.want(k.fromA(), tiny, dropped, droppedFor(flow.ReasonInvalidPacket, out))
		// One that would overwrite the flags.
		over := ip.tcp()
		over.fragment, over.fragID = true, 13
		over.fragMore = true
		k.want(k.fromA(), over, pass, forwarded(flow.ReasonPolicyAllowed, out))
		over.fragOffset, over.payload = 8, pad(32)
		k.want(k.fromA(), over, dropped, droppedFor(flow.ReasonInvalidPacket, out))
		over.fragOffset = 24
		k.want(k.fromA(), over, pass, silent)

		// The pod of another veth has taught nothing for this one's datagrams.
		k.policy(policyA, nil)
		k.want(k.fromA(), part(5, 72, false, 0), pass, silent)
		k.policy(policyA, allowed)
		k.want(k.fromB(), part(6, 0, true, 80), dropped, droppedFor(flow.ReasonInvalidSource, out))
		k.want(k.fromA(), part(6, 72, false, 0), dropped, droppedFor(flow.ReasonFragmentUnknown, out))
	})
}
