package dns

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

// Conn is a redirected connection with what is needed to judge and relay it.
type Conn struct {
	// Client is the accepted connection. Start takes it over and closes it.
	Client *net.TCPConn
	// Pod is who asks.
	Pod netip.Addr
	// Dial connects to where the client wanted to go. It is called once, at
	// once. An error resets the client.
	Dial func(ctx context.Context) (*net.TCPConn, error)
	// Rules yields what is in force now. It is asked before every question and
	// at every answer.
	Rules func() Rules
	// Observe is told of every question. The Record and all it refers to are
	// valid during the call only. It and Rules are called by one goroutine at a
	// time, and must not block.
	Observe func(*Record)
	// Offer, if not nil, is asked while the Server yields whether somebody else
	// takes the connection, whenever no question waits on it. nil: nobody does.
	// Else take is called next, and owns the sockets; nothing else of the Conn is
	// called any more, Done neither. Both must not block.
	Offer func() (take func(Idle))
	// Done, if not nil, is called once, last of all: both sockets are closed.
	Done func()
}

// Pair is a connection being served.
type Pair struct{ stream *stream }

// Abort resets both sides and returns once both sockets are closed. It must
// not be called from Conn's functions. One that was let go of is left alone.
func (p *Pair) Abort() {
	p.stream.reset()
	<-p.stream.done
}

// End ends the connection as soon as nothing on it waits for an answer.
func (p *Pair) End() { p.stream.drain() }

// Start takes the connection over and returns at once. It may be called
// concurrently, before Run as well. It resets the connection after Run ended, and
// where the pod has too many.
func (s *Server) Start(c Conn) *Pair {
	ctx, cancel := context.WithCancel(context.Background())
	p := s.newStream(c)
	p.client, p.cancel = c.Client, cancel
	return s.start(ctx, p)
}

func (s *Server) newStream(c Conn) *stream {
	p := &stream{relay: s.relay, conn: c, cancel: func() {}, done: make(chan struct{})}
	p.room.L = &p.mu
	p.input.memory, p.output.memory = &s.relay.scratches, &s.relay.scratches
	return p
}

func (s *Server) start(ctx context.Context, p *stream) *Pair {
	if !s.pairs.enter(p) {
		p.reset()
		p.finish()
		return &Pair{p}
	}
	go func() {
		defer s.pairs.over.Done()
		taken := p.run(ctx)
		s.pairs.leave(p)
		if taken {
			p.cancel()
			close(p.done)
		} else {
			p.finish()
		}
	}()
	return &Pair{p}
}

// stream is a client's connection and the one to its server. Each direction has
// a goroutine. Messages go on byte for byte, ids included: the connection to
// the server is this client's alone.
type stream struct {
	relay          *relay // for its Options
	conn           Conn
	pod            *streamPod
	cancel         context.CancelFunc
	client, server *net.TCPConn
	input, output  input // of them
	done           chan struct{}
	told           bool // of what can't be read

	mu       sync.Mutex
	room     sync.Cond // fewer questions wait, or it ends
	pending  []*streamed
	active   time.Time // something moved
	half     time.Time // the client has ended its side; when the server must have
	draining bool
	ending   bool // both directions end: input is thrown away
	aborted  bool
	// yielding: the connection is offered to somebody else when no question waits,
	// unless it was declined since the last one; pausing: the client's side has
	// stopped for that.
	yielding, declined, pausing bool
}

// run connects to the server, if that was not done before, and serves until both
// sides have ended, or somebody else has the connection.
func (p *stream) run(ctx context.Context) (taken bool) {
	if p.server == nil && !p.connect(ctx) {
		return false
	}
	if err := errors.Join(p.input.open(p.client), p.output.open(p.server)); err != nil {
		p.reset()
		return false
	}
	p.mu.Lock()
	p.active = time.Now()
	p.mu.Unlock()
	for {
		answers := make(chan struct{})
		go func() {
			defer close(answers)
			if err := p.serve(&p.output, p.answers, p.answerDeadline); !errors.Is(err, errYield) {
				p.end(err)
			}
		}()
		paused := p.serveQuestions()
		<-answers
		if !paused {
			return false
		}
		if p.offer() {
			return true
		}
	}
}

func (p *stream) connect(ctx context.Context) bool {
	server, err := p.conn.Dial(ctx)
	p.mu.Lock()
	if err != nil || p.aborted {
		if err == nil {
			closeReset(server)
		}
		p.mu.Unlock()
		p.reset()
		return false
	}
	p.server = server
	p.mu.Unlock()
	return true
}

