package dns

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// offered is a connection whose Server may let go of it.
type offered struct {
	*streamRig
	asked atomic.Int32
	open  atomic.Bool // somebody takes it
	taken chan Idle
}

func (g *rig) offered(open bool) *offered {
	o := &offered{taken: make(chan Idle, 1)}
	o.open.Store(open)
	o.streamRig = g.connectWith(func(c *Conn) {
		c.Offer = func() func(Idle) {
			o.asked.Add(1)
			if !o.open.Load() {
				return nil
			}
			return func(i Idle) { o.taken <- i }
		}
	})
	return o
}

// exchange asks and answers on the connection.
func (s *streamRig) exchange(name string) {
	s.t.Helper()
	q := query(name, dns.TypeA)
	s.write(s.client, framed(s.t, q))
	if got := s.bytes(s.server); !bytes.Equal(got, pack(s.t, q)) {
		s.t.Fatalf("the server got %x", got)
	}
	a := replyTo(s.t, q, name+". 60 A 192.0.2.1")
	s.write(s.server, framed(s.t, a))
	if got := s.bytes(s.client); !bytes.Equal(got, pack(s.t, a)) {
		s.t.Fatalf("the client got %x", got)
	}
}

// offers waits until it was offered so often.
func (o *offered) offers(n int32) {
	o.t.Helper()
	for end := time.Now().Add(5 * time.Second); o.asked.Load() != n; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			o.t.Fatalf("it was offered %d times, not %d", o.asked.Load(), n)
		}
	}
}

func (o *offered) handed() Idle {
	o.t.Helper()
	select {
	case i := <-o.taken:
		return i
	case <-time.After(5 * time.Second):
		o.t.Fatal("nobody gets the connection")
		return Idle{}
	}
}

// adopted is the connection at another Server.
func (o *offered) adopted(i Idle) *streamRig {
	o.t.Helper()
	g := newStreams(o.t)
	s := &streamRig{rig: g, client: o.client, server: o.server, over: make(chan struct{})}
	s.pair = g.server.Adopt(Conn{
		Pod: pod4, Rules: func() Rules { return *g.rules.Load() }, Observe: g.observe, Done: func() { close(s.over) },
	}, i)
	return s
}

// TestYield: a connection goes over with what its client has begun to say, once
// no question waits on it, and the client asks on.
func TestYield(t *testing.T) {
	g := newStreams(t)
	o := g.offered(true)
	o.exchange("a.x")
	if o.asked.Load() != 0 {
		t.Error("offered before it is to be")
	}
	first, half := query("b.x", dns.TypeA), framed(t, query("c.x", dns.TypeA))
	o.write(o.client, framed(t, first))
	o.bytes(o.server)
	g.server.Yield()
	time.Sleep(20 * time.Millisecond)
	if o.asked.Load() != 0 {
		t.Error("offered while a question waits")
	}
	o.write(o.client, half[:7])
	time.Sleep(20 * time.Millisecond)
	o.write(o.server, framed(t, replyTo(t, first)))
	if m := o.read(o.client); m.Id != first.Id {
		t.Errorf("%v", m)
	}
	i := o.handed()
	if !bytes.Equal(i.Input, half[:7]) {
		t.Errorf("handed over with %x", i.Input)
	}
	o.pair.Abort() // it is not here any more
	select {
	case <-o.over:
		t.Error("a connection that was let go of is over")
	default:
	}
	s := o.adopted(i)
	s.write(s.client, half[7:])
	if got := s.bytes(s.server); !bytes.Equal(got, half[2:]) {
		t.Errorf("the server got %x", got)
	}
	s.exchange("d.x")
	s.rules.Store(&Rules{Egress: allow("*.y")})
	s.write(s.client, framed(t, query("e.x", dns.TypeA)))
	if m := s.read(s.client); m.Rcode != dns.RcodeRefused {
		t.Errorf("by the rules of the other one:\n%v", m)
	}
	s.must(s.client.CloseWrite())
	s.end(s.server, false)
	s.must(s.server.CloseWrite())
	s.end(s.client, false)
	s.ended()
}

// TestYieldDeclined: whom nobody takes is served on, and offered again behind the
// next question, and when it is said so.
func TestYieldDeclined(t *testing.T) {
	g := newStreams(t)
	g.server.Drain() // is taken back
	o := g.offered(false)
	g.server.Yield()
	for n := range int32(3) {
		o.offers(n + 1)
		o.exchange("a.x")
	}
	o.offers(4)
	time.Sleep(20 * time.Millisecond)
	if n := o.asked.Load(); n != 4 {
		t.Errorf("it is offered %d times: again and again", n)
	}
	g.server.Yield()
	o.offers(5)
	// What the server has begun to say does not go over.
	o.open.Store(true)
	o.write(o.server, []byte{0})
	time.Sleep(20 * time.Millisecond)
	g.server.Yield()
	time.Sleep(20 * time.Millisecond)
	if n := o.asked.Load(); n != 5 {
		t.Errorf("it is offered in the middle of what the server says (%d)", n)
	}
	o.pair.Abort()
	o.end(o.client, true)
	o.ended()
}

