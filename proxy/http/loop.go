package http

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/weirnet/weir/policy/httprules"
	"golang.org/x/sys/unix"
)

// loop serves connections in one goroutine. Sockets are watched edge-triggered
// and registered once; what a socket is ready for is remembered in it. An idle
// connection holds no memory but its pair: input is read into memory of the
// loop, and kept for a connection only while it waits for more.
type loop struct {
	server *Server
	epoll  int
	wake   int // eventfd

	socks []*sock // by descriptor
	gen   uint32  // of the socket that was added last
	pairs []*pair
	again []*pair // had more to do than one turn allows
	turn  []*pair
	wall  time.Time // at the start of this turn
	swept time.Time

	in       []byte    // what a socket is read into
	norm     []byte    // a normalised path
	sent     []byte    // what is made to be sent
	out      [2][]byte // requests with the changes of each direction's rules
	head     head
	none     head // of no request
	msg      message
	req      httprules.Request
	changed  [2]head
	incoming incoming
	memory
	pipes []*pipe

	draining bool // connections end where a message does
	yielding bool // they are offered there

	mu       sync.Mutex
	posts    []posted
	taken    []posted
	stopping bool // guarded by mu for post; the loop sets it
	stopped  bool
}

type postKind uint8

const (
	postAdd    postKind = iota // a new pair with its client's socket
	postDialed                 // its upstream's socket, or an error
	postAbort
	postDrain
	postYield
	postAdopt // a pair with both its sockets
	postEnd
	postStop
	postPing // to hear that the loop goes round
)

// posted is something another goroutine wants done by the loop.
type posted struct {
	kind postKind
	pair *pair
	fd   int
	err  error
	pong chan<- struct{} // has room

	up    int // of postAdopt: the server's socket, fd is the client's
	input []byte
	// opening is that of an upgraded connection.
	opening []byte
}

func newLoop(s *Server) (*loop, error) {
	l := &loop{
		server: s, epoll: -1, wake: -1,
		in:   make([]byte, maxHead),
		norm: make([]byte, 0, maxTarget+16),
		wall: time.Now(),
	}
	for i := range l.out {
		l.out[i] = make([]byte, 0, 4096)
	}
	var err error
	if l.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("epoll_create1: %w", err)
	}
	if l.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		l.free()
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(l.wake)}
	if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, l.wake, &ev); err != nil {
		l.free()
		return nil, fmt.Errorf("watch eventfd: %w", err)
	}
	return l, nil
}

// free closes what newLoop opened. No connection is left by then.
func (l *loop) free() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, fd := range []int{l.wake, l.epoll} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
	l.wake, l.epoll = -1, -1
	for _, p := range l.pipes {
		p.close()
	}
	l.pipes, l.stopped = nil, true
}

// post hands p to the loop. It fails once the loop takes nothing any more.
func (l *loop) post(p posted) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped || l.stopping && (p.kind == postAdd || p.kind == postAdopt) {
		return false
	}
	l.posts = append(l.posts, p)
	if len(l.posts) == 1 {
		_, _ = unix.Write(l.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	}
	return true
}

// run is the loop.
func (l *loop) run() error {
	events := make([]unix.EpollEvent, 256)
	for {
		n, err := unix.EpollWait(l.epoll, events, l.patience())
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("epoll_wait: %w", err)
		}
		l.wall = time.Now()
		posts := false
		for i := range max(n, 0) {
			ev := &events[i]
			if ev.Fd == int32(l.wake) {
				posts = true
				continue
			}
			// An event of a socket that was closed meanwhile, and whose number
			// perhaps is another one's now, is not for us.
			if s := l.socks[ev.Fd]; s != nil && s.gen == uint32(ev.Pad) {
				s.event(ev.Events)
				s.pair.run()
			}
		}
		if posts {
			l.takePosts()
		}
		l.turn, l.again = l.again, l.turn[:0]
		for _, p := range l.turn {
			p.queued = false
			p.run()
		}
		if l.wall.Sub(l.swept) >= l.server.times.sweep {
			l.sweep()
		}
		if l.over() {
			return nil
		}
	}
}

