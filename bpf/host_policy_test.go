package bpf

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/flow"
	"github.com/weirnet/weir/policy"
)

// hostPolicy and hostAlways are the policies of the node in tests.
const hostPolicy, hostAlways = 500, 501

// Where packets of the node, or that it sends on, are run: its one interface
// stands for any.
func (k *kernel) leaves() at { return at{prog: k.objects.FromHost, ifindex: k.proxyIf} }
func (k *kernel) sentOn() at {
	return at{prog: k.objects.FromHost, ifindex: k.proxyIf, ingress: k.podA}
}
func (k *kernel) arrives() at {
	return at{prog: k.objects.ToHost, ifindex: k.proxyIf, ingress: k.proxyIf}
}

// host puts the node under a policy.
func (k *kernel) host(own, always rules, dirs ...policy.Direction) {
	k.t.Helper()
	k.policy(hostAlways, always)
	k.policy(hostPolicy, own, dirs...)
	k.must(k.Host.Update(0, Host{Policy: hostPolicy, Always: hostAlways}))
}

// TestHostPolicy: what the node's own policy makes of single packets.
func TestHostPolicy(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		own := rules{
			port(in, idPeer, tcp, 80): allow(7), port(out, idPeer, tcp, 443): allow(8),
			{Direction: in, Identity: idB}: {Action: policy.Deny, Rule: 9}, port(in, 0, tcp, 22): {Action: policy.Deny, Rule: 10},
		}
		always := rules{port(in, 0, tcp, 22): {Action: policy.Allow}, port(out, idPeer, udp, 53): {Action: policy.Allow}}
		from := func(src netip.Addr, proto uint8, dport uint16) packet {
			return packet{src: src, dst: ip.node, proto: proto, sport: 1000, dport: dport, flags: syn}
		}
		to := func(dst netip.Addr, proto uint8, dport uint16) packet {
			return packet{src: ip.node, dst: dst, proto: proto, sport: 1000, dport: dport, flags: syn}
		}
		noPort := packet{src: ip.peer, dst: ip.node, proto: ip.icmp, icmp: 3}
		if !ip.v4 {
			noPort.icmp = 2
		}
		notThere := netip.MustParseAddr("172.16.0.99")
		if !ip.v4 {
			notThere = netip.MustParseAddr("fd03::99")
		}
		for _, c := range []struct {
			name    string
			at      at
			p       packet
			verdict uint32
			events  []seen
		}{
			{"allowed in", k.arrives(), from(ip.peer, tcp, 80), pass, forwarded(flow.ReasonPolicyAllowed, in)},
			{"not allowed in", k.arrives(), from(ip.peer, tcp, 81), dropped, droppedFor(flow.ReasonPolicyDenied, in)},
			{"from outside", k.arrives(), from(ip.world, tcp, 80), dropped, droppedFor(flow.ReasonPolicyDenied, in)},
			{"denied, but fail-safe", k.arrives(), from(ip.world, tcp, 22), pass, forwarded(flow.ReasonFailSafe, in)},
			{"allowed out", k.leaves(), to(ip.peer, tcp, 443), pass, forwarded(flow.ReasonPolicyAllowed, out)},
			{"not allowed out", k.leaves(), to(ip.peer, tcp, 80), dropped, droppedFor(flow.ReasonPolicyDenied, out)},
			{"fail-safe out", k.leaves(), to(ip.peer, udp, 53), pass, forwarded(flow.ReasonFailSafe, out)},
			{"fail-safe for another peer", k.leaves(), to(ip.world, udp, 53), dropped, droppedFor(flow.ReasonPolicyDenied, out)},
			{"ping", k.arrives(), packet{src: ip.world, dst: ip.node, proto: ip.icmp, icmp: ip.echo, sport: 5}, dropped, droppedFor(flow.ReasonPolicyDenied, in)},
			{"an error about nothing", k.arrives(), quote(ip, ip.world, to(ip.world, tcp, 80)), dropped, droppedFor(flow.ReasonPolicyDenied, in)},
			{"GRE", k.arrives(), packet{src: ip.peer, dst: ip.node, proto: 47}, dropped, droppedFor(flow.ReasonUnknownL4, in)},
			{"a part without a first", k.arrives(), packet{src: ip.peer, dst: ip.node, proto: udp, fragment: true, fragOffset: 24, fragID: 1, payload: pad(16)}, dropped, droppedFor(flow.ReasonFragmentUnknown, in)},
			{"a broken packet", k.arrives(), packet{src: ip.peer, dst: ip.node, proto: tcp, flags: syn | rst}, dropped, droppedFor(flow.ReasonInvalidPacket, in)},

			// None of the node's.
			{"to a pod", k.arrives(), packet{src: ip.world, dst: ip.a, proto: tcp, sport: 1, dport: 80, flags: syn}, pass, silent},
			{"to another node's address", k.arrives(), packet{src: ip.world, dst: notThere, proto: tcp, sport: 1, dport: 80, flags: syn}, pass, silent},
			{"of a pod", k.leaves(), packet{src: ip.a, dst: ip.world, proto: tcp, sport: 1, dport: 80, flags: syn}, pass, silent},
			{"masqueraded", k.sentOn(), to(ip.world, tcp, 8080), pass, silent},
			{"broken, and sent on", k.sentOn(), packet{src: ip.node, dst: ip.world, proto: tcp, flags: syn | rst}, pass, silent},

			// Between a pod of this node and the node.
			{"a pod may not", k.fromB(), from(ip.b, tcp, 80), dropped, droppedFor(flow.ReasonPolicyDenyRule, in)},
			{"a pod may: fail-safe", k.fromB(), from(ip.b, tcp, 22), pass, forwarded(flow.ReasonNotEnforced, out)},
			{"another pod may not", k.fromA(), from(ip.a, udp, 80), dropped, droppedFor(flow.ReasonPolicyDenied, in)},
			{"to a pod", at{prog: k.objects.ToPod, ifindex: k.podA}, to(ip.a, tcp, 80), dropped, droppedFor(flow.ReasonPolicyDenied, out)},
			{"sent on to a pod", k.toA(), to(ip.a, tcp, 80), pass, forwarded(flow.ReasonNotEnforced, in)},
			{"of a pod to the world", k.fromA(), packet{src: ip.a, dst: ip.world, proto: tcp, sport: 1, dport: 80, flags: syn}, pass, forwarded(flow.ReasonNotEnforced, out)},
		} {
			empty(k, k.Conntrack)
			k.host(own, always)
			k.drain()
			got, _, _ := k.run(c.at, c.p.bytes())
			var told []seen
			for _, e := range k.drain() {
				told = append(told, seen{e.Verdict, e.Reason, e.Direction})
				if c.verdict == dropped && c.at.prog != k.objects.FromPod && c.at.prog != k.objects.ToPod && e.Policy != hostPolicy {
					t.Errorf("%s: dropped by policy %d", c.name, e.Policy)
				}
			}
			if got != c.verdict || len(told) != len(c.events) || len(told) == 1 && told[0] != c.events[0] {
				t.Errorf("%s: verdict %d, %v, want %d, %v", c.name, int32(got), told, int32(c.verdict), c.events)
			}
			if l3, ok := k.l3(c.at); ok {
				empty(k, k.Conntrack)
				if got, _, _ := k.run(l3, c.p.bytes()); got != c.verdict {
					t.Errorf("%s, without Ethernet: verdict %d, want %d", c.name, int32(got), int32(c.verdict))
				}
				told = told[:0]
				for _, e := range k.drain() {
					told = append(told, seen{e.Verdict, e.Reason, e.Direction})
				}
				if len(told) != len(c.events) || len(told) == 1 && told[0] != c.events[0] {
					t.Errorf("%s, without Ethernet: %v, want %v", c.name, told, c.events)
				}
			}
			// Without a policy nothing of it counts.
			empty(k, k.Conntrack)
			k.must(k.Host.Update(0, Host{}))
			if got, _, _ := k.run(c.at, c.p.bytes()); got != pass {
				t.Errorf("%s, without a policy: verdict %d", c.name, int32(got))
			}
		}
	})
}

