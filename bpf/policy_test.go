package bpf

import (
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/flow"
	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy"
)

const (
	tcp  = unix.IPPROTO_TCP
	udp  = unix.IPPROTO_UDP
	sctp = unix.IPPROTO_SCTP

	in  = policy.Ingress
	out = policy.Egress
)

type policyCase struct {
	name    string
	entries rules
	proto   uint8
	want    flow.Reason
	rule    uint32
}

// What one entry, or several, make of a flow from pod A to port 80 of a peer.
func policyCases() []policyCase {
	deny := policy.Entry{Action: policy.Deny, Rule: 9}
	refuse := func(r policy.RefuseReason) policy.Entry {
		return policy.Entry{Action: policy.Refuse, Reason: r, Rule: 8}
	}
	return []policyCase{
		{"nothing", closed, tcp, flow.ReasonPolicyDenied, 0},
		{"this port", rules{port(out, idPeer, tcp, 80): allow(1)}, tcp, flow.ReasonPolicyAllowed, 1},
		{"another port", rules{port(out, idPeer, tcp, 81): allow(1)}, tcp, flow.ReasonPolicyDenied, 0},
		{"another protocol", rules{port(out, idPeer, udp, 80): allow(1)}, tcp, flow.ReasonPolicyDenied, 0},
		{"another peer", rules{port(out, idB, tcp, 80): allow(1)}, tcp, flow.ReasonPolicyDenied, 0},
		{"another direction", rules{port(in, idPeer, tcp, 80): allow(1)}, tcp, flow.ReasonPolicyDenied, 0},
		{"every peer", rules{port(out, 0, tcp, 80): allow(2)}, tcp, flow.ReasonPolicyAllowed, 2},
		{"range 64-95", rules{{Direction: out, Identity: idPeer, Protocol: tcp, Port: 64, PortBits: 11}: allow(3)}, tcp, flow.ReasonPolicyAllowed, 3},
		{"range 80-81 for every peer", rules{{Direction: out, Protocol: tcp, Port: 80, PortBits: 15}: allow(3)}, tcp, flow.ReasonPolicyAllowed, 3},
		{"range 0-32767", rules{{Direction: out, Identity: idPeer, Protocol: tcp, PortBits: 1}: allow(3)}, tcp, flow.ReasonPolicyAllowed, 3},
		{"range 96-127", rules{{Direction: out, Identity: idPeer, Protocol: tcp, Port: 96, PortBits: 11}: allow(3)}, tcp, flow.ReasonPolicyDenied, 0},
		{"all ports", rules{{Direction: out, Identity: idPeer, Protocol: tcp}: allow(4)}, tcp, flow.ReasonPolicyAllowed, 4},
		{"all protocols", rules{{Direction: out, Identity: idPeer}: allow(5)}, tcp, flow.ReasonPolicyAllowed, 5},
		{"everything", rules{{Direction: out}: allow(6)}, tcp, flow.ReasonPolicyAllowed, 6},
		{"exact before range", rules{
			port(out, idPeer, tcp, 80): allow(1),
			{Direction: out, Identity: idPeer, Protocol: tcp, Port: 64, PortBits: 11}: allow(3),
		}, tcp, flow.ReasonPolicyAllowed, 1},
		{"deny of everything beats an exact allow", rules{port(out, idPeer, tcp, 80): allow(1), {Direction: out}: deny}, tcp, flow.ReasonPolicyDenyRule, 9},
		{"deny of a range beats an exact redirect", rules{
			port(out, idPeer, tcp, 80):                              l7(1, 7),
			{Direction: out, Protocol: tcp, Port: 64, PortBits: 11}: deny,
		}, tcp, flow.ReasonPolicyDenyRule, 9},
		{"redirect beats an exact allow", rules{port(out, idPeer, tcp, 80): allow(1), {Direction: out, Protocol: tcp}: l7(2, 7)}, tcp, flow.ReasonRedirected, 2},
		{"the first redirect counts", rules{port(out, idPeer, tcp, 80): l7(1, 7), {Direction: out, Protocol: tcp}: l7(2, 8)}, tcp, flow.ReasonRedirected, 1},
		{"refuse beats allow", rules{port(out, idPeer, tcp, 80): allow(1), {Direction: out}: refuse(policy.RefusedPolicy)}, tcp, flow.ReasonPolicyRefused, 8},
		{"L7 of a kind not enforced", rules{port(out, idPeer, tcp, 80): refuse(policy.RefusedL7Unsupported)}, tcp, flow.ReasonL7Unsupported, 8},
		{"L7 in conflict", rules{port(out, idPeer, tcp, 80): refuse(policy.RefusedL7Conflict)}, tcp, flow.ReasonL7Conflict, 8},
		{"redirect before refuse", rules{port(out, idPeer, tcp, 80): l7(1, 7), {Direction: out}: refuse(policy.RefusedPolicy)}, tcp, flow.ReasonRedirected, 1},
		{"UDP", rules{port(out, idPeer, udp, 80): allow(1)}, udp, flow.ReasonPolicyAllowed, 1},
		{"UDP for the proxy", rules{port(out, idPeer, udp, 80): l7(1, 7)}, udp, flow.ReasonRedirected, 1},
		{"SCTP for the proxy", rules{port(out, idPeer, sctp, 80): l7(1, 7)}, sctp, flow.ReasonL7Unsupported, 1},
		{"SCTP", rules{port(out, idPeer, sctp, 80): allow(1)}, sctp, flow.ReasonPolicyAllowed, 1},
		{"GRE by all protocols", rules{{Direction: out, Identity: idPeer}: allow(5)}, 47, flow.ReasonPolicyAllowed, 5},
		{"GRE by nothing", rules{{Direction: out, Identity: idPeer, Protocol: tcp}: allow(5)}, 47, flow.ReasonUnknownL4, 0},
		{"GRE by an entry that names it", rules{{Direction: out, Identity: idPeer, Protocol: 47}: allow(5)}, 47, flow.ReasonPolicyAllowed, 5},
		{"GRE denied", rules{{Direction: out, Identity: idPeer}: allow(5), {Direction: out}: deny}, 47, flow.ReasonPolicyDenyRule, 9},
	}
}

