package bpf

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// FuzzFromProxy gives from_proxy any bytes, while pod A has asked one server from
// port 1000. Whatever they are: nothing goes out but questions of the pod to that
// server and port, answers to that port of the pod, and errors to either.
func FuzzFromProxy(f *testing.F) {
	k := newKernel(f)
	for _, ip := range []addresses{ipv4, ipv6} {
		up := ip.question(40000)
		part := up
		part.fragment, part.fragMore, part.fragID, part.payload = true, true, 1, pad(64)
		later := part
		later.fragOffset, later.fragMore = 72, false
		options := up
		options.options, options.ext = pad(8), []ext{{unix.IPPROTO_DSTOPTS, pad(6)}}
		for _, p := range []packet{
			up, up.reply(0), ip.question(1000), ip.question(1000).reply(0), part, later, options,
			{src: ip.b, dst: ip.peer, proto: udp, sport: 40000, dport: 53},
			{src: ip.a, dst: ip.b, proto: udp, sport: 40000, dport: 53},
			{src: ip.a, dst: ip.peer, proto: sctp, sport: 40000, dport: 53},
			ip.tcp(), ip.ping(), quote(ip, ip.a, up.reply(0)), quote(ip, ip.peer, up),
		} {
			f.Add(p.bytes())
		}
	}
	k.policy(policyA, viaDNS)
	for _, ip := range []addresses{ipv4, ipv6} {
		k.want(k.fromA(), ip.question(1000), redirect, redirected(out))
	}

	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) < 14 || len(data) > 2000 {
			return
		}
		k := *k
		k.t = t
		where := k.proxied()
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
		switch {
		case verdict == redirect && !mayLeave(data):
			t.Fatal("it goes out")
		case verdict == redirect && len(events) != 0:
			t.Fatalf("goes out with events %+v", events)
		case verdict != redirect && verdict != dropped:
			t.Fatalf("verdict %d", int32(verdict))
		case verdict == dropped && len(events) != 1 && !mayPass(data, true):
			t.Fatalf("dropped with events %+v", events)
		}
	})
}

// mayLeave tells whether the proxy of the test above may send this.
func mayLeave(b []byte) bool {
	var (
		src, dst netip.Addr
		proto    uint8
		at       int
		later    bool
		ip       = ipv4
	)
	switch {
	case len(b) >= 34 && b[12] == 8 && b[13] == 0:
		src, dst = netip.AddrFrom4([4]byte(b[26:])), netip.AddrFrom4([4]byte(b[30:]))
		proto, at = b[23], 14+int(b[14]&15)*4
		later = binary.BigEndian.Uint16(b[20:])&0x1fff != 0
	case len(b) >= 54 && b[12] == 0x86 && b[13] == 0xdd:
		ip = ipv6
		src, dst = netip.AddrFrom16([16]byte(b[22:])), netip.AddrFrom16([16]byte(b[38:]))
		proto, at = b[20], 54
		for len(b) >= at+8 && !later {
			switch proto {
			case unix.IPPROTO_HOPOPTS, unix.IPPROTO_DSTOPTS, unix.IPPROTO_ROUTING:
				proto, at = b[at], at+(int(b[at+1])+1)*8
				continue
			case unix.IPPROTO_AH:
				proto, at = b[at], at+(int(b[at+1])+2)*4
				continue
			case unix.IPPROTO_FRAGMENT:
				proto, later, at = b[at], binary.BigEndian.Uint16(b[at+2:])&^7 != 0, at+8
				continue
			}
			break
		}
	}
	if proto == ip.icmp {
		return dst == ip.a || dst == ip.peer
	}
	asks, answers := src == ip.a && dst == ip.peer, src == ip.peer && dst == ip.a
	if later {
		return asks || answers
	}
	if proto != udp || len(b) < at+8 {
		return false
	}
	sport, dport := binary.BigEndian.Uint16(b[at:]), binary.BigEndian.Uint16(b[at+2:])
	return asks && dport == 53 || answers && sport == 53 && dport == 1000
}