// TestHostFlows: replies pass by what they answer, and policy that moves counts
// for running flows.
func TestHostFlows(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		open := rules{port(in, idPeer, tcp, 80): allow(7), port(in, idPeer, udp, 80): allow(7), port(out, idPeer, udp, 80): allow(8), port(out, idPeer, tcp, 80): allow(8)}
		for _, proto := range []uint8{tcp, udp} {
			for _, c := range []struct {
				name          string
				src, dst      netip.Addr
				forward, back at
				d             policy.Direction
			}{
				{"in", ip.peer, ip.node, k.arrives(), k.leaves(), in},
				{"out", ip.node, ip.peer, k.leaves(), k.arrives(), out},
			} {
				empty(k, k.Conntrack)
				k.host(open, nil)
				p := packet{src: c.src, dst: c.dst, proto: proto, sport: 1000, dport: 80, flags: syn}
				denied := flow.ReasonPolicyDenied
				k.want(c.back, p.reply(syn).with(syn), dropped, droppedFor(denied, 1-c.d))
				k.want(c.forward, p, pass, forwarded(flow.ReasonPolicyAllowed, c.d))
				k.want(c.back, p.reply(syn|ack), pass, silent)
				k.want(c.forward, p.with(ack), pass, silent)
				k.want(c.back, quote(ip, c.dst, p), pass, silent)
				// A connection that comes from the other end is another flow.
				if proto == tcp {
					k.want(c.back, p.reply(syn), dropped, droppedFor(denied, 1-c.d))
				}
				k.host(closed, nil)
				k.want(c.forward, p.with(ack), dropped, droppedFor(denied, c.d))
				k.host(open, nil)
				k.want(c.forward, p.with(ack), pass, forwarded(flow.ReasonPolicyAllowed, c.d))
				k.host(closed, nil)
				if proto == udp { // answers go on by themselves
					k.want(c.back, p.reply(0), dropped, droppedFor(denied, c.d))
				}
			}
		}
		// Only one direction is enforced: what goes the other way has answers.
		k.host(closed, nil, in)
		p := packet{src: ip.node, dst: ip.world, proto: udp, sport: 2000, dport: 123}
		k.want(k.leaves(), p, pass, forwarded(flow.ReasonNotEnforced, out))
		k.want(k.arrives(), p.reply(0), pass, silent)
		q := packet{src: ip.node, dst: ip.world, proto: ip.icmp, icmp: ip.echo, sport: 9}
		k.want(k.leaves(), q, pass, forwarded(flow.ReasonNotEnforced, out))
		k.want(k.arrives(), q.reply(0), pass, silent)
	})
}

