package bpf

import (
	"testing"

	"github.com/weirnet/weir/flow"
	"github.com/weirnet/weir/policy"
)

// viaDNS sends pod A's questions to port 53 of the peer through the proxy.
var viaDNS = rules{port(out, idPeer, udp, 53): l7(1, 81)}

// question is a datagram of pod A from that port.
func (ip addresses) question(sport uint16) packet {
	return packet{src: ip.a, dst: ip.peer, proto: udp, sport: sport, dport: 53, payload: []byte("who is api.example.test?")}
}

// answered lets a question, and what the proxy makes of it, go all the way.
func (k *kernel) answered(q packet) {
	k.t.Helper()
	k.want(k.fromA(), q, redirect, silent)
	k.want(k.proxied(), q.reply(0), redirect, silent)
}

// All questions of one pod to one server and port are one session.
func TestSession(t *testing.T) {
	k := newKernel(t)
	failing := variant(t, k, "conns_error", int32(-16))["from_pod"]
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		k.policy(policyA, viaDNS)
		p := ip.question(1000)
		k.want(k.fromA(), p, redirect, redirected(out))
		ct := k.wantEntry(p, CTRedirected|CTJudgedEgress)
		c := k.conn(p)
		if c == nil {
			t.Fatal("the proxy knows nothing")
		}
		want := Conn{
			Id: c.Id, Ifindex: uint32(k.podA), Revision: k.Revision(), SrcIdentity: idA, DstIdentity: idPeer,
			RuleSet: [2]uint32{0, 81}, Rule: [2]uint32{0, 1}, L7: (1 | ConnLocal) << out, Generation: 1,
		}
		copy(want.L2[:], ethernet(ip.v4))
		if *c != want || c.Id == 0 {
			t.Errorf("session %+v, want %+v", *c, want)
		}
		if ct.Ifindex != c.Ifindex || ct.Generation != 1 || ct.L2 != c.L2 || ct.Rule != c.Rule || ct.Veth != [2]uint32{0, c.Ifindex} {
			t.Errorf("entry %+v, session %+v", ct, c)
		}
		k.answered(p)
		k.wantEntry(p, CTRedirected|CTJudgedEgress|CTReplied)
		// An answer that comes by the wire is the proxy's to look at.
		if got := k.want(k.toA(), p.reply(0), redirect, silent); mac(got) != proxyMAC {
			t.Errorf("an answer goes to %x", mac(got))
		}

		// From another port: nothing is written that says the same.
		unwritten := k.fromA()
		unwritten.prog = failing
		k.want(unwritten, ip.question(1001), redirect, redirected(out))
		k.want(unwritten, p, redirect, silent)
		if s := k.shareOf(k.podA); s.Made != 1 || k.rowsOf(k.podA) != 1 {
			t.Errorf("%d sessions were made, %d are there", s.Made, k.rowsOf(k.podA))
		}
		// Another port of the server, another server: another session.
		k.policy(policyA, rules{
			port(out, idPeer, udp, 53): l7(1, 81), port(out, idPeer, udp, 54): l7(2, 82), port(out, idB, udp, 53): l7(3, 83),
		})
		other := p
		other.dport = 54
		k.want(k.fromA(), other, redirect, redirected(out))
		local := p
		local.dst = ip.b
		k.want(k.fromA(), local, redirect, redirected(out))
		if s := k.conn(other); s == nil || s.RuleSet[out] != 82 {
			t.Errorf("session %+v", s)
		}
		if s := k.conn(local); s == nil || s.RuleSet[out] != 83 || s.L7 != (1|ConnLocal)<<out|ConnLocal<<in {
			t.Errorf("session %+v", s)
		}
		if c := k.conn(p); *c != want {
			t.Errorf("session %+v, was %+v", *c, want)
		}
	})
}

