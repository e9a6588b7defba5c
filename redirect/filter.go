package redirect

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data.
const (
	dataNumber = 0
	dataArch   = 4
	dataArgs   = 16
)

// namespaceFlags are those of clone that make a namespace.
const namespaceFlags = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWTIME

// forbidden are system calls that a proxy has no use for, and that are either
// powerful or a large part of the kernel to attack.
func forbidden() []uint32 {
	return append(archForbidden(),
		unix.SYS_EXECVE, unix.SYS_EXECVEAT, unix.SYS_UNSHARE, unix.SYS_SETNS, unix.SYS_CHROOT, unix.SYS_PIVOT_ROOT,
		unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_MOVE_MOUNT, unix.SYS_OPEN_TREE, unix.SYS_FSOPEN, unix.SYS_FSMOUNT,
		unix.SYS_FSCONFIG, unix.SYS_FSPICK, unix.SYS_MOUNT_SETATTR,
		unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_KCMP, unix.SYS_PIDFD_GETFD,
		unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD,
		unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER,
		unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_KEYCTL,
		unix.SYS_NAME_TO_HANDLE_AT, unix.SYS_OPEN_BY_HANDLE_AT,
		unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD,
		unix.SYS_REBOOT, unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_ACCT, unix.SYS_QUOTACTL, unix.SYS_SYSLOG,
		unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME, unix.SYS_CLOCK_ADJTIME, unix.SYS_ADJTIMEX, unix.SYS_PERSONALITY,
		unix.SYS_MBIND, unix.SYS_MOVE_PAGES, unix.SYS_MIGRATE_PAGES, unix.SYS_SET_MEMPOLICY,
	)
}

// mapCommands are the commands of bpf(2) that work on descriptors the agent
// handed over.
var mapCommands = [...]uint32{
	unix.BPF_MAP_LOOKUP_ELEM, unix.BPF_MAP_UPDATE_ELEM, unix.BPF_MAP_DELETE_ELEM, unix.BPF_MAP_GET_NEXT_KEY,
	unix.BPF_OBJ_GET_INFO_BY_FD, unix.BPF_MAP_LOOKUP_AND_DELETE_ELEM, unix.BPF_MAP_LOOKUP_BATCH,
}

// Firewall tables by setsockopt: the old interface of iptables, arptables and
// ebtables is open to NET_ADMIN of any namespace.
var (
	firewallOptions4 = [...]uint32{64, 65, 96, 97, 128, 129}
	firewallOptions6 = [...]uint32{64, 65}
)

// filter is the program that Seal loads: what is forbidden gets EPERM, what
// is not listed is allowed.
func filter() []unix.SockFilter {
	const (
		allow = unix.SECCOMP_RET_ALLOW
		kill  = unix.SECCOMP_RET_KILL_PROCESS
		deny  = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
		none  = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	)
	a := &assembler{}
	a.load(dataArch)
	a.unless(archAudit, kill) // system calls of another architecture have other numbers
	a.load(dataNumber)
	if archForeign != 0 {
		a.ifAtLeast(archForeign, kill)
	}
	for _, n := range forbidden() {
		a.when(n, deny)
	}
	// The C library and the Go runtime fall back to clone, whose flags can be
	// read here.
	a.when(unix.SYS_CLONE3, none)
	a.call(unix.SYS_CLONE, func() {
		a.load(dataArgs)
		a.ifSet(namespaceFlags, deny)
		a.ret(allow)
	})
	a.call(unix.SYS_BPF, func() {
		a.load(dataArgs)
		for _, c := range mapCommands {
			a.when(c, allow)
		}
		a.ret(deny)
	})
	a.call(unix.SYS_SOCKET, func() {
		a.load(dataArgs)
		a.call(unix.AF_NETLINK, func() {
			a.load(dataArgs + 16)
			a.when(unix.NETLINK_ROUTE, allow)
			a.when(unix.NETLINK_SOCK_DIAG, allow)
			a.ret(deny)
		})
		inet := func() {
			a.load(dataArgs + 8)
			a.mask(0xf)
			a.when(unix.SOCK_STREAM, allow)
			a.when(unix.SOCK_DGRAM, allow)
			a.ret(deny)
		}
		a.call(unix.AF_INET, inet)
		a.call(unix.AF_INET6, inet)
		a.ret(deny)
	})
	a.call(unix.SYS_SETSOCKOPT, func() {
		a.load(dataArgs + 8)
		a.call(unix.SOL_IP, func() {
			a.load(dataArgs + 16)
			for _, o := range firewallOptions4 {
				a.when(o, deny)
			}
			a.ret(allow)
		})
		a.call(unix.SOL_IPV6, func() {
			a.load(dataArgs + 16)
			for _, o := range firewallOptions6 {
				a.when(o, deny)
			}
			a.ret(allow)
		})
		a.ret(allow)
	})
	a.ret(allow)
	return a.prog
}

// assembler puts a classic BPF program together. Conditions compare the
// accumulator, which is left as it is.
type assembler struct{ prog []unix.SockFilter }

func (a *assembler) add(code uint16, jt, jf uint8, k uint32) {
	a.prog = append(a.prog, unix.SockFilter{Code: code, Jt: jt, Jf: jf, K: k})
}

// load reads the lower half of the 64 bits at offset; all that is compared
// here are 32-bit values, of which the kernel ignores the upper half, too.
func (a *assembler) load(offset uint32) {
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 && offset >= dataArgs {
		offset += 4
	}
	a.add(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, 0, 0, offset)
}

func (a *assembler) mask(k uint32) { a.add(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, 0, 0, k) }
func (a *assembler) ret(k uint32)  { a.add(unix.BPF_RET|unix.BPF_K, 0, 0, k) }

func (a *assembler) when(k, verdict uint32) {
	a.add(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, 0, 1, k)
	a.ret(verdict)
}

func (a *assembler) unless(k, verdict uint32) {
	a.add(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, 1, 0, k)
	a.ret(verdict)
}

func (a *assembler) ifAtLeast(k, verdict uint32) {
	a.add(unix.BPF_JMP|unix.BPF_JGE|unix.BPF_K, 0, 1, k)
	a.ret(verdict)
}

func (a *assembler) ifSet(k, verdict uint32) {
	a.add(unix.BPF_JMP|unix.BPF_JSET|unix.BPF_K, 0, 1, k)
	a.ret(verdict)
}

// call runs body where the accumulator is k; body must end with ret. A
// conditional jump reaches 255 instructions, an unconditional one any number.
func (a *assembler) call(k uint32, body func()) {
	a.add(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, 1, 0, k)
	jump := len(a.prog)
	a.add(unix.BPF_JMP|unix.BPF_JA, 0, 0, 0)
	body()
	a.prog[jump].K = uint32(len(a.prog) - jump - 1)
}
