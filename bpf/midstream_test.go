package bpf

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/flow"
)

// monotonic is the programs' clock.
func monotonic(t *testing.T) uint64 {
	t.Helper()
	var now unix.Timespec
	check(t, unix.ClockGettime(unix.CLOCK_MONOTONIC, &now))
	return uint64(now.Nano())
}

// A direction that is not enforced makes no door of the other one: what that
// denies stays denied in mid-stream, but for the time in which connections older
// than conntrack are to be expected.
func TestMidstreamOneDirection(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		p := packet{src: ip.a, dst: ip.world, proto: tcp, sport: 1000, dport: 443, flags: ack, payload: []byte("secret")}
		q := packet{src: ip.world, dst: ip.a, proto: tcp, sport: 1000, dport: 443, flags: ack}
		k.policy(policyA, closed, out)
		for _, flags := range []uint8{ack, ack | fin, syn | ack, rst, rst | ack} {
			k.want(k.fromA(), p.with(flags), dropped, droppedFor(flow.ReasonPolicyDenied, out))
		}
		if k.entry(p) != nil {
			t.Fatal("a denied packet made an entry")
		}
		// What its open direction began passes both ways.
		k.want(k.toA(), q, pass, forwarded(flow.ReasonNotEnforced, in))
		k.want(k.fromA(), q.reply(ack), pass, silent)

		empty(k, k.Conntrack)
		k.policy(policyA, closed, in)
		k.want(k.toA(), q, dropped, droppedFor(flow.ReasonPolicyDenied, in))
		k.want(k.fromA(), p, pass, forwarded(flow.ReasonNotEnforced, out))
		k.want(k.toA(), p.reply(ack), pass, silent)

		// Soon after conntrack began.
		empty(k, k.Conntrack)
		k.state.MidstreamUntil = monotonic(t) + uint64(time.Minute)
		k.want(k.toA(), q, pass, forwarded(flow.ReasonNotEnforced, out))
		k.wantEntry(q.reply(ack), CTJudgedEgress|CTMidstream|CTReplied)
		k.want(k.toA(), q.with(syn), dropped, droppedFor(flow.ReasonPolicyDenied, in))
		k.policy(policyA, closed, out)
		k.want(k.fromA(), p, pass, forwarded(flow.ReasonNotEnforced, in))
		// Enforced both ways there is nothing to be lenient about.
		k.policy(policyA, closed)
		p.sport++
		k.want(k.fromA(), p, dropped, droppedFor(flow.ReasonPolicyDenied, out))
		k.state.MidstreamUntil = monotonic(t)
		time.Sleep(10 * time.Millisecond) // the clock is a coarse one
		k.policy(policyA, closed, out)
		k.want(k.fromA(), p, dropped, droppedFor(flow.ReasonPolicyDenied, out))
		k.state.MidstreamUntil = 0
	})
}

// Nor does it spare a connection the proxy, whoever speaks first and however
// new conntrack is.
func TestMidstreamNeedsProxy(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		for _, until := range []uint64{0, monotonic(t) + uint64(time.Minute)} {
			k.state.MidstreamUntil = until
			k.policy(policyA, viaProxy, out)
			p := ip.tcp().with(ack)
			served := packet{src: ip.peer, dst: ip.a, proto: tcp, sport: 555, dport: 8080, flags: ack}
			for _, c := range []struct {
				at at
				p  packet
			}{{k.fromA(), p}, {k.toA(), p.reply(ack)}} {
				empty(k, k.Conntrack)
				checkRST(t, c.p, k.want(c.at, c.p, pass, droppedFor(flow.ReasonMidstreamL7, out)))
				k.want(c.at, c.p, redirect, silent)
			}
			k.policy(policyA, rules{port(in, idPeer, tcp, 8080): l7(2, 72)}, in)
			for _, c := range []struct {
				at at
				p  packet
			}{{k.toA(), served}, {k.fromA(), served.reply(ack)}} {
				empty(k, k.Conntrack)
				checkRST(t, c.p, k.want(c.at, c.p, pass, droppedFor(flow.ReasonMidstreamL7, in)))
				k.want(c.at, c.p, redirect, silent)
			}
			// Nor is it spared by what a rule allows the other way: that is
			// often any port.
			k.policy(policyA, rules{port(out, idPeer, tcp, 80): l7(1, 71), {Direction: in, Identity: idPeer, Protocol: tcp}: allow(3)})
			for _, c := range []struct {
				at at
				p  packet
			}{{k.fromA(), p}, {k.toA(), p.reply(ack)}} {
				empty(k, k.Conntrack)
				checkRST(t, c.p, k.want(c.at, c.p, pass, droppedFor(flow.ReasonMidstreamL7, out)))
				k.want(c.at, c.p, redirect, silent)
				c.p.sport, c.p.dport = c.p.sport+1, c.p.dport+1
				k.want(c.at, c.p, pass, forwarded(flow.ReasonPolicyAllowed, in))
			}
			k.want(k.toA(), packet{src: ip.peer, dst: ip.a, proto: tcp, sport: 80, dport: 7, flags: rst}, pass, silent)
			k.policy(policyA, rules{port(in, idPeer, tcp, 8080): l7(2, 72), {Direction: out, Identity: idPeer, Protocol: tcp}: allow(3)})
			for _, c := range []struct {
				at at
				p  packet
			}{{k.toA(), served}, {k.fromA(), served.reply(ack)}} {
				empty(k, k.Conntrack)
				checkRST(t, c.p, k.want(c.at, c.p, pass, droppedFor(flow.ReasonMidstreamL7, in)))
				k.want(c.at, c.p, redirect, silent)
			}
		}
		k.state.MidstreamUntil = 0
	})
}

// The time begins when conntrack is made, and a successor that adopts it does
// not begin it again.
func TestMidstreamGrace(t *testing.T) {
	pins := mountPins(t)
	ns := newNamespace(t)
	activate := func(d *Datapath) {
		t.Helper()
		var err error
		ns.do(func() { err = d.Activate() })
		check(t, err)
	}
	grace := func(d *Datapath) time.Duration {
		return time.Duration(int64(d.state.MidstreamUntil) - int64(monotonic(t)))
	}
	d := load(t, pins, nil)
	if left := grace(d); left < midstreamGrace-time.Minute || left > midstreamGrace {
		t.Errorf("%v left at first", left)
	}
	d.state.MidstreamUntil = 0
	activate(d)
	if left := grace(d); left < midstreamGrace-time.Minute || left > midstreamGrace {
		t.Errorf("%v left once active", left)
	}
	d.state.MidstreamUntil = 7
	next := load(t, pins, nil)
	activate(next)
	if got := next.state.MidstreamUntil; got != 7 {
		t.Errorf("a successor begins the time again: %d", got)
	}
	other := load(t, pins, func(o *Options) { o.Sizes.Conntrack *= 2 })
	if left := grace(other); left < midstreamGrace-time.Minute {
		t.Errorf("%v left with a new conntrack", left)
	}
}
