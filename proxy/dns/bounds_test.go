package dns

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/weirnet/weir/fqdn"
)

// loose is a pod's socket that asks whom it likes.
func (g *rig) loose(pod netip.Addr) *net.UDPConn {
	g.t.Helper()
	var c *net.UDPConn
	var err error
	g.pods.in(func() { c, err = net.ListenUDP("udp4", &net.UDPAddr{IP: pod.AsSlice()}) })
	g.must(err)
	g.t.Cleanup(func() { c.Close() })
	return c
}

// askMany asks n servers that are none, or ports of one that is silent; each for
// another name.
func (g *rig) askMany(c *net.UDPConn, n int, server func(i int) netip.AddrPort) {
	g.t.Helper()
	for i := range n {
		b := pack(g.t, query(fmt.Sprintf("a%d.x", i), dns.TypeA))
		_, err := c.WriteToUDPAddrPort(b, server(i))
		g.must(err)
		if i%50 == 49 {
			time.Sleep(time.Millisecond)
		}
	}
}

func nobody(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)}), 53)
}

// TestRepliersAreBounded: however many servers a pod asks, there are so many
// sockets to answer by, and others are answered as well.
func TestRepliersAreBounded(t *testing.T) {
	const most = 16
	g := newRig(t, func(g *rig) { g.relay.maxRepliers = most })
	g.rules.Store(&Rules{Egress: allow("b.x")}) // denied: answered in the servers' names
	c := g.loose(pod4)
	g.askMany(c, 10*most, nobody)
	for _, r := range g.records(10 * most) {
		if !r.Answered {
			t.Fatalf("%+v", r)
		}
	}
	got := map[netip.AddrPort]bool{}
	g.must(c.SetReadDeadline(time.Now().Add(5 * time.Second)))
	for b := make([]byte, maxMessage); len(got) < 10*most; {
		_, from, err := c.ReadFromUDPAddrPort(b)
		if err != nil {
			t.Fatalf("%d answers: %v", len(got), err)
		}
		got[from] = true
	}
	g.loop(func(r *relay) {
		if len(r.repliers) != most || len(r.sessions) != 10*most {
			t.Errorf("%d sockets answer, of %d sessions", len(r.repliers), len(r.sessions))
		}
	})
	// A session whose socket made room answers by another one.
	g.askMany(c, 1, nobody)
	g.records(1)
	b := make([]byte, maxMessage)
	if _, from, err := c.ReadFromUDPAddrPort(b); err != nil || from != nobody(0) {
		t.Errorf("%v, %v", from, err)
	}
}

// TestUpstreamsAreBounded: a pod's sockets to servers are a part of all; those by
// which nothing is expected make room.
func TestUpstreamsAreBounded(t *testing.T) {
	const most, part = 32, 32 / podUpstreams
	g := newRig(t, func(g *rig) { g.relay.maxUpstreams = most })
	g.miekg(netip.AddrPortFrom(server4, 53), zone)
	silent := func(i int) netip.AddrPort { return netip.AddrPortFrom(server4, uint16(2000+i)) }
	for i := range part + 2 {
		g.listen(silent(i))
	}
	// One that was answered gives way to others.
	c := g.loose(pod4)
	g.askMany(c, 1, func(int) netip.AddrPort { return netip.AddrPortFrom(server4, 53) })
	if r := g.records(1)[0]; !r.Answered || r.Failure != ReasonNone {
		t.Fatalf("%+v", r)
	}
	g.askMany(c, part+2, silent)
	for _, r := range g.records(2) {
		if r.Verdict != Failed || r.Reason != ReasonFlood || r.RCode != rcodeFailed || !r.Answered {
			t.Fatalf("%+v", r)
		}
	}
	g.loop(func(r *relay) {
		if r.opened != part || r.pendings.n != part || len(r.sessions) != part+3 {
			t.Errorf("%d sockets, %d questions, %d sessions", r.opened, r.pendings.n, len(r.sessions))
		}
	})
	// Another pod has room yet, and takes none of this one's.
	other := g.dial(otherPod4, netip.AddrPortFrom(server4, 53))
	if a := g.ask(other, query("b.x", dns.TypeA)); a.Rcode != dns.RcodeSuccess {
		t.Errorf("another pod:\n%v", a)
	}
	g.records(1)
	// All there may be: what is idle goes.
	g.loop(func(r *relay) { r.maxUpstreams = r.opened })
	g.askMany(g.loose(otherPod4), 1, func(int) netip.AddrPort { return silent(0) })
	time.Sleep(20 * time.Millisecond)
	g.loop(func(r *relay) {
		if r.opened != r.maxUpstreams || r.pendings.n != part+1 {
			t.Errorf("%d sockets of %d, %d questions", r.opened, r.maxUpstreams, r.pendings.n)
		}
	})
}

