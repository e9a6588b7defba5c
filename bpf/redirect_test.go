package bpf

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/weirnet/weir/flow"
)

// viaProxy sends pod A's flows to port 80 of the peer through the proxy.
var viaProxy = rules{port(out, idPeer, tcp, 80): l7(1, 71)}

// conn is the proxy's knowledge of a forward packet's flow; nil if none.
func (k *kernel) conn(p packet) *Conn {
	k.t.Helper()
	key := p.tuple()
	if p.proto == udp {
		key = key.Session()
	}
	c, ok, err := k.Conns.Lookup(key)
	k.must(err)
	if !ok {
		return nil
	}
	return &c
}

// mac returns the destination address of a packet that was run.
func mac(b []byte) [6]byte { return [6]byte(b[:6]) }

var proxyMAC = [6]byte{2, 9, 9, 9, 9, 9}

// A pod's flow for the proxy, from its SYN on, both ways.
func TestRedirectFromPod(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		k.policy(policyA, viaProxy)
		p := ip.tcp()
		k.want(k.fromA(), p, redirect, redirected(out))
		ct := k.wantEntry(p, CTRedirected|CTJudgedEgress)
		c := k.conn(p)
		if c == nil {
			t.Fatal("the proxy knows nothing")
		}
		want := Conn{
			Id: c.Id, Ifindex: uint32(k.podA), Revision: k.Revision(), SrcIdentity: idA, DstIdentity: idPeer,
			RuleSet: [2]uint32{0, 71}, Rule: [2]uint32{0, 1}, L7: (1 | ConnLocal) << out, Generation: 1,
		}
		copy(want.L2[:], ethernet(ip.v4))
		if *c != want || c.Id == 0 {
			t.Errorf("conn %+v, want %+v", *c, want)
		}
		if ct.Ifindex != c.Ifindex || ct.Generation != 1 || ct.L2 != c.L2 || ct.Rule != c.Rule {
			t.Errorf("entry %+v, conn %+v", ct, c)
		}
		// A repeated SYN is the same connection, a later one is not.
		k.want(k.fromA(), p, redirect, silent)
		if again := k.conn(p); again.Id != c.Id {
			t.Error("a repeated SYN began another connection")
		}
		k.want(k.fromA(), p.with(ack), redirect, silent)
		got := k.want(k.toA(), p.reply(syn|ack), redirect, silent)
		if mac(got) != proxyMAC {
			t.Errorf("a reply goes to %x", mac(got))
		}
		k.want(k.fromA(), p.with(rst), redirect, silent)
		k.want(k.fromA(), p, redirect, redirected(out))
		if again := k.conn(p); again.Id == c.Id {
			t.Error("the port's next connection is taken for the last one")
		}
		// A port used anew without L7 is none of the proxy's.
		k.policy(policyA, allowed)
		k.want(k.fromA(), p, pass, forwarded(flow.ReasonPolicyAllowed, out))
		if k.conn(p) != nil {
			t.Error("the proxy still knows the old connection")
		}
		// The same where the port's next connection comes the other way.
		k.policy(policyA, viaProxy)
		k.want(k.fromA(), p, redirect, redirected(out))
		k.policy(policyA, nil)
		back := packet{src: p.dst, dst: p.src, proto: tcp, sport: p.dport, dport: p.sport, flags: syn}
		k.must(k.Conns.Delete(p.tuple())) // the proxy is done with it
		k.want(k.toA(), back, pass, forwarded(flow.ReasonNotEnforced, in))
	})
}

