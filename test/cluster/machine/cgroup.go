package machine

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// hierarchy is one mounted cgroup hierarchy.
type hierarchy struct {
	at      string // mount point
	v2      bool
	options string // what mounts the same one, for version 1
}

// hierarchies lists what is mounted below /sys/fs/cgroup, or there.
func hierarchies() ([]hierarchy, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list cgroup hierarchies: %w", err)
	}
	controllers, err := os.ReadFile("/proc/cgroups")
	if err != nil {
		return nil, fmt.Errorf("list cgroup controllers: %w", err)
	}
	known := func(option string) bool {
		return strings.HasPrefix(option, "name=") || bytes.Contains(controllers, []byte("\n"+option+"\t"))
	}
	var all []hierarchy
	for line := range strings.Lines(string(text)) {
		before, after, _ := strings.Cut(line, " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if len(f) < 5 || len(g) < 3 || f[4] != "/sys/fs/cgroup" && !strings.HasPrefix(f[4], "/sys/fs/cgroup/") {
			continue
		}
		h := hierarchy{at: f[4], v2: g[0] == "cgroup2"}
		if !h.v2 {
			if g[0] != "cgroup" {
				continue
			}
			options := slices.DeleteFunc(strings.Split(g[2], ","), func(o string) bool { return !known(o) })
			if len(options) > 0 && strings.HasPrefix(options[0], "name=") {
				options = append([]string{"none"}, options...)
			}
			h.options = strings.Join(options, ",")
		}
		all = append(all, h)
	}
	return all, nil
}

// joinCgroups puts this process into the cgroup of every hierarchy, made if
// need be.
func joinCgroups(all []hierarchy, cgroup string) error {
	for _, h := range all {
		dir := h.at
		for part := range strings.SplitSeq(cgroup, "/") {
			parent := dir
			dir = filepath.Join(dir, part)
			if h.v2 {
				enableControllers(parent)
			}
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("make cgroup: %w", err)
			}
			// A cpuset that says nothing takes no processes.
			for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
				content, err := os.ReadFile(filepath.Join(parent, file))
				if h.v2 || err != nil {
					continue
				}
				if err := os.WriteFile(filepath.Join(dir, file), content, 0); err != nil {
					return fmt.Errorf("set %s: %w", file, err)
				}
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0); err != nil {
			return fmt.Errorf("join cgroup: %w", err)
		}
	}
	return nil
}

// enableControllers passes on, to the children of a version 2 cgroup, each
// controller that it may: on a hybrid machine there are none.
func enableControllers(dir string) {
	content, _ := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	for _, c := range strings.Fields(string(content)) {
		_ = os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0)
	}
}

// mountCgroups mounts the hierarchies below root, in this process's cgroup
// namespace, at the places where the host has them.
func mountCgroups(all []hierarchy, root string) error {
	if len(all) > 0 && all[0].at != "/sys/fs/cgroup" {
		if err := unix.Mount("tmpfs", root+"/sys/fs/cgroup", "tmpfs", 0, "mode=755"); err != nil {
			return fmt.Errorf("mount memory for cgroups: %w", err)
		}
	}
	for _, h := range all {
		at := root + h.at
		if err := os.MkdirAll(at, 0o755); err != nil {
			return err
		}
		kind := "cgroup"
		if h.v2 {
			kind = "cgroup2"
		}
		if err := unix.Mount(kind, at, kind, 0, h.options); err != nil {
			return fmt.Errorf("mount %s at %s: %w", kind, h.at, err)
		}
		if h.v2 && len(all) == 1 {
			// A cgroup that has processes of its own passes no controllers on.
			own := filepath.Join(at, "init")
			if err := os.MkdirAll(own, 0o755); err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(own, "cgroup.procs"), []byte("0"), 0); err != nil {
				return fmt.Errorf("join own cgroup: %w", err)
			}
			enableControllers(at)
		}
	}
	return nil
}

// removeCgroups removes a cgroup, everything below it, and the ancestors that
// are empty then, from every hierarchy. Processes in it must be ending.
func removeCgroups(cgroup string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	var errs []error
	for _, h := range all {
		errs = append(errs, removeTree(filepath.Join(h.at, cgroup)))
		for up := filepath.Dir(cgroup); up != "." && up != "/"; up = filepath.Dir(up) {
			if syscall.Rmdir(filepath.Join(h.at, up)) != nil {
				break
			}
		}
	}
	return errors.Join(errs...)
}

func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	// The last process may still be on its way out.
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		err := syscall.Rmdir(dir)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("remove cgroup %s: %w", dir, err)
		}
	}
}
