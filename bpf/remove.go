package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Remove takes off and unpins everything that was made below pins, in the
// network namespace it is called in: programs first, then tables. It works
// without a Datapath, so also for another version's; nothing there is not an
// error.
func Remove(pins string) error {
	var failed []error
	failed = append(failed, RemoveServices(pins))
	for _, dir := range []string{linksDir, proxiesDir} {
		failed = append(failed, removeLinks(filepath.Join(pins, dir)))
	}
	filters, err := ownFilters(pins)
	failed = append(failed, err)
	for _, f := range filters {
		failed = append(failed, removeFilter(f.program, f.ifindex, pins, f.attach))
	}
	failed = append(failed, removeTree(filepath.Join(pins, mapsDir)))
	return errors.Join(failed...)
}

// removeLinks detaches and unpins every link below dir, and then all else there.
func removeLinks(dir string) error {
	var failed []error
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && !e.IsDir() && e.Name() != listenersPin {
			failed = append(failed, unpinLink(path))
		}
		return err
	})
	return errors.Join(append(failed, err, removeTree(dir))...)
}

// removeTree unpins all below dir.
func removeTree(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("unpin %s: %w", dir, err)
	}
	return nil
}
