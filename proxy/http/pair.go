package http

import "time"

// pair is a client's connection and the one to its server. One request is in
// flight at a time: the next is read, and judged, when the response to the one
// before has gone to the client. Both directions of an exchange are relayed as
// they come, though: a response may begin, and end, while the request's body
// is still on its way.
//
//	client -> c -> [requestState] -> u -> server
//	client <- c <- [responseState] <- u <- server
type pair struct {
	loop   *loop
	handle *Pair
	conn   Conn
	index  int // in loop.pairs

	c, u sock

	request  requestState
	response responseState
	closed   bool
	queued   bool // in loop.again
	joined   bool // the upstream connection stands
	ending   bool // no request may follow the one in flight
	last     bool // nor the next one: it is to end

	// Heads of which a part was read, in c.in and u.in.
	clientHead, serverHead *head
	headSince              time.Time // a head, either's, began

	ex       *exchange // in flight
	reqBody  body
	respBody body
	interim  int // responses before the final one

	active   time.Time // something moved
	deadline time.Time // not zero: the end comes then, whatever happens
	lingered int       // bytes thrown away at the end
	drained  int       // of a denied request's body
}

type requestState uint8

const (
	requestHead   requestState = iota // between requests, or in a head
	requestBody                       // the body is relayed
	requestHold                       // complete; its response is awaited
	requestDrain                      // a denied request's body is thrown away
	requestTunnel                     // relayed unread
	requestLinger                     // input is thrown away until it ends
	requestEnd                        // the client sends nothing more
)

type responseState uint8

const (
	responseIdle responseState = iota // nothing was asked
	responseHead
	responseBody
	responseTunnel
	responseEnd // the server sends nothing more
)

func newPair(l *loop, handle *Pair, c Conn) *pair {
	p := &pair{loop: l, handle: handle, conn: c}
	p.c.fd, p.u.fd = -1, -1
	p.c.pair, p.u.pair = p, p
	return p
}

// rounds is how often a pair may move something before others have a turn.
const rounds = 8

// run moves what can be moved.
func (p *pair) run() {
	if p.step(); p.loop.yielding {
		p.offer()
	}
}

func (p *pair) step() {
	if p.closed {
		return
	}
	p.active = p.loop.wall
	if p.c.failed {
		p.fail(ReasonReset)
		return
	}
	if !p.joined {
		return
	}
	for range rounds {
		moved := p.stepResponse()
		if p.closed {
			return
		}
		moved = p.stepRequest() || moved
		if p.closed || !moved {
			return
		}
	}
	if !p.queued {
		p.queued = true
		p.loop.again = append(p.loop.again, p)
	}
}

// dialed takes the upstream connection, or tells the client there is none: by
// a reset, as the kernel would have.
func (p *pair) dialed(fd int, err error) {
	switch {
	case p.closed:
		if fd >= 0 {
			closeReset(fd)
		}
	case err != nil:
		p.fail(ReasonUnreachable)
	default:
		if err := p.loop.watch(&p.u, fd); err != nil {
			closeReset(fd)
			p.fail(ReasonMemory)
			return
		}
		p.joined = true
		p.run()
	}
}

// fail ends both sides by resets.
func (p *pair) fail(r Reason) {
	if p.closed {
		return
	}
	switch {
	case p.ex != nil:
		p.ex.rec.Failure = r
		p.tell()
	case r == ReasonUnreachable || r == ReasonMemory:
		p.note(Failed, r)
	}
	p.close(true)
}

// close closes both sockets.
func (p *pair) close(reset bool) {
	if p.closed {
		return
	}
	p.closed = true
	p.handle.cancel()
	l := p.loop
	if p.ex != nil {
		p.tell()
	}
	l.unwatch(&p.c, reset)
	l.unwatch(&p.u, reset)
	for _, h := range []**head{&p.clientHead, &p.serverHead} {
		if *h != nil {
			l.freeHead(*h)
			*h = nil
		}
	}
	l.remove(p)
	p.finished()
}

