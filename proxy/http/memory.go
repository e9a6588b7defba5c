package http

// buffer holds bytes of one connection: data[from:to].
type buffer struct {
	data     []byte
	from, to int
}

func (b *buffer) bytes() []byte { return b.data[b.from:b.to] }

// memory is what a loop keeps for its connections to borrow.
type memory struct {
	buffers   [bufferClasses][]*buffer
	heads     []*head
	exchanges []*exchange
	openings  int // bytes of all exchanges' opening
}

// Buffers come in sizes of 4, 16 and 64 KiB, and larger ones that are not
// kept.
const (
	bufferClasses  = 3
	smallestBuffer = 4 << 10
	// At most this much of each size is kept for later.
	keptBytes     = 1 << 20
	keptHeads     = 64
	keptExchanges = 1024
)

func bufferClass(n int) int {
	size := smallestBuffer
	for i := range bufferClasses {
		if n <= size {
			return i
		}
		size *= 4
	}
	return bufferClasses
}

// buffer returns one with room for n bytes.
func (m *memory) buffer(n int) *buffer {
	class := bufferClass(n)
	if class == bufferClasses {
		return &buffer{data: make([]byte, n)}
	}
	if k := len(m.buffers[class]); k > 0 {
		b := m.buffers[class][k-1]
		m.buffers[class] = m.buffers[class][:k-1]
		return b
	}
	return &buffer{data: make([]byte, smallestBuffer<<(2*class))}
}

func (m *memory) freeBuffer(b *buffer) {
	b.from, b.to = 0, 0
	class := bufferClass(len(b.data))
	if class < bufferClasses && len(m.buffers[class])*len(b.data) < keptBytes {
		m.buffers[class] = append(m.buffers[class], b)
	}
}

// keep returns a buffer with a copy of b.
func (m *memory) keep(b []byte) *buffer {
	k := m.buffer(len(b))
	k.to = copy(k.data, b)
	return k
}

// extend returns b with room for more behind its bytes, up to a total of max.
// It may be another buffer; b is gone then.
func (m *memory) extend(b *buffer, max int) *buffer {
	if b.to < len(b.data) {
		return b
	}
	n := b.to - b.from
	if b.from > 0 && n <= len(b.data)/2 {
		copy(b.data, b.bytes())
		b.from, b.to = 0, n
		return b
	}
	larger := m.buffer(min(max, 4*len(b.data)))
	larger.to = copy(larger.data, b.bytes())
	m.freeBuffer(b)
	return larger
}

func (m *memory) takeHead() *head {
	if k := len(m.heads); k > 0 {
		h := m.heads[k-1]
		m.heads = m.heads[:k-1]
		return h
	}
	return new(head)
}

func (m *memory) freeHead(h *head) {
	if len(m.heads) < keptHeads {
		m.heads = append(m.heads, h)
	}
}

func (m *memory) takeExchange() *exchange {
	if k := len(m.exchanges); k > 0 {
		ex := m.exchanges[k-1]
		m.exchanges = m.exchanges[:k-1]
		return ex
	}
	return new(exchange)
}

// keepOpening copies the head of a request that may become a tunnel, where
// there is room for it.
func (m *memory) keepOpening(ex *exchange, head []byte) {
	if len(head) <= maxOpening && m.openings+len(head) <= maxOpenings {
		ex.opening = append(make([]byte, 0, len(head)), head...)
		m.openings += len(head)
	}
}

func (m *memory) freeExchange(ex *exchange) {
	m.openings -= len(ex.opening)
	ex.opening, ex.rules = nil, Rules{}
	if len(m.exchanges) < keptExchanges && cap(ex.text) <= 4<<10 {
		m.exchanges = append(m.exchanges, ex)
	}
}

// release gives back what a socket had borrowed.
func (l *loop) release(s *sock) {
	if s.in != nil {
		l.freeBuffer(s.in)
		s.in = nil
	}
	l.dropOutput(s)
}

// dropOutput forgets what waits to be written to a socket.
func (l *loop) dropOutput(s *sock) {
	if s.out != nil {
		l.freeBuffer(s.out)
		s.out = nil
	}
	if s.pipe != nil {
		l.freePipe(s)
	}
}

// keptPipes is how many empty pipes are kept for later.
const keptPipes = 16

func (l *loop) takePipe(s *sock) bool {
	if s.pipe != nil {
		return true
	}
	if k := len(l.pipes); k > 0 {
		s.pipe, l.pipes = l.pipes[k-1], l.pipes[:k-1]
		return true
	}
	p, err := newPipe()
	s.pipe = p
	return err == nil
}

// freePipe takes the pipe of a socket back; one with bytes in it is closed.
func (l *loop) freePipe(s *sock) {
	if s.piped == 0 && len(l.pipes) < keptPipes {
		l.pipes = append(l.pipes, s.pipe)
	} else {
		s.pipe.close()
	}
	s.pipe, s.piped = nil, 0
}