// serveQuestions serves the client's side. That the client has ended it is
// passed on; answers come all the same. paused: the connection is to be offered.
func (p *stream) serveQuestions() (paused bool) {
	err := p.serve(&p.input, p.questions, p.questionDeadline)
	switch {
	case errors.Is(err, errYield):
		p.pause()
		return true
	case !errors.Is(err, io.EOF):
		p.end(err)
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.half = time.Now().Add(p.relay.limits.half)
	_ = p.server.CloseWrite()
	_ = p.server.SetReadDeadline(p.answerTime())
	return false
}

// end ends both directions for the reason that one of them has ended: in good
// order, unless something went wrong.
func (p *stream) end(err error) {
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, errIdle) {
		p.reset()
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ending {
		return
	}
	p.ending = true
	p.room.Broadcast()
	_ = p.client.CloseWrite()
	_ = p.server.CloseWrite()
	limit := time.Now().Add(p.relay.limits.linger)
	_ = p.client.SetReadDeadline(limit)
	_ = p.server.SetReadDeadline(limit)
}

// reset ends both directions at once.
func (p *stream) reset() {
	p.cancel()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.aborted {
		return
	}
	p.aborted, p.ending = true, true
	p.room.Broadcast()
	if p.client != nil {
		closeReset(p.client)
	}
	if p.server != nil {
		closeReset(p.server)
	}
}

// finish closes what is open and tells of what was not answered.
func (p *stream) finish() {
	p.cancel()
	p.mu.Lock()
	reason := ReasonServerClosed
	if p.aborted {
		reason = ReasonAborted
	}
	left := p.pending
	p.pending = nil
	p.mu.Unlock()
	for _, w := range left {
		p.tell(w, reason)
	}
	for _, c := range []*net.TCPConn{p.client, p.server} {
		if c != nil {
			_ = c.Close()
		}
	}
	if p.conn.Done != nil {
		p.conn.Done()
	}
	close(p.done)
}

// drain lets the connection end when it is idle for a moment.
func (p *stream) drain() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.draining = true
	if !p.ending {
		_ = p.client.SetReadDeadline(p.questionTime())
	}
}

// errIdle ends a connection on which nothing moves.
var errIdle = errors.New("idle")

// questionTime is when it is to be looked whether the connection is idle.
func (p *stream) questionTime() time.Time {
	if p.draining {
		return time.Now().Add(p.relay.limits.pause)
	}
	return time.Now().Add(p.relay.limits.idle)
}

// questionDeadline prepares reading from the client: began is when a message
// did of which more is to come.
func (p *stream) questionDeadline(began time.Time, timedOut bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	switch {
	case p.ending:
		if timedOut {
			return errIdle
		}
		return nil // end has set it
	case p.idle():
		return errYield
	case timedOut && !began.IsZero() && now.Sub(began) >= p.relay.limits.message:
		return os.ErrDeadlineExceeded
	case timedOut && began.IsZero() && len(p.pending) == 0 && (p.draining || now.Sub(p.active) >= p.relay.limits.idle):
		return errIdle
	}
	limit := p.questionTime()
	if !began.IsZero() {
		limit = began.Add(p.relay.limits.message)
	}
	return p.client.SetReadDeadline(limit)
}

// answerTime is when a question has waited too long, or the end.
func (p *stream) answerTime() time.Time {
	limit := p.half
	for _, w := range p.pending {
		if limit.IsZero() || w.due.Before(limit) {
			limit = w.due
		}
	}
	return limit
}

// answerDeadline prepares reading from the server.
func (p *stream) answerDeadline(_ time.Time, timedOut bool) error {
	p.mu.Lock()
	if p.ending {
		p.mu.Unlock()
		if timedOut {
			return errIdle
		}
		return nil
	}
	if p.pausing {
		p.mu.Unlock()
		return errYield
	}
	var late []*streamed
	now := time.Now()
	if timedOut {
		kept := p.pending[:0]
		for _, w := range p.pending {
			if now.Before(w.due) {
				kept = append(kept, w)
			} else {
				late = append(late, w)
			}
		}
		p.pending = kept
		p.room.Broadcast()
		p.rouse()
	}
	over := !p.half.IsZero() && !now.Before(p.half)
	err := p.server.SetReadDeadline(p.answerTime())
	p.mu.Unlock()
	for _, w := range late {
		p.tell(w, ReasonServerTimeout)
	}
	if over {
		return errIdle
	}
	return err
}

func closeReset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}
