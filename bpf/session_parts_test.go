package bpf

import (
	"testing"

	"github.com/weirnet/weir/flow"
)

// Nothing else than TCP and what pods ask by UDP can go through the proxy.
func TestRedirectUnsupported(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		k.policy(policyA, rules{
			port(out, idPeer, sctp, 53): l7(1, 81), port(in, idPeer, udp, 53): l7(2, 82), port(in, idPeer, sctp, 53): l7(3, 83),
		})
		p := ip.question(1000)
		p.proto = sctp
		k.want(k.fromA(), p, dropped, droppedFor(flow.ReasonL7Unsupported, out))
		for _, proto := range []uint8{udp, sctp} {
			to := packet{src: ip.peer, dst: ip.a, proto: proto, sport: 1000, dport: 53}
			k.want(k.toA(), to, dropped, droppedFor(flow.ReasonL7Unsupported, in))
			if k.entry(to) != nil || k.conn(to) != nil {
				t.Error("something is left of it")
			}
		}
	})
}

// A question in parts is one question.
func TestSessionFragments(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		k.policy(policyA, viaDNS)
		part := func(q packet, id uint32, offset int, more bool) packet {
			q.fragment, q.fragID, q.fragOffset, q.fragMore, q.payload = true, id, offset, more, pad(64)
			return q
		}
		q := ip.question(1000)
		k.want(k.fromA(), part(q, 1, 72, false), dropped, droppedFor(flow.ReasonFragmentUnknown, out))
		k.want(k.fromA(), part(q, 1, 0, true), redirect, redirected(out))
		k.want(k.fromA(), part(q, 1, 72, true), redirect, silent)
		k.want(k.fromA(), part(q, 1, 136, false), redirect, silent)
		// The answer to it.
		k.want(k.proxied(), part(q.reply(0), 2, 0, true), redirect, silent)
		k.want(k.proxied(), part(q.reply(0), 2, 72, false), redirect, silent)
		k.want(k.proxied(), part(q.reply(0), 3, 72, false), dropped, droppedFor(flow.ReasonFragmentUnknown, out))
		// What the proxy asks in its turn, and what it gets.
		up := ip.question(40000)
		k.want(k.proxied(), part(up, 4, 0, true), redirect, silent)
		k.want(k.proxied(), part(up, 4, 72, false), redirect, silent)
		k.want(k.toA(), part(up.reply(0), 5, 0, true), redirect, silent)
		k.want(k.toA(), part(up.reply(0), 5, 72, false), redirect, silent)
		// Policy moves between two parts.
		k.want(k.fromA(), part(q, 6, 0, true), redirect, silent)
		k.policy(policyA, rules{port(out, idPeer, udp, 53): l7(5, 85)})
		k.want(k.fromA(), part(q, 6, 72, false), redirect, silent)
		k.want(k.fromA(), part(q, 7, 0, true), redirect, silent)
		k.policy(policyA, closed)
		k.want(k.fromA(), part(q, 7, 72, false), dropped, droppedFor(flow.ReasonPolicyDenied, out))
		k.want(k.fromA(), part(q, 7, 136, false), dropped, droppedFor(flow.ReasonPolicyDenied, out))
		// A later part of a direct flow that needs the proxy by now.
		k.policy(policyA, rules{port(out, idPeer, udp, 53): allow(3)})
		k.want(k.fromA(), part(q, 8, 0, true), pass, forwarded(flow.ReasonPolicyAllowed, out))
		k.policy(policyA, viaDNS)
		k.want(k.fromA(), part(q, 8, 72, false), dropped, droppedFor(flow.ReasonL7Unsupported, out))
		// The first part's entry is gone.
		k.want(k.fromA(), part(q, 9, 0, true), redirect, redirected(out))
		empty(k, k.Conntrack)
		k.want(k.fromA(), part(q, 9, 72, false), dropped, droppedFor(flow.ReasonL7Unsupported, out))
	})
}
