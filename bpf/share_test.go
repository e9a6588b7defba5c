package bpf

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/weirnet/weir/flow"
)

// part is what one veth may have of the tests' conns.
const part = 16

// rowsOf counts a veth's entries, as a proxy's walk does.
func (k *kernel) rowsOf(ifindex int) (n uint64) {
	k.t.Helper()
	k.must(k.Conns.Scan(func(_ Tuple, c Conn) {
		if c.Ifindex == uint32(ifindex) {
			n++
		}
	}))
	return n
}

func (k *kernel) shareOf(ifindex int) Share {
	k.t.Helper()
	s, ok, err := k.Shares.Lookup(uint32(ifindex))
	k.must(err)
	if !ok {
		k.t.Fatalf("interface %d has no share", ifindex)
	}
	return s
}

// grant does what a proxy does with a walk that began at that share and found so
// many entries.
func (k *kernel) grant(ifindex int, before Share, rows uint64) {
	k.t.Helper()
	k.must(k.Grants.Update(uint32(ifindex), Grant{Born: before.Born, Until: before.Made + part - rows}))
}

// One pod's flows leave room for the others'.
func TestShare(t *testing.T) {
	k := newKernel(t)
	bothFamilies(t, k, func(t *testing.T, k *kernel, ip addresses) {
		k.policy(policyA, viaProxy)
		k.policy(policyB, rules{port(out, idPeer, tcp, 80): l7(1, 71), port(in, idPeer, tcp, 8080): l7(2, 72)})
		full := droppedFor(flow.ReasonConnsShare, out)
		p := ip.tcp()
		next := func() packet { p.sport++; return p }
		first := p
		for range part {
			k.want(k.fromA(), next(), redirect, redirected(out))
		}
		k.want(k.fromA(), next(), dropped, full)
		if k.entry(p) != nil || k.conn(p) != nil {
			t.Error("a flow that was refused left something")
		}
		// What is there goes on, and what takes its place needs no room.
		first.sport++
		k.want(k.fromA(), first, redirect, silent)
		k.want(k.fromA(), first.with(rst), redirect, silent)
		k.want(k.fromA(), first, redirect, redirected(out))
		k.want(k.fromA(), first.with(ack), redirect, silent)
		// Another pod has its own, whichever end it is and whoever else sends.
		b := packet{src: ip.b, dst: ip.peer, proto: tcp, sport: 1000, dport: 80, flags: syn}
		for range part / 2 {
			b.sport++
			k.want(k.fromB(), b, redirect, redirected(out))
		}
		in2 := packet{src: ip.peer, dst: ip.b, proto: tcp, sport: 1000, dport: 8080, flags: syn}
		for range part / 2 {
			in2.sport++
			k.want(k.toB(), in2, redirect, redirected(in))
		}
		in2.sport++
		k.want(k.toB(), in2, dropped, droppedFor(flow.ReasonConnsShare, in))

		// Entries that go are seen by a walk only.
		for i := range uint16(5) {
			q := first
			q.sport += i
			k.must(k.Conns.Delete(q.tuple()))
		}
		k.want(k.fromA(), next(), dropped, full)
		before := k.shareOf(k.podA)
		k.grant(k.podA, Share{Born: before.Born + 1, Made: before.Made}, 0) // of another life
		k.want(k.fromA(), next(), dropped, full)
		k.grant(k.podA, before, k.rowsOf(k.podA))
		k.want(k.fromA(), next(), redirect, redirected(out))
		// A walk that another proxy began earlier ends later.
		k.grant(k.podA, before, part)
		for range 4 {
			k.want(k.fromA(), next(), redirect, redirected(out))
		}
		k.want(k.fromA(), next(), dropped, full)
		// Nonsense is worth no more than a whole part.
		k.must(k.Grants.Update(uint32(k.podA), Grant{Born: before.Born, Until: 1 << 40}))
		empty(k, k.Conns)
		made := k.shareOf(k.podA).Made
		k.want(k.fromA(), next(), redirect, redirected(out))
		if s := k.shareOf(k.podA); s.Until != made+part {
			t.Errorf("granted %d more", s.Until-made)
		}
	})
}

