package bpf

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/weirnet/weir/flow"
	"github.com/weirnet/weir/policy"
)

// upstream is a datagram by which the proxy asks for pod A.
func (ip addresses) upstream() packet { return ip.question(40000) }

// The proxy asks a server for a pod: what the pod could ask, and nothing else.
func TestAsk(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		noFlow, denied := flow.ReasonUDPNoFlow, flow.ReasonPolicyDenied
		for _, c := range []struct {
			name   string
			change func(p *packet)
			reason flow.Reason // none: it goes out
		}{
			{"as the pod asked", nil, flow.ReasonNone},
			{"to another port", func(p *packet) { p.dport = 60 }, denied},
			{"to another server", func(p *packet) { p.dst = ip.world }, denied},
			{"to a server that the pod may ask but didn't", func(p *packet) { p.dport = 54 }, noFlow},
			{"to a server that the pod reaches without a proxy", func(p *packet) { p.dport = 55 }, noFlow},
			{"by SCTP", func(p *packet) { p.proto = sctp }, flow.ReasonProxyUnknownFlow},
			{"by TCP", func(p *packet) { p.proto = tcp }, flow.ReasonProxyUnknownFlow},
			{"for another pod", func(p *packet) { p.src = ip.b }, noFlow},
			{"for a pod elsewhere", func(p *packet) { p.src, p.dst = ip.peer, ip.world }, noFlow},
			{"for nobody", func(p *packet) { p.src = ip.world }, noFlow},
			{"a later part", func(p *packet) { p.fragment, p.fragOffset = true, 64 }, flow.ReasonFragmentUnknown},
			{"the pod's veth is not known", func(*packet) {
				k.must(k.Endpoints.Update(AddrOf(ip.a), Endpoint{Policy: policyA, Identity: idA}))
			}, noFlow},
			{"the pod has another veth by now", func(*packet) {
				k.must(k.Endpoints.Update(AddrOf(ip.a), Endpoint{Ifindex: uint32(k.podB), Policy: policyA, Identity: idA}))
			}, noFlow},
			{"nothing is known of the pod", func(*packet) { k.must(k.Endpoints.Delete(AddrOf(ip.a))) }, noFlow},
			{"the session is gone", func(p *packet) { k.must(k.Conns.Delete(p.tuple().Session())) }, noFlow},
			{"the session is another veth's", func(p *packet) {
				c := *k.conn(*p)
				c.Ifindex = uint32(k.podB)
				k.must(k.Conns.Update(p.tuple().Session(), c))
			}, noFlow},
			{"the session was made up", func(p *packet) {
				c := *k.conn(*p)
				p.dport = 56
				k.must(k.Conns.Update(p.tuple().Session(), c))
			}, denied},
			{"denied by now", func(*packet) { k.policy(policyA, closed) }, denied},
			{"without rules by now", func(*packet) { k.policy(policyA, rules{port(out, idPeer, udp, 53): allow(1)}) }, noFlow},
			{"refused by now", func(*packet) { k.policy(policyA, rules{port(out, idPeer, udp, 53): {Action: policy.Refuse}}) }, flow.ReasonPolicyRefused},
			{"the policy is gone", func(*packet) { k.must(k.Policies.Delete(policyA)) }, flow.ReasonPolicyMissing},
			{"no proxy is known there", func(*packet) { k.must(k.Proxies.Update(1, Proxy{Ifindex: uint32(k.proxyIf)})) }, flow.ReasonNoProxy},
		} {
			k.reset()
			k.policy(policyA, rules{
				port(out, idPeer, udp, 53): l7(1, 81), port(out, idPeer, udp, 54): l7(1, 81), port(out, idPeer, udp, 55): allow(2),
			})
			k.want(k.fromA(), ip.question(1000), redirect, redirected(out))
			p := ip.upstream()
			if c.change != nil {
				c.change(&p)
			}
			got, after, mark := k.run(k.proxied(), p.bytes())
			events := k.drain()
			if c.reason != flow.ReasonNone {
				if got != dropped || len(events) != 1 || events[0].Reason != c.reason {
					t.Errorf("%s: verdict %d, events %+v", c.name, int32(got), events)
				}
				if k.entry(p) != nil {
					t.Errorf("%s: entry %+v", c.name, k.entry(p))
				}
				continue
			}
			if got != redirect || len(events) != 0 || mark != 0x57454952 || !bytes.Equal(after[:14], ethernet(ip.v4)) {
				t.Errorf("%s: verdict %d, mark %#x, events %+v, header % x", c.name, int32(got), mark, events, after[:14])
			}
			ct := k.wantEntry(p, CTRedirected|CTJudgedEgress|CTAsked)
			if ct.Ifindex != uint32(k.podA) || ct.Veth != [2]uint32{0, uint32(k.podA)} || ct.Generation != 1 ||
				ct.Rule != [2]uint32{0, 1} || ct.Revision[out] != k.Revision() {
				t.Errorf("entry %+v", ct)
			}
		}
	})
}