// TestHostForeign: what the node sends on with an address of its own is none of
// its flows, and its answers pass.
func TestHostForeign(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		k.host(closed, nil)
		for _, p := range []packet{
			{src: ip.node, dst: ip.world, proto: tcp, sport: 5000, dport: 443, flags: syn},
			{src: ip.node, dst: ip.world, proto: udp, sport: 5000, dport: 53},
			{src: ip.node, dst: ip.world, proto: ip.icmp, icmp: ip.echo, sport: 9},
		} {
			k.want(k.sentOn(), p, pass, silent)
			k.wantEntry(p, CTForeign)
			k.want(k.arrives(), p.reply(syn|ack), pass, silent)
			k.want(k.sentOn(), p.with(ack), pass, silent)
			k.want(k.arrives(), quote(ip, ip.world, p), pass, silent)
			k.host(closed, nil) // policy moves, and it is not about these
			k.want(k.arrives(), p.reply(ack), pass, silent)
			other := p
			other.sport++
			if p.proto != tcp { // TCP without a socket is sent on
				k.want(k.arrives(), other.reply(0), dropped, droppedFor(flow.ReasonPolicyDenied, in))
			}
			// A socket of the node takes the port over.
			k.want(k.leaves(), p.with(syn), dropped, droppedFor(flow.ReasonPolicyDenied, out))
		}
		// What it sends on in parts has ports in the first.
		parts := packet{src: ip.node, dst: ip.world, proto: udp, sport: 6000, dport: 53, fragment: true, fragMore: true, fragID: 7, payload: pad(16)}
		k.want(k.sentOn(), parts, pass, silent)
		k.want(k.arrives(), packet{src: ip.world, dst: ip.node, proto: udp, sport: 53, dport: 6000}, pass, silent)
		// A node port: the first packet comes from outside.
		k.host(closed, rules{port(in, 0, tcp, 30080): {Action: policy.Allow}})
		p := packet{src: ip.world, dst: ip.node, proto: tcp, sport: 4000, dport: 30080, flags: syn}
		k.want(k.arrives(), p, pass, forwarded(flow.ReasonFailSafe, in))
		k.want(k.sentOn(), p.reply(syn|ack), pass, silent)
		k.want(k.arrives(), p.with(ack), pass, silent)
		// What a pod's redirected flow is was decided at its veth.
		q := packet{src: ip.a, dst: ip.node, proto: tcp, sport: 4000, dport: 80, flags: syn}
		key, swapped := q.tuple().Canonical()
		ct := Conntrack{Flags: CTRedirected | CTJudgedEgress, LastSeen: ^uint64(0) >> 1}
		if swapped {
			ct.Flags |= CTSwapped
		}
		k.must(k.Conntrack.Update(key, ct))
		k.want(k.arrives(), q.with(ack), pass, silent)
	})
}

