package bpf

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/flow"
)

// DHCP of a closed pod passes as a pod without an address needs it, and carries
// nothing anywhere else.
func TestDHCP(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		k.policy(policyA, closed)
		alias, server := netip.MustParseAddr("10.1.0.77"), ip.node
		none, everyone := netip.IPv4Unspecified(), netip.MustParseAddr("255.255.255.255")
		client, to, wrong, wrongTo := uint16(68), uint16(67), uint16(546), uint16(547)
		if !ip.v4 {
			alias, server = netip.MustParseAddr("fd01::77"), otherLocal
			none, everyone = linkLocal, netip.MustParseAddr("ff02::1:2")
			client, to, wrong, wrongTo = wrong, wrongTo, client, to
		}
		ask := func(src, dst netip.Addr, sport, dport uint16) packet {
			return packet{src: src, dst: dst, proto: udp, sport: sport, dport: dport}
		}
		invalid := droppedFor(flow.ReasonInvalidSource, out)
		k.want(k.fromA(), ask(none, everyone, client, to), pass, silent)
		k.want(k.fromA(), ask(none, ip.world, client, to), dropped, invalid)
		k.want(k.fromA(), ask(alias, everyone, client, to), dropped, invalid)
		k.want(k.fromA(), ask(alias, ip.world, client, to), dropped, invalid)
		k.want(k.fromA(), ask(none, everyone, wrong, wrongTo), dropped, invalid)
		k.want(k.fromA(), ask(none, everyone, to, client), dropped, invalid)
		// Under its own address it is a datagram like others.
		k.want(k.fromA(), ask(ip.a, everyone, client, to), dropped, droppedFor(flow.ReasonPolicyDenied, out))
		k.want(k.fromA(), ask(ip.a, ip.world, client, to), dropped, droppedFor(flow.ReasonPolicyDenied, out))

		denied := droppedFor(flow.ReasonPolicyDenied, in)
		offered := everyone
		if !ip.v4 {
			offered = linkLocal
			k.want(k.fromA(), ask(none, otherLocal, client, to), pass, silent)
		}
		k.want(k.toA(), ask(server, offered, to, client), pass, silent)
		k.want(k.toA(), ask(ip.world, alias, to, client), dropped, denied)
		k.want(k.toA(), ask(server, alias, to, client), dropped, denied)
		k.want(k.toA(), ask(server, offered, wrongTo, wrong), dropped, denied)
		host := k.toA()
		host.ingress = 0
		k.want(host, ask(ip.node, alias, to, client), pass, silent)
	})
}

// A pod may not use an address that the cluster knows as somebody's, whatever is
// enforced for it: where that one is allowed it would be taken for it.
func TestSourceOfAnother(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		invalid := droppedFor(flow.ReasonInvalidSource, out)
		from := func(src netip.Addr) packet {
			return packet{src: src, dst: ip.b, proto: udp, sport: 9, dport: 53}
		}
		for _, src := range []netip.Addr{ip.peer, ip.node, ip.b} {
			k.want(k.fromA(), from(src), dropped, invalid)
		}
		// Of an outside address it may be the router.
		bits := 24
		if !ip.v4 {
			bits = 64
		}
		k.want(k.fromA(), from(ip.world), pass, silent)
		world, err := ip.world.Prefix(bits)
		k.must(err)
		k.prefix(world, 500)
		k.want(k.fromA(), from(ip.world), pass, silent)
		// A veth that is no pod's may be anything.
		k.must(k.Devices.Delete(uint32(k.podA)))
		k.want(k.fromA(), from(ip.peer), pass, silent)
		k.must(k.Devices.Update(uint32(k.podA), Device{Policy: policyA, Identity: idA}))
		// Its own is its own.
		k.want(k.fromA(), from(ip.a), pass, forwarded(flow.ReasonNotEnforced, out))
		if !ip.v4 {
			k.prefix(netip.MustParsePrefix("fe80::/10"), 11)
			k.want(k.fromA(), from(linkLocal), pass, silent)
		}
	})
}

func neighbors(k *kernel) Table[datapathNeighbor, uint64] {
	return Table[datapathNeighbor, uint64]{"neighbors", k.objects.Neighbors}
}