// What is new about a session is written when it is asked next, and whichever
// flow that is.
func TestSessionRenewed(t *testing.T) {
	k := newKernel(t)
	failing := variant(t, k, "conns_error", int32(-16))["from_pod"]
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		k.policy(policyA, viaDNS)
		p := ip.question(1000)
		k.want(k.fromA(), p, redirect, redirected(out))
		id := k.conn(p).Id
		// Policy moves: a known flow, then a new one.
		for i, next := range []packet{p, ip.question(1001)} {
			set := uint32(91 + i)
			k.policy(policyA, rules{port(out, idPeer, udp, 53): l7(uint32(5+i), set)})
			k.want(k.toA(), p.reply(0), redirect, silent)
			if c := k.conn(p); c.RuleSet[out] == set {
				t.Errorf("an answer changed it: %+v", c)
			}
			// As long as the proxy can't be told, the question waits.
			stuck := k.fromA()
			stuck.prog = failing
			k.want(stuck, next, dropped, droppedFor(flow.ReasonConnsFull, out))
			events := redirected(out)
			if next.sport == p.sport {
				events = silent
			}
			k.want(k.fromA(), next, redirect, events)
			if c := k.conn(p); c.RuleSet[out] != set || c.Rule[out] != uint32(5+i) || c.Revision != k.Revision() || c.Id != id {
				t.Errorf("session %+v", c)
			}
			if ct := k.entry(next); ct.Revision[out] != k.Revision() || ct.Flags&CTRedirected == 0 {
				t.Errorf("entry %+v", ct)
			}
		}
		// The pod reaches its gateway by another address.
		moved := ip.question(1002)
		moved.mangle = func(b []byte) []byte { b[0], b[1] = 2, 0xee; return b }
		k.want(k.fromA(), moved, redirect, redirected(out))
		if c := k.conn(p); c.L2[1] != 0xee || c.Id != id {
			t.Errorf("session %+v", c)
		}
		// The proxy has let go of it, at any time.
		for _, next := range []packet{p, ip.question(1003)} {
			k.must(k.Conns.Delete(p.tuple().Session()))
			events := redirected(out)
			if next.sport == p.sport {
				events = silent
			}
			k.want(k.fromA(), next, redirect, events)
			if c := k.conn(p); c == nil || c.RuleSet[out] != 92 || c.Id == id {
				t.Errorf("session %+v", c)
			}
		}
		// Another pod has the address.
		k.must(k.Endpoints.Update(AddrOf(ip.a), Endpoint{Ifindex: uint32(k.podB), Policy: policyA, Identity: idA}))
		id = k.conn(p).Id
		k.want(k.fromB(), ip.question(1004), redirect, redirected(out))
		if c := k.conn(p); c.Ifindex != uint32(k.podB) || c.Id == id {
			t.Errorf("session %+v", c)
		}
	})
}

// What policy denies ends at the next question; what it allows without rules needs
// no proxy any more.
func TestSessionRevoked(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		k.policy(policyA, viaDNS)
		p, other := ip.question(1000), ip.question(1001)
		k.want(k.fromA(), p, redirect, redirected(out))
		k.want(k.fromA(), other, redirect, redirected(out))
		k.policy(policyA, closed)
		k.want(k.fromA(), p, dropped, droppedFor(flow.ReasonPolicyDenied, out))
		if k.conn(p) != nil || k.entry(p) != nil {
			t.Error("something is left of it")
		}
		k.want(k.proxied(), p.reply(0), dropped, droppedFor(flow.ReasonUDPNoFlow, out))
		k.want(k.fromA(), p, dropped, droppedFor(flow.ReasonPolicyDenied, out))
		// An answer by the wire to what was asked before.
		k.want(k.toA(), other.reply(0), dropped, droppedFor(flow.ReasonPolicyDenied, out))
		k.want(k.fromA(), other, dropped, droppedFor(flow.ReasonPolicyDenied, out))
		// Allowed again.
		k.policy(policyA, viaDNS)
		k.want(k.fromA(), p, redirect, redirected(out))
		k.answered(p)

		// No rules: on its own from now on.
		k.policy(policyA, rules{port(out, idPeer, udp, 53): allow(3)})
		k.want(k.fromA(), p, pass, forwarded(flow.ReasonPolicyAllowed, out))
		k.wantEntry(p, CTJudgedEgress)
		if k.conn(p) != nil {
			t.Error("the proxy still knows it")
		}
		k.want(k.proxied(), p.reply(0), dropped, droppedFor(flow.ReasonUDPNoFlow, out))
		k.want(k.toA(), p.reply(0), pass, silent)
		k.want(k.fromA(), p, pass, silent)
		// Rules again: what was asked unseen is not answered.
		k.policy(policyA, viaDNS)
		k.want(k.toA(), p.reply(0), dropped, droppedFor(flow.ReasonPolicyChanged, out))
		k.want(k.fromA(), p, redirect, redirected(out))
		k.answered(p)
		k.want(k.toA(), p.reply(0), redirect, silent)
		// The same without an answer in between.
		k.policy(policyA, rules{port(out, idPeer, udp, 53): allow(3)})
		k.want(k.fromA(), p, pass, forwarded(flow.ReasonPolicyAllowed, out))
		k.policy(policyA, viaDNS)
		k.want(k.fromA(), p, redirect, redirected(out))
	})
}

// Questions go to the current proxy, answers come from whichever has them.
func TestSessionGeneration(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		k.policy(policyA, viaDNS)
		p := ip.question(1000)
		k.want(k.fromA(), p, redirect, redirected(out))
		first := *k.conn(p)
		next := Proxy{Ifindex: uint32(k.podB), Alive: 1, Mac: [6]byte{2, 8}}
		k.must(k.Proxies.Update(2, next))
		k.want(k.fromA(), p, redirect, silent)
		if c := k.conn(p); *c != first {
			t.Errorf("session %+v, was %+v", *c, first)
		}
		k.SetGeneration(2)
		k.want(k.proxied(), p.reply(0), redirect, silent)
		if got := k.want(k.toA(), p.reply(0), redirect, silent); mac(got) != proxyMAC {
			t.Errorf("before the next question an answer goes to %x", mac(got))
		}
		k.want(k.fromA(), p, redirect, silent)
		if c := k.conn(p); c.Generation != 2 || c.Id == first.Id || c.RuleSet != first.RuleSet {
			t.Errorf("session %+v", c)
		}
		if ct := k.entry(p); ct.Generation != 2 {
			t.Errorf("entry %+v", ct)
		}
		if got := k.want(k.toA(), p.reply(0), redirect, silent); mac(got) != next.Mac {
			t.Errorf("an answer goes to %x", mac(got))
		}
		k.want(k.proxied(), p.reply(0), redirect, silent)
		k.want(k.secondProxy(), p.reply(0), redirect, silent)
		// It dies: questions wait for another one.
		next.Alive = 0
		k.must(k.Proxies.Update(2, next))
		noProxy := droppedFor(flow.ReasonNoProxy, out)
		k.SetGeneration(3)
		k.want(k.fromA(), p, dropped, noProxy)
		k.want(k.fromA(), ip.question(1001), dropped, noProxy)
		k.SetGeneration(1)
		k.want(k.fromA(), p, redirect, silent)
		if c := k.conn(p); c.Generation != 1 {
			t.Errorf("session %+v", c)
		}
	})
}

