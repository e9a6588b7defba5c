package bpf

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/flow"
)

// allowed is a policy under which pod A may reach port 80 of the peer, and
// nothing else may happen.
var allowed = rules{
	port(out, idPeer, tcp, 80): allow(1), port(out, idPeer, udp, 80): allow(1),
	port(out, idPeer, unix.IPPROTO_ICMP, 8): allow(1), port(out, idPeer, unix.IPPROTO_ICMPV6, 128): allow(1),
}

func (ip addresses) tcp() packet {
	return packet{src: ip.a, dst: ip.peer, proto: tcp, sport: 1000, dport: 80, flags: syn}
}

func (ip addresses) udp() packet {
	return packet{src: ip.a, dst: ip.peer, proto: udp, sport: 1000, dport: 80, payload: []byte("hi")}
}

func (ip addresses) ping() packet {
	return packet{src: ip.a, dst: ip.peer, proto: ip.icmp, icmp: ip.echo, sport: 77}
}

// A flow from its first packet to its last.
func TestConntrackTCP(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		k.policy(policyA, allowed)
		p := ip.tcp()
		k.want(k.fromA(), p, pass, forwarded(flow.ReasonPolicyAllowed, out))
		k.wantEntry(p, CTJudgedEgress)
		k.want(k.toA(), p.reply(syn|ack), pass, silent)
		k.wantEntry(p, CTJudgedEgress|CTReplied)
		k.want(k.fromA(), p.with(ack), pass, silent)
		k.want(k.fromA(), p.with(fin|ack), pass, silent)
		k.wantEntry(p, CTJudgedEgress|CTReplied|CTFinForward)
		k.want(k.toA(), p.reply(fin|ack), pass, silent)
		k.wantEntry(p, CTJudgedEgress|CTReplied|CTFinForward|CTFinReply)
		// The port is used anew.
		k.want(k.fromA(), p, pass, forwarded(flow.ReasonPolicyAllowed, out))
		k.wantEntry(p, CTJudgedEgress)
		k.want(k.fromA(), p.with(rst), pass, silent)
		k.wantEntry(p, CTJudgedEgress|CTRst)
	})
}

// How long an entry counts: a reply passes just before its end, and not after.
func TestConntrackLifetime(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		for _, c := range []struct {
			name  string
			p     packet
			flags uint32
			life  time.Duration
		}{
			{"TCP without an answer", ip.tcp(), 0, time.Minute},
			{"TCP", ip.tcp(), CTReplied, 8000 * time.Second},
			{"TCP half closed", ip.tcp(), CTReplied | CTFinForward, 8000 * time.Second},
			{"TCP closed", ip.tcp(), CTReplied | CTFinForward | CTFinReply, 10 * time.Second},
			{"TCP reset", ip.tcp(), CTReplied | CTRst, 10 * time.Second},
			{"UDP without an answer", ip.udp(), 0, time.Minute},
			{"UDP", ip.udp(), CTReplied, 3 * time.Minute},
			{"ping", ip.ping(), CTReplied, time.Minute},
		} {
			k.t = t
			empty(k, k.Conntrack)
			k.policy(policyA, allowed)
			k.want(k.fromA(), c.p, pass, forwarded(flow.ReasonPolicyAllowed, out))
			k.change(c.p, func(ct *Conntrack) { ct.Flags |= c.flags })
			if ct := k.entry(c.p); ct.Lifetime(c.p.proto) != c.life {
				t.Errorf("%s: user space takes it to be %v", c.name, ct.Lifetime(c.p.proto))
			} else if key, _ := c.p.tuple().Canonical(); ct.Responder(key) != c.p.tuple().Daddr {
				t.Errorf("%s: user space takes %v to be its responder", c.name, ct.Responder(key))
			}
			k.age(c.p, c.life-2*time.Second)
			reply := c.p.reply(ack).bytes()
			if v, _, _ := k.run(k.toA(), reply); v != pass {
				t.Errorf("%s: a reply is dropped too early", c.name)
			}
			k.change(c.p, func(ct *Conntrack) { ct.Flags = ct.Flags&CTSwapped | CTJudgedEgress | c.flags })
			k.age(c.p, c.life+time.Second)
			k.drain()
			v, _, _ := k.run(k.toA(), reply)
			// TCP is then in mid-stream, which the policy of its forward
			// direction allows; it is a new entry.
			if c.p.proto == tcp {
				if ct := k.entry(c.p); v != pass || ct == nil || ct.Flags&CTMidstream == 0 {
					t.Errorf("%s: the entry counts for too long: %+v", c.name, ct)
				}
			} else if v != dropped {
				t.Errorf("%s: a reply passes too late", c.name)
			}
			k.drain()
		}
	})
}

