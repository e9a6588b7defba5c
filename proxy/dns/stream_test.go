package dns

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/fqdn"
)

// newStreams is a rig for connections: it needs no namespaces.
func newStreams(t testing.TB, prepare ...func(*rig)) *rig {
	t.Helper()
	g := &rig{t: t, dropped: map[Reason]int{}, changed: make(chan struct{})}
	g.rules.Store(&Rules{Egress: allow()})
	g.learn(func(context.Context, fqdn.Answer) error { return nil })
	var err error
	g.server, err = New(Options{Open: g.open, Learner: g, Drop: g.drop, Log: slog.New(slog.DiscardHandler)})
	g.must(err)
	g.relay = g.server.relay
	for _, f := range prepare {
		f(g)
	}
	ctx, cancel := context.WithCancel(context.Background())
	g.done = make(chan error, 1)
	go func() { g.done <- g.server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-g.done; err != nil {
			t.Error(err)
		}
	})
	return g
}

// streamRig is a connection through the proxy, of which the test has both ends.
type streamRig struct {
	*rig
	client, server *net.TCPConn
	pair           *Pair
	over           chan struct{}
}

func tcpPair(t testing.TB) (accepted, dialed *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	d, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	a, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); d.Close() })
	for _, c := range []net.Conn{a, d} {
		if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	return a.(*net.TCPConn), d.(*net.TCPConn)
}

func (g *rig) connect() *streamRig { g.t.Helper(); return g.connectWith(func(*Conn) {}) }

// connectWith begins with a Conn that was changed.
func (g *rig) connectWith(change func(*Conn)) *streamRig {
	g.t.Helper()
	accepted, client := tcpPair(g.t)
	server, dialed := tcpPair(g.t)
	g.must(accepted.SetDeadline(time.Time{}))
	g.must(dialed.SetDeadline(time.Time{}))
	s := &streamRig{rig: g, client: client, server: server, over: make(chan struct{})}
	c := Conn{
		Client: accepted, Pod: pod4, Dial: dialTo(dialed),
		Rules:   func() Rules { return *g.rules.Load() },
		Observe: g.observe,
		Done:    func() { close(s.over) },
	}
	change(&c)
	s.pair = g.server.Start(c)
	return s
}

func dialTo(c *net.TCPConn) func(context.Context) (*net.TCPConn, error) {
	return func(context.Context) (*net.TCPConn, error) { return c, nil }
}

// framed is messages as they are sent.
func framed(t testing.TB, messages ...*dns.Msg) (out []byte) {
	for _, m := range messages {
		b := pack(t, m)
		out = append(binary.BigEndian.AppendUint16(out, uint16(len(b))), b...)
	}
	return out
}

func (s *streamRig) write(c *net.TCPConn, b []byte) {
	s.t.Helper()
	_, err := c.Write(b)
	s.must(err)
}

// bytes reads the next message.
func (s *streamRig) bytes(c *net.TCPConn) []byte {
	s.t.Helper()
	var size [2]byte
	_, err := io.ReadFull(c, size[:])
	s.must(err)
	b := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err = io.ReadFull(c, b)
	s.must(err)
	return b
}

func (s *streamRig) read(c *net.TCPConn) *dns.Msg {
	s.t.Helper()
	m := new(dns.Msg)
	s.must(m.Unpack(s.bytes(c)))
	return m
}

// ended waits until both sides are closed.
func (s *streamRig) ended() {
	s.t.Helper()
	select {
	case <-s.over:
	case <-time.After(5 * time.Second):
		s.t.Fatal("the connection stays")
	}
}

// end reads to the end, which is a good one or a reset.
func (s *streamRig) end(c *net.TCPConn, reset bool) {
	s.t.Helper()
	n, err := io.Copy(io.Discard, c)
	if n != 0 || reset != errors.Is(err, unix.ECONNRESET) || !reset && err != nil {
		s.t.Errorf("%d bytes, then %v; want a reset: %v", n, err, reset)
	}
}

