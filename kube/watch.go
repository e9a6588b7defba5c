package kube

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// quiet is how long to wait for more events before reading.
	quiet = 2 * time.Millisecond
	// patience bounds that wait while events keep coming.
	patience = 20 * time.Millisecond
)

// watcher tells that something below a directory has changed. Where the limits
// on watches are reached it tells nothing, and works says so.
type watcher struct {
	log    *slog.Logger
	w      *fsnotify.Watcher // nil: it does not work
	events <-chan fsnotify.Event
	errors <-chan error
}

func watch(path string, log *slog.Logger) (*watcher, error) {
	if info, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("read directory of objects: %w", err)
	} else if !info.IsDir() {
		return nil, fmt.Errorf("read directory of objects: %s is no directory", path)
	}
	w, err := fsnotify.NewWatcher()
	if err == nil {
		if err = w.Add(path); err == nil {
			return &watcher{log: log, w: w, events: w.Events, errors: w.Errors}, nil
		}
		_ = w.Close() // nothing was watched
	}
	log.Warn("the directory of objects can't be watched, it is read every second instead", "path", path, "error", err)
	return &watcher{log: log}, nil
}

func (w *watcher) works() bool { return w.w != nil }

func (w *watcher) close() {
	if w.w != nil {
		_ = w.w.Close() // it only lets go
	}
}

// follow adds directories; added tells whether one was not watched before.
func (w *watcher) follow(dirs []string) (added bool) {
	if w.w == nil {
		return false
	}
	watched := map[string]bool{}
	for _, p := range w.w.WatchList() {
		watched[p] = true
	}
	for _, p := range dirs {
		if watched[p] {
			continue
		}
		if err := w.w.Add(p); err != nil {
			w.log.Warn("directory of objects is read twice a minute only", "path", p, "error", err)
			continue
		}
		added = true
	}
	return added
}

// concerns tells whether an event can mean another object.
func concerns(e fsnotify.Event) bool {
	if e.Op == fsnotify.Chmod {
		return wanted(e.Name) // perhaps it can be read now
	}
	base := filepath.Base(e.Name)
	// A directory has any name; links into ..data change with it.
	return wanted(e.Name) || base == "..data" || !strings.HasPrefix(base, ".") && isDirOrGone(e.Name)
}

func isDirOrGone(path string) bool {
	info, err := os.Stat(path)
	return err != nil || info.IsDir()
}

// drain waits until the burst of events is over.
func (w *watcher) drain(ctx context.Context) {
	end := time.NewTimer(patience)
	defer end.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.events:
		case <-end.C:
			return
		case <-time.After(quiet):
			return
		}
	}
}
