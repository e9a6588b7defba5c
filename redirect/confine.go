package redirect

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/proxy/control"
)

// What the proxy keeps in its own namespaces: NET_ADMIN for transparent
// sockets and its routes, NET_BIND_SERVICE for clients' ports below 1024.
// SYS_CHROOT goes as soon as the root is changed (Seal).
var kept = map[uintptr]bool{unix.CAP_NET_ADMIN: true, unix.CAP_NET_BIND_SERVICE: true, unix.CAP_SYS_CHROOT: true}

// notesEnv carries to the proxy what could not be set up as intended.
const notesEnv = "WEIR_NOTES"

// sysctls of the proxy's namespace, set before anything is in it. What can't
// be set (a container's /proc/sys is read-only) is noted: the proxy works
// with the kernel's defaults, and where it must not depend on them it doesn't.
var sysctls = []struct{ path, value string }{
	// A client's address may be anything; what comes in was judged already.
	// (New namespaces take the values of the machine's first one.)
	{"net/ipv4/conf/all/rp_filter", "0"},
	{"net/ipv4/conf/default/rp_filter", "0"},
	{"net/ipv4/conf/all/log_martians", "0"},
	{"net/ipv4/conf/default/log_martians", "0"},
	// Nothing in the namespace speaks for itself or listens to neighbours.
	{"net/ipv4/ip_forward", "0"},
	{"net/ipv6/conf/all/disable_ipv6", "0"},
	{"net/ipv6/conf/default/disable_ipv6", "0"},
	{"net/ipv6/conf/default/accept_ra", "0"},
	{"net/ipv6/conf/default/autoconf", "0"},
	{"net/ipv6/conf/default/addr_gen_mode", "1"},
	{"net/ipv6/conf/default/dad_transmits", "0"},
	{"net/ipv6/conf/default/router_solicitations", "0"},
	// A client that uses its port again soon must not meet our TIME_WAIT.
	{"net/ipv4/tcp_tw_reuse", "1"},
	// Both ends may be in the same network as the proxy: probe a smaller path
	// when ICMP does not come through.
	{"net/ipv4/tcp_mtu_probing", "1"},
	{"net/core/somaxconn", "65535"},
	{"net/ipv4/tcp_max_syn_backlog", "65535"},
	// Idle connections keep their window: the next request is as fast.
	{"net/ipv4/tcp_slow_start_after_idle", "0"},
}

// Confine is the child's first step: it configures the namespace it was born
// in, gives up for ever what the proxy does not need, and becomes the proxy
// by executing this very binary with the arguments. It returns only on
// failure.
//
// Capabilities belong to threads, so they are dropped here, where one thread
// is about to become the whole process, and not in the proxy itself.
func Confine(args []string) error {
	runtime.LockOSThread()
	userns, ok := confinedUser(os.Getpid(), os.Getuid())
	if !ok {
		return errors.New("confine: not the first process of a namespace of its own")
	}
	var notes []string
	if !userns {
		notes = append(notes, noteNoUserns)
	}
	for _, s := range sysctls {
		if err := os.WriteFile("/proc/sys/"+s.path, []byte(s.value), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			notes = append(notes, fmt.Sprintf("sysctl %s stays as it is: %v", strings.ReplaceAll(s.path, "/", "."), err))
		}
	}
	netns, err := unix.Open("/proc/self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("confine: open network namespace: %w", err)
	}
	if err := unix.Dup3(netns, fdNetns, 0); err != nil {
		return fmt.Errorf("confine: keep network namespace: %w", err)
	}
	if err := limit(); err != nil {
		return fmt.Errorf("confine: %w", err)
	}
	if err := dropBounding(); err != nil {
		return fmt.Errorf("confine: %w", err)
	}
	if !userns {
		if err := keepLess(); err != nil {
			return fmt.Errorf("confine: %w", err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("confine: no new privileges: %w", err)
	}
	env := append(os.Environ(), notesEnv+"="+strings.Join(notes, "\n"))
	err = syscall.Exec("/proc/self/exe", append([]string{os.Args[0]}, args...), env)
	return fmt.Errorf("confine: execute the proxy: %w", err)
}

// Notes returns what Confine could not set up as intended.
func Notes() []string {
	if s := os.Getenv(notesEnv); s != "" {
		return strings.Split(s, "\n")
	}
	return nil
}

// limit sets bounds that a hostile proxy would run into: it writes no core, has no
// message queues, and no file before it is sealed; then it has its two checkpoints,
// with which it fills the run directory only so far.
func limit() error {
	for resource, limit := range map[int]unix.Rlimit{
		unix.RLIMIT_CORE: {}, unix.RLIMIT_MSGQUEUE: {}, unix.RLIMIT_FSIZE: {Max: control.MaxCheckpoint},
	} {
		if err := unix.Setrlimit(resource, &limit); err != nil {
			return fmt.Errorf("set limit %d: %w", resource, err)
		}
	}
	return nil
}

// dropBounding takes all capabilities but the kept ones out of what this
// thread, and anything it executes, can ever have.
func dropBounding() error {
	for c := uintptr(0); ; c++ {
		if kept[c] {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			return nil // past the last one this kernel knows
		}
		if err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
}
