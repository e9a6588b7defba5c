package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"unsafe"

	"golang.org/x/sys/unix"
)

// poller is a level-triggered epoll set, waited on without telling the Go
// scheduler: the thread that uses it does nothing else.
type poller struct {
	fd     int
	events [256]unix.EpollEvent
	ready  [256]int
}

func newPoller() (*poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make epoll set: %w", err)
	}
	return &poller{fd: fd}, nil
}

// add watches a descriptor for input until it is closed.
func (p *poller) add(fd int) error {
	e := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}
	if err := unix.EpollCtl(p.fd, unix.EPOLL_CTL_ADD, fd, &e); err != nil {
		return fmt.Errorf("watch descriptor: %w", err)
	}
	return nil
}

// wait returns the descriptors with input; the slice holds until the next call.
func (p *poller) wait(milliseconds int) ([]int, error) {
	n, _, errno := uintptr(0), uintptr(0), unix.EINTR
	for errno == unix.EINTR { // the Go runtime signals its threads
		n, _, errno = unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.fd), uintptr(unsafe.Pointer(&p.events[0])),
			uintptr(len(p.events)), uintptr(milliseconds), 0, 0)
	}
	if errno != 0 {
		return nil, fmt.Errorf("wait for input: %w", errno)
	}
	for i := range int(n) {
		p.ready[i] = int(p.events[i].Fd)
	}
	return p.ready[:n], nil
}

func rawRead(fd int, b []byte) (int, error) {
	n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

func rawWrite(fd int, b []byte) (int, error) {
	n, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// rawAccept takes a connection off a listener's queue, not blocking on it.
func rawAccept(fd int) (int, error) {
	c, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), 0, 0, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(c), nil
}

// steadyThread makes this goroutine the process's only business: a thread of
// its own, and no garbage collection, which would wait for a thread that is in
// the kernel. What it allocates is little; the limit is for the unforeseen.
func steadyThread() {
	runtime.LockOSThread()
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(512 << 20)
}
