package bpf

import (
	"bytes"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/flow"
	"github.com/weirnet/weir/policy"
)

// What leaves the proxy's namespace.
func TestFromProxy(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		p := ip.tcp()
		unknown := droppedFor(flow.ReasonProxyUnknownFlow, out)
		k.want(k.proxied(), p, dropped, unknown)
		k.policy(policyA, allowed)
		k.want(k.fromA(), p, pass, forwarded(flow.ReasonPolicyAllowed, out))
		k.want(k.proxied(), p.with(ack), dropped, unknown) // direct: not the proxy's
		k.policy(policyA, viaProxy)
		empty(k, k.Conntrack)
		k.want(k.fromA(), p, redirect, redirected(out))

		// To the pod, as its host side would send it.
		got, b, mark := k.run(k.proxied(), p.reply(syn|ack).bytes())
		if got != redirect || mark != 0 || mac(b) != podMAC || [6]byte(b[6:12]) != hostMAC {
			t.Errorf("to the pod: verdict %d, mark %#x, header %x", int32(got), mark, b[:14])
		}
		// To the world, as the pod sends it.
		got, b, mark = k.run(k.proxied(), p.with(ack).bytes())
		if got != redirect || mark != 0x57454952 || !bytes.Equal(b[:14], ethernet(ip.v4)) {
			t.Errorf("to the world: verdict %d, mark %#x, header %x", int32(got), mark, b[:14])
		}
		// There from_pod lets it pass and takes the mark away.
		injected := k.fromA()
		injected.mark = mark
		if got, _, mark := k.run(injected, p.with(ack).bytes()); got != pass || mark != 0 {
			t.Errorf("injected: verdict %d, mark %#x", int32(got), mark)
		}
		// ICMP errors about its flows, either way; not about others.
		k.want(k.proxied(), quote(ip, ip.world, p.with(ack)), redirect, silent)
		k.want(k.proxied(), quote(ip, ip.world, p.reply(ack)), redirect, silent)
		other := p
		other.sport++
		k.want(k.proxied(), quote(ip, ip.world, other), dropped, unknown)
		// And those that come from outside reach it.
		k.want(k.toA(), quote(ip, ip.world, p.with(ack)), redirect, silent)
		k.want(k.fromA(), quote(ip, ip.a, p.reply(ack)), redirect, silent)
		// The namespace's own chatter.
		arp := ipv4.tcp()
		arp.mangle = func(b []byte) []byte { b[12], b[13] = 8, 6; return b }
		k.want(k.proxied(), arp, dropped, silent)
		k.want(k.proxied(), packet{src: linkLocal, dst: allNodes, proto: unix.IPPROTO_ICMPV6, icmp: 135, ttl: 255}, dropped, silent)
		// Its FIN and RST end the flow as the pod's do.
		k.want(k.proxied(), p.reply(fin|ack), redirect, silent)
		k.want(k.proxied(), p.with(fin|ack), redirect, silent)
		k.wantEntry(p, CTRedirected|CTJudgedEgress|CTReplied|CTFinForward|CTFinReply)
	})
}

// A flow taken at the responder's veth may have come there through address
// translation: its answers go back that way, also to a pod of this node.
func TestFromProxyThroughNAT(t *testing.T) {
	k := newKernel(t)
	k.must(k.IPCache.Update(PrefixOf(netip.PrefixFrom(ipv4.a, 32)), Peer{Identity: idA}))
	k.policy(policyB, rules{port(in, idA, tcp, 8080): l7(2, 72)})
	p := packet{src: ipv4.a, dst: ipv4.b, proto: tcp, sport: 1000, dport: 8080, flags: syn}
	k.want(k.toB(), p, redirect, redirected(in)) // A had sent it to another address
	if got, _, mark := k.run(k.proxied(), p.reply(syn|ack).bytes()); got != redirect || mark == 0 {
		t.Errorf("answer: verdict %d, mark %#x, want it injected", int32(got), mark)
	}
	if got, b, mark := k.run(k.proxied(), p.with(ack).bytes()); got != redirect || mark != 0 || mac(b) != podMAC {
		t.Errorf("onwards: verdict %d, mark %#x, want it in the pod", int32(got), mark)
	}
}

