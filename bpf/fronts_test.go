package bpf

import (
	"maps"
	"net/netip"
	"testing"

	"github.com/weirnet/weir/flow"
	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy"
)

const idService = identity.ID(700)

// TestFronts: what comes to a service by an address of a node or of the world is
// judged as the service, at the service's port, and nothing else is.
func TestFronts(t *testing.T) {
	k := newKernel(t)
	deny := policy.Entry{Action: policy.Deny, Rule: 9}
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		any, near := netip.IPv4Unspecified(), netip.MustParseAddr("169.254.1.1")
		remote, named := netip.MustParseAddr("172.16.0.9"), netip.MustParseAddr("192.0.2.9")
		if !ip.v4 {
			any, near = netip.IPv6Unspecified(), netip.MustParseAddr("fe80::1")
			remote, named = netip.MustParseAddr("fd03::9"), netip.MustParseAddr("2001:db8::9")
		}
		front := func(a netip.Addr, port uint16, proto uint8, id identity.ID) {
			k.must(k.Fronts.Update(FrontKeyOf(netip.AddrPortFrom(a, port), proto), Front{Identity: uint32(id), Port: 80}))
		}
		world := identity.WorldIPv6
		if ip.v4 {
			world = identity.WorldIPv4
		}
		const idName = identity.ID(701)
		k.must(k.IPCache.Update(PrefixOf(netip.PrefixFrom(ip.node, ip.node.BitLen())), Peer{Identity: uint32(identity.Host), Flags: PeerHost | PeerNode}))
		k.must(k.IPCache.Update(PrefixOf(netip.PrefixFrom(remote, remote.BitLen())), Peer{Identity: uint32(identity.RemoteNode), Flags: PeerNode}))
		k.must(k.Names.Update(uint32(idName), 1))
		k.must(k.FQDN.Update(AddrOf(named), uint32(idName)))
		for _, proto := range []uint8{tcp, udp, sctp} {
			front(any, 30080, proto, idService)
			front(ip.world, 8080, proto, idService)
		}
		front(named, 8080, tcp, idService)
		front(ip.world, 8081, tcp, 0)
		front(ip.b, 8080, tcp, idService)
		front(ip.node, 8082, tcp, idService)

		places := func(more rules) rules {
			list := rules{}
			for _, id := range []identity.ID{identity.Host, identity.RemoteNode, world, idName, idB, identity.UnknownPod} {
				list[policy.Key{Direction: out, Identity: id}] = allow(1)
			}
			maps.Copy(list, more)
			return list
		}
		service := rules{port(out, idService, tcp, 80): allow(2), port(out, idService, udp, 80): allow(2), port(out, idService, sctp, 80): allow(2)}
		for _, c := range []struct {
			name    string
			entries rules
			to      netip.Addr
			port    uint16
			proto   uint8
			want    flow.Reason
			rule    uint32
			who     identity.ID
		}{
			{"node port", places(nil), ip.node, 30080, tcp, flow.ReasonPolicyDenied, 0, idService},
			{"node port, UDP", places(nil), ip.node, 30080, udp, flow.ReasonPolicyDenied, 0, idService},
			{"node port, SCTP", places(nil), ip.node, 30080, sctp, flow.ReasonPolicyDenied, 0, idService},
			{"node port of another node", places(nil), remote, 30080, tcp, flow.ReasonPolicyDenied, 0, idService},
			{"external address", places(nil), ip.world, 8080, tcp, flow.ReasonPolicyDenied, 0, idService},
			{"external address with a name", places(nil), named, 8080, tcp, flow.ReasonPolicyDenied, 0, idService},
			{"external address of a node", places(nil), ip.node, 8082, tcp, flow.ReasonPolicyDenied, 0, idService},
			{"node port, allowed", service, ip.node, 30080, tcp, flow.ReasonPolicyAllowed, 2, idService},
			{"node port of another node, allowed", service, remote, 30080, udp, flow.ReasonPolicyAllowed, 2, idService},
			{"external address, allowed", service, ip.world, 8080, sctp, flow.ReasonPolicyAllowed, 2, idService},
			{"the node denied, the service allowed", rules{{Direction: out, Identity: identity.Host}: deny, port(out, idService, tcp, 80): allow(2)}, ip.node, 30080, tcp, flow.ReasonPolicyAllowed, 2, idService},
			{"denied", places(rules{{Direction: out, Identity: idService}: deny}), ip.node, 30080, tcp, flow.ReasonPolicyDenyRule, 9, idService},
			{"for everybody, at the service's port", rules{port(out, 0, tcp, 80): allow(3)}, ip.node, 30080, tcp, flow.ReasonPolicyAllowed, 3, idService},
			{"for everybody, at the port it was sent to", rules{port(out, 0, tcp, 30080): allow(3)}, ip.node, 30080, tcp, flow.ReasonPolicyDenied, 0, idService},
			{"backends differ", rules{{Direction: out}: allow(3), port(out, idService, tcp, 80): {Action: policy.Refuse, Reason: policy.RefusedBackends}}, ip.node, 30080, tcp, flow.ReasonServiceBackends, 0, idService},
			{"nobody can tell", rules{{Direction: out}: allow(3)}, ip.world, 8081, tcp, flow.ReasonServiceConflict, 0, world},
			{"an address of a pod of this node", rules{{Direction: out}: allow(3)}, ip.b, 8080, tcp, flow.ReasonServiceConflict, 0, idB},

			{"another port of the node", places(nil), ip.node, 30081, tcp, flow.ReasonPolicyAllowed, 1, identity.Host},
			{"another port of another node", places(nil), remote, 80, tcp, flow.ReasonPolicyAllowed, 1, identity.RemoteNode},
			{"another port outside", places(nil), ip.world, 80, tcp, flow.ReasonPolicyAllowed, 1, world},
			{"that port, outside", places(nil), ip.world, 30080, tcp, flow.ReasonPolicyAllowed, 1, world},
			{"that port of a pod", places(nil), ip.b, 30080, tcp, flow.ReasonPolicyAllowed, 1, idB},
		} {
			empty(k, k.Conntrack)
			k.forgetConns()
			k.policy(policyA, c.entries, out)
			k.drain()
			p := packet{src: ip.a, dst: c.to, proto: c.proto, sport: 1000, dport: c.port, flags: syn}
			verdict, _, _ := k.run(k.fromA(), p.bytes())
			events, want := k.drain(), pass
			if c.want.Drops() {
				want = dropped
			}
			if verdict != want || len(events) != 1 || events[0].Reason != c.want || events[0].Rule != c.rule || events[0].DestIdentity != c.who {
				t.Errorf("%s: verdict %d, %+v, want %d, %v, rule %d, identity %d", c.name, int32(verdict), events, int32(want), c.want, c.rule, c.who)
			}
		}

		// On the pod's own link there may be a node.
		if !ip.v4 {
			k.policy(policyA, places(nil), out)
			p := packet{src: ip.a, dst: near, proto: tcp, sport: 1000, dport: 30080, flags: syn}
			k.want(k.fromA(), p, dropped, droppedFor(flow.ReasonPolicyDenied, out))
			p.dport = 30081
			k.want(k.fromA(), p, pass, forwarded(flow.ReasonPolicyAllowed, out))
			// And a host port of one of its pods, before a node port.
			front(netip.MustParseAddr("fe80::"), 30080, tcp, idB)
			k.policy(policyA, rules{{Direction: out}: allow(3), {Direction: out, Identity: idB}: deny}, out)
			p.sport, p.dport = 1001, 30080
			k.want(k.fromA(), p, dropped, droppedFor(flow.ReasonPolicyDenyRule, out))
			p.dst = ip.node
			k.want(k.fromA(), p, pass, forwarded(flow.ReasonPolicyAllowed, out))
		}
		// Where no policy is enforced it does not matter.
		k.policy(policyA, nil)
		k.want(k.fromA(), packet{src: ip.a, dst: ip.world, proto: tcp, sport: 1001, dport: 8081, flags: syn}, pass, forwarded(flow.ReasonNotEnforced, out))

		// Answers are judged as what they answer.
		k.policy(policyA, service, in, out)
		ask := packet{src: ip.a, dst: ip.node, proto: udp, sport: 1002, dport: 30080}
		answer := packet{src: ip.node, dst: ip.a, proto: udp, sport: 30080, dport: 1002}
		k.want(k.fromA(), ask, pass, forwarded(flow.ReasonPolicyAllowed, out))
		k.BumpRevision()
		k.want(k.toA(), answer, pass, silent)
		k.policy(policyA, rules{{Direction: out, Identity: identity.Host}: allow(1)}, in, out)
		k.want(k.toA(), answer, dropped, droppedFor(flow.ReasonPolicyDenied, in))

		// A client whose own port is a node port's number is no service.
		k.policy(policyA, rules{{Direction: in, Identity: identity.Host}: allow(1)}, in, out)
		ask = packet{src: ip.node, dst: ip.a, proto: udp, sport: 30080, dport: 7}
		k.want(k.toA(), ask, pass, forwarded(flow.ReasonPolicyAllowed, in))
		k.BumpRevision()
		k.want(k.fromA(), packet{src: ip.a, dst: ip.node, proto: udp, sport: 7, dport: 30080}, pass, silent)

		// The proxy is told whom it is about.
		for proto, dst := range map[uint8]netip.Addr{tcp: ip.node, udp: ip.node} {
			k.forgetConns()
			k.policy(policyA, rules{port(out, idService, proto, 80): l7(4, 5)}, out)
			p := packet{src: ip.a, dst: dst, proto: proto, sport: 1003, dport: 30080, flags: syn}
			k.want(k.fromA(), p, redirect, []seen{{flow.Redirected, flow.ReasonRedirected, out}})
			if c := k.conn(p); c == nil || c.DstIdentity != uint32(idService) || c.RuleSet[1] != 5 || c.L7 != 2|ConnLocal<<1 {
				t.Errorf("protocol %d: the proxy is told %+v", proto, c)
			}
		}

		// For the node itself another one's port is a port.
		k.host(rules{{Direction: out, Identity: identity.RemoteNode}: allow(6)}, rules{}, out)
		k.want(k.leaves(), packet{src: ip.node, dst: remote, proto: tcp, sport: 1000, dport: 30080, flags: syn}, pass, forwarded(flow.ReasonPolicyAllowed, out))
	})
}
