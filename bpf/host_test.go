package bpf

import (
	"net/netip"
	"testing"

	"github.com/weirnet/weir/flow"
	"github.com/weirnet/weir/policy"
)

// The node reaches its own pods, whatever is denied.
func TestHost(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		k.policy(policyA, closed)
		host := k.toA()
		host.ingress = 0
		for _, p := range []packet{
			{src: ip.node, dst: ip.a, proto: tcp, sport: 1000, dport: 80, flags: syn},
			{src: ip.node, dst: ip.a, proto: tcp, sport: 1001, dport: 80, flags: ack},
			{src: ip.node, dst: ip.a, proto: udp, sport: 1000, dport: 53},
			{src: ip.node, dst: ip.a, proto: ip.icmp, icmp: ip.echo, sport: 5},
		} {
			k.want(host, p, pass, forwarded(flow.ReasonHost, in))
			if ct := k.entry(p); ct == nil || ct.Flags&CTJudgedIngress == 0 {
				t.Fatalf("%v: entry %+v", p.tuple(), ct)
			}
			k.want(k.fromA(), p.reply(syn|ack), pass, silent)
			k.policy(policyA, closed) // moves the revision
			p.flags = ack
			k.want(host, p, pass, silent)
		}
		// A forwarded packet with the node's address is judged as what it is.
		p := packet{src: ip.node, dst: ip.a, proto: tcp, sport: 2000, dport: 80, flags: syn}
		k.want(k.toA(), p, dropped, droppedFor(flow.ReasonPolicyDenied, in))
		k.policy(policyA, rules{port(in, 1, tcp, 80): allow(3)})
		k.want(k.toA(), p, pass, forwarded(flow.ReasonPolicyAllowed, in))
		// The pod's own way to the node is not free.
		q := packet{src: ip.a, dst: ip.node, proto: tcp, sport: 3000, dport: 10250, flags: syn}
		k.want(k.fromA(), q, dropped, droppedFor(flow.ReasonPolicyDenied, out))
	})
}

// An address of the node is its own by the flag of its row: the identity may be
// another, for which policies have entries of their own.
func TestHostOfAnotherIdentity(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		const blocked = 310
		k.must(k.IPCache.Update(PrefixOf(netip.PrefixFrom(ip.node, ip.node.BitLen())), Peer{Identity: blocked, Flags: PeerHost}))
		k.policy(policyA, rules{port(out, blocked, tcp, 80): allow(3), port(out, 1, tcp, 81): allow(4), port(in, blocked, tcp, 80): allow(5)})
		toNode := func(dport uint16) packet {
			return packet{src: ip.a, dst: ip.node, proto: tcp, sport: 3000, dport: dport, flags: syn}
		}
		k.want(k.fromA(), toNode(80), pass, forwarded(flow.ReasonPolicyAllowed, out))
		k.want(k.fromA(), toNode(81), dropped, droppedFor(flow.ReasonPolicyDenied, out))
		// Its sockets reach pods, and what is forwarded with its address is judged.
		p := packet{src: ip.node, dst: ip.a, proto: tcp, sport: 2000, dport: 22, flags: syn}
		own := k.toA()
		own.ingress = 0
		k.want(own, p, pass, forwarded(flow.ReasonHost, in))
		k.want(k.fromA(), p.reply(syn|ack), pass, silent)
		p.sport++
		k.want(k.toA(), p, dropped, droppedFor(flow.ReasonPolicyDenied, in))
		p.dport = 80
		k.want(k.toA(), p, pass, forwarded(flow.ReasonPolicyAllowed, in))
		// Its own policy is asked of what comes and goes, from far and from pods.
		k.policy(policyA, nil)
		k.host(rules{port(in, idPeer, tcp, 80): allow(7), port(in, idB, tcp, 80): allow(8)}, rules{port(in, 0, tcp, 22): {Action: policy.Allow}})
		far := packet{src: ip.peer, dst: ip.node, proto: tcp, sport: 4000, dport: 80, flags: syn}
		k.want(k.arrives(), far, pass, forwarded(flow.ReasonPolicyAllowed, in))
		far.dport = 81
		k.want(k.arrives(), far, dropped, droppedFor(flow.ReasonPolicyDenied, in))
		far.dport = 22
		k.want(k.arrives(), far, pass, forwarded(flow.ReasonFailSafe, in))
		k.want(k.leaves(), packet{src: ip.node, dst: ip.peer, proto: tcp, sport: 1, dport: 80, flags: syn}, dropped, droppedFor(flow.ReasonPolicyDenied, out))
		k.want(k.sentOn(), packet{src: ip.node, dst: ip.world, proto: tcp, sport: 1, dport: 80, flags: syn}, pass, silent)
		q := toNode(80)
		q.sport++
		k.want(k.fromA(), q, dropped, droppedFor(flow.ReasonPolicyDenied, in))
		q.src = ip.b
		k.want(k.fromB(), q, pass, forwarded(flow.ReasonNotEnforced, out))
		// Nobody else may send with it.
		q = packet{src: ip.node, dst: ip.peer, proto: tcp, sport: 5, dport: 80, flags: syn}
		k.want(k.fromB(), q, dropped, droppedFor(flow.ReasonInvalidSource, out))
	})
}