// finished tells that both sockets are closed.
func (p *pair) finished() {
	if p.conn.Done != nil {
		p.conn.Done()
	}
	close(p.handle.done)
	p.conn = Conn{}
}

// end ends the connection in good order: what was written to the client goes
// out, then the end; what it still sends is thrown away for a while, since
// unread input would make a reset of the close, and that can overtake the
// response.
func (p *pair) end() {
	p.loop.unwatch(&p.u, false)
	p.response = responseEnd
	p.c.fin = true
	if p.request != requestEnd {
		p.request = requestLinger
		if p.c.eof {
			p.request = requestEnd
		}
	}
	p.dropInput()
	p.deadline = noTime
}

// dropInput forgets what was read from the client and not dealt with.
func (p *pair) dropInput() {
	if p.c.in != nil {
		p.loop.freeBuffer(p.c.in)
		p.c.in = nil
	}
	if p.clientHead != nil {
		p.loop.freeHead(p.clientHead)
		p.clientHead = nil
	}
	p.headSince = noTime
}

// cantWrite deals with a socket whose peer takes nothing more. A client that
// is gone ends all. A server may have answered before it closed: its response
// is still read, and the rest of the request thrown away.
func (p *pair) cantWrite(s *sock) {
	if s == &p.c || p.request == requestTunnel {
		p.fail(ReasonReset)
		return
	}
	p.loop.dropOutput(s)
	s.shut = true
	s.canRead, s.hup = true, true
	p.ending = true
	if p.request != requestEnd {
		p.request = requestLinger
	}
	p.dropInput()
}

// leaves tells whether the connection is to end where a message does.
func (p *pair) leaves() bool { return p.last || p.loop.draining }

// leave ends the connection if nobody uses it: it stands between two messages,
// and has for a while.
func (p *pair) leave(now time.Time) {
	if now.Sub(p.active) < p.loop.server.times.pause || !p.between() {
		return
	}
	p.c.canRead = true // a request that came this very moment was not told of yet
	if p.run(); p.between() {
		p.end()
		p.run()
	}
}

// between tells whether all that was asked is answered, and nothing of another
// request is there.
func (p *pair) between() bool {
	return !p.closed && p.joined && !p.queued && p.request == requestHead && p.response == responseIdle &&
		p.clientHead == nil && p.c.in == nil && !p.c.pending()
}

// sweep looks at the pair's timeouts, and at what else nothing moves for.
func (p *pair) sweep(now time.Time) {
	times := &p.loop.server.times
	if p.isTunnel() && !p.judgeTunnel() {
		return
	}
	if p.leaves() {
		if p.leave(now); p.closed {
			return
		}
	}
	if p.loop.yielding {
		if p.offer(); p.closed {
			return
		}
	}
	switch {
	case !p.deadline.IsZero() && !p.c.pending() && now.After(p.deadline):
		p.close(false)
	case !p.headSince.IsZero() && now.Sub(p.headSince) > times.head:
		if p.clientHead != nil {
			p.refuse(ReasonHeadTimeout)
		} else {
			p.refuseResponse(ReasonHeadTimeout)
		}
		if !p.closed {
			p.run()
		}
	case now.Sub(p.active) > times.idle:
		p.fail(ReasonIdle)
	case p.ex != nil && p.ex.rec.Status != 0 && now.Sub(p.ex.rec.Start) > times.open:
		p.ex.rec.Open = true
		p.tell()
	}
}

// lingerOn throws input away until the client ends it.
func (p *pair) lingerOn() bool {
	if !p.c.canRead {
		return false
	}
	n, res := p.c.recv(p.loop.in)
	p.lingered += n
	switch {
	case res == ioAgain:
		return false
	case res == ioError || p.lingered > maxLinger:
		p.fail(ReasonReset)
	case res == ioEnd:
		p.request = requestEnd
	}
	return true
}
