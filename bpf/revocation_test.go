package bpf

import (
	"testing"

	"github.com/weirnet/weir/flow"
)

// A flow that isn't TCP may consist of answers only: they end with what allowed
// them.
func TestRevokedReplies(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		s := ip.udp()
		s.proto = sctp
		allowed := rules{port(out, idPeer, udp, 80): allow(1), port(out, idPeer, sctp, 80): allow(1)}
		for _, p := range []packet{ip.udp(), s} {
			k.policy(policyA, allowed)
			k.want(k.fromA(), p, pass, forwarded(flow.ReasonPolicyAllowed, out))
			k.want(k.toA(), p.reply(0), pass, silent)
			// Judged once, and no more at this revision.
			k.policy(policyA, allowed)
			k.want(k.toA(), p.reply(0), pass, silent)
			if ct := k.entry(p); ct.Revision[out] != k.Revision() {
				t.Errorf("judged at revision %d of %d", ct.Revision[out], k.Revision())
			}
			k.policy(policyA, closed)
			for range 2 {
				k.want(k.toA(), p.reply(0), dropped, droppedFor(flow.ReasonPolicyDenied, in))
			}
			if ct := k.entry(p); ct.Flags&CTJudgedEgress != 0 {
				t.Error("the entry still says that it is allowed")
			}
			k.policy(policyA, allowed)
			k.want(k.toA(), p.reply(0), pass, silent)
			// At the responder's end.
			q := packet{src: ip.peer, dst: ip.a, proto: p.proto, sport: 1000, dport: 53}
			k.policy(policyA, rules{port(in, idPeer, p.proto, 53): allow(2)})
			k.want(k.toA(), q, pass, forwarded(flow.ReasonPolicyAllowed, in))
			k.want(k.fromA(), q.reply(0), pass, silent)
			k.policy(policyA, closed)
			k.want(k.fromA(), q.reply(0), dropped, droppedFor(flow.ReasonPolicyDenied, out))
		}
	})
}

// Rules that the proxy can't be told of don't come into force silently: the
// packet that needs them waits.
func TestRenewFails(t *testing.T) {
	k := newKernel(t)
	programs := variant(t, k, "conns_error", int32(-16))
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		p := ip.tcp()
		k.policy(policyA, viaProxy)
		k.want(k.fromA(), p, redirect, redirected(out))
		was := k.entry(p).Revision[out]
		k.policy(policyA, rules{port(out, idPeer, tcp, 80): l7(5, 75)})
		failing := k.fromA()
		failing.prog = programs["from_pod"]
		for range 2 {
			k.want(failing, p.with(ack), dropped, droppedFor(flow.ReasonConnsFull, out))
			if ct := k.entry(p); ct.Revision[out] != was {
				t.Errorf("stamped with revision %d, was %d", ct.Revision[out], was)
			}
		}
		k.want(k.fromA(), p.with(ack), redirect, silent)
		if c := k.conn(p); c.RuleSet[out] != 75 {
			t.Errorf("conn %+v", c)
		}
		// A flow that the proxy has let go of has nothing to be told.
		k.must(k.Conns.Delete(p.tuple()))
		k.policy(policyA, viaProxy)
		k.want(k.fromA(), p.with(ack), redirect, silent)
		if k.conn(p) != nil {
			t.Error("an entry that the proxy deleted is back")
		}
	})
}
