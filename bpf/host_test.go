package bpf

import (
	"testing"

	"github.com/weirnet/weir/flow"
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