// A flow to a pod whose ingress policy needs the proxy.
func TestRedirectToPod(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		k.policy(policyA, rules{port(in, idPeer, tcp, 8080): l7(2, 72)})
		p := packet{src: ip.peer, dst: ip.a, proto: tcp, sport: 1000, dport: 8080, flags: syn}
		got := k.want(k.toA(), p, redirect, redirected(in))
		if mac(got) != proxyMAC {
			t.Errorf("goes to %x", mac(got))
		}
		k.wantEntry(p, CTRedirected|CTJudgedIngress)
		c := k.conn(p)
		if c == nil || c.L7 != (1|ConnLocal)<<in || c.RuleSet != [2]uint32{72, 0} || c.SrcIdentity != idPeer || c.DstIdentity != idA || c.Ifindex != uint32(k.podA) {
			t.Fatalf("conn %+v", c)
		}
		// As if the pod had sent it: the packet came from podMAC to hostMAC.
		if [6]byte(c.L2[:6]) != podMAC || [6]byte(c.L2[6:12]) != hostMAC {
			t.Errorf("header %x", c.L2)
		}
		k.want(k.toA(), p.with(ack), redirect, silent)
		k.want(k.fromA(), p.reply(syn|ack), redirect, silent)
		// The node's own connections are not read.
		host := k.toA()
		host.ingress = 0
		q := packet{src: ip.node, dst: ip.a, proto: tcp, sport: 1000, dport: 8080, flags: syn}
		k.want(host, q, pass, forwarded(flow.ReasonHost, in))
	})
}

// Rules at both ends, or at the other end only, of two pods of this node: once
// through the proxy, from the first veth.
func TestRedirectBothEnds(t *testing.T) {
	k := newKernel(t)
	allowB := rules{port(out, idB, tcp, 80): allow(1)}
	l7B := rules{port(out, idB, tcp, 80): l7(1, 71)}
	const both = ConnLocal<<in | ConnLocal<<out
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		p := packet{src: ip.a, dst: ip.b, proto: tcp, sport: 1000, dport: 80, flags: syn}
		for _, c := range []struct {
			name    string
			a, b    rules
			verdict uint32
			events  []seen
			l7      uint8
			sets    [2]uint32
		}{
			{"egress", l7B, rules{port(in, idA, tcp, 80): allow(2)}, redirect, redirected(out), 2, [2]uint32{0, 71}},
			{"egress, the other end under no policy", l7B, nil, redirect, redirected(out), 2, [2]uint32{0, 71}},
			{"ingress", allowB, rules{port(in, idA, tcp, 80): l7(2, 72)}, redirect, redirected(in), 1, [2]uint32{72, 0}},
			{"ingress, this end under no policy", nil, rules{port(in, idA, tcp, 80): l7(2, 72)}, redirect, redirected(in), 1, [2]uint32{72, 0}},
			{"both", l7B, rules{port(in, idA, tcp, 80): l7(2, 72)}, redirect, redirected(out), 3, [2]uint32{72, 71}},
			{"egress, the other end denies", l7B, closed, dropped, droppedFor(flow.ReasonPolicyDenied, in), 0, [2]uint32{}},
			{"none, the other end denies", allowB, closed, pass, forwarded(flow.ReasonPolicyAllowed, out), 0, [2]uint32{}},
			{"ingress, this end denies", closed, rules{port(in, idA, tcp, 80): l7(2, 72)}, dropped, droppedFor(flow.ReasonPolicyDenied, out), 0, [2]uint32{}},
		} {
			k.policy(policyA, c.a)
			k.policy(policyB, c.b)
			p.sport++
			verdict, _, _ := k.run(k.fromA(), p.bytes())
			events := k.drain()
			if verdict != c.verdict || len(events) != 1 || (seen{events[0].Verdict, events[0].Reason, events[0].Direction}) != c.events[0] {
				t.Errorf("%s: verdict %d, events %+v", c.name, int32(verdict), events)
				continue
			}
			conn := k.conn(p)
			if c.verdict != redirect {
				if conn != nil {
					t.Errorf("%s: the proxy knows %+v", c.name, conn)
				}
				continue
			}
			if conn == nil || conn.L7 != c.l7|both || conn.RuleSet != c.sets || conn.SrcIdentity != idA || conn.DstIdentity != idB {
				t.Errorf("%s: conn %+v", c.name, conn)
			}
			k.wantEntry(p, CTRedirected|CTJudgedEgress|CTJudgedIngress)
			k.want(k.fromB(), p.reply(syn|ack), redirect, silent)
		}
	})
}

