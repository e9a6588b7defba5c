package endpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// podsDepth is how deep below the root of the hierarchy kubelet's cgroup of pods
// can be: it is at the top, or in one of kubelet's own.
const podsDepth = 3

// findPods finds the cgroup (v2) of all pods: the one that kubelet makes, or the
// root where there is none or more than one.
func findPods() (string, error) {
	root, err := cgroupRoot("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	return kubepods(root), nil
}

func kubepods(root string) string {
	level := []string{root}
	for range podsDepth {
		var found, next []string
		for _, dir := range level {
			entries, err := os.ReadDir(dir)
			if err != nil {
				continue // it has just gone
			}
			for _, e := range entries {
				if !e.IsDir() {
					continue
				}
				path := filepath.Join(dir, e.Name())
				// kubepods with cgroupfs; kubepods.slice, or that of a kubelet
				// with a root of its own, with systemd.
				if name := strings.TrimSuffix(e.Name(), ".slice"); name == "kubepods" || strings.HasSuffix(name, "-kubepods") {
					found = append(found, path)
				}
				next = append(next, path)
			}
		}
		if len(found) == 1 {
			return found[0]
		}
		if len(found) > 1 {
			return root
		}
		level = next
	}
	return root
}

// cgroupRoot finds where cgroup v2 is mounted.
func cgroupRoot(mountinfo string) (string, error) {
	text, err := os.ReadFile(mountinfo)
	if err != nil {
		return "", fmt.Errorf("look for cgroup v2: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		// ID PARENT DEVICE ROOT MOUNTPOINT OPTIONS.. - TYPE SOURCE OPTIONS
		before, after, _ := strings.Cut(line, " - ")
		fields := strings.Fields(before)
		if len(fields) < 5 || !strings.HasPrefix(after, "cgroup2 ") {
			continue
		}
		path, err := strconv.Unquote(`"` + strings.ReplaceAll(fields[4], `"`, `\"`) + `"`) // octal escapes
		if err != nil {
			continue
		}
		var st unix.Statfs_t
		if unix.Statfs(path, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC { // nothing is mounted over it
			return path, nil
		}
	}
	return "", errors.New("cgroup v2 is not mounted")
}

// podsOutside counts the pods that have processes here, and names those that have
// one which is in neither this cgroup nor one below it.
func podsOutside(cgroup string, pods []EndpointStatus) (with int, outside []string, err error) {
	inside, err := processesBelow(cgroup)
	if err != nil {
		return 0, nil, err
	}
	// By the veth: addresses may be others' as well, beyond what is this node's.
	names := map[int]string{}
	for _, p := range pods {
		if p.Ifindex == 0 {
			continue
		}
		l, err := netlink.LinkByIndex(p.Ifindex)
		if err != nil {
			continue // it has just gone
		}
		names[l.Attrs().NetNsID] = p.Namespace + "/" + p.Pod
	}
	kernel, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return 0, nil, fmt.Errorf("open netlink: %w", err)
	}
	defer kernel.Close()
	seen := map[string]bool{} // whether a process of it is outside
	err = eachProcess(kernel, func(pid, space int) {
		if name := names[space]; space >= 0 && name != "" {
			seen[name] = seen[name] || !inside[pid] && alive(pid)
		}
	})
	if err != nil {
		return 0, nil, err
	}
	for name, out := range seen {
		if out {
			outside = append(outside, name)
		}
	}
	slices.Sort(outside)
	return len(seen), outside, nil
}

// eachProcess tells of all processes, and of the number that veths have their network
// namespaces by; -1: none leads there. It asks the kernel by the process's number:
// links in /proc to namespaces of others' processes can't be read without
// capabilities that the agent has not.
func eachProcess(kernel *netlink.Handle, do func(pid, space int)) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return fmt.Errorf("list processes: %w", err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if space, err := kernel.GetNetNsIdByPid(pid); err == nil { // else it has just gone
			do(pid, space)
		}
	}
	return nil
}

// processesBelow lists the processes of a cgroup and those below it, as far as
// they can be seen from here.
func processesBelow(cgroup string) (map[int]bool, error) {
	out := map[int]bool{}
	err := filepath.WalkDir(cgroup, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		if e.Name() != "cgroup.procs" {
			return nil
		}
		text, err := os.ReadFile(path)
		if errors.Is(err, unix.ENODEV) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EOPNOTSUPP) {
			return nil // gone, or a cgroup of threads: its processes are those of one above
		}
		for line := range strings.Lines(string(text)) {
			if pid, err := strconv.Atoi(strings.TrimSpace(line)); err == nil {
				out[pid] = true
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list the processes of cgroup %s: %w", cgroup, err)
	}
	return out, nil
}

// alive tells whether a process is there and has not ended.
func alive(pid int) bool {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	_, rest, _ := strings.Cut(string(text), ") ")
	return err == nil && !strings.HasPrefix(rest, "Z")
}