func TestPolicySearch(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		for _, c := range policyCases() {
			k.t = t
			empty(k, k.Conntrack)
			k.forgetConns()
			k.policy(policyA, c.entries)
			p := packet{src: ip.a, dst: ip.peer, proto: c.proto, sport: 1000, dport: 80, flags: syn}
			verdict, _, _ := k.run(k.fromA(), p.bytes())
			events := k.drain()
			want := pass
			if c.want.Drops() {
				want = dropped
			} else if c.want == flow.ReasonRedirected {
				want = redirect
			}
			if verdict != want || len(events) != 1 || events[0].Reason != c.want || events[0].Rule != c.rule {
				t.Errorf("%s: verdict %d, events %+v, want %d, %v, rule %d", c.name, int32(verdict), events, int32(want), c.want, c.rule)
			}
		}
	})
}

// An address outside has up to two identities, and each of them counts.
func TestPolicyOfTheWorld(t *testing.T) {
	const (
		cidr = identity.ID(500)
		name = identity.ID(501)
	)
	deny := policy.Entry{Action: policy.Deny}
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		k.must(k.Names.Update(uint32(name), 1))
		world := identity.WorldIPv6
		if ip.v4 {
			world = identity.WorldIPv4
		}
		p := packet{src: ip.a, dst: ip.world, proto: tcp, sport: 1000, dport: 443, flags: syn}
		for _, c := range []struct {
			what        string
			cidr, named bool
			entries     rules
			want        bool
		}{
			{"world", false, false, rules{port(out, world, tcp, 443): allow(1)}, true},
			{"the other family's world", false, false, rules{port(out, world^3, tcp, 443): allow(1)}, false},
			{"no world rule", false, false, rules{port(out, cidr, tcp, 443): allow(1)}, false},
			{"CIDR", true, false, rules{port(out, cidr, tcp, 443): allow(1)}, true},
			{"CIDR is no more the plain world", true, false, rules{port(out, world, tcp, 443): allow(1)}, false},
			{"name", false, true, rules{port(out, name, tcp, 443): allow(1)}, true},
			{"name beside CIDR", true, true, rules{port(out, name, tcp, 443): allow(1)}, true},
			{"CIDR beside name", true, true, rules{port(out, cidr, tcp, 443): allow(1)}, true},
			{"name allowed, CIDR denied", true, true, rules{port(out, name, tcp, 443): allow(1), port(out, cidr, tcp, 443): deny}, false},
			{"CIDR allowed, name denied", true, true, rules{port(out, cidr, tcp, 443): allow(1), port(out, name, tcp, 443): deny}, false},
		} {
			empty(k, k.Conntrack)
			empty(k, k.FQDN)
			prefix, _ := ip.world.Prefix(ip.world.BitLen() - 8)
			k.must(k.IPCache.Delete(PrefixOf(prefix)))
			if c.cidr {
				k.prefix(prefix, cidr)
			}
			if c.named {
				k.must(k.FQDN.Update(AddrOf(ip.world), uint32(name)))
			}
			k.policy(policyA, c.entries)
			verdict, _, _ := k.run(k.fromA(), p.bytes())
			if got := verdict == pass; got != c.want {
				t.Errorf("%s: passes %v, want %v: %+v", c.what, got, c.want, k.drain())
			}
			k.drain()
		}
		// A name is where a pod goes to: nobody comes in by it. And nothing but a
		// name can be learnt.
		in53 := packet{src: ip.world, dst: ip.a, proto: tcp, sport: 1000, dport: 53, flags: syn}
		k.must(k.FQDN.Update(AddrOf(ip.world), uint32(name)))
		k.policy(policyA, rules{port(in, name, tcp, 53): allow(1)})
		k.want(k.toA(), in53, dropped, droppedFor(flow.ReasonPolicyDenied, in))
		k.must(k.FQDN.Update(AddrOf(ip.world), idB))
		k.policy(policyA, rules{port(out, idB, tcp, 443): allow(1), port(in, idB, tcp, 53): allow(1)})
		k.want(k.toA(), in53, dropped, droppedFor(flow.ReasonPolicyDenied, in))
		empty(k, k.Conntrack)
		k.want(k.fromA(), p, dropped, droppedFor(flow.ReasonPolicyDenied, out))
		// A name can't be claimed for an address that is no outside one.
		k.must(k.FQDN.Update(AddrOf(ip.peer), uint32(name)))
		k.policy(policyA, rules{port(out, name, tcp, 443): allow(1)})
		p.dst = ip.peer
		k.want(k.fromA(), p, dropped, droppedFor(flow.ReasonPolicyDenied, out))
	})
}

