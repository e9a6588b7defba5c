package dns

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// loop waits for sockets and calls what serves them, in one goroutine.
type loop struct {
	epoll int
	wake  int       // eventfd
	socks []*sock   // by descriptor
	gen   uint32    // of the socket that was added last
	now   time.Time // at the start of this turn

	mu       sync.Mutex
	posts    []func()
	taken    []func()
	stopping bool
}

// sock is a socket of a loop. Ready is called while something can be read.
type sock struct {
	fd    int
	gen   uint32
	ready func(events uint32)
	up    *upstream // that it is; nil: it is none

	// What is to be sent: a chain in sender.
	first, last int32
	queued      int
}

func newLoop() (*loop, error) {
	l := &loop{epoll: -1, wake: -1, now: time.Now()}
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

// free closes what newLoop opened. No socket is left by then.
func (l *loop) free() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, fd := range []int{l.wake, l.epoll} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
	l.wake, l.epoll, l.stopping = -1, -1, true
}

// post has f called by the loop, unless that is about to stop. Anybody may
// call it.
func (l *loop) post(f func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopping {
		return false
	}
	l.posts = append(l.posts, f)
	if len(l.posts) == 1 {
		_, _ = unix.Write(l.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	}
	return true
}

// stop makes run end behind what was posted before.
func (l *loop) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stopping = true
	if l.wake >= 0 {
		_, _ = unix.Write(l.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	}
}

// run waits and serves until stop. turn is called at the end of each turn, and
// tells how long to wait for the next, in milliseconds; negative: for ever.
func (l *loop) run(turn func() (patience int)) error {
	events := make([]unix.EpollEvent, 256)
	for {
		n, err := unix.EpollWait(l.epoll, events, turn())
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("epoll_wait: %w", err)
		}
		l.now = time.Now()
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
				s.ready(ev.Events)
			}
		}
		if posts && l.takePosts() {
			return nil
		}
	}
}

// takePosts does what was posted, and tells whether it was the last.
func (l *loop) takePosts() (stop bool) {
	var counter [8]byte
	l.mu.Lock()
	_, _ = unix.Read(l.wake, counter[:])
	l.posts, l.taken = l.taken[:0], l.posts
	stop = l.stopping
	l.mu.Unlock()
	for i, f := range l.taken {
		f()
		l.taken[i] = nil
	}
	return stop
}

// watch has s.ready called from now on.
func (l *loop) watch(s *sock) error {
	l.gen++
	s.gen, s.first, s.last = l.gen, -1, -1
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(s.fd), Pad: int32(s.gen)}
	if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, s.fd, &ev); err != nil {
		return fmt.Errorf("epoll_ctl: %w", err)
	}
	for len(l.socks) <= s.fd {
		l.socks = append(l.socks, nil)
	}
	l.socks[s.fd] = s
	return nil
}

// close closes a socket; the kernel forgets to watch it.
func (l *loop) close(s *sock) {
	if s.fd < 0 {
		return
	}
	if s.fd < len(l.socks) && l.socks[s.fd] == s {
		l.socks[s.fd] = nil
	}
	_ = unix.Close(s.fd)
	s.fd = -1
}