// TestHostMidstream: of connections that are older than the policy, those that
// the node made, those it accepted, and those it has no socket of are told apart.
func TestHostMidstream(t *testing.T) {
	k := newKernel(t)
	ip := ipv4
	node, world := ip.node, ip.world
	k.ns.sh(t, "ip address add "+node.String()+"/32 dev lo\nip address add "+world.String()+"/32 dev lo\nip link set lo up")
	var accepted, made *net.TCPConn
	k.ns.do(func() {
		connect := func(from, to netip.Addr) *net.TCPConn {
			l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp4", netip.AddrPortFrom(to, 0).String())
			k.must(err)
			t.Cleanup(func() { l.Close() })
			d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
			c, err := d.Dial("tcp4", l.Addr().String())
			k.must(err)
			t.Cleanup(func() { c.Close() })
			return c.(*net.TCPConn)
		}
		accepted, made = connect(world, node), connect(node, world)
	})
	ports := func(c *net.TCPConn) (local, remote uint16) {
		return c.LocalAddr().(*net.TCPAddr).AddrPort().Port(), c.RemoteAddr().(*net.TCPAddr).AddrPort().Port()
	}
	inFar, inNear := ports(accepted)
	outNear, outFar := ports(made)
	arriving := func(far, near uint16) packet {
		return packet{src: world, dst: node, proto: tcp, sport: far, dport: near, flags: ack}
	}
	denied := flow.ReasonPolicyDenied
	for _, c := range []struct {
		name    string
		own     rules
		dirs    []policy.Direction
		at      at
		p       packet
		verdict uint32
		events  []seen
	}{
		{"accepted, closed", closed, nil, k.arrives(), arriving(inFar, inNear), dropped, droppedFor(denied, in)},
		{"accepted, the node's side", closed, nil, k.leaves(), arriving(inFar, inNear).reply(ack), dropped, droppedFor(denied, in)},
		{"accepted, ingress only", closed, []policy.Direction{in}, k.arrives(), arriving(inFar, inNear), dropped, droppedFor(denied, in)},
		{"accepted, egress only", closed, []policy.Direction{out}, k.arrives(), arriving(inFar, inNear), pass, forwarded(flow.ReasonNotEnforced, in)},
		{"accepted, the node's side, egress only", closed, []policy.Direction{out}, k.leaves(), arriving(inFar, inNear).reply(ack), pass, forwarded(flow.ReasonNotEnforced, in)},
		{"accepted, allowed", rules{port(in, 0, tcp, inNear): allow(7)}, nil, k.arrives(), arriving(inFar, inNear), pass, forwarded(flow.ReasonPolicyAllowed, in)},
		{"made, closed", closed, nil, k.arrives(), arriving(outFar, outNear), dropped, droppedFor(denied, out)},
		{"made, ingress only", closed, []policy.Direction{in}, k.arrives(), arriving(outFar, outNear), pass, forwarded(flow.ReasonNotEnforced, out)},
		{"made, the node's side, ingress only", closed, []policy.Direction{in}, k.leaves(), arriving(outFar, outNear).reply(ack), pass, forwarded(flow.ReasonNotEnforced, out)},
		{"made, allowed", rules{port(out, 0, tcp, outFar): allow(7)}, nil, k.arrives(), arriving(outFar, outNear), pass, forwarded(flow.ReasonPolicyAllowed, out)},
		{"accepted, whoever listens", rules{port(in, 0, tcp, outNear): allow(7)}, nil, k.arrives(), arriving(outFar, outNear), pass, forwarded(flow.ReasonPolicyAllowed, in)},
		{"accepted, whoever listens, the node's side", rules{port(in, 0, tcp, outNear): allow(7)}, nil, k.leaves(), arriving(outFar, outNear).reply(ack), pass, forwarded(flow.ReasonPolicyAllowed, in)},
		{"of nobody here", closed, nil, k.arrives(), arriving(inFar, 1), pass, silent},
		{"to a listener, of no connection", closed, nil, k.arrives(), arriving(1, inNear), dropped, droppedFor(denied, in)},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := *k
			k.t = t
			k.reset()
			k.host(c.own, nil, c.dirs...)
			k.want(c.at, c.p, c.verdict, c.events)
			if c.verdict == pass && c.events != nil {
				// One entry for both ways.
				k.want(k.arrives(), c.p.towards(node), pass, silent)
				k.want(k.leaves(), c.p.towards(world), pass, silent)
			}
		})
	}
}