// A redirected flow follows the policy: at its next forward packet.
func TestRedirectPolicyMoves(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		p := ip.tcp()
		k.policy(policyA, viaProxy)
		k.want(k.fromA(), p, redirect, redirected(out))
		p.flags = ack
		id := k.conn(p).Id
		// Other rules.
		k.policy(policyA, rules{port(out, idPeer, tcp, 80): l7(5, 75)})
		k.want(k.toA(), p.reply(ack), redirect, silent)
		if c := k.conn(p); c.RuleSet[out] != 71 {
			t.Errorf("a reply changed it: %+v", c)
		}
		k.want(k.fromA(), p, redirect, silent)
		if c := k.conn(p); c.RuleSet[out] != 75 || c.Rule[out] != 5 || c.Revision != k.Revision() || c.Id != id || c.L7 != (1|ConnLocal)<<out {
			t.Errorf("conn %+v", c)
		}
		// No L7 any more: it stays in the proxy, which reads nothing.
		k.policy(policyA, allowed)
		k.want(k.fromA(), p, redirect, silent)
		if c := k.conn(p); c.L7 != ConnLocal<<out || c.RuleSet != [2]uint32{} || c.Rule[out] != 1 {
			t.Errorf("conn %+v", c)
		}
		// Denied: a RST for the proxy's end, and nothing but RST comes out.
		k.policy(policyA, closed)
		got := k.want(k.fromA(), p, redirect, droppedFor(flow.ReasonPolicyDenied, out))
		checkRST(t, p, got)
		k.wantEntry(p, CTRedirected|CTJudgedEgress|CTCut|CTReplied)
		if k.conn(p) != nil {
			t.Error("the proxy still knows it")
		}
		got = k.want(k.fromA(), p, redirect, silent)
		if !bytes.Equal(got[14:], p.bytes()[14:]) {
			t.Error("a later packet was changed")
		}
		k.want(k.toA(), p.reply(ack), redirect, silent)
		k.want(k.proxied(), p, dropped, silent)
		k.want(k.proxied(), p.reply(ack), dropped, silent)
		k.want(k.proxied(), p.with(rst|ack), redirect, silent)
		k.want(k.proxied(), p.reply(rst|ack), redirect, silent)
	})
}

// The other end's policy counts for a flow that the proxy takes past its veth.
func TestRedirectOtherEndMoves(t *testing.T) {
	k := newKernel(t)
	p := packet{src: ipv4.a, dst: ipv4.b, proto: tcp, sport: 1000, dport: 80, flags: syn}
	k.policy(policyA, rules{port(out, idB, tcp, 80): l7(1, 71)})
	k.policy(policyB, rules{port(in, idA, tcp, 80): allow(2)})
	k.want(k.fromA(), p, redirect, redirected(out))
	k.policy(policyB, rules{port(in, idA, tcp, 80): l7(3, 73)})
	k.want(k.fromA(), p.with(ack), redirect, silent)
	if c := k.conn(p); c.L7 != 3|ConnLocal<<in|ConnLocal<<out || c.RuleSet != [2]uint32{73, 71} {
		t.Errorf("conn %+v", c)
	}
	// Also once neither end has L7 rules.
	k.policy(policyA, rules{port(out, idB, tcp, 80): allow(1)})
	k.policy(policyB, closed)
	got := k.want(k.fromA(), p.with(ack), redirect, droppedFor(flow.ReasonPolicyDenied, in))
	checkRST(t, p.with(ack), got)
}

// checkRST fails if got isn't p made a RST, with its checksum kept right.
func checkRST(t *testing.T, p packet, got []byte) {
	t.Helper()
	sent := p.bytes()
	at := len(sent) - 20 - len(p.payload)
	if got[at+13] != rst|ack {
		t.Fatalf("flags %#x", got[at+13])
	}
	// The sum over all words stays as it was if the checksum was moved along.
	sum := func(b []byte) uint32 {
		var s uint32
		for i := at; i+1 < len(b); i += 2 {
			s += uint32(binary.BigEndian.Uint16(b[i:]))
		}
		for s > 0xffff {
			s = s>>16 + s&0xffff
		}
		return s
	}
	if a, b := sum(sent), sum(got); a%0xffff != b%0xffff {
		t.Errorf("checksum off: sums %#x and %#x", a, b)
	}
	clear(got[at+12 : at+14])
	clear(got[at+16 : at+18])
	clear(sent[at+12 : at+14])
	clear(sent[at+16 : at+18])
	if !bytes.Equal(sent[14:], got[14:]) {
		t.Error("more than flags and checksum changed")
	}
}

