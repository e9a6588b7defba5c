package redirect

import (
	"errors"
	"fmt"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// namespaces that a proxy has of its own, beside that of users.
const namespaces = unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS

// UserNamespace says whether a proxy gets a user namespace of its own.
type UserNamespace string

// In a user namespace the proxy has no right on the machine. Without, it runs as
// nobody with the two capabilities that it needs, and its launcher needs more.
const (
	UserNamespaceAuto   UserNamespace = "auto"   // where the machine has them
	UserNamespaceAlways UserNamespace = "always" // or no proxy is started
	UserNamespaceNever  UserNamespace = "never"  // as if the machine had none
)

// noteNoUserns is what the status says of a proxy without a user namespace.
const noteNoUserns = "the proxy has no user namespace: it runs as user 65534 in a network namespace of its own, and its capabilities NET_ADMIN and NET_BIND_SERVICE are the machine's"

// inUserns starts the proxy as root of a user namespace of its own, who is nobody
// outside.
func inUserns() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER | namespaces,
		// Uid 0 inside, or the exec would take the capabilities in the new
		// namespaces away.
		Credential:                 &syscall.Credential{Uid: 0, Gid: 0},
		UidMappings:                []syscall.SysProcIDMap{{ContainerID: 0, HostID: nobody, Size: 1}},
		GidMappings:                []syscall.SysProcIDMap{{ContainerID: 0, HostID: nobody, Size: 1}},
		GidMappingsEnableSetgroups: true, // Credential sets the (empty) list of groups
		Setsid:                     true,
	}
}

// withoutUserns starts it as nobody with what Confine needs. The namespaces are
// the machine's root's, so that these capabilities are real ones; but it has no
// way to any other namespace than its own.
func withoutUserns() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{
		Cloneflags:  namespaces,
		Credential:  &syscall.Credential{Uid: nobody, Gid: nobody},
		AmbientCaps: []uintptr{unix.CAP_SETPCAP}, // dropped by Confine
		Setsid:      true,
	}
	for c := range kept {
		attr.AmbientCaps = append(attr.AmbientCaps, c)
	}
	return attr
}

// startChild starts what command returns: in a user namespace, or, where there
// can be none, without.
func (o *LauncherOptions) startChild(command func() *exec.Cmd) (*exec.Cmd, error) {
	var refused error
	if o.UserNamespace != UserNamespaceNever {
		cmd := command()
		cmd.SysProcAttr = inUserns()
		err := cmd.Start()
		if err == nil || !noUserns(err) {
			return cmd, err
		}
		refused = fmt.Errorf("in a user namespace (is user.max_user_namespaces 0?): %w", err)
		if o.UserNamespace == UserNamespaceAlways {
			return nil, refused
		}
	}
	cmd := command()
	cmd.SysProcAttr = withoutUserns()
	err := mayKill()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return nil, errors.Join(refused, fmt.Errorf("without user namespace, for which the capabilities SETUID, SETGID, SYS_ADMIN, SYS_CHROOT, KILL, SETPCAP, NET_ADMIN and NET_BIND_SERVICE are needed: %w", err))
	}
	return cmd, nil
}

// mayKill is an error where this process could start one of another user, but
// never end it.
func mayKill() error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return fmt.Errorf("look at capabilities: %w", err)
	}
	if data[0].Effective&(1<<unix.CAP_KILL) == 0 {
		return fmt.Errorf("no capability to end it: %w", unix.EPERM)
	}
	return nil
}

// noUserns tells whether an error may mean that there are no user namespaces.
func noUserns(err error) bool {
	return errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EUSERS) || errors.Is(err, unix.EINVAL)
}

// confinedUser tells whether this process was started by a launcher: as root of a
// user namespace (userns), or as nobody of the machine's.
func confinedUser(pid, uid int) (userns, ok bool) {
	return uid == 0, pid == 1 && (uid == 0 || uid == nobody)
}

// keepLess gives up the capability that only dropBounding needed, where it would
// outlive the exec. The caller has locked its thread.
func keepLess() error {
	err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_LOWER, unix.CAP_SETPCAP, 0, 0)
	if err != nil {
		return fmt.Errorf("drop capability to drop capabilities: %w", err)
	}
	return nil
}
