package kube

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/weirnet/weir/policy"
)

// Sink takes the changes of a source: everything there is with the first
// call, then differences; none, where Report.Complete is another than at the
// last call. When it returns the changes are accepted; it is asked again with
// the same ones if it fails.
type Sink interface {
	Submit(ctx context.Context, changes []policy.Change) error
}

// Dir follows the objects in a directory of YAML and JSON files, directories
// below it included. Of two documents with one object the first counts, in
// the order of file names and then of lines; the other is reported.
//
// A directory that vanishes as a whole leaves everything in force: that is a
// lost mount rather than a wish. A file that vanishes takes its objects along.
type Dir struct {
	path string
	log  *slog.Logger
	asks chan chan error

	tree tree

	mu     sync.Mutex
	report Report
}

const (
	// resync finds what the kernel does not announce (network file systems).
	resync = 30 * time.Second
	// retry is for a directory that is not there.
	retry = time.Second
)

// NewDir returns a source of the objects below path. The last valid text of
// each file is kept in the directory memory, for the case that one is broken
// at the next start; "" keeps nothing.
func NewDir(path, memoryDir string, log *slog.Logger) *Dir {
	var m *memory
	if memoryDir != "" {
		m = newMemory(memoryDir, log)
	}
	path = filepath.Clean(path)
	return &Dir{path: path, log: log, asks: make(chan chan error), tree: newTree(m), report: Report{Path: path}}
}

// ReadDir reads a directory of objects once.
func ReadDir(ctx context.Context, path string) ([]policy.Change, Report, error) {
	d := NewDir(path, "", slog.New(slog.DiscardHandler))
	if err := d.settle(ctx); err != nil {
		return nil, Report{}, err
	}
	return d.tree.changes(), d.Report(), nil
}

// Report tells what was read last, and what is wrong with it.
func (d *Dir) Report() Report {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.report
	r.Problems = slices.Clone(r.Problems)
	r.Kinds = maps.Clone(r.Kinds)
	return r
}

// Sync returns once everything that is in the directory now was read and
// accepted by the sink. It needs a Run.
func (d *Dir) Sync(ctx context.Context) error {
	answer := make(chan error, 1)
	select {
	case d.asks <- answer:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Run reads the directory, hands everything to sink and then what changes,
// until ctx is done. It fails if the directory can't be read at the start.
func (d *Dir) Run(ctx context.Context, sink Sink) error {
	watcher, err := watch(d.path, d.log)
	if err != nil {
		return err
	}
	defer watcher.close()
	var remembering sync.WaitGroup
	defer remembering.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	remembering.Go(func() { d.tree.memory.run(ctx) })
	resync := resync
	if !watcher.works() {
		resync = retry
	}
	var asked []chan error
	complete := false // as the sink was told last
	round := func() error {
		start := time.Now()
		err := d.settle(ctx)
		if err == nil {
			// A directory that appeared while it was read is read again, now
			// that it is watched.
			if watcher.follow(d.tree.dirs) {
				err = d.settle(ctx)
			}
		}
		if err == nil {
			changes, now := d.tree.changes(), d.Report().Complete
			if len(changes) > 0 || !d.tree.delivered || now != complete {
				d.log.Debug("read objects", "changes", len(changes), "took", time.Since(start))
				if err = sink.Submit(ctx, changes); err == nil {
					d.tree.accept()
					complete = now
				}
			}
		}
		for _, a := range asked {
			a <- err
		}
		asked = nil
		return err
	}
	if err := round(); err != nil {
		return err
	}
	again := time.NewTimer(resync)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case a := <-d.asks:
			asked = append(asked, a)
		case e, ok := <-watcher.events:
			if !ok {
				return errors.New("watch objects: watcher closed")
			}
			if !concerns(e) {
				continue
			}
			watcher.drain(ctx)
		case err := <-watcher.errors:
			d.log.Warn("watching objects", "error", err) // an overflow: read everything
		case <-again.C:
		}
		next := resync
		if err := round(); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			d.log.Warn("reading objects; what was read before stays in force", "path", d.path, "error", err)
			next = retry
		}
		again.Reset(next)
	}
}

// settle reads until nothing is in the middle of a change.
func (d *Dir) settle(ctx context.Context) error {
	for {
		wait, err := d.tree.read(d.path, time.Now())
		d.mu.Lock()
		d.report = d.tree.report(d.path)
		if err != nil {
			d.report.Problems = append(d.report.Problems, Problem{File: d.path, Kind: BrokenFile, Message: err.Error()})
		}
		d.mu.Unlock()
		if err != nil || wait == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}
