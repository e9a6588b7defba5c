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
// from the node: its interfaces, sockets and logs. Connections get drain to
// end. For uninstalling; no agent may be running.
func Remove(ctx context.Context, state, runDir string, drain time.Duration) error {
	var failed error
	if err := stopRunning(ctx, runDir, drain); err != nil {
		failed = err
	}
	failed = errors.Join(failed, removeVeths(state))
	for _, name := range []string{socketName, socketName + ".new", lockName, logName, logName + ".1", emptyName} {
		if err := os.Remove(filepath.Join(runDir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			failed = errors.Join(failed, fmt.Errorf("remove the proxy's files: %w", err))
		}
	}
	return failed
}

// stopRunning ends the proxy and returns when it and its launcher are gone.
func stopRunning(ctx context.Context, runDir string, drain time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, drain+connectTimeout)
	defer cancel()
	s, err := dial(ctx, runDir)
	if err == nil {
		err = s.stop(&control.Wiring{Stop: true, Drain: int64(drain)})
		s.close()
	} else if nobodyListens(err) {
		err = nil
	}
	if err != nil {
		return err
	}
	// The lock is held until both are gone.
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
