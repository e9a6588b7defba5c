package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// cgroupRoot is where cgroup v2 is mounted; "" if it is not.
func cgroupRoot() string {
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var st unix.Statfs_t
		if unix.Statfs(dir, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
			return dir
		}
	}
	return ""
}

// makeCgroup makes the cgroup of the node's pods, as kubelet has one.
func (n *Node) makeCgroup() error {
	root := cgroupRoot()
	if root == "" {
		return nil
	}
	path := filepath.Join(root, n.State)
	if err := os.Mkdir(path, 0o755); err != nil {
		return fmt.Errorf("make the cgroup of pods: %w", err)
	}
	n.Cgroup = path
	return nil
}

// removeCgroup removes a cgroup and those in it; the processes that were there
// have ended, or do just now.
func removeCgroup(path string) error {
	if path == "" {
		return nil
	}
	children, _ := filepath.Glob(filepath.Join(path, "*/")) // the pattern is right
	for _, child := range children {
		if info, err := os.Stat(child); err == nil && info.IsDir() {
			if err := removeCgroup(child); err != nil {
				return err
			}
		}
	}
	err := unix.Rmdir(path)
	for end := time.Now().Add(5 * time.Second); errors.Is(err, unix.EBUSY) && time.Now().Before(end); err = unix.Rmdir(path) {
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove cgroup %s: %w", path, err)
	}
	return nil
}

// Contain has a command start in the pods' cgroup, where services are
// translated. It returns what to call when it has started.
func (p *Pod) Contain(cmd *exec.Cmd) (started func(), err error) {
	if p.node.Cgroup == "" {
		return nil, errors.New("there is no cgroup v2 for pods")
	}
	dir, err := os.Open(p.node.Cgroup)
	if err != nil {
		return nil, err
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	return func() { dir.Close() }, nil
}