// towards is the packet or its answer, whichever goes there.
func (p packet) towards(dst netip.Addr) packet {
	if p.dst == dst {
		return p
	}
	return p.reply(ack)
}

// FuzzHostPacket: whatever comes to an address of a node that is closed, nothing
// passes but what finds neighbors and what is sent on.
func FuzzHostPacket(f *testing.F) {
	k := newKernel(f)
	for _, ip := range []addresses{ipv4, ipv6} {
		for _, p := range []packet{
			{src: ip.peer, dst: ip.node, proto: tcp, sport: 1, dport: 2, flags: syn}, {src: ip.peer, dst: ip.node, proto: udp, sport: 1, dport: 2},
			{src: ip.peer, dst: ip.node, proto: ip.icmp, icmp: ip.echo}, quote(ip, ip.peer, packet{src: ip.node, dst: ip.peer, proto: udp, sport: 1, dport: 2}),
			{src: ip.peer, dst: ip.node, proto: udp, fragment: true, fragMore: true, fragID: 1, payload: pad(16)},
		} {
			f.Add(p.bytes())
		}
	}
	k.host(closed, nil)
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) < 14 || len(data) > 2000 {
			return
		}
		k := *k
		k.t = t
		empty(&k, k.Conntrack)
		k.drain()
		var verdict uint32
		var err error
		in := skb{IngressIfindex: uint32(k.proxyIf), Ifindex: uint32(k.proxyIf)}
		k.ns.do(func() { verdict, err = k.objects.ToHost.Run(&ebpf.RunOptions{Data: data, Context: in}) })
		if errors.Is(err, unix.EINVAL) {
			return // the kernel makes no packet of it
		}
		k.must(err)
		events := k.drain()
		if verdict == dropped && (len(events) != 1 || events[0].Verdict != flow.Dropped || events[0].Policy != hostPolicy) {
			t.Errorf("dropped and told as %+v", events)
		}
		if verdict == pass && len(events) != 0 {
			t.Errorf("a node that is closed lets in %+v", events)
		}
	})
}