// silent tells that nothing comes.
func (s *streamRig) silent(c *net.TCPConn) {
	s.t.Helper()
	s.must(c.SetReadDeadline(time.Now().Add(50 * time.Millisecond)))
	var b [1]byte
	if n, err := c.Read(b[:]); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		s.t.Errorf("read %d bytes, %v", n, err)
	}
	s.must(c.SetReadDeadline(time.Now().Add(10 * time.Second)))
}

// TestStream: questions in one piece, answered out of order, a denied one in
// between.
func TestStream(t *testing.T) {
	g := newStreams(t)
	g.rules.Store(&Rules{Egress: allow("*.x"), Believed: true})
	var learned []string
	g.learn(func(_ context.Context, a fqdn.Answer) error { learned = append(learned, spell(a)); return nil })
	s := g.connect()
	a, b, no, d := query("A.x", dns.TypeA), query("b.x", dns.TypeA), query("no.y", dns.TypeA), query("d.x", dns.TypeAAAA)
	d.SetEdns0(4096, true)
	s.write(s.client, framed(t, a, b, no, d))
	if m := s.read(s.client); m.Id != no.Id || m.Rcode != dns.RcodeRefused {
		t.Errorf("denied:\n%v", m)
	}
	for _, want := range []*dns.Msg{a, b, d} {
		if got := s.bytes(s.server); !bytes.Equal(got, pack(t, want)) {
			t.Errorf("the server got %x", got)
		}
	}
	answers := []*dns.Msg{replyTo(t, d, "d.x. 60 AAAA 2001:db8::1"), replyTo(t, a, "a.x. 60 CNAME b.x.", "b.x. 60 A 192.0.2.1"), replyTo(t, b)}
	s.write(s.server, framed(t, answers...))
	for _, want := range answers {
		if got := s.bytes(s.client); !bytes.Equal(got, pack(t, want)) {
			t.Errorf("the client got %x", got)
		}
	}
	r := g.records(4)
	if got := strings.Join(learned, "; "); got != "10.1.0.7: d.x 2001:db8::1/60; 10.1.0.7: a.x b.x 192.0.2.1/60" {
		t.Errorf("learned %s", got)
	}
	if r[0].Verdict != Denied || r[1].Kind != dns.TypeAAAA || !r[1].Answered || r[2].Chain[0] != "b.x" || r[3].Verdict != Allowed || r[3].EgressRule != 1 {
		t.Errorf("%+v", r)
	}
	s.must(s.client.CloseWrite())
	s.end(s.server, false)
	s.must(s.server.CloseWrite())
	s.end(s.client, false)
	s.ended()
}

// TestStreamByteByByte: however messages are cut.
func TestStreamByteByByte(t *testing.T) {
	g := newStreams(t)
	g.rules.Store(&Rules{Egress: allow("*.x")})
	s := g.connect()
	s.must(s.client.SetNoDelay(true))
	q, no := query("a.x", dns.TypeA), query("a.y", dns.TypeA)
	for _, b := range framed(t, q, no, q) {
		s.write(s.client, []byte{b})
		time.Sleep(100 * time.Microsecond)
	}
	for range 2 {
		if got := s.bytes(s.server); !bytes.Equal(got, pack(t, q)) {
			t.Errorf("the server got %x", got)
		}
	}
	if m := s.read(s.client); m.Rcode != dns.RcodeRefused {
		t.Errorf("denied:\n%v", m)
	}
	a := replyTo(t, q, "a.x. 60 A 192.0.2.1")
	for _, b := range framed(t, a, a) {
		s.write(s.server, []byte{b})
		time.Sleep(100 * time.Microsecond)
	}
	for range 2 {
		if got := s.bytes(s.client); !bytes.Equal(got, pack(t, a)) {
			t.Errorf("the client got %x", got)
		}
	}
	g.records(3)
}

