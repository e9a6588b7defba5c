package machine

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data: the number of the system call, and the lower
// half of its first argument on a little-endian machine.
const (
	offsetCall  = 0
	offsetFirst = 16
)

// forbidUserNamespaces lets all that this process starts from now on find the
// kernel as it is with user.max_user_namespaces at 0, which is a setting of the
// whole machine: no user namespace can be made, and the reason is ENOSPC. (A
// filter can't see what is asked of clone3; nothing here asks that for one.)
func forbidUserNamespaces() error {
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	jump := func(kind uint16, k uint32, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | kind | unix.BPF_K, Jt: yes, Jf: no, K: k}
	}
	answer := func(k uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k} }
	program := []unix.SockFilter{
		load(offsetCall),
		jump(unix.BPF_JEQ, unix.SYS_CLONE, 1, 0),
		jump(unix.BPF_JEQ, unix.SYS_UNSHARE, 0, 2),
		load(offsetFirst),
		jump(unix.BPF_JSET, unix.CLONE_NEWUSER, 1, 0),
		answer(unix.SECCOMP_RET_ALLOW),
		answer(unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSPC)),
	}
	whole := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	thread, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&whole)))
	runtime.KeepAlive(program)
	if errno != 0 {
		return fmt.Errorf("forbid user namespaces: %w", errno)
	}
	if thread != 0 {
		return fmt.Errorf("forbid user namespaces: thread %d does not follow", thread)
	}
	return nil
}
