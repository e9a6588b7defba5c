package http

// headResult is what came of reading on in a head.
type headResult uint8

const (
	headWaits headResult = iota // nothing came
	headMore                    // something, and the head is not complete
	headDone
	headBad    // a reason tells why
	headEnded  // the input ended; in the head's midst if a part is kept
	headFailed // reading failed
)

// readHead reads on in the head that s sends next. kept is that head if a part
// of it was read before, which is in s.in then. The head is at the front of b;
// more may stand behind it.
func (p *pair) readHead(s *sock, kept **head, response bool) (h *head, b []byte, res headResult, r Reason) {
	l := p.loop
	h = &l.head
	if s.in != nil && *kept == nil {
		b = s.in.bytes()
	} else {
		if !s.canRead {
			return h, nil, headWaits, 0
		}
		room := l.in
		if *kept != nil {
			s.in = l.extend(s.in, maxHead)
			room = s.in.data[s.in.to:]
		}
		n, res := s.recv(room)
		switch res {
		case ioAgain:
			return h, nil, headWaits, 0
		case ioEnd:
			return h, nil, headEnded, 0
		case ioError:
			return h, nil, headFailed, 0
		}
		if b = room[:n]; *kept != nil {
			s.in.to += n
			b = s.in.bytes()
		}
	}
	if *kept != nil {
		h = *kept
	} else {
		h.reset(response)
	}
	done, r := h.parse(b)
	switch {
	case r != 0:
		return h, b, headBad, r
	case done:
		return h, b, headDone, 0
	}
	if s.in == nil {
		s.in = l.keep(b)
	}
	if *kept == nil {
		*kept = l.takeHead()
		**kept = *h
		p.headSince = l.wall
	}
	return h, b, headMore, 0
}

// headRead keeps what stands behind the n bytes of b that were dealt with.
func (p *pair) headRead(s *sock, kept **head, b []byte, n int) {
	if *kept != nil {
		p.loop.freeHead(*kept)
		*kept = nil
		p.headSince = noTime
	}
	if s.in != nil {
		p.consumed(s, n)
	} else if n < len(b) {
		s.in = p.loop.keep(b[n:])
	}
}

// flush writes what waits for s, and ends the output where that was asked for.
// clear: nothing waits any more.
func (p *pair) flush(s *sock) (moved, clear bool) {
	if s.fd < 0 {
		return false, true
	}
	for s.out != nil && s.canWrite {
		n, res := s.send(s.out.bytes())
		if res == ioError {
			p.cantWrite(s)
			return true, true
		}
		moved = moved || n > 0
		p.count(s, n)
		if s.out.from += n; s.out.from == s.out.to {
			p.loop.freeBuffer(s.out)
			s.out = nil
		}
	}
	for s.out == nil && s.piped > 0 && s.canWrite {
		n, res := splice(s.pipe.r, s.fd, s.piped)
		switch res {
		case ioDone:
			s.piped -= n
			moved = true
			p.count(s, n)
		case ioAgain:
			s.canWrite = false
		default:
			p.cantWrite(s)
			return true, true
		}
	}
	if s.pending() {
		return moved, false
	}
	if s.pipe != nil {
		p.loop.freePipe(s)
	}
	if s.fin && !s.shut {
		s.finish()
		moved = true
		if s == &p.c && p.request == requestLinger {
			p.deadline = p.loop.wall.Add(p.loop.server.times.linger)
		}
	}
	return moved, true
}

// write writes b to s, behind what waits already; what there is no room for
// waits.
func (p *pair) write(s *sock, b []byte) {
	if len(b) == 0 || s.fd < 0 || s.shut {
		return
	}
	if s.out == nil && s.piped == 0 && s.canWrite {
		n, res := s.send(b)
		if res == ioError {
			p.cantWrite(s)
			return
		}
		p.count(s, n)
		if b = b[n:]; len(b) == 0 {
			return
		}
	}
	if s.out == nil {
		s.out = p.loop.keep(b)
		return
	}
	if len(s.out.data)-s.out.to < len(b) {
		larger := p.loop.buffer(s.out.to - s.out.from + len(b))
		larger.to = copy(larger.data, s.out.bytes())
		p.loop.freeBuffer(s.out)
		s.out = larger
	}
	s.out.to += copy(s.out.data[s.out.to:], b)
}

// count adds n bytes written to s to the exchange in flight.
func (p *pair) count(s *sock, n int) {
	if p.ex == nil {
		return
	}
	if s == &p.u {
		p.ex.rec.RequestBytes += int64(n)
	} else {
		p.ex.rec.ResponseBytes += int64(n)
	}
}
