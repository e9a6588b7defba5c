package http

import (
	"errors"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sock is one side of a pair. What it is ready for is known from events and
// from calls that fell short.
type sock struct {
	fd   int
	gen  uint32
	pair *pair

	canRead, canWrite bool
	hup               bool // the end of input was seen to come: read until it is there
	failed            bool // an error is to be fetched by reading
	eof               bool // the end of input was read
	fin               bool // output is to end once all is written
	shut              bool // it has ended

	in    *buffer // read, not dealt with
	out   *buffer // to be written
	pipe  *pipe   // moves bytes to this socket; what is in it comes behind out
	piped int
}

func (s *sock) event(ev uint32) {
	if ev&(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		s.canRead = true
	}
	if ev&(unix.EPOLLOUT|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		s.canWrite = true
	}
	if ev&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		s.hup = true
	}
	if ev&unix.EPOLLERR != 0 {
		s.failed = true
	}
}

// pending tells whether something waits to be written.
func (s *sock) pending() bool { return s.out != nil || s.piped > 0 }

type ioResult uint8

const (
	ioDone ioResult = iota
	ioAgain
	ioEnd
	ioError
)

// recv reads into b. The calls below never block, so the scheduler need not
// know of them.
func (s *sock) recv(b []byte) (int, ioResult) {
	for {
		n, _, errno := syscall.RawSyscall6(unix.SYS_RECVFROM, uintptr(s.fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), 0, 0, 0)
		switch {
		case errno == 0 && n == 0:
			s.canRead, s.eof = false, true
			return 0, ioEnd
		case errno == 0:
			// A short read emptied the socket; what comes then is an event.
			if int(n) < len(b) && !s.hup {
				s.canRead = false
			}
			return int(n), ioDone
		case errno == unix.EINTR:
		case errno == unix.EAGAIN:
			s.canRead = false
			return 0, ioAgain
		default:
			s.canRead, s.failed = false, true
			return 0, ioError
		}
	}
}

// send writes as much of b as there is room for.
func (s *sock) send(b []byte) (int, ioResult) {
	for {
		n, _, errno := syscall.RawSyscall6(unix.SYS_SENDTO, uintptr(s.fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), unix.MSG_NOSIGNAL, 0, 0)
		switch {
		case errno == 0 && int(n) < len(b):
			s.canWrite = false
			return int(n), ioAgain
		case errno == 0:
			return int(n), ioDone
		case errno == unix.EINTR:
		case errno == unix.EAGAIN:
			s.canWrite = false
			return 0, ioAgain
		default:
			s.canWrite = false
			return 0, ioError
		}
	}
}

// splice moves up to n bytes between a socket and a pipe.
func splice(from, to, n int) (int, ioResult) {
	for {
		n, _, errno := syscall.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(n), unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		switch {
		case errno == 0 && n == 0:
			return 0, ioEnd
		case errno == 0:
			return int(n), ioDone
		case errno == unix.EINTR:
		case errno == unix.EAGAIN:
			return 0, ioAgain
		default:
			return 0, ioError
		}
	}
}

// finish ends output, once; what was written goes out before.
func (s *sock) finish() {
	if !s.shut && s.fd >= 0 {
		s.shut = true
		_ = unix.Shutdown(s.fd, unix.SHUT_WR)
	}
}

func dup(fd int) (int, error) { return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0) }

// closeReset closes fd so that the peer is told by a RST.
func closeReset(fd int) {
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	_ = unix.Close(fd)
}

// pipe is what splice(2) needs between two sockets.
type pipe struct{ r, w int }

const (
	// pipeSize is how much a pipe holds: enough that a large body needs few
	// calls, and little enough that the 64 MiB an unprivileged user may have
	// in pipes are a hundred of them.
	pipeSize = 512 << 10
	// smallestPipe is the least that is worth its calls. Whoever has too many
	// gets pipes of two pages.
	smallestPipe = 64 << 10
)

func newPipe() (*pipe, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, err
	}
	p := &pipe{r: fds[0], w: fds[1]}
	if _, err := unix.FcntlInt(uintptr(p.r), unix.F_SETPIPE_SZ, pipeSize); err != nil {
		if n, err := unix.FcntlInt(uintptr(p.r), unix.F_GETPIPE_SZ, 0); err != nil || n < smallestPipe {
			p.close()
			return nil, errors.New("too many pipes")
		}
	}
	return p, nil
}

func (p *pipe) close() {
	_ = unix.Close(p.r)
	_ = unix.Close(p.w)
}
