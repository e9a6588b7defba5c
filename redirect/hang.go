package redirect

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A proxy that hangs keeps its sockets, so nothing else tells: it is asked all
// the time. Killing one ends its connections, so that one answer is late is not
// enough.
const (
	pingEvery   = time.Second
	pingTimeout = 2 * time.Second
	pingMisses  = 2
	// greetTimeout is how long a proxy may take to say who it is; a launcher
	// starts one within longestWait.
	greetTimeout = longestWait + 2*time.Second
	// killTimeout is how long the kernel may take to end a process.
	killTimeout = 5 * time.Second
)

// guard asks the proxy of s whether it is well, until s ends, and ends a proxy
// that does not answer.
func (m *Manager) guard(ctx context.Context, s *session) {
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	for missed := 0; missed < pingMisses; {
		select {
		case <-ctx.Done():
			return
		case <-s.done:
			return
		case <-tick.C:
		}
		leaving := s.status.Load().GetDraining()
		answer, err := s.ask(ctx, pingTimeout)
		if answer.GetDraining() != leaving {
			m.rouse()
		}
		if ctx.Err() != nil || s.ended() || status.Code(err) == codes.Unavailable {
			return
		}
		if missed++; err == nil {
			missed = 0
		}
	}
	m.log.Error("the proxy hangs", "generation", s.generation)
	m.endHanging(s.place)
	s.close() // where it could not be ended, the next preface tells
}

// endHanging kills the proxy that has a place; where there is none, its
// launcher, which then should have started one.
func (m *Manager) endHanging(p place) {
	h, err := readHolders(p)
	killed := 0
	for _, pid := range []int{h.child, h.launcher} {
		if err != nil || killed != 0 {
			break
		}
		var did bool
		if did, err = h.kill(pid); did {
			killed = pid
		}
	}
	if err != nil || killed == 0 {
		m.log.Error("could not end a proxy that hangs", "place", p.n, "error", err)
		return
	}
	m.log.Error("killed what hangs", "place", p.n, "pid", killed, "launcher", killed == h.launcher)
}

// hangs tells whether an error on the way to a wired proxy means that nobody
// answers, though there is a process.
func hangs(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, unix.EAGAIN)
}

// holders are the processes that say they have a place, as its lock file names
// them. 0: none.
type holders struct {
	lock            os.FileInfo
	launcher, child int
}

// holdersFormat has one width, so that a later write covers the one before.
const holdersFormat = "%-20d %-20d\n"

func writeHolders(lock *os.File, launcher, child int) error {
	_, err := lock.WriteAt(fmt.Appendf(nil, holdersFormat, launcher, child), 0)
	return err
}

// launcher is who says it is the place's launcher; 0: unknown.
func (p place) launcher() int {
	h, err := readHolders(p)
	if err != nil {
		return 0
	}
	return h.launcher
}

func readHolders(p place) (h holders, err error) {
	f, err := os.Open(p.lock())
	if errors.Is(err, os.ErrNotExist) {
		return h, nil
	}
	if err != nil {
		return h, fmt.Errorf("who is the proxy: %w", err)
	}
	defer f.Close()
	if h.lock, err = f.Stat(); err != nil {
		return h, fmt.Errorf("who is the proxy: %w", err)
	}
	// One that is just being started has not written all of it yet.
	_, _ = fmt.Fscan(f, &h.launcher, &h.child)
	return h, nil
}

// kill ends a process that has the lock file open, and returns when it is
// gone. Any other that has its number by now is let live: false.
func (h holders) kill(pid int) (bool, error) {
	p, err := h.pin(pid)
	if err != nil || p == nil {
		return false, err
	}
	defer p.release()
	if err := unix.PidfdSendSignal(p.fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return false, fmt.Errorf("kill process %d: %w", pid, err)
	}
	return true, p.wait(killTimeout)
}

// pinned is a process, and no other that gets its number later.
type pinned struct{ pid, fd int }

// pin finds a process that has the lock file open; nil: it has not, or is gone.
func (h holders) pin(pid int) (*pinned, error) {
	if pid <= 0 || h.lock == nil {
		return nil, nil
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find process %d: %w", pid, err)
	}
	p := &pinned{pid, fd}
	// After the number is pinned: what is looked at is what is killed, or the
	// signal goes nowhere.
	if holds, err := h.open(pid); err != nil || !holds {
		p.release()
		return nil, err
	}
	return p, nil
}

func (p *pinned) release() { _ = unix.Close(p.fd) } // nothing was written

// wait returns when the process is gone.
func (p *pinned) wait(limit time.Duration) error {
	poll := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}
	for end := time.Now().Add(limit); ; {
		left := time.Until(end)
		n, err := unix.Poll(poll, int(max(left, 0).Milliseconds()))
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for the end of process %d: %w", p.pid, err)
		}
		if left <= 0 {
			return fmt.Errorf("process %d does not end", p.pid)
		}
	}
}

// open tells whether a process has the lock file open. One that has ended has
// nothing open.
func (h holders) open(pid int) (bool, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	f, err := os.Open(dir)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at process %d: %w", pid, err)
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
		return false, fmt.Errorf("look at process %d: %w", pid, err)
	}
	return slices.ContainsFunc(names, func(name string) bool {
		st, err := os.Stat(filepath.Join(dir, name)) // fails if it was closed just now
		return err == nil && os.SameFile(st, h.lock)
	}), nil
}