// The longest prefix says who it is.
func TestPolicyLongestPrefix(t *testing.T) {
	k := newKernel(t)
	k.prefix(netip.MustParsePrefix("198.51.0.0/16"), 600)
	k.prefix(netip.MustParsePrefix("198.51.100.0/24"), 601)
	k.prefix(netip.MustParsePrefix("198.51.100.7/32"), 602)
	k.policy(policyA, rules{{Direction: out, Identity: 601}: allow(1)})
	for addr, want := range map[string]uint32{"198.51.1.1": dropped, "198.51.100.1": pass, "198.51.100.7": dropped} {
		p := packet{src: ipv4.a, dst: netip.MustParseAddr(addr), proto: udp, sport: 1, dport: 2}
		if got, _, _ := k.run(k.fromA(), p.bytes()); got != want {
			t.Errorf("%s: verdict %d, want %d", addr, int32(got), int32(want))
		}
	}
}

func TestPolicyMissing(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		k.must(k.Policies.Delete(policyA))
		p := packet{src: ip.a, dst: ip.peer, proto: tcp, sport: 1000, dport: 80, flags: syn}
		k.want(k.fromA(), p, dropped, droppedFor(flow.ReasonPolicyMissing, out))
		p = packet{src: ip.peer, dst: ip.a, proto: tcp, sport: 1000, dport: 80, flags: syn}
		k.want(k.toA(), p, dropped, droppedFor(flow.ReasonPolicyMissing, in))
	})
}