// Whatever the proxies' walks miss or come late with, no veth ever has more than
// its part, and after one walk it can have all of that.
func TestShareDoesNotDrift(t *testing.T) {
	k := newKernel(t)
	k.policy(policyA, viaProxy)
	random := rand.New(rand.NewPCG(1, 2))
	type walk struct {
		before Share
		rows   uint64
	}
	var (
		late  []walk
		live  []Tuple
		ports = map[Tuple]bool{}
		count = map[string]int{}
	)
	p := ipv4.tcp()
	for range 6000 {
		switch random.IntN(8) {
		case 0, 1, 2, 3:
			p.sport = 1000 + uint16(random.IntN(200))
			verdict, _, _ := k.run(k.fromA(), p.bytes())
			if verdict == redirect && !ports[p.tuple()] {
				ports[p.tuple()] = true
				live = append(live, p.tuple())
				count["made"]++
			} else if verdict == dropped {
				count["refused"]++
			}
		case 4, 5:
			if len(live) > 0 {
				i := random.IntN(len(live))
				k.must(k.Conns.Delete(live[i]))
				delete(ports, live[i])
				live = append(live[:i], live[i+1:]...)
			}
		case 6:
			if _, ok, _ := k.Shares.Lookup(uint32(k.podA)); ok {
				late = append(late, walk{k.shareOf(k.podA), k.rowsOf(k.podA)})
			}
		case 7:
			if len(late) > 0 {
				i := random.IntN(len(late))
				k.grant(k.podA, late[i].before, late[i].rows)
				late = append(late[:i], late[i+1:]...)
			}
		}
		if len(live) > part {
			t.Fatalf("%d entries", len(live))
		}
	}
	k.drain()
	if count["made"] < 500 || count["refused"] < 100 {
		t.Errorf("it hardly made any flows: %v", count)
	}
	rows := k.rowsOf(k.podA)
	if rows != uint64(len(live)) {
		t.Fatalf("%d entries, want %d", rows, len(live))
	}
	k.grant(k.podA, k.shareOf(k.podA), rows)
	p.sport = 5000
	for ; rows < part; rows++ {
		p.sport++
		k.want(k.fromA(), p, redirect, redirected(out))
	}
	p.sport++
	k.want(k.fromA(), p, dropped, droppedFor(flow.ReasonConnsShare, out))
}

// A successor of the agent goes on counting where its predecessor's programs do,
// and proxies of two generations count as one.
func TestShareOutlives(t *testing.T) {
	k := newKernel(t)
	k.policy(policyA, viaProxy)
	px, _, err := k.Proxies.Lookup(1)
	k.must(err)
	k.must(k.Proxies.Update(2, px))
	p := ipv4.tcp()
	flows := func(n int) {
		t.Helper()
		for range n {
			p.sport++
			k.want(k.fromA(), p, redirect, redirected(out))
		}
	}
	flows(part / 4)
	k.SetGeneration(2)
	flows(part / 4)
	next, err := Load(k.opts)
	k.must(err)
	defer letGo(next)
	first := k.objects.FromPod
	k.objects.FromPod = next.objects.FromPod
	flows(part / 4)
	k.objects.FromPod = first
	flows(part / 4)
	p.sport++
	k.want(k.fromA(), p, dropped, droppedFor(flow.ReasonConnsShare, out))
	// Without its share a veth begins anew, and grants of before don't count.
	before := k.shareOf(k.podA)
	k.must(k.Grants.Update(uint32(k.podA), Grant{Born: before.Born, Until: 1 << 40}))
	k.must(k.Shares.Delete(uint32(k.podA)))
	flows(part)
	p.sport++
	k.want(k.fromA(), p, dropped, droppedFor(flow.ReasonConnsShare, out))
}

// fill makes n entries in conns that are none of these pods'.
func (k *kernel) fill(n int) {
	k.t.Helper()
	for i := range n {
		t := TupleOf(netip.AddrPortFrom(ipv4.world, uint16(i)), netip.AddrPortFrom(ipv4.node, 1), tcp)
		k.must(k.Conns.Update(t, Conn{Ifindex: 1 << 20}))
	}
}
