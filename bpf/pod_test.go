package bpf

import (
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/flow"
	"github.com/weirnet/weir/identity"
)

var (
	linkLocal  = netip.MustParseAddr("fe80::2")
	otherLocal = netip.MustParseAddr("fe80::3")
	allNodes   = netip.MustParseAddr("ff02::1")
	allRouters = netip.MustParseAddr("ff02::16") // that speak MLDv2
	routers    = netip.MustParseAddr("ff02::2")
)

// A pod under a policy speaks with its own addresses, and otherwise only to
// find its neighbors and an address.
func TestSource(t *testing.T) {
	k := newKernel(t)
	neighbor := func(icmp, hops uint8, src netip.Addr) packet {
		return packet{src: src, dst: allNodes, proto: unix.IPPROTO_ICMPV6, icmp: icmp, ttl: hops}
	}
	dhcp4 := packet{src: netip.IPv4Unspecified(), dst: netip.MustParseAddr("255.255.255.255"), proto: udp, sport: 68, dport: 67}
	dhcp6 := packet{src: linkLocal, dst: netip.MustParseAddr("ff02::1:2"), proto: udp, sport: 546, dport: 547}
	arp := ipv4.tcp()
	arp.mangle = func(b []byte) []byte { b[12], b[13] = 8, 6; return b }
	for _, c := range []struct {
		name    string
		p       packet
		ok      bool
		another bool // another pod's address: wrong under any policy
	}{
		{"its own", ipv4.tcp(), true, false},
		{"its own, IPv6", ipv6.tcp(), true, false},
		{"another pod's", packet{src: ipv4.b, dst: ipv4.peer, proto: tcp, sport: 1000, dport: 80, flags: syn}, false, true},
		{"a stranger's", packet{src: ipv4.world, dst: ipv4.peer, proto: tcp, sport: 1000, dport: 80, flags: syn}, false, false},
		{"a stranger's, IPv6", packet{src: ipv6.world, dst: ipv6.peer, proto: tcp, sport: 1000, dport: 80, flags: syn}, false, false},
		{"link-local TCP", packet{src: linkLocal, dst: otherLocal, proto: tcp, sport: 1000, dport: 80, flags: syn}, false, false},
		{"unspecified", packet{src: netip.IPv4Unspecified(), dst: ipv4.peer, proto: udp, sport: 1000, dport: 80}, false, false},
		{"ARP", arp, true, false},
		{"DHCP", dhcp4, true, false},
		{"DHCPv6", dhcp6, true, false},
		{"DHCP from a server", dhcp4.reply(0), false, false},
		{"neighbor solicitation", neighbor(135, 255, linkLocal), true, false},
		{"neighbor solicitation for itself", neighbor(135, 255, netip.IPv6Unspecified()), true, false},
		{"neighbor advertisement", neighbor(136, 255, linkLocal), true, false},
		{"router solicitation", packet{src: linkLocal, dst: routers, proto: unix.IPPROTO_ICMPV6, icmp: 133, ttl: 255}, true, false},
		{"router solicitation to hosts", neighbor(133, 255, linkLocal), false, false},
		{"neighbor solicitation that was routed", neighbor(135, 254, linkLocal), false, false},
		{"router advertisement", neighbor(134, 255, linkLocal), false, false},
		{"redirect", neighbor(137, 255, linkLocal), false, false},
		{"MLD report", packet{src: linkLocal, dst: allRouters, proto: unix.IPPROTO_ICMPV6, icmp: 143, ttl: 1,
			ext: []ext{{unix.IPPROTO_HOPOPTS, []byte{5, 2, 0, 0, 1, 0}}}}, true, false},
		{"MLD report from afar", packet{src: linkLocal, dst: allRouters, proto: unix.IPPROTO_ICMPV6, icmp: 143, ttl: 64}, false, false},
		{"link-local echo", packet{src: linkLocal, dst: otherLocal, proto: unix.IPPROTO_ICMPV6, icmp: 128, ttl: 255}, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := *k
			k.t = t
			empty(&k, k.Conntrack)
			k.policy(policyA, rules{{Direction: out}: allow(1)})
			v, _, _ := k.run(k.fromA(), c.p.bytes())
			events := k.drain()
			if c.ok && v != pass || !c.ok && (v != dropped || len(events) != 1 || events[0].Reason != flow.ReasonInvalidSource) {
				t.Errorf("verdict %d, events %+v", int32(v), events)
			}
			k.policy(policyA, nil)
			if v, _, _ := k.run(k.fromA(), c.p.bytes()); (v == pass) == c.another {
				t.Errorf("without a policy: verdict %d", int32(v))
			}
			k.drain()
		})
	}
	// Also in the middle of that pod's own connection, which is known.
	empty(k, k.Conntrack)
	k.policy(policyA, rules{{Direction: out}: allow(1)})
	p := ipv4.tcp()
	k.want(k.fromA(), p, pass, forwarded(flow.ReasonPolicyAllowed, out))
	k.want(k.fromA(), p.with(ack), pass, silent)
	k.want(k.fromB(), p.with(ack), dropped, droppedFor(flow.ReasonInvalidSource, out))
	k.policy(policyB, closed)
	k.want(k.toA(), p.reply(ack), pass, silent)
	k.want(k.toB(), p.reply(ack), dropped, droppedFor(flow.ReasonPolicyDenied, in))
	// Ingress rules alone are enough to hold a pod to its addresses.
	k.policy(policyA, closed, in)
	k.want(k.fromA(), packet{src: ipv4.world, dst: ipv4.peer, proto: udp, sport: 1, dport: 2}, dropped, droppedFor(flow.ReasonInvalidSource, out))
}

