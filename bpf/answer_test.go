package bpf

import (
	"testing"

	"github.com/weirnet/weir/flow"
	"github.com/weirnet/weir/policy"
)

// A server that sends first, or so late that nobody remembers the question, does
// not make the pod's questions answers, which would pass unread.
func TestQuestionsAreNoAnswers(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		byNode := k.toA()
		byNode.ingress = 0
		for _, c := range []struct {
			name  string
			rules rules
			dirs  []policy.Direction
			begin func(late packet) packet // the question whose answer came
			judge uint32                   // flags beside those of any question
		}{
			{"ingress is not enforced", viaDNS, []policy.Direction{out}, func(q packet) packet {
				k.want(k.toA(), q.reply(0), pass, forwarded(flow.ReasonNotEnforced, in))
				return q
			}, 0},
			{"a rule lets it in", rules{port(out, idPeer, udp, 53): l7(1, 81), {Direction: in, Identity: idPeer}: allow(2)}, nil, func(q packet) packet {
				k.want(k.toA(), q.reply(0), pass, forwarded(flow.ReasonPolicyAllowed, in))
				k.want(k.toA(), q.reply(0), pass, silent)
				return q
			}, 0},
			{"the server is a socket of the node", rules{port(out, 1, udp, 53): l7(1, 81)}, nil, func(q packet) packet {
				q.dst = ip.node
				k.want(byNode, q.reply(0), pass, forwarded(flow.ReasonHost, in))
				return q
			}, 0},
			{"the server is a pod of this node", rules{port(out, idB, udp, 53): l7(1, 81)}, []policy.Direction{out}, func(q packet) packet {
				q.dst = ip.b
				k.want(k.fromB(), q.reply(0), pass, forwarded(flow.ReasonNotEnforced, out))
				k.want(k.toA(), q.reply(0), pass, forwarded(flow.ReasonNotEnforced, in))
				return q
			}, CTJudgedIngress},
			{"that pod's, judged at its end only", rules{port(out, idB, udp, 53): l7(1, 81)}, []policy.Direction{out}, func(q packet) packet {
				q.dst = ip.b
				k.want(k.fromB(), q.reply(0), pass, forwarded(flow.ReasonNotEnforced, out))
				return q
			}, CTJudgedIngress},
			{"the proxy's entry had to make room", viaDNS, []policy.Direction{out}, func(q packet) packet {
				k.want(k.fromA(), ip.question(1000), redirect, redirected(out))
				q.sport = 40000
				k.want(k.proxied(), q, redirect, silent)
				empty(k, k.Conntrack)
				k.want(k.toA(), q.reply(0), pass, forwarded(flow.ReasonNotEnforced, in))
				return q
			}, 0},
			{"and it says so again and again", viaDNS, []policy.Direction{out}, func(q packet) packet {
				for range 3 {
					empty(k, k.Conntrack)
					k.want(k.toA(), q.reply(0), pass, forwarded(flow.ReasonNotEnforced, in))
					k.want(k.toA(), q.reply(0), pass, silent)
					k.want(k.fromA(), q, redirect, redirected(out))
					k.want(k.toA(), q.reply(0), redirect, silent)
				}
				k.age(q, 181e9)
				k.want(k.toA(), q.reply(0), pass, forwarded(flow.ReasonNotEnforced, in))
				return q
			}, 0},
		} {
			k.reset()
			k.policy(policyA, c.rules, c.dirs...)
			q := c.begin(ip.question(1000))
			if ct := k.entry(q); ct == nil || ct.Flags&CTRedirected != 0 {
				t.Fatalf("%s: entry %+v", c.name, ct)
			}
			// The proxy can't use what the server began either.
			k.want(k.proxied(), q.reply(0), dropped, droppedFor(flow.ReasonUDPNoFlow, out))
			if v, _, _ := k.run(k.fromA(), q.bytes()); v != redirect {
				t.Fatalf("%s: verdict %d, events %+v", c.name, int32(v), k.drain())
			}
			if e := k.drain(); len(e) != 1 || e[0].Reason != flow.ReasonRedirected || e[0].Direction != out {
				t.Errorf("%s: events %+v", c.name, e)
			}
			k.wantEntry(q, CTRedirected|CTJudgedEgress|c.judge)
			if s := k.conn(q); s == nil || s.RuleSet[out] != 81 || s.Ifindex != uint32(k.podA) {
				t.Errorf("%s: session %+v", c.name, s)
			}
			k.want(k.fromA(), q, redirect, silent)
			k.answered(q)
			k.BumpRevision()
			k.want(k.fromA(), q, redirect, silent)
			k.answered(q)
		}
	})
}