// Without a proxy nothing that needs one goes anywhere.
func TestRedirectNoProxy(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		alive, _, err := k.Proxies.Lookup(1)
		k.must(err)
		dead := alive
		dead.Alive = 0
		k.policy(policyA, viaProxy)
		p := ip.tcp()
		k.want(k.fromA(), p, redirect, redirected(out))
		k.must(k.Proxies.Update(1, dead))
		k.want(k.fromA(), p.with(ack), dropped, droppedFor(flow.ReasonNoProxy, out))
		k.want(k.toA(), p.reply(ack), dropped, droppedFor(flow.ReasonNoProxy, in))
		q := p
		q.sport++
		k.want(k.fromA(), q, dropped, droppedFor(flow.ReasonNoProxy, out))
		if k.entry(q) != nil || k.conn(q) != nil {
			t.Error("a flow that could not be redirected left something")
		}
		// Another proxy: new flows are its own, old ones find a RST there.
		k.must(k.Proxies.Update(2, alive))
		k.SetGeneration(2)
		k.want(k.fromA(), p.with(ack), redirect, silent)
		if ct := k.entry(p); ct.Generation != 1 {
			t.Errorf("generation %d", ct.Generation)
		}
		k.want(k.fromA(), q, redirect, redirected(out))
		if c := k.conn(q); c.Generation != 2 {
			t.Errorf("generation %d", c.Generation)
		}
		k.want(k.fromA(), p, redirect, redirected(out)) // a SYN begins anew there
		if c := k.conn(p); c.Generation != 2 {
			t.Errorf("generation %d", c.Generation)
		}
		// The old one drains.
		k.must(k.Proxies.Update(1, alive))
		k.SetGeneration(1)
		k.want(k.fromA(), q.with(ack), redirect, silent)
		if ct := k.entry(q); ct.Generation != 2 {
			t.Errorf("generation %d", ct.Generation)
		}
	})
}

// Full means closed.
func TestRedirectConnsFull(t *testing.T) {
	k := newKernel(t)
	k.policy(policyA, viaProxy)
	p := ipv4.tcp()
	p.sport = 2000
	k.want(k.fromA(), p, redirect, redirected(out))
	k.fill(63)
	p.sport = 9000
	k.want(k.fromA(), p, dropped, droppedFor(flow.ReasonConnsFull, out))
	if k.entry(p) != nil {
		t.Error("an entry was made")
	}
	// Known ones go on and are rewritten.
	p.sport = 2000
	k.policy(policyA, rules{port(out, idPeer, tcp, 80): l7(5, 75)})
	k.want(k.fromA(), p.with(ack), redirect, silent)
	if c := k.conn(p); c.RuleSet[out] != 75 {
		t.Errorf("conn %+v", c)
	}
}

// conntrack may forget a redirected flow, conns does not.
func TestRedirectRecovers(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		k.policy(policyA, viaProxy)
		p := ip.tcp()
		k.want(k.fromA(), p, redirect, redirected(out))
		was := k.entry(p)
		for _, again := range []struct {
			at at
			p  packet
		}{{k.fromA(), p.with(ack)}, {k.toA(), p.reply(ack)}} {
			empty(k, k.Conntrack)
			unknown := droppedFor(flow.ReasonProxyUnknownFlow, out)
			k.want(k.proxied(), p.reply(ack), dropped, unknown)
			k.want(k.proxied(), p.with(ack), dropped, unknown)
			k.want(again.at, again.p, redirect, silent)
			ct, l2 := k.entry(p), was.L2
			if again.at.prog == k.objects.ToPod { // the test's packets come from the pod's MAC
				copy(l2[:], append(append([]byte{}, was.L2[6:12]...), was.L2[:6]...))
			}
			if ct == nil || ct.Flags&CTRedirected == 0 || ct.L2 != l2 || ct.Ifindex != was.Ifindex || ct.Generation != 1 {
				t.Fatalf("entry %+v, was %+v", ct, was)
			}
			if _, swapped := p.tuple().Canonical(); swapped != (ct.Flags&CTSwapped != 0) {
				t.Error("turned round")
			}
		}
		// What was revoked meanwhile stays out.
		empty(k, k.Conntrack)
		k.policy(policyA, closed)
		got := k.want(k.fromA(), p.with(ack), redirect, droppedFor(flow.ReasonPolicyDenied, out))
		checkRST(t, p.with(ack), got)
	})
}