// What comes to a pod's veth for another address than the pod's is judged by
// that pod's policy all the same: multicast and link-local addresses reach its
// sockets, too.
func TestDestination(t *testing.T) {
	k := newKernel(t)
	to := func(dst netip.Addr) packet {
		return packet{src: ipv6.peer, dst: dst, proto: udp, sport: 5353, dport: 5353}
	}
	k.want(k.toA(), to(linkLocal), pass, silent) // no policy
	k.policy(policyA, closed)
	k.want(k.toA(), to(linkLocal), dropped, droppedFor(flow.ReasonPolicyDenied, in))
	k.want(k.toA(), to(allNodes), dropped, droppedFor(flow.ReasonPolicyDenied, in))
	k.policy(policyA, rules{port(in, idPeer, udp, 5353): allow(1)})
	k.want(k.toA(), to(allNodes), pass, forwarded(flow.ReasonPolicyAllowed, in))
	if n, _ := k.Conntrack.Snapshot(); len(n) != 0 {
		t.Errorf("entries: %v", n)
	}
	// A neighbor on the link is not the world.
	near := to(linkLocal)
	near.src = otherLocal
	k.policy(policyA, rules{{Direction: in, Identity: identity.WorldIPv6}: allow(1)})
	k.want(k.toA(), near, dropped, droppedFor(flow.ReasonPolicyDenied, in))
	// What every pod needs.
	k.policy(policyA, closed)
	advert := packet{src: linkLocal, dst: allNodes, proto: unix.IPPROTO_ICMPV6, icmp: 134, ttl: 255}
	k.want(k.toA(), advert, pass, silent)
	advert.src = ipv6.peer // not from the link
	k.want(k.toA(), advert, dropped, droppedFor(flow.ReasonPolicyDenied, in))
	offer := packet{src: ipv4.node, dst: netip.MustParseAddr("255.255.255.255"), proto: udp, sport: 67, dport: 68}
	k.want(k.toA(), offer, pass, silent)
	// The node's own word.
	host := k.toA()
	host.ingress = 0
	k.want(host, to(allNodes), pass, silent)
	// A packet for another pod that is flooded to this one.
	flood := packet{src: ipv4.peer, dst: ipv4.b, proto: tcp, sport: 1, dport: 2, flags: syn}
	k.want(k.toA(), flood, dropped, droppedFor(flow.ReasonPolicyDenied, in))
}

// quote is an ICMP error that quotes a packet.
func quote(ip addresses, from netip.Addr, quoted packet) packet {
	e := packet{src: from, dst: quoted.src, proto: ip.icmp, icmp: 3, code: 4, payload: quoted.ip()}
	if !ip.v4 {
		e.icmp, e.code = 2, 0
	}
	return e
}

