package dns

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// lengthSize is what comes before each message of a connection.
const lengthSize = 2

// scratch is what is needed while input is dealt with. A connection on which
// nothing comes has none.
type scratch struct {
	in     [lengthSize + maxMessage]byte
	out    [lengthSize + maxReply]byte
	q      question
	a      answer
	record Record
}

// pool keeps what nobody uses for later, up to a bound.
type pool[T any] struct {
	mu   sync.Mutex
	free []*T
	kept int
}

func (p *pool[T]) take() *T {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := len(p.free)
	if k == 0 {
		return new(T)
	}
	t := p.free[k-1]
	p.free = p.free[:k-1]
	return t
}

func (p *pool[T]) release(t *T) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.free) < p.kept {
		p.free = append(p.free, t)
	}
}

// input reads from a connection. It holds no memory while it waits, but the
// beginning of a message.
type input struct {
	memory *pool[scratch]
	raw    syscall.RawConn
	rest   []byte
	began  time.Time // of the rest; zero: there is none

	scratch *scratch
	n       int
	errno   syscall.Errno
	ready   func(fd uintptr) bool
}

func (in *input) open(c *net.TCPConn) (err error) {
	in.raw, err = c.SyscallConn()
	in.ready = in.receive
	return err
}

// receive reads what is there behind the rest.
func (in *input) receive(fd uintptr) bool {
	sc := in.memory.take()
	kept := copy(sc.in[:], in.rest)
	for {
		n, _, errno := syscall.RawSyscall6(unix.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&sc.in[kept])), uintptr(len(sc.in)-kept), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			in.memory.release(sc)
			return false
		case 0:
			in.scratch, in.n, in.errno = sc, kept+int(n), 0
			if n == 0 {
				in.n = 0
			}
			return true
		}
		in.scratch, in.n, in.errno = sc, 0, errno
		return true
	}
}

// next waits for input and returns it, the rest first. keep must be called
// behind it, unless it fails.
func (in *input) next() (sc *scratch, b []byte, err error) {
	if err := in.raw.Read(in.ready); err != nil {
		return nil, nil, err
	}
	sc, in.scratch = in.scratch, nil
	switch {
	case in.errno != 0:
		in.memory.release(sc)
		return nil, nil, in.errno
	case in.n == 0:
		in.memory.release(sc)
		return nil, nil, io.EOF
	}
	return sc, sc.in[:in.n], nil
}

// keep keeps what begins a message for the next time; dealt: the message before
// it is over.
func (in *input) keep(sc *scratch, rest []byte, dealt bool) {
	switch {
	case len(rest) == 0:
		in.began = time.Time{}
	case dealt || in.began.IsZero():
		in.began = time.Now()
	}
	if in.rest = append(in.rest[:0], rest...); len(rest) == 0 && cap(in.rest) > keptRest {
		in.rest = nil
	}
	in.memory.release(sc)
}

// keptRest bounds the memory that is kept for the next beginning.
const keptRest = 4 << 10

// frame cuts the first message off; nil: it is not whole yet. size is what it
// takes with its length.
func frame(b []byte) (m []byte, size int) {
	if len(b) < lengthSize {
		return nil, 0
	}
	size = lengthSize + int(binary.BigEndian.Uint16(b))
	if len(b) < size {
		return nil, 0
	}
	return b[lengthSize:size:size], size
}

// serve reads one side of a connection until it ends, and has what was read
// dealt with: take returns how much of it there was to take. deadline is asked
// before each read, and whether the one before has run out of time.
func (p *stream) serve(in *input, take func(*scratch, []byte) (int, error), deadline func(began time.Time, timedOut bool) error) error {
	timedOut := false
	for {
		if err := deadline(in.began, timedOut); err != nil {
			return err
		}
		sc, b, err := in.next()
		if timedOut = errors.Is(err, os.ErrDeadlineExceeded); timedOut {
			continue
		}
		if err != nil {
			return err
		}
		n, err := take(sc, b)
		in.keep(sc, b[n:], n > 0)
		if err != nil {
			return err
		}
	}
}
