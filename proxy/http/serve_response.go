package http

// stepResponse moves something of what the server sends.
func (p *pair) stepResponse() bool {
	did, clear := p.flush(&p.c)
	if p.closed || !clear {
		return did
	}
	switch p.response {
	case responseIdle:
		return p.watchServer() || did
	case responseHead:
		return p.readResponse() || did
	case responseBody:
		return p.relayResponse() || did
	case responseTunnel:
		return p.tunnel(&p.u, &p.c) || did
	}
	if p.request == requestEnd && p.c.shut && !p.u.pending() {
		p.close(false)
		return true
	}
	return did
}

// watchServer looks for the end of the connection while nothing is asked.
func (p *pair) watchServer() bool {
	if !p.u.canRead {
		return false
	}
	_, res := p.u.recv(p.loop.in)
	switch res {
	case ioAgain:
		return false
	case ioDone:
		// Nobody asked. Some servers send 408 when they tire of waiting; what
		// else it may be must not become the answer to the next request.
		p.note(Refused, ReasonUnsolicited)
		p.end()
	case ioEnd:
		p.end()
	case ioError:
		p.serverGone()
	}
	return true
}

// serverGone passes a reset of the server's on, or its close, if all that it
// had to say was said.
func (p *pair) serverGone() {
	if p.request == requestLinger && p.response == responseIdle {
		p.end()
		return
	}
	p.fail(ReasonReset)
}

// readResponse reads on in a response's head and passes it on when it is
// complete.
func (p *pair) readResponse() bool {
	h, b, res, r := p.readHead(&p.u, &p.serverHead, true)
	switch res {
	case headWaits:
		return false
	case headEnded:
		if p.serverHead != nil {
			p.refuseResponse(ReasonHeadTruncated)
			break
		}
		p.ex.rec.Failure = ReasonServerClosed
		p.tell()
		p.end()
	case headFailed:
		p.serverGone()
	case headBad:
		p.refuseResponse(r)
	case headDone:
		n := p.answer(h, b)
		if p.closed || p.response == responseEnd {
			break
		}
		p.headRead(&p.u, &p.serverHead, b, n)
		if p.response == responseIdle {
			p.responded()
		}
	}
	return true
}

// answer passes on a response whose head is complete in b, with what is there
// of its body. It returns how much of b it dealt with.
func (p *pair) answer(h *head, b []byte) int {
	ex, m, end := p.ex, &p.loop.msg, int(h.pos)
	if r := readResponse(h, m, b, ex.isHead, ex.connect, ex.upgrade); r != 0 {
		p.refuseResponse(r)
		return len(b)
	}
	status := h.first.status
	if status < 200 && status != 101 {
		if p.interim++; p.interim > maxInterim {
			p.refuseResponse(ReasonInterim)
			return len(b)
		}
		p.write(&p.c, b[:end])
		return end
	}
	p.respBody.begin(m)
	n, done, r := p.respBody.take(b[end:])
	if r != 0 {
		p.refuseResponse(r)
		return len(b)
	}
	ex.rec.Status = status
	ex.rec.Latency = p.loop.wall.Sub(ex.rec.Start)
	tunnel := status == 101 || ex.connect && status < 300
	if p.leaves() && !tunnel {
		p.ending = true
		p.writeLast(m, b[:end], b[end:end+n])
	} else {
		p.write(&p.c, b[:end+n])
	}
	if p.closed {
		return end + n
	}
	switch {
	case tunnel:
		p.request, p.response = requestTunnel, responseTunnel
		if p.c.eof {
			p.request = requestEnd
		}
		p.reqBody, p.respBody = body{kind: bodyToEnd}, body{kind: bodyToEnd}
		ex.rec.Open = true
		p.tell()
	case done:
		p.ending = p.ending || m.options&optClose != 0
		p.response = responseIdle
	default:
		p.ending = p.ending || m.options&optClose != 0 || m.body == bodyToEnd
		p.response = responseBody
	}
	return end + n
}

// writeLast passes on a response's head, saying that the connection ends with
// it, and what is there of its body.
func (p *pair) writeLast(m *message, head, body []byte) {
	l := p.loop
	out := append(l.sent[:0], head...)
	if m.options&optClose == 0 {
		out = append(out[:len(head)-len("\r\n")], "Connection: close\r\n\r\n"...)
	}
	out = append(out, body...)
	l.sent = out[:0]
	p.write(&p.c, out)
}

// relayResponse moves the response's body.
func (p *pair) relayResponse() bool {
	what, r := p.move(&p.u, &p.c, &p.respBody)
	if p.closed {
		return true
	}
	switch what {
	case movedNothing:
		return false
	case movedAll:
		p.response = responseIdle
		p.responded()
	case movedEnd:
		if p.respBody.kind != bodyToEnd {
			p.ex.rec.Failure = ReasonBodyTruncated // as the client will see
		}
		p.response = responseIdle
		p.responded()
	case movedBad:
		p.ex.rec.Verdict, p.ex.rec.Reason, p.ex.rec.Response = Refused, r, true
		p.fail(ReasonNone)
	case movedError:
		p.serverGone()
	}
	return true
}

// responded goes on when a response is complete.
func (p *pair) responded() {
	p.ex.rec.Open = false
	p.tell()
	switch {
	case p.u.in != nil:
		// More than the response: it answers nothing that was asked.
		p.note(Refused, ReasonUnsolicited)
		p.end()
	case p.ending || p.u.eof:
		p.end()
	case p.request == requestHold:
		p.nextRequest()
	case p.request == requestEnd:
		p.clientEnd()
	}
}
