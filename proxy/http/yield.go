package http

import (
	"bytes"

	"golang.org/x/sys/unix"
)

// Idle is a connection that stands between two messages, or an upgraded one on
// which nothing is under way: all that another Server needs to go on with it.
type Idle struct {
	// Client and Server are the sockets; whoever has the Idle closes them.
	Client, Server int
	// Input was read from the client and not dealt with: the beginning of a
	// request's head.
	Input []byte
	// Opening is, of an upgraded connection, the head of the request that it
	// began with; of others empty.
	Opening []byte
}

// maxInput bounds Idle.Input. A connection with more is not let go of before
// that request is answered.
const maxInput = 16 << 10

// Yield offers every connection that stands between two messages to whom
// Conn.Offer asks, and from now on each that comes there; of upgraded ones each on
// which nothing is under way. It takes back what
// Drain said. It may be repeated, for the sake of those that nobody took then.
// It returns at once; Start goes on to work.
func (s *Server) Yield() {
	for _, l := range s.loops {
		l.post(posted{kind: postYield})
	}
}

// Adopt goes on with a connection that another Server has let go of, and owns
// its sockets. Client and Dial of c are not used.
func (s *Server) Adopt(c Conn, i Idle) *Pair {
	l := s.loops[int(s.next.Add(1))%len(s.loops)]
	p := &Pair{done: make(chan struct{}), cancel: func() {}}
	p.pair = newPair(l, p, c)
	input, opening := bytes.Clone(i.Input), bytes.Clone(i.Opening)
	if !l.post(posted{kind: postAdopt, pair: p.pair, fd: i.Client, up: i.Server, input: input, opening: opening}) {
		closeReset(i.Client)
		closeReset(i.Server)
		p.pair.finished()
	}
	return p
}

// End ends the connection in good order, when it next stands between two
// messages and nobody uses it, or behind its next response. It returns at once.
func (p *Pair) End() { p.pair.loop.post(posted{kind: postEnd, pair: p.pair}) }

// adopt begins to serve a connection that was another's.
func (l *loop) adopt(p *pair, client, server int, input, opening []byte) {
	p.index = len(l.pairs)
	l.pairs = append(l.pairs, p)
	p.active, p.joined = l.wall, true
	clientErr := l.watch(&p.c, client)
	serverErr := l.watch(&p.u, server)
	if clientErr != nil {
		closeReset(client)
		p.c.fd = -1
	}
	if serverErr != nil {
		closeReset(server)
		p.u.fd = -1
	}
	if clientErr != nil || serverErr != nil {
		p.fail(ReasonMemory)
		return
	}
	if len(input) > 0 {
		p.c.in = l.keep(input)
	}
	if len(opening) > 0 && !p.adoptTunnel(opening) {
		p.fail(ReasonAborted)
		return
	}
	p.run()
}

// adoptTunnel makes the connection one that was upgraded by a request with that
// head. It is judged by the rules here before anything passes.
func (p *pair) adoptTunnel(opening []byte) bool {
	l := p.loop
	in := &l.incoming
	in.h, in.b, in.made = &l.head, opening, false
	in.h.reset(false)
	if done, r := in.h.parse(opening); !done || r != 0 || in.read(l.norm) != 0 {
		return false
	}
	ex := p.begin(in.h, opening, &in.t)
	l.keepOpening(ex, opening)
	ex.rec.Verdict, ex.rec.Open, ex.told = Allowed, true, true
	ex.upgrade = true
	p.request, p.response = requestTunnel, responseTunnel
	p.reqBody, p.respBody = body{kind: bodyToEnd}, body{kind: bodyToEnd}
	return true
}

// offer lets go of the connection if it stands between two messages and
// somebody takes it.
func (p *pair) offer() {
	if p.conn.Offer == nil || !p.apart() {
		return
	}
	take := p.conn.Offer()
	if take == nil {
		return
	}
	l, i := p.loop, Idle{Client: p.c.fd, Server: p.u.fd}
	if p.c.in != nil {
		i.Input = p.c.in.bytes()
	}
	if p.ex != nil {
		i.Opening = p.ex.opening
	}
	l.forget(&p.c)
	l.forget(&p.u)
	take(i)
	if p.clientHead != nil {
		l.freeHead(p.clientHead)
		p.clientHead = nil
	}
	if p.ex != nil {
		l.freeExchange(p.ex)
		p.ex = nil
	}
	l.release(&p.c)
	l.release(&p.u)
	p.closed = true
	p.handle.cancel()
	l.remove(p)
	close(p.handle.done)
	p.conn = Conn{}
}

// apart tells whether nothing but its sockets and what the client has begun to
// say makes up the connection: no message is under way, nor its end.
func (p *pair) apart() bool {
	c, u := &p.c, &p.u
	if p.closed || !p.joined || p.queued || !p.deadline.IsZero() ||
		p.serverHead != nil || u.in != nil || u.pending() || c.pending() || c.over() || u.over() {
		return false
	}
	if p.request == requestTunnel && p.response == responseTunnel {
		return c.in == nil && p.ex != nil && p.ex.told && len(p.ex.opening) > 0
	}
	return !p.ending && p.ex == nil && p.request == requestHead && p.response == responseIdle &&
		(c.in == nil || len(c.in.bytes()) <= maxInput)
}

// over tells whether the socket's end has begun.
func (s *sock) over() bool { return s.hup || s.failed || s.eof || s.fin || s.shut }

// forget stops to watch a socket without closing it. The kernel would not do so
// as long as anybody has it open.
func (l *loop) forget(s *sock) {
	_ = unix.EpollCtl(l.epoll, unix.EPOLL_CTL_DEL, s.fd, nil) // it is watched
	l.socks[s.fd] = nil
	s.fd = -1
}