// Neighbor discovery of a closed pod stays on its link.
func TestNeighborStaysOnLink(t *testing.T) {
	k := newKernel(t)
	ip := ipv6
	k.policy(policyA, closed)
	send := func(icmp uint8, dst netip.Addr, payload int) packet {
		return packet{src: ip.a, dst: dst, proto: unix.IPPROTO_ICMPV6, icmp: icmp, ttl: 255, payload: make([]byte, payload)}
	}
	denied := droppedFor(flow.ReasonPolicyDenied, out)
	solicited := netip.MustParseAddr("ff02::1:ff00:1")
	const rs, ns, na = 133, 135, 136
	for _, icmp := range []uint8{ns, na} {
		for _, dst := range []netip.Addr{solicited, allNodes, otherLocal} {
			k.want(k.fromA(), send(icmp, dst, 24), pass, silent)
			k.want(k.fromA(), send(icmp, dst, 24+200), dropped, denied)
		}
		for _, dst := range []netip.Addr{ip.world, ip.peer, ip.b, ip.node, netip.MustParseAddr("ff05::1")} {
			k.want(k.fromA(), send(icmp, dst, 24), dropped, denied)
		}
	}
	// Who speaks to the pod that way is on its link: a gateway, or another pod.
	gateway := netip.MustParseAddr("fd01::ff")
	asked := packet{src: gateway, dst: solicited, proto: unix.IPPROTO_ICMPV6, icmp: ns, ttl: 255, payload: make([]byte, 24)}
	k.want(k.fromA(), send(na, gateway, 24), dropped, denied)
	routed := asked
	routed.ttl = 254
	k.want(k.toA(), routed, dropped, droppedFor(flow.ReasonPolicyDenied, in))
	k.want(k.fromA(), send(na, gateway, 24), dropped, denied)
	k.want(k.toA(), asked, pass, silent)
	k.want(k.fromA(), send(na, gateway, 24), pass, silent)
	k.want(k.fromA(), send(ns, gateway, 24), pass, silent)
	k.want(k.fromA(), send(na, gateway, 24+200), dropped, denied)
	routed = send(na, gateway, 24)
	routed.ttl = 64
	k.want(k.fromA(), routed, dropped, denied)
	k.policy(policyB, closed)
	fromB := send(na, gateway, 24)
	fromB.src = ip.b
	k.want(k.fromB(), fromB, dropped, denied) // it is on A's link
	key := datapathNeighbor{Addr: AddrOf(gateway), Ifindex: uint32(k.podA)}
	seen, ok, err := neighbors(k).Lookup(key)
	k.must(err)
	if !ok {
		t.Fatal("the gateway is not known")
	}
	k.must(neighbors(k).Update(key, seen-uint64(601*time.Second)))
	k.want(k.fromA(), send(na, gateway, 24), dropped, denied)
	k.want(k.fromA(), send(rs, routers, 8), pass, silent)
	k.want(k.fromA(), send(rs, otherLocal, 8), pass, silent)
	k.want(k.fromA(), send(rs, routers, 200), dropped, denied)
	k.want(k.fromA(), send(rs, ip.node, 8), dropped, denied)
	k.want(k.fromA(), send(rs, ip.world, 8), dropped, denied)
	// The type can be allowed.
	k.policy(policyA, rules{port(out, idPeer, unix.IPPROTO_ICMPV6, ns): allow(1)})
	k.want(k.fromA(), send(ns, ip.peer, 24), pass, forwarded(flow.ReasonPolicyAllowed, out))
	// What comes from the link is for the pod's own address.
	k.policy(policyA, closed)
	k.want(k.toA(), packet{src: otherLocal, dst: ip.a, proto: unix.IPPROTO_ICMPV6, icmp: ns, ttl: 255, payload: make([]byte, 24)}, pass, silent)
	k.want(k.toA(), packet{src: otherLocal, dst: ip.a, proto: unix.IPPROTO_ICMPV6, icmp: ns, ttl: 255, payload: make([]byte, 224)}, dropped, droppedFor(flow.ReasonPolicyDenied, in))
}

// A pod has no say in flows that are not its own.
func TestICMPErrorByThird(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		p := ip.tcp()
		k.policy(policyA, allowed)
		k.policy(policyB, closed)
		k.want(k.fromA(), p, pass, forwarded(flow.ReasonPolicyAllowed, out))
		k.want(k.toA(), p.reply(syn|ack), pass, silent)
		unrelated := droppedFor(flow.ReasonICMPUnrelated, out)
		k.want(k.fromB(), quote(ip, ip.b, p), dropped, unrelated)
		k.want(k.fromB(), quote(ip, ip.b, p.reply(ack)), dropped, unrelated)
		// Of its own it has.
		k.want(k.fromA(), quote(ip, ip.a, p.reply(ack)), pass, silent)
		// And of others as far as its policy lets it send the type.
		e := quote(ip, ip.b, p)
		k.policy(policyB, rules{{Direction: out, Protocol: ip.icmp, Port: uint16(e.icmp), PortBits: 16}: allow(3)})
		k.want(k.fromB(), e, pass, forwarded(flow.ReasonPolicyAllowed, out))
		// Nor of those that the proxy has.
		k.policy(policyA, viaProxy)
		k.policy(policyB, closed)
		p.sport++
		k.want(k.fromA(), p, redirect, redirected(out))
		k.want(k.fromB(), quote(ip, ip.b, p), dropped, unrelated)
	})
}