// TestStreamLargestMessages: of 65,535 bytes in both directions.
func TestStreamLargestMessages(t *testing.T) {
	g := newStreams(t)
	s := g.connect()
	q := pack(t, query("a.x", dns.TypeA))
	large := append(q, make([]byte, maxMessage-len(q))...)
	frame := append([]byte{0xff, 0xff}, large...)
	go s.client.Write(append(append([]byte(nil), frame...), frame...))
	for range 2 {
		if got := s.bytes(s.server); !bytes.Equal(got, large) {
			t.Fatalf("the server got %d bytes", len(got))
		}
	}
	answer := append([]byte(nil), large...)
	answer[2] |= flagsResponse
	go s.server.Write(append(append([]byte{0xff, 0xff}, answer...), append([]byte{0xff, 0xff}, answer...)...))
	for range 2 {
		if got := s.bytes(s.client); !bytes.Equal(got, answer) {
			t.Fatalf("the client got %d bytes", len(got))
		}
	}
}

// TestStreamForeignAnswers: only answers pass.
func TestStreamForeignAnswers(t *testing.T) {
	g := newStreams(t)
	s := g.connect()
	q := query("a.x", dns.TypeA)
	s.write(s.client, framed(t, q))
	s.read(s.server)
	right := replyTo(t, q, "a.x. 60 A 192.0.2.1")
	id, name, question := right.Copy(), right.Copy(), right.Copy()
	id.Id++
	name.Question[0].Name = "b.x."
	question.Response = false
	s.write(s.server, append(framed(t, id, name, question), 0, 0, 0, 1, 'x'))
	g.waitDropped(ReasonAnswerForeign, 5)
	s.write(s.server, framed(t, right, right))
	g.waitDropped(ReasonAnswerForeign, 6)
	if m := s.read(s.client); len(m.Answer) != 1 {
		t.Errorf("got\n%v", m)
	}
	s.silent(s.client)
	// One that can't be read is a failure of the server's.
	s.write(s.client, framed(t, q))
	s.read(s.server)
	b := pack(t, right)
	b = b[:len(b)-1]
	s.write(s.server, append([]byte{0, byte(len(b))}, b...))
	if m := s.read(s.client); m.Rcode != dns.RcodeServerFailure || m.Id != q.Id {
		t.Errorf("got\n%v", m)
	}
	// Nor do questions that can't be read.
	s.write(s.client, append([]byte{0, 0, 0, 3, 1, 2, 3}, framed(t, right, q)...))
	if got := s.bytes(s.server); !bytes.Equal(got, pack(t, q)) {
		t.Errorf("the server got %x", got)
	}
	if r := g.records(5); r[1].Failure != ReasonAnswerMalformed || r[2].Reason != ReasonMalformed || r[4].Reason != ReasonMalformed {
		t.Errorf("%+v", r)
	}
}

// TestStreamIsReleasedWhenLearned: the answer waits until it is.
func TestStreamIsReleasedWhenLearned(t *testing.T) {
	g := newStreams(t)
	g.rules.Store(&Rules{Believed: true})
	entered, let := make(chan bool), make(chan bool)
	g.learn(func(ctx context.Context, a fqdn.Answer) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		entered <- true
		<-let
		return nil
	})
	s := g.connect()
	q := query("a.x", dns.TypeA)
	s.write(s.client, framed(t, q))
	s.read(s.server)
	s.write(s.server, framed(t, replyTo(t, q, "a.x. 60 A 192.0.2.1")))
	<-entered
	s.silent(s.client)
	let <- true
	s.read(s.client)
	g.records(1)
}

