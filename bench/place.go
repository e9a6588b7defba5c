package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// priority of everything that is measured. What else the machine does then
// takes little from it; it is the same for all, so it favours nobody.
const priority = -15

// placed is a command in a network namespace, at the priority, in a session of
// its own: the kernel may share CPU time out among sessions first (autogroup),
// and daemons have one each.
func placed(ctx context.Context, ns string, argv ...string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	cmd := exec.CommandContext(ctx, self, append([]string{"place", ns}, argv...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Env = os.Environ()
	return cmd, nil
}

// placeCommand is the other half: it becomes the command.
func placeCommand(args []string) error {
	if len(args) < 2 {
		return fmt.Errorf("place wants a namespace and a command")
	}
	if err := enterGroup(os.Getenv(accountEnv)); err != nil {
		return err
	}
	// Priority is a thread's; the thread that executes becomes the program.
	runtime.LockOSThread()
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, priority); err != nil {
		return fmt.Errorf("set priority %d: %w", priority, err)
	}
	if err := raiseSession(os.Getpid()); err != nil {
		return err
	}
	path, err := exec.LookPath("nsenter")
	if err != nil {
		return err
	}
	return syscall.Exec(path, append([]string{"nsenter", "--net=" + netnsPath(args[0])}, args[1:]...), os.Environ())
}

// raiseSession gives the session of a process the priority, where the kernel
// shares CPU time out among sessions.
func raiseSession(pid int) error {
	err := os.WriteFile(fmt.Sprintf("/proc/%d/autogroup", pid), []byte(strconv.Itoa(priority)), 0)
	if err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("set the priority of the session of process %d: %w", pid, err)
	}
	return nil
}