// What follows the first datagram of such a flow.
func TestAskGoesOn(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		k.policy(policyA, viaDNS)
		q, up := ip.question(1000), ip.upstream()
		k.want(k.fromA(), q, redirect, redirected(out))
		k.want(k.proxied(), up, redirect, silent)
		// The answer goes to the proxy, at whatever revision.
		if got := k.want(k.toA(), up.reply(0), redirect, silent); mac(got) != proxyMAC {
			t.Errorf("an answer goes to %x", mac(got))
		}
		k.wantEntry(up, CTRedirected|CTJudgedEgress|CTAsked|CTReplied)
		k.policy(policyA, viaDNS)
		k.want(k.toA(), up.reply(0), redirect, silent)
		// So does an error about it.
		for _, e := range []packet{quote(ip, up.dst, up), quote(ip, ip.node, up)} {
			if got := k.want(k.toA(), e, redirect, silent); mac(got) != proxyMAC {
				t.Errorf("an error goes to %x", mac(got))
			}
		}
		// The session may be gone while the policy is what it was.
		k.must(k.Conns.Delete(q.tuple().Session()))
		k.want(k.fromA(), q, redirect, silent)
		k.want(k.proxied(), up, redirect, silent)
		k.must(k.Conns.Delete(q.tuple().Session()))
		k.want(k.proxied(), up, redirect, silent)
		k.BumpRevision()
		k.want(k.proxied(), up, dropped, droppedFor(flow.ReasonUDPNoFlow, out))
		k.want(k.fromA(), q, redirect, silent)
		k.want(k.proxied(), up, redirect, silent)
		// It can't be used to speak to the pod.
		k.want(k.proxied(), up.reply(0), dropped, droppedFor(flow.ReasonProxyUnknownFlow, out))
		// But once the pod asks by that very port, both are answered.
		k.want(k.fromA(), up, redirect, silent)
		k.wantEntry(up, CTRedirected|CTJudgedEgress)
		k.answered(up)
		k.BumpRevision()
		k.want(k.proxied(), up, redirect, silent)
		k.answered(up)
		k.want(k.toA(), up.reply(0), redirect, silent)
		// Revoked: neither question nor answer.
		up.sport++
		k.want(k.proxied(), up, redirect, silent)
		k.policy(policyA, closed)
		k.want(k.toA(), up.reply(0), dropped, droppedFor(flow.ReasonPolicyDenied, out))
		k.want(k.proxied(), up, dropped, droppedFor(flow.ReasonPolicyDenied, out))
		k.policy(policyA, viaDNS)
		k.want(k.fromA(), q, redirect, silent)
		k.want(k.proxied(), up, redirect, silent)
	})
}

// Whose proxy asks gets the answer: also an old one that ends what it has begun.
func TestAskGeneration(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		next := Proxy{Ifindex: uint32(k.podB), Alive: 1, Mac: [6]byte{2, 8}}
		k.must(k.Proxies.Update(255, next))
		k.policy(policyA, viaDNS)
		k.want(k.fromA(), ip.question(1000), redirect, redirected(out))
		k.SetGeneration(255)
		k.want(k.fromA(), ip.question(1000), redirect, silent)
		p := ip.upstream()
		for _, c := range []struct {
			at         at
			generation uint8
			mac        [6]byte
		}{{k.proxied(), 1, proxyMAC}, {k.secondProxy(), 255, next.Mac}} {
			p.sport++
			k.want(c.at, p, redirect, silent)
			if ct := k.entry(p); ct.Generation != c.generation {
				t.Errorf("entry %+v", ct)
			}
			if got := k.want(k.toA(), p.reply(0), redirect, silent); mac(got) != c.mac {
				t.Errorf("an answer goes to %x", mac(got))
			}
		}
		k.must(k.Proxies.Update(255, Proxy{}))
	})
}

// The port it asks by may be one that the pod, or another proxy, has used: the
// answer is for whoever asked last, whether the other proxy lives or not.
func TestAskByAnOldPort(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		next := Proxy{Ifindex: uint32(k.podB), Alive: 1, Mac: [6]byte{2, 8}}
		k.must(k.Proxies.Update(2, next))
		k.policy(policyA, viaDNS)
		pods, proxys := ip.question(1000), ip.upstream()
		for _, alive := range []uint32{1, 0} {
			empty(k, k.Conntrack)
			k.SetGeneration(1)
			k.must(k.Proxies.Update(1, Proxy{Ifindex: uint32(k.proxyIf), Alive: 1, Mac: proxyMAC}))
			k.want(k.fromA(), pods, redirect, redirected(out))
			k.want(k.proxied(), pods.reply(0), redirect, silent)
			k.want(k.proxied(), proxys, redirect, silent)
			k.SetGeneration(2)
			k.must(k.Proxies.Update(1, Proxy{Ifindex: uint32(k.proxyIf), Alive: alive, Mac: proxyMAC}))
			k.want(k.fromA(), ip.question(1001), redirect, redirected(out))
			for _, p := range []packet{pods, proxys} {
				k.want(k.secondProxy(), p, redirect, silent)
				if ct := k.entry(p); ct.Generation != 2 {
					t.Errorf("port %d, the old proxy lives: %d, entry %+v", p.sport, alive, ct)
				}
				if got := k.want(k.toA(), p.reply(0), redirect, silent); mac(got) != next.Mac {
					t.Errorf("port %d, the old proxy lives: %d: an answer goes to %x", p.sport, alive, mac(got))
				}
			}
			// Only the pod's own port can be answered, also by the old proxy.
			k.want(k.proxied(), pods.reply(0), redirect, silent)
			k.want(k.secondProxy(), pods.reply(0), redirect, silent)
			k.want(k.secondProxy(), proxys.reply(0), dropped, droppedFor(flow.ReasonProxyUnknownFlow, out))
		}
		k.must(k.Proxies.Update(1, Proxy{Ifindex: uint32(k.proxyIf), Alive: 1, Mac: proxyMAC}))
		k.must(k.Proxies.Update(2, Proxy{}))
		k.SetGeneration(1)
	})
}