// Sessions count as connections do.
func TestSessionBounds(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		k.policy(policyA, rules{{Direction: out, Identity: idPeer, Protocol: udp}: l7(1, 81)})
		p := ip.question(1000)
		for range part {
			p.dport++
			k.want(k.fromA(), p, redirect, redirected(out))
		}
		more := p
		more.dport++
		k.want(k.fromA(), more, dropped, droppedFor(flow.ReasonConnsShare, out))
		if k.entry(more) != nil || k.conn(more) != nil {
			t.Error("a flow that was refused left something")
		}
		// Those that are there go on, by whatever port.
		p.sport++
		k.want(k.fromA(), p, redirect, redirected(out))
		k.BumpRevision()
		k.want(k.fromA(), p, redirect, silent)
		before := k.shareOf(k.podA)
		k.must(k.Conns.Delete(p.tuple().Session()))
		k.grant(k.podA, before, k.rowsOf(k.podA))
		k.want(k.fromA(), more, redirect, redirected(out))
		k.want(k.fromA(), p, dropped, droppedFor(flow.ReasonConnsShare, out))
	})
	k.reset()
	k.policy(policyA, viaDNS)
	k.fill(64)
	k.want(k.fromA(), ipv4.question(1000), dropped, droppedFor(flow.ReasonConnsFull, out))
}

// A server that is a pod of this node has a say, too.
func TestSessionLocal(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		asks := rules{port(out, idB, udp, 53): l7(1, 81)}
		p := ip.question(1000)
		p.dst = ip.b
		k.policy(policyA, asks)
		for _, c := range []struct {
			name    string
			ingress rules
			verdict uint32
			events  []seen
		}{
			{"not enforced", nil, redirect, redirected(out)},
			{"allowed", rules{port(in, idA, udp, 53): allow(2)}, redirect, redirected(out)},
			{"denied", closed, dropped, droppedFor(flow.ReasonPolicyDenied, in)},
			{"a deny rule", rules{port(in, idA, udp, 53): {Action: policy.Deny, Rule: 3}}, dropped, droppedFor(flow.ReasonPolicyDenyRule, in)},
			{"TCP only through the proxy", rules{port(in, idA, tcp, 53): l7(4, 84)}, dropped, droppedFor(flow.ReasonPolicyDenied, in)},
			{"L7 rules at this end", rules{port(in, idA, udp, 53): l7(4, 84)}, dropped, droppedFor(flow.ReasonL7Unsupported, in)},
		} {
			empty(k, k.Conntrack)
			empty(k, k.Conns)
			k.policy(policyB, c.ingress)
			got, _, _ := k.run(k.fromA(), p.bytes())
			events := k.drain()
			if got != c.verdict || len(events) != 1 || (seen{events[0].Verdict, events[0].Reason, events[0].Direction}) != c.events[0] {
				t.Errorf("%s: verdict %d, events %+v", c.name, int32(got), events)
				continue
			}
			if (k.conn(p) != nil) != (c.verdict == redirect) {
				t.Errorf("%s: session %+v", c.name, k.conn(p))
			}
			if c.verdict == redirect {
				k.wantEntry(p, CTRedirected|CTJudgedEgress|CTJudgedIngress)
			}
		}
		// It changes its mind.
		empty(k, k.Conntrack)
		k.policy(policyB, rules{port(in, idA, udp, 53): allow(2)})
		k.want(k.fromA(), p, redirect, redirected(out))
		k.policy(policyB, closed)
		k.want(k.fromA(), p, dropped, droppedFor(flow.ReasonPolicyDenied, in))
		if k.conn(p) != nil {
			t.Error("the proxy still knows it")
		}
		// Without L7 rules each end judges by itself.
		k.policy(policyA, rules{port(out, idB, udp, 53): allow(1)})
		k.want(k.fromA(), p, pass, forwarded(flow.ReasonPolicyAllowed, out))
		at := k.toB()
		k.want(at, p, dropped, droppedFor(flow.ReasonPolicyDenied, in))
	})
}

func (k *kernel) secondProxy() at {
	return at{prog: k.objects.FromProxy, ifindex: k.podB, ingress: k.podB}
}