// last_seen moves with packets, but not with each.
func TestConntrackLastSeen(t *testing.T) {
	k := newKernel(t)
	p := ipv4.udp()
	k.run(k.fromA(), p.bytes())
	k.change(p, func(ct *Conntrack) { ct.LastSeen -= uint64(500 * time.Millisecond) })
	before := k.entry(p).LastSeen
	k.run(k.fromA(), p.bytes())
	if after := k.entry(p).LastSeen; after != before {
		t.Errorf("written again after half a second: %d ns", after-before)
	}
	k.age(p, time.Second)
	k.run(k.fromA(), p.bytes())
	if after := k.entry(p).LastSeen; after <= before {
		t.Error("not written after a second")
	}
}

// What policy no longer allows stops at the next forward packet, and comes back
// when it is allowed again.
func TestConntrackRevocation(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		for _, p := range []packet{ip.tcp(), ip.udp(), ip.ping()} {
			k.policy(policyA, allowed)
			k.want(k.fromA(), p, pass, forwarded(flow.ReasonPolicyAllowed, out))
			k.want(k.toA(), p.reply(syn|ack), pass, silent)
			p.flags = ack
			before := k.entry(p).Revision[out]
			k.policy(policyA, allowed)
			k.want(k.fromA(), p, pass, silent)
			if after := k.entry(p).Revision[out]; after != before+1 || after != k.Revision() {
				t.Fatalf("judged at revision %d, then %d", before, after)
			}
			k.policy(policyA, closed)
			if p.proto == tcp { // nothing forward yet
				k.want(k.toA(), p.reply(ack), pass, silent)
			}
			k.want(k.fromA(), p, dropped, droppedFor(flow.ReasonPolicyDenied, out))
			k.want(k.fromA(), p, dropped, droppedFor(flow.ReasonPolicyDenied, out))
			k.want(k.toA(), p.reply(ack), dropped, droppedFor(flow.ReasonPolicyDenied, in))
			k.policy(policyA, allowed)
			k.want(k.fromA(), p, pass, forwarded(flow.ReasonPolicyAllowed, out))
			k.want(k.toA(), p.reply(ack), pass, silent)
		}
	})
}

// A revoked flow's replies pass again by themselves once it is allowed.
func TestConntrackLateReply(t *testing.T) {
	k := newKernel(t)
	p := ipv4.udp()
	k.policy(policyA, allowed)
	k.want(k.fromA(), p, pass, forwarded(flow.ReasonPolicyAllowed, out))
	k.policy(policyA, closed)
	k.want(k.fromA(), p, dropped, droppedFor(flow.ReasonPolicyDenied, out))
	k.policy(policyA, allowed)
	k.want(k.toA(), p.reply(0), pass, silent)
	k.wantEntry(p, CTJudgedEgress|CTReplied)
	// A packet that the other direction's policy allows passes by that alone.
	k.policy(policyA, closed)
	k.want(k.fromA(), p, dropped, droppedFor(flow.ReasonPolicyDenied, out))
	k.policy(policyA, rules{port(in, idPeer, udp, 1000): allow(5)})
	k.want(k.toA(), p.reply(0), pass, forwarded(flow.ReasonPolicyAllowed, in))
	k.wantEntry(p, CTReplied)
}

