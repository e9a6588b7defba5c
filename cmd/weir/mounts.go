package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// mountsEntered in the environment says that enterHostMounts has been here.
const mountsEntered = "WEIR_MOUNTS_ENTERED=1"

// enterHostMounts goes on in the host's mount namespace, by executing this
// program again there. A command such as `ip netns exec` gives its program a
// mount namespace of its own: what is mounted there, as the file system for
// pins, would go when it ends, and nobody else would see it.
//
// It does nothing where this is the host's already, where the roots differ (a
// container: the host's files are not ours), or where it is not permitted.
func enterHostMounts() error {
	if os.Geteuid() != 0 || leaveHostMountsMark() {
		return nil
	}
	path := hostMounts()
	if path == "" {
		return nil
	}
	namespace, err := os.Open(path)
	if err != nil {
		return nil // not permitted, or the process has just gone
	}
	defer namespace.Close()
	cwd, err := os.Getwd()
	if err != nil {
		return fmt.Errorf("enter the host's mounts: %w", err)
	}
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("enter the host's mounts: %w", err)
	}
	defer self.Close()

	// Of the threads only this one moves; exec makes it the process.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		runtime.UnlockOSThread()
		return nil // not permitted
	}
	if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNS); err != nil {
		if errors.Is(err, unix.EPERM) {
			runtime.UnlockOSThread()
			return nil
		}
		return fmt.Errorf("enter the host's mounts: %w", err)
	}
	// From here on the thread is in another place than the rest: exec or end.
	if err := unix.Chdir(cwd); err != nil {
		return fmt.Errorf("enter the host's mounts: go back to %s: %w", cwd, err)
	}
	err = syscall.Exec(fmt.Sprintf("/proc/self/fd/%d", self.Fd()), os.Args, append(os.Environ(), mountsEntered))
	return fmt.Errorf("execute weir in the host's mounts: %w", err)
}

// leaveHostMountsMark tells whether this is the second execution, and takes
// the mark from the environment so that no child has it.
func leaveHostMountsMark() bool {
	name, value, _ := strings.Cut(mountsEntered, "=")
	if os.Getenv(name) != value {
		return false
	}
	_ = os.Unsetenv(name) // the name is valid
	return true
}

// hostMounts finds the host's mount namespace: that of process 1; "" where
// there is nothing to do. Where process 1 may not be looked at and it is plain
// that `ip netns exec` made ours, it is the one that most processes are in.
func hostMounts() string {
	const own, first = "/proc/self/ns/mnt", "/proc/1/ns/mnt"
	if same, err := sameFile(own, first); err == nil {
		if root, err := sameFile("/", "/proc/1/root"); same || err != nil || !root {
			return ""
		}
		return first
	}
	if !netnsExec() {
		return ""
	}
	processes, err := filepath.Glob("/proc/[0-9]*/ns/mnt")
	if err != nil {
		return "" // the pattern is valid: can't happen
	}
	members := map[uint64]int{}
	best, most := "", 0
	for _, path := range processes {
		var st unix.Stat_t
		if unix.Stat(path, &st) != nil {
			continue // not permitted, or gone
		}
		if same, err := sameFile(own, path); err != nil || same {
			continue
		}
		if root, err := sameFile("/", filepath.Join(path, "../../root")); err != nil || !root {
			continue
		}
		if members[st.Ino]++; members[st.Ino] > most {
			best, most = path, members[st.Ino]
		}
	}
	return best
}

// netnsExec tells whether `ip netns exec` made this mount namespace: it mounts
// a sysfs, and as its source it writes the name of the network namespace.
func netnsExec() bool {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(mounts)) {
		place, kind, ok := strings.Cut(line, " - ")
		fields, what := strings.Fields(place), strings.Fields(kind)
		if !ok || len(fields) < 5 || len(what) < 2 || fields[4] != "/sys" || what[0] != "sysfs" {
			continue
		}
		if same, err := sameFile("/proc/self/ns/net", filepath.Join("/run/netns", what[1])); err == nil && same {
			return true
		}
	}
	return false
}

func sameFile(a, b string) (bool, error) {
	ia, err := os.Stat(a)
	if err != nil {
		return false, err
	}
	ib, err := os.Stat(b)
	if err != nil {
		return false, err
	}
	return os.SameFile(ia, ib), nil
}
