package machine

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// readyWord is what init writes to descriptor readyFd once processes are being
// started.
const (
	readyWord  = "ready"
	readyFd    = 3
	listenerFd = 4
)

// Init is the init binary: `init enter SPEC`, which Start runs in new
// namespaces, becomes `init run SPEC` once the machine is put together.
func Init(args []string) error {
	if len(args) != 3 {
		return errors.New("this is started by test/cluster only")
	}
	text, err := os.ReadFile(args[2])
	if err != nil {
		return fmt.Errorf("read the machine's description: %w", err)
	}
	var spec Spec
	if err := json.Unmarshal(text, &spec); err != nil {
		return fmt.Errorf("decode %s: %w", args[2], err)
	}
	switch args[1] {
	case "enter":
		return enter(spec, args)
	case "run":
		return run(spec)
	}
	return fmt.Errorf("unknown command %q", args[1])
}

// enter puts the machine together. The cgroup namespace is the calling
// thread's alone, so it ends by executing itself anew.
func enter(spec Spec, args []string) error {
	runtime.LockOSThread()
	all, err := hierarchies()
	if err != nil {
		return err
	}
	if err := joinCgroups(all, spec.Cgroup); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("make a cgroup namespace: %w", err)
	}
	if err := unix.Sethostname([]byte(spec.Hostname)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	if err := makeRoot(spec, all); err != nil {
		return err
	}
	if err := fill(spec); err != nil {
		return err
	}
	return syscall.Exec(args[0], []string{args[0], "run", args[2]}, os.Environ())
}

type mount struct {
	source, target, kind string
	flags                uintptr
	data                 string
}

// makeRoot mounts the machine's root and makes it this process's.
func makeRoot(spec Spec, all []hierarchy) error {
	// Nothing mounted here may reach the host, nor the other way round.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	base := filepath.Join(spec.Dir, "root")
	if err := unix.Mount("tmpfs", base, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount memory for the root: %w", err)
	}
	for _, dir := range []string{"upper", "work", "root"} {
		if err := os.Mkdir(filepath.Join(base, dir), 0o755); err != nil {
			return err
		}
	}
	root := base + "/root"
	mounts := []mount{
		{"overlay", "", "overlay", 0, fmt.Sprintf("lowerdir=/,upperdir=%s/upper,workdir=%s/work", base, base)},
		{"proc", "/proc", "proc", 0, ""},
		{"sysfs", "/sys", "sysfs", 0, ""},
		{"/dev", "/dev", "", unix.MS_BIND | unix.MS_REC, ""},
		{"tmpfs", "/run", "tmpfs", 0, "mode=755"},
		{"tmpfs", "/tmp", "tmpfs", 0, "mode=1777"},
		{"bpf", "/sys/fs/bpf", "bpf", 0, "mode=700"},
		// containerd puts overlays of its own here, which an overlay can't hold.
		{"tmpfs", "/var/lib/containerd", "tmpfs", 0, "mode=711"},
		{"tmpfs", "/var/lib/kubelet", "tmpfs", 0, "mode=750"},
	}
	// What the host may have of a cluster of its own is not seen here.
	for _, dir := range []string{"/etc/cni", "/opt/cni", "/etc/kubernetes", "/var/lib/cni", "/var/lib/etcd", "/var/log/pods", "/var/log/containers"} {
		mounts = append(mounts, mount{"tmpfs", dir, "tmpfs", 0, "mode=755"})
	}
	for _, dir := range append(spec.Binds, spec.Dir) {
		mounts = append(mounts, mount{dir, dir, "", unix.MS_BIND, ""})
	}
	for _, m := range mounts {
		target := root + m.target
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.source, target, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s at %s: %w", m.source, m.target, err)
		}
	}
	if err := mountCgroups(all, root); err != nil {
		return err
	}
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("change the root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the old root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	// As systemd leaves it: mounts of containers can reach the machine.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share mounts: %w", err)
	}
	return nil
}

// fill writes what the machine starts with.
func fill(spec Spec) error {
	for path, content := range spec.Files {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		// It may be a link to somewhere else.
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	for path, target := range spec.Links {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.Symlink(target, path); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	const dir = "/run/sysctl"
	for name, value := range spec.Sysctls {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := unix.Mount(file, "/proc/sys/"+name, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("cover sysctl %s: %w", name, err)
		}
	}
	return nil
}
