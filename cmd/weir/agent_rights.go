package main

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/endpoint"
)

// tryRights tells which rights an agent lacks that it will need once it has the
// state, by doing what needs them and changes nothing: an agent that could not
// take over must not be taken for ready.
func tryRights() error {
	return errors.Join(
		lack("load programs and make tables", tryTables()),
		lack("attach to interfaces (NET_ADMIN)", tryInterfaces()),
		lack("hear of pods' interfaces (NET_BROADCAST)", tryVeths()),
		lack("look into network namespaces (SYS_ADMIN)", tryNamespaces()),
	)
}

func lack(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("no right to %s: %w", what, err)
}

func tryTables() error {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		return err
	}
	return m.Close()
}

// tryInterfaces asks for more than the limit of a socket's buffer, which only who
// administers the network gets.
func tryInterfaces() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 1<<16), unix.Close(fd))
}

func tryVeths() error {
	v, err := endpoint.OpenVeths()
	if err == nil {
		v.Close()
	}
	return err
}

// tryNamespaces enters the namespace that this process is in already.
func tryNamespaces() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return errors.Join(unix.Setns(fd, unix.CLONE_NEWNET), unix.Close(fd))
}