// Nobody answers what was not asked.
func TestConntrackUnsolicited(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		k.policy(policyA, allowed)
		for _, p := range []packet{ip.udp(), ip.ping()} {
			k.want(k.toA(), p.reply(0), dropped, droppedFor(flow.ReasonPolicyDenied, in))
		}
		// Unless a rule names the type of the reply.
		k.policy(policyA, rules{port(in, idPeer, ip.icmp, uint16(ip.ping().reply(0).icmp)): allow(3)})
		k.want(k.toA(), ip.ping().reply(0), pass, forwarded(flow.ReasonPolicyAllowed, in))
		if k.entry(ip.ping()) != nil {
			t.Error("an unsolicited reply made an entry")
		}
	})
}

// A SYN is judged as new on whatever entry there is.
func TestConntrackSYN(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		p := ip.tcp()
		k.policy(policyA, allowed)
		k.want(k.fromA(), p, pass, forwarded(flow.ReasonPolicyAllowed, out))
		k.want(k.fromA(), p, pass, silent) // repeated
		k.wantEntry(p, CTJudgedEgress)
		k.want(k.toA(), p.reply(syn|ack), pass, silent)

		// From the other end, with the same tuple: not allowed, and the flow
		// that is there stays.
		back := packet{src: p.dst, dst: p.src, proto: tcp, sport: p.dport, dport: p.sport, flags: syn}
		k.want(k.toA(), back, dropped, droppedFor(flow.ReasonPolicyDenied, in))
		k.wantEntry(p, CTJudgedEgress|CTReplied)
		k.want(k.fromA(), p.with(ack), pass, silent)

		// Allowed: the entry is turned round.
		k.policy(policyA, rules{port(in, idPeer, tcp, p.sport): allow(4)})
		k.want(k.toA(), back, pass, forwarded(flow.ReasonPolicyAllowed, in))
		k.wantEntry(back, CTJudgedIngress)
		k.want(k.fromA(), back.reply(syn|ack), pass, silent)

		// The old direction is denied now: its SYN changes nothing.
		k.want(k.fromA(), p, dropped, droppedFor(flow.ReasonPolicyDenied, out))
		k.wantEntry(back, CTJudgedIngress|CTReplied)
	})
}

// A SYN between two pods of this node: what from_pod begins to_pod joins.
func TestConntrackSYNBothEnds(t *testing.T) {
	k := newKernel(t)
	p := packet{src: ipv4.a, dst: ipv4.b, proto: tcp, sport: 1000, dport: 80, flags: syn}
	for range 2 { // the second time with the port used anew
		k.want(k.fromA(), p, pass, forwarded(flow.ReasonNotEnforced, out))
		k.want(k.toB(), p, pass, forwarded(flow.ReasonNotEnforced, in))
		k.wantEntry(p, CTJudgedEgress|CTJudgedIngress)
		k.want(k.fromA(), p, pass, silent)
		k.want(k.toB(), p, pass, silent)
		k.want(k.fromB(), p.reply(syn|ack), pass, silent)
		k.want(k.toA(), p.reply(syn|ack), pass, silent)
		k.want(k.fromA(), p.with(fin|ack), pass, silent)
		k.want(k.toB(), p.with(fin|ack), pass, silent)
		k.wantEntry(p, CTJudgedEgress|CTJudgedIngress|CTReplied|CTFinForward)
	}
}

