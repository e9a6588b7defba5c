package kube

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"sync"
)

// memory keeps the last valid text of every file beside the agent's state, so
// that a file that is broken when the agent starts is in force as it was. The
// nil memory keeps nothing.
type memory struct {
	dir  string
	log  *slog.Logger
	wake chan struct{}

	mu   sync.Mutex
	todo map[string][]byte // texts to be written, by path
	only map[string]bool   // names of copies that are wanted; nil: not known
}

func newMemory(dir string, log *slog.Logger) *memory {
	return &memory{dir: dir, log: log, wake: make(chan struct{}, 1), todo: map[string][]byte{}}
}

// run writes until ctx is done, and then what is left. Nobody waits for it:
// policy goes first.
func (m *memory) run(ctx context.Context) {
	if m == nil {
		return
	}
	for more := true; more; {
		select {
		case <-ctx.Done():
			more = false
		case <-m.wake:
		}
		if err := m.write(); err != nil {
			m.log.Warn("a file that is broken at the next start will not be in force as it was", "error", err)
		}
	}
}

func (m *memory) write() error {
	m.mu.Lock()
	todo, only := m.todo, m.only
	m.todo, m.only = map[string][]byte{}, nil
	m.mu.Unlock()
	var errs []error
	for path, text := range todo {
		errs = append(errs, m.save(path, text))
	}
	if only != nil {
		errs = append(errs, m.prune(only))
	}
	return errors.Join(errs...)
}

// keep remembers text as the last valid one.
func (m *memory) keep(path string, text []byte) {
	if m != nil {
		m.change(func() { m.todo[path] = text })
	}
}

// forget drops what is remembered of other files than these.
func (m *memory) forget(files map[string]*file) {
	if m == nil {
		return
	}
	only := make(map[string]bool, len(files))
	for path := range files {
		only[m.name(path)] = true
	}
	m.change(func() {
		m.only = only
		maps.DeleteFunc(m.todo, func(path string, _ []byte) bool { return files[path] == nil })
	})
}

func (m *memory) change(do func()) {
	m.mu.Lock()
	do()
	m.mu.Unlock()
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// name of the copy: a path may be longer than a name.
func (m *memory) name(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	sum := sha256.Sum256([]byte(path))
	return hex.EncodeToString(sum[:16])
}

func (m *memory) save(path string, text []byte) error {
	name := filepath.Join(m.dir, m.name(path))
	if old, err := os.ReadFile(name); err == nil && bytes.Equal(old, text) {
		return nil
	}
	if err := os.MkdirAll(m.dir, 0o700); err != nil {
		return fmt.Errorf("remember objects: %w", err)
	}
	if err := os.WriteFile(name+".new", text, 0o600); err != nil {
		return fmt.Errorf("remember objects: %w", err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		return fmt.Errorf("remember objects: %w", err)
	}
	return nil
}

// recall returns the last valid text; nil if there is none.
func (m *memory) recall(path string) []byte {
	if m == nil {
		return nil
	}
	text, err := os.ReadFile(filepath.Join(m.dir, m.name(path)))
	if err != nil {
		return nil // then the file was never valid, which is reported
	}
	return text
}

func (m *memory) prune(only map[string]bool) error {
	entries, err := os.ReadDir(m.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("forget objects: %w", err)
	}
	for _, e := range entries {
		if only[e.Name()] {
			continue
		}
		if err := os.Remove(filepath.Join(m.dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("forget objects: %w", err)
		}
	}
	return nil
}
