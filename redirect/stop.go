package redirect

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/proxy/control"
)

// Remove ends the state's proxy, where one runs, and removes everything of it
// from the node: its interfaces, sockets, logs and checkpoints. Connections get
// drain to end. For uninstalling; no agent may be running.
func Remove(ctx context.Context, state, runDir string, drain time.Duration) error {
	var failed error
	if err := stopRunning(ctx, runDir, drain); err != nil {
		failed = err
	}
	failed = errors.Join(failed, removeVeths(state))
	for _, name := range []string{
		socketName, socketName + ".new", lockName, logName, logName + ".1", emptyName,
		control.MapCheckpoint0, control.MapCheckpoint1,
	} {
		if err := os.Remove(filepath.Join(runDir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			failed = errors.Join(failed, fmt.Errorf("remove the proxy's files: %w", err))
		}
	}
	return failed
}

// stopRunning ends the proxy and returns when it and its launcher are gone. They
// are killed if they can't be asked, or don't go.
func stopRunning(ctx context.Context, runDir string, drain time.Duration) error {
	err := askToEnd(ctx, runDir, drain)
	if err == nil || ctx.Err() != nil {
		return err
	}
	h, readErr := readHolders(runDir)
	if readErr != nil {
		return errors.Join(err, readErr)
	}
	// The launcher first: it would start another.
	for _, pid := range []int{h.launcher, h.child} {
		if _, killErr := h.kill(pid); killErr != nil {
			return errors.Join(err, killErr)
		}
	}
	if waitErr := waitUnlocked(ctx, runDir, time.Second); waitErr != nil {
		return errors.Join(err, waitErr)
	}
	return nil
}

// How long a proxy may take to hear that it is to go, and, beyond the drain, to
// do so.
const (
	askTimeout = 3 * time.Second
	endTimeout = 5 * time.Second
)

// askToEnd tells the proxy to go, and returns when it and its launcher are gone.
func askToEnd(ctx context.Context, runDir string, drain time.Duration) error {
	limited, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	s, err := dial(limited, runDir, askTimeout)
	if err == nil {
		err = s.stop(&control.Wiring{Stop: true, Drain: int64(drain)})
		s.close()
	} else if nobodyListens(err) {
		err = nil
	}
	if err != nil {
		return err
	}
	return waitUnlocked(ctx, runDir, drain+endTimeout)
}

// waitUnlocked waits until nobody holds the run directory: the proxy and its
// launcher hold the lock until both are gone.
func waitUnlocked(ctx context.Context, runDir string, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	f, err := os.Open(filepath.Join(runDir, lockName))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("wait for the proxy's end: %w", err)
	}
	defer f.Close()
	for unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the proxy's end: %w", ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil
}

// stop asks for the proxy's end, which it has agreed to on return.
func (s *session) stop(wiring *control.Wiring) error {
	if err := control.Send(s.conn, wiring); err != nil {
		return err
	}
	none, err := control.Receive(s.conn, &control.Wired{})
	control.Close(none)
	if err != nil && !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}
