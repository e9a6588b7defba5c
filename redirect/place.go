package redirect

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// place is where one launcher lives in a run directory. Of two places the one
// with the higher number was taken later, as long as both are: its proxy is the
// other one's successor.
//
//	proxy-N.lock  held by the launcher and its proxy, until both are gone
//	proxy-N.sock  the proxy's control socket
type place struct {
	runDir string
	n      int
}

const (
	placePrefix  = "proxy-"
	lockSuffix   = ".lock"
	socketSuffix = ".sock"
)

// maxPlaces bounds how many proxies run at a time: one, and those it replaced
// that have not come to their end.
const maxPlaces = 8

// ErrCrowded is returned by Launch when as many proxies run as may.
var ErrCrowded = fmt.Errorf("%d proxies are running already", maxPlaces)

func (p place) name() string   { return placePrefix + strconv.Itoa(p.n) }
func (p place) lock() string   { return filepath.Join(p.runDir, p.name()+lockSuffix) }
func (p place) socket() string { return filepath.Join(p.runDir, p.name()+socketSuffix) }

// allPlaces are those there are files of, in order.
func allPlaces(runDir string) ([]place, error) {
	entries, err := os.ReadDir(runDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for proxies: %w", err)
	}
	var places []place
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), lockSuffix)
		if name, prefixed := strings.CutPrefix(name, placePrefix); ok && prefixed {
			if n, err := strconv.Atoi(name); err == nil && n > 0 && strconv.Itoa(n) == name {
				places = append(places, place{runDir, n})
			}
		}
	}
	slices.SortFunc(places, func(a, b place) int { return cmp.Compare(a.n, b.n) })
	return places, nil
}

// livePlaces are those that somebody holds, in order. What others left is
// removed.
func livePlaces(runDir string) ([]place, error) {
	places, err := allPlaces(runDir)
	if err != nil {
		return nil, err
	}
	var failed error
	places = slices.DeleteFunc(places, func(p place) bool {
		live, err := p.live()
		failed = errors.Join(failed, err)
		return err == nil && !live
	})
	return places, failed
}

// live tells whether somebody holds the place. If nobody does it is removed.
func (p place) live() (bool, error) {
	f, err := os.Open(p.lock())
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at a proxy: %w", err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return true, nil
		}
		return false, fmt.Errorf("look at a proxy: lock %s: %w", p.lock(), err)
	}
	// It may be another's by now, who has removed this file.
	if !isFile(f, p.lock()) {
		return p.live()
	}
	return false, p.remove()
}

// remove removes the place's files. The caller holds the lock.
func (p place) remove() error {
	for _, path := range []string{p.socket(), p.socket() + freshSuffix, p.lock()} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove a proxy's files: %w", err)
		}
	}
	return nil
}

// takePlace takes the place behind all there are, and writes this process's id
// into its lock. The lock is held as long as the file is open anywhere.
func takePlace(ctx context.Context, runDir string) (place, *os.File, error) {
	for ctx.Err() == nil {
		live, err := livePlaces(runDir)
		if err != nil {
			return place{}, nil, err
		}
		if len(live) >= maxPlaces {
			return place{}, nil, fmt.Errorf("%s: %w", runDir, ErrCrowded)
		}
		p := place{runDir, 1}
		if len(live) > 0 {
			p.n = live[len(live)-1].n + 1
		}
		f, err := os.OpenFile(p.lock(), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if errors.Is(err, fs.ErrExist) {
			continue // another launcher was faster
		}
		if err != nil {
			return place{}, nil, fmt.Errorf("take a place: %w", err)
		}
		// Somebody who looks whether it is held may have it, for a moment.
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err == nil && !isFile(f, p.lock()) {
			f.Close() // who thought it was a dead one's
			continue
		}
		if err == nil {
			err = writeHolders(f, os.Getpid(), 0)
		}
		if err != nil {
			f.Close()
			return place{}, nil, fmt.Errorf("take a place: %w", err)
		}
		return p, f, nil
	}
	return place{}, nil, fmt.Errorf("take a place: %w", ctx.Err())
}

// waitFree waits until nobody holds the place.
func (p place) waitFree(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		live, err := p.live()
		if err != nil || !live {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the proxy's end: %w", ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// isFile tells whether path names the open file.
func isFile(f *os.File, path string) bool {
	own, err := f.Stat()
	if err != nil {
		return false
	}
	named, err := os.Stat(path)
	return err == nil && os.SameFile(own, named)
}