// TestAttachHost: the programs stand on an interface until they are taken off, a
// successor's take their place, and uninstalling leaves none.
func TestAttachHost(t *testing.T) {
	for _, force := range []bool{false, true} {
		pins, ns := mountPins(t), newNamespace(t)
		d, err := Load(Options{Pins: pins, Sizes: small, ForceClsact: force})
		if err != nil {
			t.Fatal(err)
		}
		one := ns.veth(t, "one", newNamespace(t), "peer")
		check := func(d *Datapath, want map[int]bool) {
			t.Helper()
			var got map[int]bool
			ns.do(func() { got, err = d.AttachedHost() })
			if err != nil || len(got) != len(want) || got[one] != want[one] {
				t.Fatalf("attached: %v (%v), want %v", got, err, want)
			}
		}
		in := func(f func() error) {
			t.Helper()
			if ns.do(func() { err = f() }); err != nil {
				t.Fatal(err)
			}
		}
		check(d, nil)
		in(func() error { return d.AttachHost(one, true) })
		in(func() error { return d.AttachHost(one, false) })
		check(d, map[int]bool{one: true})
		for _, a := range bothSides() {
			if tcx, filters := ns.programs(t, one, a); len(tcx)+len(filters) != 1 {
				t.Errorf("those for Ethernet and those without: %v %v", tcx, filters)
			}
		}
		var pods []int
		if ns.do(func() { pods, err = d.Attached() }); err != nil || len(pods) != 0 {
			t.Errorf("as a pod's: %v %v", pods, err)
		}
		next, err := Load(Options{Pins: pins, Sizes: small, ForceClsact: force})
		if err != nil {
			t.Fatal(err)
		}
		in(next.Activate)
		check(next, map[int]bool{one: true})
		in(func() error { return next.DetachHost(one) })
		in(func() error { return next.DetachHost(one) })
		check(next, nil)
		in(func() error { return next.AttachHost(one, true) })
		in(func() error { return Remove(pins) })
		for _, a := range bothSides() {
			tcx, filters := ns.programs(t, one, a)
			if len(tcx)+len(filters) > 0 {
				t.Errorf("left: %v %v", tcx, filters)
			}
		}
		for _, d := range []*Datapath{d, next} {
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestHostToPodRevoked: what the node sends its pods is judged again once its own
// policy moves.
func TestHostToPodRevoked(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		toPod := at{prog: k.objects.ToPod, ifindex: k.podA}
		p := packet{src: ip.node, dst: ip.a, proto: tcp, sport: 1000, dport: 80, flags: syn}
		k.want(toPod, p, pass, forwarded(flow.ReasonHost, in))
		k.want(k.fromA(), p.reply(syn|ack), pass, silent)
		k.want(toPod, p.with(ack), pass, silent)
		k.host(closed, nil)
		k.want(k.fromA(), p.reply(ack), pass, silent)
		k.want(toPod, p.with(ack), dropped, droppedFor(flow.ReasonPolicyDenied, out))
		k.want(toPod, p.with(ack), dropped, droppedFor(flow.ReasonPolicyDenied, out))
		// Nor does the pod's side make it pass again.
		k.want(k.fromA(), p.reply(ack), dropped, droppedFor(flow.ReasonPolicyDenied, in))
		k.want(toPod, p.with(ack), dropped, droppedFor(flow.ReasonPolicyDenied, out))
		empty(k, k.Conntrack)
		q := packet{src: ip.a, dst: ip.node, proto: tcp, sport: 1000, dport: 80, flags: syn}
		k.must(k.Host.Update(0, Host{}))
		k.BumpRevision()
		k.want(k.fromA(), q, pass, forwarded(flow.ReasonNotEnforced, out))
		k.want(toPod, q.reply(syn|ack), pass, silent)
		k.host(closed, nil)
		k.want(toPod, q.reply(ack), pass, silent)
		k.want(k.fromA(), q.with(ack), dropped, droppedFor(flow.ReasonPolicyDenied, in))
	})
}