// A pod under no policy is let be, but its flows are known.
func TestPolicyNotEnforced(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		p := packet{src: ip.a, dst: ip.peer, proto: tcp, sport: 1000, dport: 80, flags: syn}
		k.want(k.fromA(), p, pass, forwarded(flow.ReasonNotEnforced, out))
		k.wantEntry(p, CTJudgedEgress)
		k.want(k.fromA(), p.with(ack), pass, silent)

		// One direction alone.
		k.policy(policyA, closed, in)
		p.sport++
		k.want(k.fromA(), p, pass, forwarded(flow.ReasonNotEnforced, out))
		q := packet{src: ip.peer, dst: ip.a, proto: tcp, sport: 1000, dport: 80, flags: syn}
		k.want(k.toA(), q, dropped, droppedFor(flow.ReasonPolicyDenied, in))
	})
}

// Of two pods on this node each judges its own end, and a packet counts once.
func TestPolicyOfBothEnds(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		p := packet{src: ip.a, dst: ip.b, proto: tcp, sport: 1000, dport: 80, flags: syn}
		k.policy(policyA, rules{port(out, idB, tcp, 80): allow(1)})
		k.policy(policyB, rules{port(in, idA, tcp, 80): allow(2)})
		k.want(k.fromA(), p, pass, forwarded(flow.ReasonPolicyAllowed, out))
		k.wantEntry(p, CTJudgedEgress)
		k.must(k.IPCache.Update(PrefixOf(netip.PrefixFrom(ip.a, ip.a.BitLen())), Peer{Identity: idA}))
		k.want(k.toB(), p, pass, forwarded(flow.ReasonPolicyAllowed, in))
		k.wantEntry(p, CTJudgedEgress|CTJudgedIngress)
		r := p.reply(syn | ack)
		k.want(k.fromB(), r, pass, silent)
		k.want(k.toA(), r, pass, silent)
		k.want(k.fromA(), p.with(ack), pass, silent)
		k.want(k.toB(), p.with(ack), pass, silent)
		ct := k.wantEntry(p, CTJudgedEgress|CTJudgedIngress|CTReplied)
		if ct.Rule != [2]uint32{2, 1} {
			t.Errorf("rules %v, want 2 for ingress and 1 for egress", ct.Rule)
		}

		// The responder denies: its own veth does it, and tells.
		k.policy(policyB, closed)
		p.sport++
		k.want(k.fromA(), p, pass, forwarded(flow.ReasonPolicyAllowed, out))
		k.want(k.toB(), p, dropped, droppedFor(flow.ReasonPolicyDenied, in))
		// What it then sends with that tuple is no reply.
		k.policy(policyB, closed)
		k.want(k.fromB(), p.reply(ack), dropped, droppedFor(flow.ReasonPolicyDenied, out))
	})
}

// PolicyInfoOf announces every entry.
func TestPolicyInfoOf(t *testing.T) {
	r := policy.Resolved{Enforced: [2]bool{true, false}, Entries: rules{
		port(in, 5, tcp, 80): l7(1, 1),
		{Direction: in, Identity: 5, Protocol: tcp, Port: 64, PortBits: 10}: allow(1),
		{Direction: in, Protocol: udp}:                                      allow(1),
		{Direction: out}:                                                    allow(1),
		{Direction: out, Identity: 7}:                                       allow(1),
	}}
	got := PolicyInfoOf(&r)
	want := PolicyInfo{
		Enforced: [2]uint8{1, 0}, L7: [2]uint8{1, 0},
		PortBits:    [2]uint32{1<<16 | 1<<10, 1 << 17},
		AnyPortBits: [2]uint32{1, 1 << 17},
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	if u := (PolicyInfo{Enforced: [2]uint8{0, 1}}).Union(got); u.PortBits != got.PortBits || u.AnyPortBits != got.AnyPortBits || u.L7 != got.L7 || u.Enforced != [2]uint8{0, 1} {
		t.Errorf("union %+v", u)
	}
}
