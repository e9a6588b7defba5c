package http

import (
	"golang.org/x/sys/unix"
)

// Idle is a connection that stands between two messages: all that another
// Server needs to go on with it.
type Idle struct {
	// Client and Server are the sockets; whoever has the Idle closes them.
	Client, Server int
	// Input was read from the client and not dealt with: the beginning of a
	// request's head.
	Input []byte
}

// maxInput bounds Idle.Input. A connection with more is not let go of before
// that request is answered.
const maxInput = 16 << 10

// Yield offers every connection that stands between two messages to whom
// Conn.Offer asks, and from now on each that comes there. It takes back what
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
	input := append([]byte(nil), i.Input...)
	if !l.post(posted{kind: postAdopt, pair: p.pair, fd: i.Client, up: i.Server, input: input}) {
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
func (l *loop) adopt(p *pair, client, server int, input []byte) {
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
	p.run()
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
	l.forget(&p.c)
	l.forget(&p.u)
	take(i)
	if p.clientHead != nil {
		l.freeHead(p.clientHead)
		p.clientHead = nil
	}
	l.release(&p.c)
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
	return !p.closed && p.joined && !p.queued && !p.ending && p.deadline.IsZero() &&
		p.request == requestHead && p.response == responseIdle && p.ex == nil &&
		p.serverHead == nil && u.in == nil && !u.pending() && !c.pending() &&
		!c.over() && !u.over() && (c.in == nil || len(c.in.bytes()) <= maxInput)
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
