package redirect

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
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
	// began is when each of them did, as the lock file says: whoever else has the
	// number by now began later. None: a launcher of another version wrote it.
	began map[int]uint64
}

// holdersFormat has one width, so that a later write covers the one before:
// launcher and child, and when they began.
const holdersFormat = "%-20d %-20d %-20d %-20d\n"

func writeHolders(lock *os.File, launcher, child int) error {
	var began [2]uint64
	for i, pid := range []int{launcher, child} {
		if pid == 0 {
			continue
		}
		var err error
		if began[i], err = beginning(pid); err != nil {
			return err
		}
	}
	_, err := lock.WriteAt(fmt.Appendf(nil, holdersFormat, launcher, child, began[0], began[1]), 0)
	return err
}

// beginning is when a process began, in clock ticks since the machine did: field
// 22 of /proc/PID/stat (proc(5)), which everybody may read.
func beginning(pid int) (uint64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("when did process %d begin: %w", pid, err)
	}
	// The name may hold anything.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 20 {
		return 0, fmt.Errorf("when did process %d begin: %q", pid, text)
	}
	began, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("when did process %d begin: %w", pid, err)
	}
	return began, nil
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
	var began [2]uint64
	_, _ = fmt.Fscan(f, &h.launcher, &h.child, &began[0], &began[1])
	h.began = map[int]uint64{h.launcher: began[0], h.child: began[1]}
	return h, nil
}

// kill ends a process that holds the place, and returns when it is gone. Any
// other that has its number by now is let live: false.
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

// pin finds a process that holds the place; nil: it does not, or is gone.
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
	if holds, err := h.holds(pid); err != nil || !holds {
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

// holds tells whether a process is who the lock file says: one that has it open,
// or, where that is not for this process to see (in a pod, of processes with other
// rights than its own), one that began when the file says.
func (h holders) holds(pid int) (bool, error) {
	has, err := h.open(pid)
	said := h.began[pid]
	if said == 0 || !errors.Is(err, os.ErrPermission) {
		return has, err
	}
	began, err := beginning(pid)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return false, nil
	}
	return began == said, err
}

// open tells whether a process has the lock file open. One that has ended has
// nothing open.
func (h holders) open(pid int) (bool, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	names, err := readNames(dir)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at process %d: %w", pid, err)
	}
	var denied error
	for _, name := range names {
		st, err := os.Stat(filepath.Join(dir, name)) // fails if it was closed just now
		if err == nil && os.SameFile(st, h.lock) {
			return true, nil
		}
		if errors.Is(err, os.ErrPermission) {
			denied = fmt.Errorf("look at process %d: %w", pid, err)
		}
	}
	return false, denied
}

// readNames returns the names in a directory, in any order.
func readNames(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}