// TestStreamTransfers: an answer of many messages.
func TestStreamTransfers(t *testing.T) {
	g := newStreams(t)
	g.rules.Store(&Rules{Egress: allow("x", "*.x"), Believed: true})
	g.learn(func(_ context.Context, a fqdn.Answer) error { t.Errorf("learned %s", spell(a)); return nil })
	s := g.connect()
	q := query("x", dns.TypeAXFR)
	s.write(s.client, framed(t, q))
	s.read(s.server)
	a := replyTo(t, q, "x. 60 A 192.0.2.1")
	bare := a.Copy()
	bare.Question = nil
	for range 3 {
		s.write(s.server, framed(t, a, bare))
		for range 2 {
			if m := s.read(s.client); len(m.Answer) != 1 {
				t.Errorf("got\n%v", m)
			}
		}
	}
	g.records(1)
}

// TestStreamPipelineIsBounded: a server that does not answer is not asked for
// ever, and who asks has to wait.
func TestStreamPipelineIsBounded(t *testing.T) {
	g := newStreams(t)
	s := g.connect()
	const n = 3 * maxPipelined
	go func() {
		for i := range n {
			q := query("a.x", dns.TypeA)
			q.Id = uint16(i)
			if _, err := s.client.Write(framed(t, q)); err != nil {
				return
			}
		}
	}()
	var asked []*dns.Msg
	for range maxPipelined {
		asked = append(asked, s.read(s.server))
	}
	s.silent(s.server)
	for i := range n {
		s.write(s.server, framed(t, replyTo(t, asked[0])))
		asked = asked[1:]
		if m := s.read(s.client); int(m.Id) != i {
			t.Fatalf("got %d, want %d", m.Id, i)
		}
		if i+maxPipelined < n {
			asked = append(asked, s.read(s.server))
		}
	}
	g.records(n)
}

// TestStreamsAreBounded: where all connections together wait for too much, each
// may still ask one thing at a time.
func TestStreamsAreBounded(t *testing.T) {
	g := newStreams(t)
	s := g.connect()
	q := query("a.x", dns.TypeA)
	g.relay.streamed.Store(maxStreamed)
	s.write(s.client, framed(t, q, q, q))
	for range 3 {
		s.read(s.server)
		s.silent(s.server)
		s.write(s.server, framed(t, replyTo(t, q)))
		s.read(s.client)
	}
	g.records(3)
	if n := g.relay.streamed.Load(); n != maxStreamed {
		t.Errorf("%d are counted", n-maxStreamed)
	}
}

// TestStreamSlowReader: a client that does not read is not read from for ever.
func TestStreamSlowReader(t *testing.T) {
	g := newStreams(t)
	s := g.connect()
	q := query("a.x", dns.TypeTXT)
	large := replyTo(t, q, "a.x. 1 TXT \""+strings.Repeat("a", 250)+"\"")
	for range 200 {
		large.Answer = append(large.Answer, large.Answer[0])
	}
	answer := framed(t, large)
	go func() {
		for {
			if _, err := s.client.Write(framed(t, q)); err != nil {
				return
			}
		}
	}()
	sent := 0
	s.must(s.server.SetDeadline(time.Now().Add(500 * time.Millisecond)))
	var err error
	for err == nil {
		s.read(s.server)
		_, err = s.server.Write(answer)
		sent += len(answer)
	}
	// What the kernel holds for three sockets, and not more.
	if !errors.Is(err, os.ErrDeadlineExceeded) || sent > 64<<20 {
		t.Errorf("sent %d bytes, %v", sent, err)
	}
	s.pair.Abort()
	s.ended()
}

// TestStreamHalfClose: who has asked all still gets the answers.
func TestStreamHalfClose(t *testing.T) {
	g := newStreams(t)
	s := g.connect()
	q := query("a.x", dns.TypeA)
	s.write(s.client, append(framed(t, q), 0, 50, 1)) // and the beginning of another
	s.must(s.client.CloseWrite())
	s.read(s.server)
	s.end(s.server, false)
	s.write(s.server, framed(t, replyTo(t, q)))
	s.read(s.client)
	s.must(s.server.CloseWrite())
	s.end(s.client, false)
	s.ended()
	g.records(1)
}