// A direct flow that needs the proxy can't be moved there: it is reset.
func TestCut(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		for _, c := range []struct {
			name    string
			p       packet
			running bool
			policy  rules
			reason  flow.Reason
			at      at
			reply   bool
			dir     policy.Direction
		}{
			{"rules changed", ip.tcp(), true, viaProxy, flow.ReasonPolicyChanged, k.fromA(), false, out},
			{"mid-stream from the initiator", ip.tcp(), false, viaProxy, flow.ReasonMidstreamL7, k.fromA(), false, out},
			{"mid-stream to the initiator", ip.tcp(), false, viaProxy, flow.ReasonMidstreamL7, k.toA(), true, out},
			{"mid-stream to the responder", packet{src: ip.peer, dst: ip.a, proto: tcp, sport: 1, dport: 8080, flags: syn}, false,
				rules{port(in, idPeer, tcp, 8080): l7(2, 72)}, flow.ReasonMidstreamL7, k.toA(), false, in},
			{"rules changed at the responder", packet{src: ip.peer, dst: ip.a, proto: tcp, sport: 1, dport: 8080, flags: syn}, true,
				rules{port(in, idPeer, tcp, 8080): l7(2, 72)}, flow.ReasonPolicyChanged, k.toA(), false, in},
		} {
			k.t = t
			empty(k, k.Conntrack)
			k.forgetConns()
			if c.running {
				k.policy(policyA, nil)
				k.want(c.at, c.p, pass, forwarded(flow.ReasonNotEnforced, c.dir))
			}
			p := c.p.with(ack)
			p.payload = []byte("GET / HTTP/1.1")
			if c.reply {
				p = c.p.reply(ack)
				p.payload = []byte("HTTP/1.1 200 OK")
			}
			k.policy(policyA, c.policy)
			sent := k.rx()
			got := k.want(c.at, p, pass, droppedFor(c.reason, c.dir))
			checkRST(t, p, got)
			if !bytes.Equal(got[:14], p.bytes()[:14]) {
				t.Errorf("%s: the Ethernet header is not what it was", c.name)
			}
			if k.rx() != sent+1 {
				t.Errorf("%s: no copy went to the proxy's namespace", c.name)
			}
			ct := k.entry(c.p)
			if ct == nil || ct.Flags&CTCut == 0 || ct.Ifindex != uint32(k.podA) {
				t.Fatalf("%s: entry %+v", c.name, ct)
			}
			// From then on both ends get RSTs from there.
			forward, back := k.fromA(), k.toA()
			if c.dir == in {
				forward, back = back, forward
			}
			k.want(forward, c.p.with(ack), redirect, silent)
			k.want(back, c.p.reply(ack), redirect, silent)
			k.want(k.proxied(), c.p.reply(rst), redirect, silent)
			k.want(k.proxied(), c.p.with(rst), redirect, silent)
			k.want(k.proxied(), c.p.reply(ack), dropped, silent)
			// Which pass the veths that they come to.
			k.want(back, c.p.reply(rst), pass, silent)
			k.want(forward, c.p.with(rst|ack), pass, silent)
			// The next connection goes through the proxy.
			k.want(forward, c.p, redirect, redirected(c.dir))
		}
		// A RST needs no RST.
		empty(k, k.Conntrack)
		k.forgetConns()
		p := ip.tcp().with(rst)
		k.policy(policyA, viaProxy)
		k.want(k.fromA(), p, dropped, droppedFor(flow.ReasonMidstreamL7, out))
		if k.entry(p) != nil {
			t.Error("a RST made an entry")
		}
		// Without a proxy one end learns at once and the other later.
		px, _, err := k.Proxies.Lookup(1)
		k.must(err)
		px.Alive = 0
		k.must(k.Proxies.Update(1, px))
		p.flags = ack
		got := k.want(k.fromA(), p, pass, droppedFor(flow.ReasonMidstreamL7, out))
		checkRST(t, p, got)
		k.want(k.fromA(), p, dropped, droppedFor(flow.ReasonNoProxy, out))
	})
}
