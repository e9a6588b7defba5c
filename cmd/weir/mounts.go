package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// mountsEntered in the environment says that enterHostMounts has been here.
const mountsEntered = "WEIR_MOUNTS_ENTERED=1"

// enterHostMounts goes on in the mount namespace of process 1, by executing
// this program again there. A command such as `ip netns exec` gives its
// program a mount namespace of its own: what is mounted there, as the file
// system for pins, would go when it ends, and nobody else would see it.
//
// It does nothing where the namespaces are one, where they have different
// roots (a container: the files of process 1 are not ours), or where it is
// not permitted.
func enterHostMounts() error {
	if os.Geteuid() != 0 || leaveHostMountsMark() {
		return nil
	}
	same, err := sameFile("/proc/self/ns/mnt", "/proc/1/ns/mnt")
	if err != nil || same {
		return nil // not permitted to look, or nothing to do
	}
	if root, err := sameFile("/", "/proc/1/root"); err != nil || !root {
		return nil
	}
	namespace, err := os.Open("/proc/1/ns/mnt")
	if err != nil {
		return nil // not permitted
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
