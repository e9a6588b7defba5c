package http

import (
	"strconv"
	"time"
)

// noTime is the zero time.
var noTime time.Time

// reply is the status text and the body of what the proxy answers itself.
func reply(status int) (text, body string) {
	switch status {
	case 403:
		return "Forbidden", "Access denied\r\n"
	case 408:
		return "Request Timeout", "Request timeout\r\n"
	case 414:
		return "URI Too Long", "Request target too long\r\n"
	case 417:
		return "Expectation Failed", "Expectation failed\r\n"
	case 431:
		return "Request Header Fields Too Large", "Request header too large\r\n"
	case 502:
		return "Bad Gateway", "Bad response\r\n"
	case 505:
		return "HTTP Version Not Supported", "HTTP version not supported\r\n"
	}
	return "Bad Request", "Bad request\r\n"
}

// answerSelf writes a response of the proxy's own.
func (p *pair) answerSelf(status int, head, last bool) {
	text, body := reply(status)
	l := p.loop
	out := append(l.sent[:0], "HTTP/1.1 "...)
	out = strconv.AppendInt(out, int64(status), 10)
	out = append(out, ' ')
	out = append(out, text...)
	out = append(out, "\r\nContent-Type: text/plain\r\nContent-Length: "...)
	out = strconv.AppendInt(out, int64(len(body)), 10)
	if last {
		out = append(out, "\r\nConnection: close"...)
	}
	out = append(out, "\r\n\r\n"...)
	if !head {
		out = append(out, body...)
	}
	l.sent = out[:0]
	if p.ex != nil {
		p.ex.rec.Status = status
	}
	p.write(&p.c, out)
}

// deny answers a request that no rule lets pass. complete: its body is there.
// The connection goes on if what is left of the body is short enough to be
// thrown away, and certain to come.
func (p *pair) deny(in *incoming, complete bool) {
	keep := !p.ending && in.h.first.minor == 1 && !in.t.connect
	if !complete && (in.m.expect || p.reqBody.kind == bodySized && p.reqBody.left > maxDrain) {
		keep = false
	}
	p.answerSelf(403, p.ex.isHead, !keep)
	if p.closed {
		return
	}
	p.tell()
	switch {
	case !keep:
		p.end()
	case complete:
		p.request = requestHead
	default:
		p.request, p.drained = requestDrain, 0
	}
}

// drain throws away what is left of a denied request's body.
func (p *pair) drain() bool {
	c, l := &p.c, p.loop
	var b []byte
	if c.in != nil {
		b = c.in.bytes()
	} else {
		if !c.canRead {
			return false
		}
		n, res := c.recv(l.in)
		switch res {
		case ioAgain:
			return false
		case ioEnd:
			p.clientEnd()
			return true
		case ioError:
			p.fail(ReasonReset)
			return true
		}
		b = l.in[:n]
	}
	n, done, r := p.reqBody.take(b)
	p.drained += n
	if r != 0 || p.drained > maxDrain {
		if r != 0 {
			p.note(Refused, r)
		}
		p.end()
		return true
	}
	if c.in != nil {
		p.consumed(c, n)
	} else if n < len(b) {
		c.in = l.keep(b[n:])
	}
	if done {
		p.nextRequest()
	}
	return true
}

// refuse answers a request that can't be read in one way, and ends the
// connection: where its next request begins is not known either.
func (p *pair) refuse(r Reason) {
	if p.ex == nil {
		if p.clientHead != nil {
			p.begin(p.clientHead, p.c.in.bytes(), &target{})
		} else {
			p.begin(&p.loop.none, nil, &target{})
		}
	}
	rec := &p.ex.rec
	rec.Verdict, rec.Reason = Refused, r
	p.answerSelf(r.status(), p.ex.isHead, true)
	if p.closed {
		return
	}
	p.tell()
	p.end()
}

// refuseResponse deals with a response that can't be read in one way, of
// which nothing was passed on.
func (p *pair) refuseResponse(r Reason) {
	rec := &p.ex.rec
	rec.Verdict, rec.Reason, rec.Response = Refused, r, true
	if p.serverHead != nil {
		p.loop.freeHead(p.serverHead)
		p.serverHead = nil
	}
	p.loop.unwatch(&p.u, true)
	p.answerSelf(502, p.ex.isHead, true)
	if p.closed {
		return
	}
	p.tell()
	p.end()
}