// patience is how long to wait for events, in milliseconds.
func (l *loop) patience() int {
	switch {
	case len(l.again) > 0:
		return 0
	case len(l.pairs) > 0:
		return int(l.server.times.sweep / time.Millisecond)
	}
	return -1
}

func (l *loop) takePosts() {
	var counter [8]byte
	l.mu.Lock()
	_, _ = unix.Read(l.wake, counter[:])
	l.posts, l.taken = l.taken[:0], l.posts
	l.mu.Unlock()
	for i := range l.taken {
		post := &l.taken[i]
		switch post.kind {
		case postAdd:
			l.add(post.pair, post.fd)
		case postDialed:
			post.pair.dialed(post.fd, post.err)
		case postAbort:
			post.pair.fail(ReasonAborted)
		case postDrain:
			l.draining = true
			for _, p := range slices.Clone(l.pairs) {
				p.leave(l.wall)
			}
		case postYield:
			l.draining, l.yielding = false, true
			for _, p := range slices.Clone(l.pairs) {
				p.offer()
			}
		case postAdopt:
			l.adopt(post.pair, post.fd, post.up, post.input, post.opening)
		case postEnd:
			post.pair.last = true
			post.pair.leave(l.wall)
		case postPing:
			post.pong <- struct{}{}
		case postStop:
			l.mu.Lock()
			l.stopping = true
			l.mu.Unlock()
			for _, p := range slices.Clone(l.pairs) {
				p.handle.cancel()
				p.fail(ReasonAborted)
			}
		}
		*post = posted{}
	}
}

// over tells, and lets no one post any more, when the loop was asked to stop
// and nothing is left to do.
func (l *loop) over() bool {
	if len(l.pairs) > 0 {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.stopping || len(l.posts) > 0 {
		return false
	}
	l.stopped = true
	return true
}

func (l *loop) add(p *pair, fd int) {
	p.index = len(l.pairs)
	l.pairs = append(l.pairs, p)
	p.active = l.wall
	if err := l.watch(&p.c, fd); err != nil {
		closeReset(fd)
		p.c.fd = -1
		p.fail(ReasonMemory)
		return
	}
	p.run()
}

// remove forgets a pair whose sockets are closed.
func (l *loop) remove(p *pair) {
	last := len(l.pairs) - 1
	moved := l.pairs[last]
	l.pairs[p.index], moved.index = moved, p.index
	l.pairs[last] = nil
	l.pairs = l.pairs[:last]
}

// watch begins to serve fd as s.
func (l *loop) watch(s *sock, fd int) error {
	l.gen++
	s.fd, s.gen, s.canWrite = fd, l.gen, true
	ev := unix.EpollEvent{
		Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET&0xffffffff,
		Fd:     int32(fd), Pad: int32(s.gen),
	}
	if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		return fmt.Errorf("epoll_ctl: %w", err)
	}
	for len(l.socks) <= fd {
		l.socks = append(l.socks, nil)
	}
	l.socks[fd] = s
	return nil
}

// unwatch closes the socket; the kernel forgets to watch it.
func (l *loop) unwatch(s *sock, reset bool) {
	if s.fd < 0 {
		return
	}
	l.socks[s.fd] = nil
	l.release(s)
	if reset {
		closeReset(s.fd)
	} else {
		_ = unix.Close(s.fd)
	}
	s.fd = -1
}

// sweep looks at timeouts.
func (l *loop) sweep() {
	l.swept = l.wall
	for i := len(l.pairs) - 1; i >= 0; i-- {
		if i < len(l.pairs) { // ending one may end others: none today
			l.pairs[i].sweep(l.wall)
		}
	}
}
