package kube

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// memory keeps the last valid text of every file beside the agent's state, so
// that a file that is broken when the agent starts is in force as it was. The
// nil memory keeps nothing.
type memory struct{ dir string }

// name of the copy: a path may be longer than a name.
func (m *memory) name(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	sum := sha256.Sum256([]byte(path))
	return hex.EncodeToString(sum[:16])
}

// keep remembers text as the last valid one.
func (m *memory) keep(path string, text []byte) error {
	if m == nil {
		return nil
	}
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

// forget drops what is remembered of other files than these.
func (m *memory) forget(files map[string]*file) error {
	if m == nil {
		return nil
	}
	entries, err := os.ReadDir(m.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("forget objects: %w", err)
	}
	used := make(map[string]bool, len(files))
	for path := range files {
		used[m.name(path)] = true
	}
	for _, e := range entries {
		if used[e.Name()] {
			continue
		}
		if err := os.Remove(filepath.Join(m.dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("forget objects: %w", err)
		}
	}
	return nil
}