// TestYieldWhileAsking: connections that are handed to and fro lose no question.
func TestYieldWhileAsking(t *testing.T) {
	const connections, rounds = 8, 50
	a, b := newStreams(t), newStreams(t)
	var handed atomic.Int64
	var conn func(g *rig) Conn
	conn = func(g *rig) Conn {
		other := a
		if g == a {
			other = b
		}
		return Conn{
			Pod: pod4, Rules: func() Rules { return *g.rules.Load() }, Observe: func(*Record) {},
			Offer: func() func(Idle) {
				if g == b {
					return nil // it stays there
				}
				return func(i Idle) {
					handed.Add(1)
					go other.server.Adopt(conn(other), i)
				}
			},
		}
	}
	done := make(chan error, connections)
	for range connections {
		client, accepted := tcpPair(t)
		server, dialed := tcpPair(t)
		for _, c := range []net.Conn{accepted, dialed} {
			a.must(c.SetDeadline(time.Time{}))
		}
		c := conn(a)
		c.Client, c.Dial = accepted, dialTo(dialed)
		a.server.Start(c)
		go answerAll(server)
		go func() { done <- askAll(client, rounds) }()
	}
	time.Sleep(5 * time.Millisecond)
	a.server.Yield()
	for range connections {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if handed.Load() != connections {
		t.Errorf("%d went over", handed.Load())
	}
}

// answerAll answers each question of a connection after a moment.
func answerAll(c *net.TCPConn) {
	conn := &dns.Conn{Conn: c}
	for {
		q, err := conn.ReadMsg()
		if err != nil {
			return
		}
		time.Sleep(time.Duration(q.Id%3) * time.Millisecond)
		if err := conn.WriteMsg(new(dns.Msg).SetReply(q)); err != nil {
			return
		}
	}
}

// askAll asks so many questions, of which each must be answered.
func askAll(c *net.TCPConn, n int) error {
	conn := &dns.Conn{Conn: c}
	for range n {
		q := query("a.x", dns.TypeA)
		if err := conn.WriteMsg(q); err != nil {
			return err
		}
		m, err := conn.ReadMsg()
		if err != nil {
			return err
		}
		if m.Id != q.Id {
			return fmt.Errorf("answer %d to %d", m.Id, q.Id)
		}
	}
	return nil
}

// TestAdoptRefuses what is no connection, and too much input.
func TestAdoptRefuses(t *testing.T) {
	g := newStreams(t)
	accepted, client := tcpPair(t)
	dialed, _ := tcpPair(t)
	fds := func() (i Idle) {
		var err error
		if i.Client, err = descriptorOf(accepted); err == nil {
			i.Server, err = descriptorOf(dialed)
		}
		g.must(err)
		return i
	}
	long := fds()
	accepted.Close()
	long.Input = make([]byte, maxInput+1)
	for name, i := range map[string]Idle{"no descriptors": {Client: -1, Server: -1}, "too much input": long} {
		over := make(chan struct{})
		g.server.Adopt(Conn{Pod: pod4, Done: func() { close(over) }}, i)
		select {
		case <-over:
		case <-time.After(5 * time.Second):
			t.Errorf("%s: goes on", name)
		}
	}
	(&streamRig{rig: g}).end(client, true)
}

// TestBusy: a datagram that nobody has read yet counts as a question that waits.
func TestBusy(t *testing.T) {
	g := newStreams(t)
	busy := func() bool { return g.server.Busy(t.Context()) }
	if busy() {
		t.Error("busy with nothing")
	}
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	g.must(err)
	defer c.Close()
	f, err := c.File()
	g.must(err)
	defer f.Close()
	g.must(unix.SetNonblock(int(f.Fd()), true))
	// It is not watched: the loop never reads it.
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	g.must(err)
	g.loop(func(r *relay) { r.listeners = append(r.listeners, &lane{sock: sock{fd: fd}}) })
	if busy() {
		t.Error("busy, and nothing has come")
	}
	_, err = c.WriteTo([]byte("x"), c.LocalAddr())
	g.must(err)
	if !busy() {
		t.Error("not busy, and a datagram waits to be read")
	}
	var b [1]byte
	_, _, err = c.ReadFrom(b[:])
	g.must(err)
	if busy() {
		t.Error("busy, and all is read")
	}
	// A loop that does not come round may have something.
	stuck := make(chan struct{})
	defer close(stuck)
	g.relay.post(func() { <-stuck })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if !g.server.Busy(ctx) {
		t.Error("not busy, and stuck")
	}
}