// TCP whose start nobody saw.
func TestConntrackMidstream(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		p := ip.tcp().with(ack)
		k.policy(policyA, allowed)
		k.want(k.fromA(), p, pass, forwarded(flow.ReasonPolicyAllowed, out))
		k.wantEntry(p, CTJudgedEgress|CTMidstream)
		k.want(k.toA(), p.reply(ack), pass, silent)

		// The first packet seen is a reply.
		p.sport++
		k.want(k.toA(), p.reply(ack), pass, forwarded(flow.ReasonPolicyAllowed, out))
		k.wantEntry(p, CTJudgedEgress|CTMidstream|CTReplied)
		k.want(k.fromA(), p, pass, silent)

		// A server's, seen from its own answers.
		k.policy(policyA, rules{port(in, idPeer, tcp, 8080): allow(6)})
		q := packet{src: ip.peer, dst: ip.a, proto: tcp, sport: 555, dport: 8080, flags: ack}
		k.want(k.fromA(), q.reply(ack), pass, forwarded(flow.ReasonPolicyAllowed, in))
		k.wantEntry(q, CTJudgedIngress|CTMidstream|CTReplied)

		// Neither way.
		k.policy(policyA, closed)
		p.sport++
		k.want(k.fromA(), p, dropped, droppedFor(flow.ReasonPolicyDenied, out))
		k.want(k.toA(), p.reply(ack), dropped, droppedFor(flow.ReasonPolicyDenied, in))

		// The end of a connection is not the start of one.
		k.policy(policyA, allowed)
		k.want(k.fromA(), p.with(rst|ack), pass, silent)
		if k.entry(p) != nil {
			t.Error("a RST made an entry")
		}
	})
}

// Two ends that ping each other with one identifier are two flows.
func TestConntrackPing(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		k.policy(policyA, rules{port(out, idPeer, ip.icmp, uint16(ip.echo)): allow(1), port(in, idPeer, ip.icmp, uint16(ip.echo)): allow(2)})
		for _, id := range []uint16{77, 0} {
			p := ip.ping()
			p.sport = id
			back := p
			back.src, back.dst = p.dst, p.src
			k.want(k.fromA(), p, pass, forwarded(flow.ReasonPolicyAllowed, out))
			k.want(k.toA(), back, pass, forwarded(flow.ReasonPolicyAllowed, in))
			k.want(k.toA(), p.reply(0), pass, silent)
			if id != 0 { // of identifier 0 one entry can know only one direction
				k.want(k.fromA(), back.reply(0), pass, silent)
				k.want(k.fromA(), p, pass, silent)
			}
		}
		k.policy(policyA, closed)
		p := ip.ping()
		p.sport = 99
		k.want(k.fromA(), p, dropped, droppedFor(flow.ReasonPolicyDenied, out))
		// Another type is judged by its own number, each time.
		p = packet{src: ip.a, dst: ip.peer, proto: ip.icmp, icmp: 13}
		k.policy(policyA, rules{port(out, idPeer, ip.icmp, 13): allow(1)})
		k.want(k.fromA(), p, pass, forwarded(flow.ReasonPolicyAllowed, out))
		p.icmp = 14
		k.want(k.fromA(), p, dropped, droppedFor(flow.ReasonPolicyDenied, out))
		if n, _ := k.Conntrack.Snapshot(); len(n) > 3 {
			t.Errorf("ICMP without a flow made entries: %v", n)
		}
	})
}

func TestTupleCanonical(t *testing.T) {
	a, b := netip.MustParseAddrPort("10.0.0.1:9"), netip.MustParseAddrPort("10.0.0.2:1")
	one := TupleOf(a, b, tcp)
	key, swapped := one.Canonical()
	if key != one || swapped {
		t.Error("the lower address comes first")
	}
	if key, swapped := one.Reverse().Canonical(); key != one || !swapped {
		t.Error("both directions have one key")
	}
	if got := FlowOf(key, Conntrack{Flags: CTSwapped}); got != one.Reverse() {
		t.Errorf("flow %v", got)
	}
	if one.Source() != a || one.Destination() != b {
		t.Errorf("%v", one)
	}
	same := netip.MustParseAddr("fd00::1")
	hi := TupleOf(netip.AddrPortFrom(same, 256), netip.AddrPortFrom(same, 255), udp)
	if _, swapped := hi.Canonical(); !swapped {
		t.Error("ports are compared as numbers")
	}
}