func TestICMPError(t *testing.T) {
	k := newKernel(t)
	router := map[bool]netip.Addr{true: netip.MustParseAddr("203.0.113.1"), false: netip.MustParseAddr("2001:db8:1::1")}
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		far := router[ip.v4]
		for _, p := range []packet{ip.tcp(), ip.udp(), ip.ping()} {
			empty(k, k.Conntrack)
			k.policy(policyA, allowed)
			k.want(k.toA(), quote(ip, far, p), dropped, droppedFor(flow.ReasonICMPUnrelated, in))
			k.want(k.fromA(), p, pass, forwarded(flow.ReasonPolicyAllowed, out))
			// About what the pod sent, from anywhere on its way.
			k.want(k.toA(), quote(ip, far, p), pass, silent)
			k.want(k.toA(), quote(ip, p.dst, p), pass, silent)
			// 8 bytes of the transport header are enough.
			short := quote(ip, far, p)
			short.payload = short.payload[:len(packet{src: p.src, dst: p.dst}.ip())+8]
			k.want(k.toA(), short, pass, silent)
			short.payload = short.payload[:len(short.payload)-8]
			k.want(k.toA(), short, dropped, droppedFor(flow.ReasonICMPUnrelated, in))
			// About a reply that the pod could not take.
			k.want(k.fromA(), quote(ip, ip.a, p.reply(ack)), pass, silent)
			// To another than the quoted packet's sender.
			wrong := quote(ip, far, p)
			wrong.payload = p.reply(ack).ip()
			k.want(k.toA(), wrong, dropped, droppedFor(flow.ReasonICMPUnrelated, in))
			// About another flow.
			other := p
			other.sport++
			k.want(k.toA(), quote(ip, far, other), dropped, droppedFor(flow.ReasonICMPUnrelated, in))
			// A revoked flow has no say.
			k.policy(policyA, closed)
			k.want(k.fromA(), p.with(ack), dropped, droppedFor(flow.ReasonPolicyDenied, out))
			k.want(k.toA(), quote(ip, far, p), dropped, droppedFor(flow.ReasonICMPUnrelated, in))
		}
		// A flow that only the other end began says nothing about this one: B
		// denies A, so A can't reach B by errors either.
		k.policy(policyA, nil)
		k.policy(policyB, closed)
		p := packet{src: ip.a, dst: ip.b, proto: udp, sport: 1000, dport: 80}
		k.want(k.fromA(), p, pass, forwarded(flow.ReasonNotEnforced, out))
		k.want(k.toB(), quote(ip, ip.a, p.reply(0)), dropped, droppedFor(flow.ReasonICMPUnrelated, in))
		// A rule that names the type.
		e := quote(ip, far, ip.udp())
		k.policy(policyA, rules{{Direction: in, Protocol: ip.icmp, Port: uint16(e.icmp), PortBits: 16}: allow(3)})
		empty(k, k.Conntrack)
		k.want(k.toA(), e, pass, forwarded(flow.ReasonPolicyAllowed, in))
		// The node's own errors.
		k.policy(policyA, closed)
		host := k.toA()
		host.ingress = 0
		k.want(host, quote(ip, ip.node, ip.udp()), pass, silent)
	})
}

// Drops are told at a limited rate, and counted all the same.
func TestEventLimit(t *testing.T) {
	k := newKernelOf(t, Sizes{Events: 1 << 20, Conntrack: 1024, Policy: 1024, IPCache: 1024, Numbers: 16}, 0)
	k.policy(policyA, closed)
	b := ipv4.udp().bytes()
	before, err := k.LostEvents()
	k.must(err)
	total := 0
	const n = 20000
	k.ns.do(func() {
		in := skb{Ifindex: uint32(k.podA)}
		for range n {
			if _, err = k.objects.FromPod.Run(&ebpf.RunOptions{Data: b, Context: in}); err != nil {
				return
			}
		}
	})
	k.must(err)
	total = len(k.drain())
	lost, err := k.LostEvents()
	k.must(err)
	missing := int(lost.Limited - before.Limited + lost.Full - before.Full)
	if total+missing != n {
		t.Errorf("%d events and %d not sent, of %d drops", total, missing, n)
	}
	if total >= n || total < 500 {
		t.Errorf("%d of %d drops were told, want 500 a window", total, n)
	}
	counters, err := k.Counters()
	k.must(err)
	for _, c := range counters {
		if c.Reason == flow.ReasonPolicyDenied && c.Direction == out {
			if c.Packets < n || c.Bytes < n*28 {
				t.Errorf("counted %+v, want %d packets", c, n)
			}
			return
		}
	}
	t.Errorf("no counter among %+v", counters)
}