// What a pod's own rules do not send to the proxy passes as an answer, whatever else
// they say of it, and is looked at once for each revision.
func TestAnswersPass(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		client := packet{src: ip.peer, dst: ip.a, proto: udp, sport: 5000, dport: 53}
		serves := rules{port(in, idPeer, udp, 53): allow(2), port(out, idPeer, udp, 53): l7(1, 81)}
		k.policy(policyA, serves)
		k.want(k.toA(), client, pass, forwarded(flow.ReasonPolicyAllowed, in))
		k.wantEntry(client, CTJudgedIngress|CTMayAsk)
		for range 2 {
			k.want(k.fromA(), client.reply(0), pass, silent)
			k.want(k.toA(), client, pass, silent)
			k.wantEntry(client, CTJudgedIngress|CTReplied)
		}
		// Whichever end is the first to see that policy has moved.
		for _, first := range []struct {
			at    at
			p     packet
			flags uint32
		}{{k.toA(), client, CTJudgedIngress | CTReplied | CTMayAsk}, {k.fromA(), client.reply(0), CTJudgedIngress | CTReplied}} {
			k.policy(policyA, serves)
			k.want(first.at, first.p, pass, silent)
			ct := k.wantEntry(client, first.flags)
			if ct.Revision[in] != k.Revision() {
				t.Errorf("judged at revision %d of %d", ct.Revision[in], k.Revision())
			}
			k.want(k.fromA(), client.reply(0), pass, silent)
			k.wantEntry(client, CTJudgedIngress|CTReplied)
		}
		// What the node asks is answered, though no rule lets it in.
		k.policy(policyA, rules{port(out, idPeer, udp, 53): l7(1, 81)})
		node, byNode := client, k.toA()
		node.src, byNode.ingress = ip.node, 0
		k.want(byNode, node, pass, forwarded(flow.ReasonHost, in))
		k.wantEntry(node, CTJudgedIngress|CTMayAsk)
		for range 2 {
			k.want(k.fromA(), node.reply(0), pass, silent)
			k.wantEntry(node, CTJudgedIngress|CTReplied)
			k.want(byNode, node, pass, silent)
		}
		// Nothing is asked of a policy without rules for the proxy.
		k.policy(policyA, rules{port(in, idPeer, udp, 53): allow(2)})
		k.want(k.toA(), client, pass, silent)
		k.wantEntry(client, CTJudgedIngress|CTReplied)
		client.sport++
		k.want(k.toA(), client, pass, forwarded(flow.ReasonPolicyAllowed, in))
		k.wantEntry(client, CTJudgedIngress)
		// Parts of an answer.
		k.policy(policyA, serves)
		part := client.reply(0)
		part.fragment, part.fragID, part.fragMore, part.payload = true, 7, true, pad(64)
		k.want(k.fromA(), part, pass, silent)
		part.fragOffset, part.fragMore = 72, false
		k.want(k.fromA(), part, pass, silent)
	})
}