// TestSessionsWithoutRoomAreClosed: whatever Open gave is closed once.
func TestSessionsWithoutRoomAreClosed(t *testing.T) {
	g := newRig(t)
	g.listen(netip.AddrPortFrom(server4, 1000)) // of which the first session waits for an answer
	const over = 20
	g.askMany(g.loose(pod4), maxSessionsPod+over, func(i int) netip.AddrPort {
		return netip.AddrPortFrom(server4, uint16(1000+i))
	})
	g.waitDropped(ReasonFlood, over)
	g.loop(func(r *relay) {
		if len(r.sessions) != maxSessionsPod || g.opened-g.closed != maxSessionsPod {
			t.Errorf("%d sessions, %d were opened, %d closed", len(r.sessions), g.opened, g.closed)
		}
	})
}

// TestPointersAreBounded: a name may be made of as many pointers as it could have
// labels, not of all that fit into a message.
func TestPointersAreBounded(t *testing.T) {
	for n, want := range map[int]bool{1: true, maxPointers - 1: true, maxPointers: false, 8000: false} {
		m := pack(t, query("a.x", dns.TypeA))
		m[2] |= flagsResponse
		m = append(m, 0xc0, headerSize, 0, byte(dns.TypeTXT), 0, 1, 0, 0, 0, 60, byte(2*n>>8), byte(2*n))
		last := headerSize
		for range n {
			here := len(m)
			m = append(m, 0xc0|byte(last>>8), byte(last))
			last = here
		}
		m = append(m, 0xc0|byte(last>>8), byte(last), 0, typeA, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1)
		binary.BigEndian.PutUint16(m[6:], 2)
		var q question
		var a answer
		if !q.read(m) {
			t.Fatal("the question can't be read")
		}
		if ok := a.read(m, &q); ok != want || ok && len(a.records) != 1 {
			t.Errorf("%d pointers: %v, %d records", n, ok, len(a.records))
		}
	}
}

// TestWaitingIsShared: answers of one pod that take long to learn leave others'
// the time they take.
func TestWaitingIsShared(t *testing.T) {
	g := newRig(t)
	g.rules.Store(&Rules{Believed: true})
	let := make(chan struct{})
	g.learn(func(ctx context.Context, _ fqdn.Answer) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		select {
		case <-let:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	g.relay.post(func() { g.relay.limits.learn = 10 * time.Second })
	server := netip.AddrPortFrom(server4, 53)
	g.miekg(server, zone)
	const over = 20
	g.askMany(g.loose(pod4), maxWaitingPod+over, func(int) netip.AddrPort { return server })
	g.waitDropped(ReasonLearn, over)
	g.records(over) // passed on unlearned
	c := g.dial(otherPod4, server)
	g.send(c, pack(t, query("b.x", dns.TypeA)))
	if b := g.receive(c, 50*time.Millisecond); b != nil {
		t.Errorf("another pod's answer did not wait: %x", b)
	}
	close(let)
	if b := g.receive(c, 5*time.Second); b == nil || rcode(b) != rcodeSuccess {
		t.Errorf("another pod got %x", b)
	}
	g.records(maxWaitingPod + 1)
	g.loop(func(r *relay) {
		for _, p := range r.pods {
			if p.waiting != 0 || p.pending != 0 {
				t.Errorf("%d answers wait, %d questions", p.waiting, p.pending)
			}
		}
	})
	g.waitDropped(ReasonLearn, over)
}

// TestStreamsOfAPodAreBounded: it has so many connections and no more, until one
// has ended, and a part of the questions that may wait.
func TestStreamsOfAPodAreBounded(t *testing.T) {
	g := newStreams(t)
	q := query("a.x", dns.TypeA)
	ask := func(s *streamRig) {
		t.Helper()
		s.write(s.client, framed(t, q))
		s.read(s.server)
		s.write(s.server, framed(t, replyTo(t, q)))
		s.read(s.client)
	}
	first := g.connect()
	for range maxStreamsPod - 1 {
		accepted, _ := tcpPair(t)
		g.server.Start(Conn{
			Client: accepted, Pod: pod4,
			Dial:    func(ctx context.Context) (*net.TCPConn, error) { <-ctx.Done(); return nil, ctx.Err() },
			Rules:   func() Rules { return *g.rules.Load() },
			Observe: g.observe,
		})
	}
	ask(first)
	one := g.connect()
	<-one.over
	g.waitDropped(ReasonFlood, 1)
	first.pair.Abort()
	<-first.over
	next := g.connect()
	ask(next)
	g.records(2)
	// Its questions wait for each other where it has too many.
	next.pair.stream.pod.streamed.Store(maxStreamedPod)
	next.write(next.client, framed(t, q, q))
	for range 2 {
		next.read(next.server)
		next.silent(next.server)
		next.write(next.server, framed(t, replyTo(t, q)))
		next.read(next.client)
	}
	g.records(2)
	if n := next.pair.stream.pod.streamed.Load(); n != maxStreamedPod {
		t.Errorf("%d are counted", n-maxStreamedPod)
	}
}
