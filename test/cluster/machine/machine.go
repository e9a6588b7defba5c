package machine

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Spec says what a machine is. It reaches the init process as a file.
type Spec struct {
	// Hostname of the machine.
	Hostname string
	// Dir is a directory of the machine on the host: the place where its root
	// is put together (Dir/root, empty for everybody else), and its logs
	// (Dir/NAME.log of each process, Dir/init.log). It is visible inside under
	// the same path.
	Dir string
	// Cgroup is a path below the root of each cgroup hierarchy, which becomes
	// the machine's root of it.
	Cgroup string
	// Binds are directories that are visible inside under the same path, for
	// reading and writing.
	Binds []string
	// Files are written inside before anything starts: path to content.
	Files map[string]string
	// Links are symbolic links inside: path to target.
	Links map[string]string
	// Sysctls are settings of the whole kernel (path below /proc/sys to value)
	// that programs inside find set to these values. They are not.
	Sysctls map[string]string
	// NoUserNamespaces: processes of the machine can make none, as where
	// user.max_user_namespaces is 0. (Those of Command can.)
	NoUserNamespaces bool
	// Forward, if not empty, is a TCP address as seen from inside; each
	// connection to the listener given to Start is passed on to it.
	Forward string
	// Processes run from the start until the machine ends.
	Processes []Process
}

// Process is one program of a machine; it is started again a second after it
// ended.
type Process struct {
	Name string
	Args []string
	Env  []string
	// After, if not empty, is an HTTPS URL that must answer with 200 before the
	// process is started. Its certificate is not checked.
	After string
}

// Running is a machine that was started; it can be kept as JSON.
type Running struct {
	// Pid of the init process as the host counts. /proc/PID/root is the
	// machine's root directory, /proc/PID/ns its namespaces.
	Pid int
	// Started is when that process began (field 22 of /proc/PID/stat): a pid
	// alone may be somebody else's by now.
	Started uint64
	// Cgroup is Spec.Cgroup.
	Cgroup string
}

// Netns is a network namespace that programs can be started in.
type Netns interface {
	Start(cmd *exec.Cmd) error
}

// searchPath is where programs of a machine are looked for.
const searchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Start starts a machine within a network namespace; init is the path of the
// init binary, which must lie below one of spec.Binds. listener may be nil. It
// returns when the machine's processes are being started.
func Start(init string, spec Spec, ns Netns, listener *os.File) (_ *Running, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("start machine %s: %w", spec.Hostname, err)
		}
	}()
	if err := os.MkdirAll(filepath.Join(spec.Dir, "root"), 0o755); err != nil {
		return nil, err
	}
	text, err := json.MarshalIndent(spec, "", "  ")
	if err != nil {
		return nil, err
	}
	path := filepath.Join(spec.Dir, "spec.json")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(spec.Dir, "init.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	ready, told, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer ready.Close()
	cmd := exec.Command(init, "enter", path)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{told}
	if listener != nil {
		cmd.ExtraFiles = append(cmd.ExtraFiles, listener)
	}
	cmd.Dir = "/"
	cmd.Env = []string{searchPath, "HOME=/root"}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
		Setsid:     true,
	}
	err = ns.Start(cmd)
	told.Close()
	if err != nil {
		return nil, err
	}
	go func() { _ = cmd.Wait() }()
	r := &Running{Pid: cmd.Process.Pid, Cgroup: spec.Cgroup}
	answer, err := io.ReadAll(ready)
	if err == nil && string(answer) != readyWord {
		said, _ := os.ReadFile(log.Name())
		err = fmt.Errorf("%s", strings.TrimSpace(string(said)))
	}
	if err == nil {
		r.Started, err = started(r.Pid)
	}
	if err != nil {
		_ = cmd.Process.Kill()
		return nil, errors.Join(err, removeCgroups(spec.Cgroup))
	}
	return r, nil
}

// Alive tells whether the machine's init process is there.
func (r *Running) Alive() bool {
	at, err := started(r.Pid)
	return err == nil && at == r.Started
}

// Root is the machine's root directory as seen from the host.
func (r *Running) Root() string { return fmt.Sprintf("/proc/%d/root", r.Pid) }

// Command is a program that runs inside: in all namespaces of the machine and
// in its cgroups. It ends with the machine at the latest.
func (r *Running) Command(name string, args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{
		"--target", strconv.Itoa(r.Pid),
		"--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root=" + r.Root(), "--wd=" + r.Root(),
		"--", "/bin/sh", "-c", joinScript, name,
	}, args...)...)
}

// joinScript enters the cgroups, which nsenter does not. Where there is but
// one hierarchy its root takes no processes; see mountCgroups.
const joinScript = `for f in /sys/fs/cgroup/*/cgroup.procs; do
	case $f in */kubepods/*) ;; *) echo 0 >"$f" || exit 125 ;; esac
done
exec "$0" "$@"`

// Stop ends every process of the machine and removes its cgroups. On one that
// has ended it only does the latter.
func (r *Running) Stop() error {
	for deadline := time.Now().Add(20 * time.Second); r.Alive(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("stop machine: process %d does not end", r.Pid)
		}
		_ = syscall.Kill(r.Pid, syscall.SIGKILL)
	}
	return removeCgroups(r.Cgroup)
}

// started is when a process that still runs began, in clock ticks after boot.
func started(pid int) (uint64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	f := strings.Fields(rest)
	if len(f) < 20 || f[0] == "Z" || f[0] == "X" {
		return 0, fmt.Errorf("process %d has ended", pid)
	}
	return strconv.ParseUint(f[19], 10, 64)
}