// Policy moves under a flow that the server's end began.
func TestAnswersBecomeQuestions(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		plain := rules{port(out, idPeer, udp, 53): allow(5)}
		q := ip.question(1000)
		begun := func() {
			t.Helper()
			empty(k, k.Conntrack)
			k.forgetConns()
			k.policy(policyA, plain, out)
			k.want(k.toA(), q.reply(0), pass, forwarded(flow.ReasonNotEnforced, in))
			k.want(k.fromA(), q, pass, silent)
			k.wantEntry(q.reply(0), CTJudgedIngress|CTReplied)
		}
		// The next packet is the pod's, or the server's.
		for range 2 {
			begun()
			k.policy(policyA, viaDNS, out)
			k.want(k.fromA(), q, redirect, redirected(out))
			k.answered(q)
			begun()
			k.policy(policyA, viaDNS, out)
			k.want(k.toA(), q.reply(0), pass, silent)
			k.wantEntry(q.reply(0), CTJudgedIngress|CTReplied|CTMayAsk)
			k.want(k.fromA(), q, redirect, redirected(out))
			k.answered(q)
		}
		// Ingress denies it by now; the question is the pod's own all the same.
		begun()
		k.policy(policyA, viaDNS)
		k.want(k.toA(), q.reply(0), dropped, droppedFor(flow.ReasonPolicyDenied, in))
		k.want(k.fromA(), q, redirect, redirected(out))
		k.answered(q)
		// The other way round, an answer that is no question any more.
		k.reset()
		k.policy(policyA, viaDNS, out)
		k.want(k.toA(), q.reply(0), pass, forwarded(flow.ReasonNotEnforced, in))
		k.policy(policyA, plain, out)
		k.want(k.fromA(), q, pass, silent)
		k.wantEntry(q.reply(0), CTJudgedIngress|CTReplied)
		k.policy(policyA, viaDNS, out)
		k.want(k.fromA(), q, redirect, redirected(out))
	})
}

// A question that can't go to the proxy does not go at all.
func TestAnswersWithoutProxy(t *testing.T) {
	k := newKernel(t)
	failing := variant(t, k, "conns_error", int32(-16))["from_pod"]
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		q := ip.question(1000)
		k.policy(policyA, viaDNS, out)
		k.want(k.toA(), q.reply(0), pass, forwarded(flow.ReasonNotEnforced, in))
		stuck := k.fromA()
		stuck.prog = failing
		for range 2 {
			k.want(stuck, q, dropped, droppedFor(flow.ReasonConnsFull, out))
			k.wantEntry(q.reply(0), CTJudgedIngress|CTMayAsk)
		}
		k.SetGeneration(3)
		k.want(k.fromA(), q, dropped, droppedFor(flow.ReasonNoProxy, out))
		// A later part, whose first was not seen to be one.
		k.SetGeneration(1)
		part := q
		part.fragment, part.fragID, part.fragMore, part.payload = true, 9, true, pad(64)
		k.want(k.fromA(), part, redirect, redirected(out))
		empty(k, k.Conntrack)
		k.want(k.toA(), q.reply(0), pass, forwarded(flow.ReasonNotEnforced, in))
		part.fragOffset, part.fragMore = 72, false
		k.want(k.fromA(), part, dropped, droppedFor(flow.ReasonL7Unsupported, out))
		k.want(k.fromA(), q, redirect, redirected(out))
		// To the proxy of the time, also when the entry is of another's.
		k.must(k.Proxies.Update(2, Proxy{Ifindex: uint32(k.podB), Alive: 1, Mac: [6]byte{2, 8}}))
		k.SetGeneration(2)
		empty(k, k.Conntrack)
		k.want(k.toA(), q.reply(0), pass, forwarded(flow.ReasonNotEnforced, in))
		k.want(k.fromA(), q, redirect, redirected(out))
		if ct, s := k.entry(q), k.conn(q); ct.Generation != 2 || s.Generation != 2 {
			t.Errorf("entry %+v, session %+v", ct, s)
		}
		k.want(k.secondProxy(), q.reply(0), redirect, silent)
		k.must(k.Proxies.Update(2, Proxy{}))
		k.SetGeneration(1)
		// A server of this node that may not be asked: its policy's no counts.
		k.policy(policyA, rules{port(out, idB, udp, 53): l7(1, 81)}, out)
		k.policy(policyB, closed, in)
		q.dst = ip.b
		k.want(k.fromB(), q.reply(0), pass, forwarded(flow.ReasonNotEnforced, out))
		k.want(k.toA(), q.reply(0), pass, forwarded(flow.ReasonNotEnforced, in))
		for range 2 {
			k.want(k.fromA(), q, dropped, droppedFor(flow.ReasonPolicyDenied, in))
		}
		k.policy(policyB, nil)
	})
}
