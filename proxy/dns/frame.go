package dns

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"slices"
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
	whole := false
	for missing := in.missing(); missing > 0; missing = in.missing() {
		// What comes in small pieces is not copied for each.
		in.rest = slices.Grow(in.rest, min(missing, growRest))
		end := len(in.rest)
		n, errno := receive(fd, in.rest[end:min(cap(in.rest), end+missing)])
		switch {
		case errno == unix.EAGAIN:
			return false
		case errno != 0 || n == 0:
			in.scratch, in.n, in.errno = in.memory.take(), 0, errno
			return true
		}
		in.rest, whole = in.rest[:end+n], true
	}
	sc := in.memory.take()
	in.scratch, in.n, in.errno = sc, copy(sc.in[:], in.rest), 0
	if whole {
		return true // more may not be there
	}
	n, errno := receive(fd, sc.in[in.n:])
	switch {
	case errno == unix.EAGAIN:
		in.scratch = nil
		in.memory.release(sc)
		return false
	case errno != 0 || n == 0:
		in.n, in.errno = 0, errno
	default:
		in.n += n
	}
	return true
}

// missing is how much of the message that the rest begins is still to come; 0
// where that is not known.
func (in *input) missing() int {
	if len(in.rest) < lengthSize {
		return 0
	}
	return lengthSize + int(binary.BigEndian.Uint16(in.rest)) - len(in.rest)
}

// growRest bounds how much memory is taken for what has not come yet.
const growRest = 1 << 10

// receive reads what is there, without waiting.
func receive(fd uintptr, b []byte) (int, syscall.Errno) {
	for {
		n, _, errno := syscall.RawSyscall6(unix.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MSG_DONTWAIT, 0, 0)
		if errno != unix.EINTR {
			return int(n), errno
		}
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