// A server that is a pod of this node is asked past its veth, so its policy is
// asked here.
func TestAskLocal(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		k.policy(policyA, rules{port(out, idB, udp, 53): l7(1, 81)})
		k.policy(policyB, rules{port(in, idA, udp, 53): allow(2)})
		q, up := ip.question(1000), ip.upstream()
		q.dst, up.dst = ip.b, ip.b
		k.want(k.fromA(), q, redirect, redirected(out))
		got := k.want(k.proxied(), up, redirect, silent)
		if mac(got) != podMAC || [6]byte(got[6:12]) != hostMAC {
			t.Errorf("header % x", got[:14])
		}
		ct := k.wantEntry(up, CTRedirected|CTJudgedEgress|CTJudgedIngress|CTAsked)
		if ct.Veth != [2]uint32{uint32(k.podB), uint32(k.podA)} || ct.Rule != [2]uint32{2, 1} {
			t.Errorf("entry %+v", ct)
		}
		k.want(k.fromB(), up.reply(0), redirect, silent)
		k.BumpRevision()
		k.want(k.fromB(), up.reply(0), redirect, silent)
		k.want(k.fromB(), quote(ip, up.dst, up), redirect, silent)
		k.policy(policyB, closed)
		k.want(k.proxied(), up, dropped, droppedFor(flow.ReasonPolicyDenied, in))
		k.want(k.fromB(), up.reply(0), dropped, droppedFor(flow.ReasonPolicyDenied, in))
		up.sport++
		k.want(k.proxied(), up, dropped, droppedFor(flow.ReasonPolicyDenied, in))
		if k.entry(up) != nil {
			t.Error("an entry was made")
		}
	})
}

// Neither a server nor an older flow of the pod can keep the proxy from asking.
func TestAskOverOthers(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		k.policy(policyA, rules{port(out, idPeer, udp, 53): l7(1, 81)}, out)
		k.want(k.fromA(), ip.question(1000), redirect, redirected(out))
		up := ip.upstream()
		k.want(k.toA(), up.reply(0), pass, forwarded(flow.ReasonNotEnforced, in))
		k.want(k.proxied(), up, redirect, silent)
		k.wantEntry(up, CTRedirected|CTJudgedEgress|CTAsked)
		if got := k.want(k.toA(), up.reply(0), redirect, silent); mac(got) != proxyMAC {
			t.Errorf("an answer goes to %x", mac(got))
		}
		k.policy(policyA, rules{port(out, idPeer, udp, 53): allow(2)}, out)
		up.sport++
		k.want(k.fromA(), up, pass, forwarded(flow.ReasonPolicyAllowed, out))
		k.policy(policyA, rules{port(out, idPeer, udp, 53): l7(1, 81)}, out)
		k.want(k.fromA(), ip.question(1000), redirect, silent)
		k.want(k.proxied(), up, redirect, silent)
		k.wantEntry(up, CTRedirected|CTJudgedEgress|CTAsked)
		// The last one ran out.
		k.age(up, 61e9)
		k.want(k.proxied(), up, redirect, silent)
	})
}

// What a session says of the header is no way to make a packet that the pod could
// not have sent.
func TestAskHeader(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		k.policy(policyA, viaDNS)
		q := ip.question(1000)
		k.want(k.fromA(), q, redirect, redirected(out))
		c := *k.conn(q)
		c.L2[12], c.L2[13] = 0x81, 0
		c.Generation = 77
		k.must(k.Conns.Update(q.tuple().Session(), c))
		up := ip.upstream()
		if got := k.want(k.proxied(), up, redirect, silent); !bytes.Equal(got[:14], ethernet(ip.v4)) {
			t.Errorf("header % x", got[:14])
		}
		if ct := k.entry(up); ct.Generation != 1 {
			t.Errorf("entry %+v", ct)
		}
	})
}

func TestSessionKey(t *testing.T) {
	a, b := netip.MustParseAddrPort("10.1.0.1:1000"), netip.MustParseAddrPort("10.2.0.9:53")
	want := Tuple{Saddr: AddrOf(a.Addr()), Daddr: AddrOf(b.Addr()), Dport: swap16(53), Proto: udp}
	if got := TupleOf(a, b, udp).Session(); got != want {
		t.Errorf("%v, want %v", got, want)
	}
}
