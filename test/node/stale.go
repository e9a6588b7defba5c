package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// runDir is where every Weir has a directory of its --state name.
const runDir = "/run/weir"

// RemoveStale removes what processes that are gone left behind under names of
// UniqueName(prefix, ...).
func RemoveStale(prefix string) error {
	stale := map[string]bool{}
	for _, dir := range []string{netnsDir, runDir, cgroupRoot()} {
		if dir == "" {
			continue
		}
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("look for stale networks: %w", err)
		}
		for _, e := range entries {
			network, _, ok := strings.Cut(e.Name(), ".")
			if !ok {
				continue
			}
			if pid, ok := nameOwner(prefix, network); ok && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
				stale[network] = true
			}
		}
	}
	var errs []error
	for network := range stale {
		errs = append(errs, RemoveNetwork(network))
	}
	return errors.Join(errs...)
}

// RemoveNetwork removes everything of the Network of that name, whoever made
// it: processes in its namespaces and those of its Weirs are killed, mounts,
// files and namespaces go. Where there is nothing it does nothing.
func RemoveNetwork(network string) error {
	names, err := filepath.Glob(filepath.Join(netnsDir, network+".*"))
	if err != nil {
		return fmt.Errorf("remove network %s: %w", network, err)
	}
	inside := map[uint64]bool{}
	for _, path := range names {
		var st unix.Stat_t
		if unix.Stat(path, &st) == nil && st.Dev != 0 {
			inside[st.Ino] = true
		}
	}
	killAll(func(pid int) bool {
		var st unix.Stat_t
		return unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &st) == nil && inside[st.Ino] || belongsTo(pid, network)
	})
	dirs, err := filepath.Glob(filepath.Join(runDir, network+".*"))
	if err != nil {
		return fmt.Errorf("remove network %s: %w", network, err)
	}
	var errs []error
	for _, dir := range dirs {
		errs = append(errs, removeRunDir(dir))
	}
	for _, path := range names {
		errs = append(errs, DeleteNetns(filepath.Base(path)))
	}
	if root := cgroupRoot(); root != "" {
		groups, _ := filepath.Glob(filepath.Join(root, network+".*")) // as above
		for _, path := range groups {
			errs = append(errs, removeCgroup(path))
		}
	}
	return errors.Join(errs...)
}

// belongsTo tells whether a process was started with a --state of network.
func belongsTo(pid int, network string) bool {
	for _, s := range stateArgs(pid) {
		if strings.HasPrefix(s, network+".") {
			return true
		}
	}
	return false
}

// stateArgs are the values of --state on a process's command line.
func stateArgs(pid int) []string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return nil
	}
	args := strings.Split(string(text), "\x00")
	var states []string
	for i, a := range args {
		if v, ok := strings.CutPrefix(a, "--state="); ok {
			states = append(states, v)
		} else if a == "--state" && i+1 < len(args) {
			states = append(states, args[i+1])
		}
	}
	return states
}

// Processes lists the processes that match, without this one.
func processes(match func(pid int) bool) []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && pid != os.Getpid() && match(pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// killAll kills the processes that match until none is left (they may be
// starting others), for at most five seconds.
func killAll(match func(pid int) bool) {
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); {
		pids := slices.DeleteFunc(processes(match), isZombie)
		if len(pids) == 0 {
			return
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func isZombie(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	return strings.HasPrefix(rest, "Z")
}

// removeRunDir removes the run directory of a Weir, with what is mounted in it.
func removeRunDir(dir string) error {
	mounts, err := MountsUnder(dir)
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(mounts) {
		if err := unix.Unmount(m, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", m, err)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove run directory: %w", err)
	}
	return nil
}

// MountsUnder lists mount points at or below a directory, in mount order.
func MountsUnder(dir string) ([]string, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	var mounts []string
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 4 && (f[4] == dir || strings.HasPrefix(f[4], dir+"/")) {
			mounts = append(mounts, f[4])
		}
	}
	return mounts, nil
}

// hasVerb tells whether a process is `weir VERB`.
func hasVerb(pid int, verb string) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return false
	}
	args := strings.Split(string(text), "\x00")
	return len(args) > 1 && args[1] == verb
}