// TestStreamServerCloses: the client is told, and what it has asked is recorded.
func TestStreamServerCloses(t *testing.T) {
	g := newStreams(t)
	s := g.connect()
	q, other := query("a.x", dns.TypeA), query("b.x", dns.TypeA)
	s.write(s.client, framed(t, q, other))
	s.read(s.server)
	s.read(s.server)
	s.write(s.server, framed(t, replyTo(t, q)))
	s.must(s.server.Close())
	s.read(s.client)
	s.end(s.client, false)
	s.must(s.client.Close())
	s.ended()
	if r := g.records(2); !r[0].Answered || r[1].Failure != ReasonServerClosed || r[1].Answered {
		t.Errorf("%+v", r)
	}
	// By a reset, too.
	s = g.connect()
	s.write(s.client, framed(t, q))
	s.read(s.server)
	s.must(s.server.SetLinger(0))
	s.must(s.server.Close())
	s.end(s.client, true)
	s.ended()
	g.records(1)
}

// TestStreamTimes: what takes too long ends.
func TestStreamTimes(t *testing.T) {
	set := func(f func(*limits)) *rig {
		return newStreams(t, func(g *rig) { f(&g.relay.limits) })
	}
	t.Run("idle", func(t *testing.T) {
		s := set(func(l *limits) { l.idle = 50 * time.Millisecond }).connect()
		s.end(s.client, false)
		s.end(s.server, false)
		s.must(s.client.CloseWrite())
		s.must(s.server.CloseWrite())
		s.ended()
	})
	t.Run("idle, and nobody answers", func(t *testing.T) {
		s := set(func(l *limits) { l.idle, l.linger = 50*time.Millisecond, 50*time.Millisecond }).connect()
		s.end(s.client, false)
		s.ended()
	})
	t.Run("a message that does not end", func(t *testing.T) {
		s := set(func(l *limits) { l.message = 50 * time.Millisecond }).connect()
		s.write(s.client, []byte{0, 9, 1})
		s.end(s.client, true)
		s.ended()
	})
	t.Run("no answer", func(t *testing.T) {
		g := set(func(l *limits) { l.stream, l.idle = 50*time.Millisecond, 200*time.Millisecond })
		s := g.connect()
		s.write(s.client, framed(t, query("a.x", dns.TypeA)))
		if r := g.records(1)[0]; r.Failure != ReasonServerTimeout || r.Answered {
			t.Errorf("%+v", r)
		}
		s.end(s.client, false) // it is idle by then
	})
	t.Run("the server stays", func(t *testing.T) {
		s := set(func(l *limits) { l.half, l.linger = 50*time.Millisecond, 50*time.Millisecond }).connect()
		s.must(s.client.CloseWrite())
		s.end(s.client, false)
		s.ended()
	})
}

// TestStreamEnds: from outside.
func TestStreamEnds(t *testing.T) {
	g := newStreams(t, func(g *rig) { g.relay.limits.pause = 50 * time.Millisecond })
	s := g.connect()
	s.write(s.client, framed(t, query("a.x", dns.TypeA)))
	s.read(s.server)
	s.pair.Abort()
	s.end(s.client, true)
	s.end(s.server, true)
	s.ended()
	if r := g.records(1)[0]; r.Failure != ReasonAborted {
		t.Errorf("%+v", r)
	}
	idle, busy := g.connect(), g.connect()
	q := query("a.x", dns.TypeA)
	busy.write(busy.client, framed(t, q))
	busy.read(busy.server)
	g.server.Drain()
	idle.end(idle.client, false)
	busy.silent(busy.client)
	busy.silent(busy.client)
	busy.write(busy.server, framed(t, replyTo(t, q)))
	busy.read(busy.client)
	busy.end(busy.client, false)
}

