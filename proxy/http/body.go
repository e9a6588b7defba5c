package http

// body is what is left of a message's body while it is relayed.
type body struct {
	kind   bodyKind
	left   int64 // of a bodySized one
	chunks chunked
}

func (b *body) begin(m *message) {
	b.kind, b.left = m.body, m.length
	if b.kind == bodyChunked {
		b.chunks = chunked{}
	}
}

// take tells how much of what was read belongs to the body, and whether it
// ends there.
func (b *body) take(in []byte) (n int, done bool, r Reason) {
	switch b.kind {
	case bodySized:
		n = len(in)
		if int64(n) > b.left {
			n = int(b.left)
		}
		b.left -= int64(n)
		return n, b.left == 0, 0
	case bodyChunked:
		return b.chunks.next(in)
	case bodyToEnd:
		return len(in), false, 0
	}
	return 0, true, 0
}

// plain is how many bytes are sure to come before any that must be read.
func (b *body) plain() int64 {
	switch b.kind {
	case bodySized:
		return b.left
	case bodyChunked:
		if b.chunks.state == chunkData {
			return b.chunks.size
		}
	}
	return 0
}

// pass notes that n of the plain bytes went by.
func (b *body) pass(n int) (done bool) {
	switch b.kind {
	case bodySized:
		b.left -= int64(n)
		return b.left == 0
	case bodyChunked:
		if b.chunks.size -= int64(n); b.chunks.size == 0 {
			b.chunks.state = chunkDataCR
		}
	}
	return false
}

// spliceMin is from what length on bytes are moved by splice(2): for less,
// reading and writing them is cheaper than two more calls.
const spliceMin = 128 << 10

// moved is what came of moving a part of a body.
type moved uint8

const (
	movedNothing moved = iota
	movedSome
	movedAll // the body ended
	movedEnd // the input ended, before the body unless that goes to the end
	movedBad // the body is not what it should be; reason tells
	movedError
)

// move relays a part of a body from one side to the other.
func (p *pair) move(from, to *sock, b *body) (moved, Reason) {
	did, clear := p.flush(to)
	if p.closed {
		return movedSome, 0
	}
	if !clear {
		if did {
			return movedSome, 0
		}
		return movedNothing, 0
	}
	l := p.loop
	if from.in != nil {
		in := from.in.bytes()
		n, done, r := b.take(in)
		if r != 0 {
			return movedBad, r
		}
		p.write(to, in[:n])
		p.consumed(from, n)
		if done {
			return movedAll, 0
		}
		return movedSome, 0
	}
	if !from.canRead {
		if did {
			return movedSome, 0
		}
		return movedNothing, 0
	}
	plain := b.plain()
	if plain >= spliceMin && l.takePipe(to) {
		return p.spliceBody(from, to, b, plain)
	}
	room := l.in
	if b.kind == bodySized && plain < int64(len(room)) {
		room = room[:plain] // what comes behind stays in the socket
	}
	k, res := from.recv(room)
	switch res {
	case ioAgain:
		if did {
			return movedSome, 0
		}
		return movedNothing, 0
	case ioEnd:
		return movedEnd, 0
	case ioError:
		return movedError, 0
	}
	n, done, r := b.take(room[:k])
	if r != 0 {
		return movedBad, r
	}
	p.write(to, room[:n])
	if n < k && !p.closed {
		from.in = l.keep(room[n:k])
	}
	if done {
		return movedAll, 0
	}
	return movedSome, 0
}

// spliceBody moves up to plain bytes without looking at them.
func (p *pair) spliceBody(from, to *sock, b *body, plain int64) (moved, Reason) {
	n, res := splice(from.fd, to.pipe.w, int(min(plain, pipeSize)))
	switch res {
	case ioAgain:
		from.canRead = false
		p.loop.freePipe(to)
		return movedNothing, 0
	case ioEnd:
		from.canRead, from.eof = false, true
		return movedEnd, 0
	case ioError:
		return movedError, 0
	}
	to.piped += n
	done := b.pass(n)
	p.flush(to)
	if p.closed {
		return movedSome, 0
	}
	if done {
		return movedAll, 0
	}
	return movedSome, 0
}

// consumed drops n bytes from the front of what was read from s.
func (p *pair) consumed(s *sock, n int) {
	if s.in == nil {
		return
	}
	if s.in.from += n; s.in.from == s.in.to {
		p.loop.freeBuffer(s.in)
		s.in = nil
	}
}
