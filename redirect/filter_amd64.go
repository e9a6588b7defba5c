package redirect

import "golang.org/x/sys/unix"

const (
	archAudit   = unix.AUDIT_ARCH_X86_64
	archForeign = 0x40000000 // x32: the same architecture with other numbers
)

func archForbidden() []uint32 {
	return []uint32{unix.SYS_FORK, unix.SYS_VFORK, unix.SYS_IOPL, unix.SYS_IOPERM, unix.SYS_MODIFY_LDT}
}