// TestStreamNoServer: the client is reset.
func TestStreamNoServer(t *testing.T) {
	g := newStreams(t)
	accepted, client := tcpPair(t)
	done := make(chan struct{})
	g.server.Start(Conn{
		Client: accepted,
		Dial:   func(context.Context) (*net.TCPConn, error) { return nil, errors.New("refused") },
		Rules:  func() Rules { return Rules{} }, Observe: g.observe, Done: func() { close(done) },
	})
	<-done
	if _, err := io.Copy(io.Discard, client); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the client sees %v", err)
	}
	// One that does not come to an end is ended with the proxy.
	accepted, client = tcpPair(t)
	p := g.server.Start(Conn{
		Client: accepted,
		Dial:   func(ctx context.Context) (*net.TCPConn, error) { <-ctx.Done(); return nil, ctx.Err() },
		Rules:  func() Rules { return Rules{} }, Observe: g.observe,
	})
	p.Abort()
	if _, err := io.Copy(io.Discard, client); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the client sees %v", err)
	}
}

// TestStreamAllocatesNothing: neither for what passes nor for what is denied.
func TestStreamAllocatesNothing(t *testing.T) {
	g := newStreams(t)
	g.rules.Store(&Rules{Egress: allow("*.x"), Believed: true})
	g.quiet.Store(true)
	s := g.connect()
	q, no := query("a.x", dns.TypeA), query("a.y", dns.TypeA)
	questions := framed(t, q, q, no)
	answers := framed(t, replyTo(t, q, "a.x. 60 A 192.0.2.1"), replyTo(t, q))
	in, one := make([]byte, 1<<10), framed(t, q)
	round := func() {
		write := func(c *net.TCPConn, b []byte) {
			if _, err := c.Write(b); err != nil {
				t.Fatal(err)
			}
		}
		read := func(c *net.TCPConn, n int) {
			if _, err := io.ReadFull(c, in[:n]); err != nil {
				t.Fatal(err)
			}
		}
		write(s.client, questions)
		read(s.server, len(one)*2)
		read(s.client, len(one))
		write(s.server, answers)
		read(s.client, len(answers))
	}
	round()
	if n := testing.AllocsPerRun(500, round); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestPing: it answers while it serves, and when it has ended.
func TestPing(t *testing.T) {
	g := newStreams(t)
	if err := g.server.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	hold := make(chan struct{})
	g.relay.post(func() { <-hold })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := g.server.Ping(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("stuck: %v", err)
	}
	close(hold)
}

// FuzzStream cuts what comes from both sides anywhere: nothing changes what
// comes through.
func FuzzStream(f *testing.F) {
	f.Add(framed(f, query("a.x", dns.TypeA), query("b.y", dns.TypeA)), uint16(3))
	f.Add([]byte{0, 0, 0, 1, 2, 255, 255, 1}, uint16(1))
	f.Fuzz(func(t *testing.T, b []byte, cut uint16) {
		whole, cutUp := frames(b, len(b)+1), frames(b, int(cut%97)+1)
		if fmt.Sprintf("%x", whole) != fmt.Sprintf("%x", cutUp) {
			t.Fatalf("%x\nin one piece is %x\nin pieces of %d %x", b, whole, cut%97+1, cutUp)
		}
	})
}

// frames are the messages in b, as read in pieces of n bytes.
func frames(b []byte, n int) (out [][]byte) {
	in := &input{memory: &pool[scratch]{kept: 1}}
	for len(b) > 0 {
		piece := b[:min(n, len(b))]
		b = b[len(piece):]
		sc := in.memory.take()
		have := append(append(sc.in[:0], in.rest...), piece...)
		at := 0
		for {
			m, size := frame(have[at:])
			if size == 0 {
				break
			}
			out = append(out, append([]byte{}, m...))
			at += size
		}
		in.keep(sc, have[at:], at > 0)
	}
	return out
}
