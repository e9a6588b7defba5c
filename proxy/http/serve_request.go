package http

// stepRequest moves something of what the client sends.
func (p *pair) stepRequest() bool {
	if did, clear := p.flush(&p.u); p.closed || !clear {
		return did
	}
	switch p.request {
	case requestHead:
		return p.readRequest()
	case requestBody:
		return p.relayRequest()
	case requestHold:
		return p.watchClient()
	case requestDrain:
		return p.drain()
	case requestTunnel:
		return p.tunnel(&p.c, &p.u)
	case requestLinger:
		return p.lingerOn()
	}
	return false
}

// readRequest reads on in a request's head, and passes the request on or not
// when it is complete.
func (p *pair) readRequest() bool {
	if p.c.pending() {
		return false // the client does not even take what was answered
	}
	h, b, res, r := p.readHead(&p.c, &p.clientHead, false)
	switch res {
	case headWaits:
		return false
	case headEnded:
		if p.clientHead == nil {
			p.clientEnd()
		} else {
			p.refuse(ReasonHeadTruncated)
		}
	case headFailed:
		p.fail(ReasonReset)
	case headBad:
		p.begin(h, b, &target{})
		p.refuse(r)
	case headDone:
		n := p.serve(h, b)
		if !p.closed && p.request != requestLinger && p.request != requestEnd {
			p.headRead(&p.c, &p.clientHead, b, n)
		}
	}
	return true
}

// serve judges a request whose head is complete in b, and passes on or answers
// it. It returns how much of b it dealt with.
func (p *pair) serve(h *head, b []byte) int {
	end := int(h.pos)
	in := &p.loop.incoming
	in.h, in.b, in.made = h, b[:end], false
	r := in.read(p.loop.norm)
	ex := p.begin(h, b, &in.t)
	if r != 0 {
		p.refuse(r)
		return len(b)
	}
	p.ending = in.m.last(h.first.minor) || p.leaves()
	p.reqBody.begin(&in.m)
	n, done, r := p.reqBody.take(b[end:])
	if r != 0 {
		p.refuse(r)
		return len(b)
	}
	ex.rec.Verdict, ex.rec.Reason = p.judge(in)
	switch ex.rec.Verdict {
	case Refused:
		p.refuse(ex.rec.Reason)
		return len(b)
	case Denied:
		p.deny(in, done)
		return end + n
	}
	if ex.upgrade = in.m.upgrades(); ex.upgrade || ex.connect {
		p.loop.keepOpening(ex, b[:end])
	}
	p.response, p.interim = responseHead, 0
	if !in.made && !in.t.changed && !in.m.hops() {
		p.write(&p.u, b[h.from:end+n])
	} else {
		l := p.loop
		out := appendRequest(l.sent[:0], in.h, &in.m, &in.t, in.b, nil)
		out = append(out, b[end:end+n]...)
		l.sent = out[:0]
		p.write(&p.u, out)
	}
	if p.closed || p.request != requestHead {
		return end + n // the server takes nothing more
	}
	p.request = requestBody
	if done {
		p.request = requestHold
	}
	return end + n
}

// relayRequest moves the request's body.
func (p *pair) relayRequest() bool {
	what, r := p.move(&p.c, &p.u, &p.reqBody)
	if p.closed {
		return true
	}
	switch what {
	case movedNothing:
		return false
	case movedAll:
		if p.request != requestBody {
			break // the server takes no more
		}
		p.request = requestHold
		if p.response == responseIdle {
			p.nextRequest()
		}
	case movedEnd:
		// The server will see that it is not whole, and may answer.
		if p.ex != nil {
			p.ex.rec.Failure = ReasonBodyTruncated
		}
		p.clientEnd()
	case movedBad:
		p.badBody(r)
	case movedError:
		p.fail(ReasonReset)
	}
	return true
}

// badBody deals with a request that was passed on before its body turned out
// to be none: the server must not take what it has for a whole one.
func (p *pair) badBody(r Reason) {
	p.loop.unwatch(&p.u, true)
	if p.ex == nil || p.ex.rec.Status != 0 || p.c.pending() {
		if p.ex != nil {
			p.ex.rec.Verdict, p.ex.rec.Reason = Refused, r
		} else {
			p.note(Refused, r)
		}
		p.fail(ReasonNone)
		return
	}
	p.refuse(r)
}

// clientEnd passes on that the client sends nothing more.
func (p *pair) clientEnd() {
	p.c.eof = true
	p.request = requestEnd
	p.u.fin = true
	p.flush(&p.u)
	if !p.closed && p.response == responseIdle && p.deadline.IsZero() {
		// All is answered: the server has no reason to stay.
		p.deadline = p.loop.wall.Add(p.loop.server.times.half)
	}
}

// watchClient looks for the end of the client's input while a response is
// awaited: servers stop working for clients that are gone.
func (p *pair) watchClient() bool {
	c := &p.c
	if !c.hup || !c.canRead || c.in != nil {
		return false
	}
	n, res := c.recv(p.loop.in)
	switch res {
	case ioAgain:
		return false
	case ioDone:
		c.in = p.loop.keep(p.loop.in[:n])
	case ioEnd:
		p.clientEnd()
	case ioError:
		p.fail(ReasonReset)
	}
	return true
}

// nextRequest goes on after an exchange.
func (p *pair) nextRequest() {
	switch {
	case p.ending:
		p.end()
	case p.c.eof && p.c.in == nil:
		p.clientEnd()
	default:
		p.request = requestHead
	}
}
