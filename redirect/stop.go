package redirect

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/proxy/control"
)

// Remove ends the state's proxies, where some run, and removes everything of
// them from the node: their interfaces, sockets, logs and checkpoints.
// Connections get drain to end. For uninstalling; no agent may be running.
func Remove(ctx context.Context, state, runDir string, drain time.Duration) error {
	failed := errors.Join(stopRunning(ctx, runDir, drain), removeVeths(state))
	for _, name := range []string{logName, logName + ".1", emptyName, control.MapCheckpoint0, control.MapCheckpoint1} {
		if err := os.Remove(filepath.Join(runDir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			failed = errors.Join(failed, fmt.Errorf("remove the proxy's files: %w", err))
		}
	}
	return failed
}

// stopRunning ends all proxies and returns when they and their launchers are
// gone.
func stopRunning(ctx context.Context, runDir string, drain time.Duration) error {
	for {
		places, err := livePlaces(runDir)
		if err != nil || len(places) == 0 {
			return err
		}
		failed := make([]error, len(places))
		var all sync.WaitGroup
		for i, p := range places {
			all.Go(func() { failed[i] = p.end(ctx, drain) })
		}
		all.Wait()
		if err := errors.Join(failed...); err != nil {
			return err
		}
		// One may have been started since.
	}
}

// end ends the place's proxy and launcher, and returns when both are gone. They
// are killed if they can't be asked, or don't go.
func (p place) end(ctx context.Context, drain time.Duration) error {
	// Who can't be found is not waited for.
	h, _ := readHolders(p)
	launcher, _ := h.pin(h.launcher)
	if launcher != nil {
		defer launcher.release()
	}
	err := p.askToEnd(ctx, drain)
	if err == nil && launcher != nil {
		return launcher.wait(endTimeout) // its lock was free a moment before
	}
	if err == nil || ctx.Err() != nil {
		return err
	}
	h, readErr := readHolders(p) // it may be another by now
	if readErr != nil {
		return errors.Join(err, readErr)
	}
	// The launcher first: it would start another.
	for _, pid := range []int{h.launcher, h.child} {
		if _, killErr := h.kill(pid); killErr != nil {
			return errors.Join(err, killErr)
		}
	}
	if waitErr := p.waitFree(ctx, time.Second); waitErr != nil {
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
func (p place) askToEnd(ctx context.Context, drain time.Duration) error {
	limited, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	err := p.request(limited, askTimeout, &control.Wiring{Stop: true, Drain: int64(drain)})
	if err != nil && !nobodyListens(err) && !hungUp(err) {
		return err
	}
	return p.waitFree(ctx, drain+endTimeout)
}

// hungUp tells whether an error means that the proxy ended, perhaps before it
// said so.
func hungUp(err error) bool {
	return errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF)
}
