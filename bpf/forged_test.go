package bpf

import (
	"net/netip"
	"testing"

	"github.com/weirnet/weir/flow"
)

// Whatever the proxy writes into conns, it speaks for nobody whose packets did
// not come to it.
func TestForgedConns(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		forge := func(src, dst netip.Addr, dport uint16, ifindex int) packet {
			t.Helper()
			p := packet{src: src, dst: dst, proto: tcp, sport: 666, dport: dport, flags: syn}
			k.must(k.Conns.Update(p.tuple(), Conn{Id: 1, Ifindex: uint32(ifindex), Generation: 1, Revision: k.Revision(), L2: [14]byte{1, 2, 3}}))
			return p
		}
		unknown := droppedFor(flow.ReasonProxyUnknownFlow, out)
		for _, p := range []packet{
			forge(ip.world, ip.node, 22, k.podA), forge(ip.node, ip.b, 22, k.podA), forge(ip.a, ip.peer, 80, k.podA),
		} {
			k.want(k.proxied(), p, dropped, unknown)
			k.want(k.proxied(), p.with(ack), dropped, unknown)
			k.want(k.proxied(), p.reply(syn|ack), dropped, unknown)
			if k.entry(p) != nil {
				t.Fatal("the proxy made an entry")
			}
		}
		// A pod's packet is judged all the same, both ways.
		k.policy(policyA, closed)
		k.policy(policyB, closed)
		p := forge(ip.a, ip.world, 443, k.podA)
		k.want(k.fromA(), p.with(ack), redirect, droppedFor(flow.ReasonPolicyDenied, out))
		k.want(k.proxied(), p.with(ack), dropped, silent) // cut: RST only
		p = forge(ip.node, ip.b, 22, k.podB)
		k.want(k.fromB(), p.reply(syn|ack), dropped, droppedFor(flow.ReasonPolicyDenied, in))
		p = forge(ip.world, ip.b, 80, k.podB)
		k.want(k.toB(), p.with(ack), redirect, droppedFor(flow.ReasonPolicyDenied, in))
		// It can't name another veth than one of the flow's ends.
		k.policy(policyA, allowed)
		p = forge(ip.a, ip.peer, 80, k.podB)
		k.want(k.fromA(), p.with(ack), pass, forwarded(flow.ReasonPolicyAllowed, out))
		if ct := k.entry(p); ct.Flags&CTRedirected != 0 {
			t.Errorf("entry %+v", ct)
		}
		// Nor what its frames look like.
		p = forge(ip.a, ip.peer, 81, k.podA)
		k.policy(policyA, rules{port(out, idPeer, tcp, 81): l7(1, 71)})
		k.want(k.fromA(), p.with(ack), redirect, silent)
		if ct := k.entry(p); [6]byte(ct.L2[:6]) != hostMAC || ct.Ifindex != uint32(k.podA) {
			t.Errorf("entry %+v", ct)
		}
		if c := k.conn(p); c.RuleSet[out] != 71 || c.L7 != 1<<out {
			t.Errorf("the proxy was not told what holds: %+v", c)
		}
	})
}

// A flow between two pods of this node is made again at either end, in the name
// of the one it was taken from.
func TestRecoverBothEnds(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		k.policy(policyA, rules{port(out, idB, tcp, 80): l7(1, 71)})
		k.policy(policyB, rules{port(in, idA, tcp, 80): allow(2)})
		p := packet{src: ip.a, dst: ip.b, proto: tcp, sport: 1000, dport: 80, flags: syn}
		k.want(k.fromA(), p, redirect, redirected(out))
		was := k.entry(p)
		empty(k, k.Conntrack)
		k.want(k.fromB(), p.reply(ack), redirect, silent)
		ct := k.wantEntry(p, CTRedirected|CTReplied|CTJudgedIngress)
		if ct.Ifindex != was.Ifindex || ct.L2 != was.L2 {
			t.Errorf("entry %+v, was %+v", ct, was)
		}
		// The rules have moved: the next request's packet tells the proxy.
		k.policy(policyA, rules{port(out, idB, tcp, 80): l7(5, 75)})
		empty(k, k.Conntrack)
		k.want(k.fromB(), p.reply(ack), redirect, silent)
		k.want(k.fromA(), p.with(ack), redirect, silent)
		if c := k.conn(p); c.RuleSet[out] != 75 {
			t.Errorf("conn %+v", c)
		}
	})
}

// Nobody talks a connection out of the proxy, or another into its place.
func TestSYNOnRedirected(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		k.policy(policyA, viaProxy, out)
		p := ip.tcp()
		k.want(k.fromA(), p, redirect, redirected(out))
		back := packet{src: p.dst, dst: p.src, proto: tcp, sport: p.dport, dport: p.sport, flags: syn}
		id := k.conn(p).Id
		still := func() {
			t.Helper()
			if ct := k.entry(p); ct == nil || ct.Flags&CTRedirected == 0 {
				t.Fatalf("entry %+v", ct)
			}
			if c := k.conn(p); c == nil || c.Id != id {
				t.Fatalf("conn %+v, id was %d", c, id)
			}
		}
		k.want(k.toA(), back, redirect, silent)
		still()
		k.want(k.toA(), p.reply(syn|ack), redirect, silent)
		k.want(k.toA(), back, redirect, silent)
		k.want(k.toA(), back.with(rst), redirect, silent)
		k.want(k.toA(), back, redirect, silent)
		still()
		// Once the proxy is done with it the port is free.
		k.must(k.Conns.Delete(p.tuple()))
		k.want(k.toA(), back, pass, forwarded(flow.ReasonNotEnforced, in))

		// The other way, at the responder's end, where the sender is anyone.
		empty(k, k.Conntrack)
		k.policy(policyA, rules{port(in, idPeer, tcp, 8080): l7(2, 72)}, in)
		p = packet{src: ip.peer, dst: ip.a, proto: tcp, sport: 1000, dport: 8080, flags: syn}
		k.want(k.toA(), p, redirect, redirected(in))
		id = k.conn(p).Id
		k.want(k.proxied(), p.reply(syn|ack), redirect, silent)
		k.want(k.toA(), p.with(ack), redirect, silent)
		k.want(k.toA(), p, redirect, silent)
		still()
		k.want(k.toA(), p.with(fin|ack), redirect, silent)
		k.want(k.toA(), p, redirect, silent)
		still()
		// It is judged as any forward packet.
		k.policy(policyA, rules{port(in, idPeer, tcp, 8080): l7(3, 73)}, in)
		k.want(k.toA(), p, redirect, silent)
		if c := k.conn(p); c.Id != id || c.RuleSet[in] != 73 {
			t.Errorf("conn %+v", c)
		}
		// Both ends are done: the port's next connection.
		k.want(k.proxied(), p.reply(fin|ack), redirect, silent)
		k.want(k.toA(), p, redirect, redirected(in))
		if c := k.conn(p); c.Id == id {
			t.Error("the port's next connection is taken for the last one")
		}
		// And so it is when the proxy has died.
		k.want(k.proxied(), p.reply(syn|ack), redirect, silent)
		id = k.conn(p).Id
		alive, _, err := k.Proxies.Lookup(1)
		k.must(err)
		k.must(k.Proxies.Update(2, alive))
		k.must(k.Proxies.Update(1, Proxy{}))
		k.SetGeneration(2)
		k.want(k.toA(), p, redirect, redirected(in))
		if c := k.conn(p); c.Id == id || c.Generation != 2 {
			t.Errorf("conn %+v", c)
		}
	})
}
