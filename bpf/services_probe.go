package bpf

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// What a probe connects to, by UDP. Whoever fills Services.Services has these
// there as services without backends.
var (
	ServiceProbe4 = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 0, 8}), 1)     // the IPv4 dummy address, RFC 7600
	ServiceProbe6 = netip.AddrPortFrom(netip.AddrFrom16([16]byte{0: 0x01, 15: 1}), 1) // discarded, RFC 6666
)

// ServiceProbeProtocol is UDP.
const ServiceProbeProtocol uint8 = unix.IPPROTO_UDP

// probeTime is how long a probe may take: it starts a program.
const probeTime = 5 * time.Second

// ProbeServices asks a process, in a cgroup below this one and in a network
// namespace of its own, as a pod's, whether the programs see what it connects
// to. self is a command that calls ProbeHere and exits with status 0 if that
// returns no error; else what it printed is the error.
func ProbeServices(cgroup string, self ...string) (err error) {
	path := filepath.Join(cgroup, "weir-probe-"+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make a cgroup for the probe: %w", err)
	}
	defer func() {
		// The process has left it a little after it ended.
		e := unix.Rmdir(path)
		for end := time.Now().Add(time.Second); errors.Is(e, unix.EBUSY) && time.Now().Before(end); e = unix.Rmdir(path) {
			time.Sleep(5 * time.Millisecond)
		}
		if e != nil {
			err = errors.Join(err, fmt.Errorf("remove the cgroup of the probe: %w", e))
		}
	}()
	dir, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open the cgroup of the probe: %w", err)
	}
	defer dir.Close()
	cmd := exec.Command(self[0], self[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		UseCgroupFD: true, CgroupFD: int(dir.Fd()), Cloneflags: unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL,
	}
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the probe: %w", err)
	}
	late := time.AfterFunc(probeTime, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	if err := cmd.Wait(); err != nil {
		if text := strings.TrimSpace(said.String()); text != "" {
			return errors.New(text)
		}
		return fmt.Errorf("probe: %w", err)
	}
	return nil
}

// ProbeHere tells whether the programs see what this process connects to.
func ProbeHere() error {
	for _, p := range []struct {
		domain int
		to     unix.Sockaddr
	}{
		{unix.AF_INET, &unix.SockaddrInet4{Port: int(ServiceProbe4.Port()), Addr: ServiceProbe4.Addr().As4()}},
		{unix.AF_INET6, &unix.SockaddrInet6{Port: int(ServiceProbe6.Port()), Addr: ServiceProbe6.Addr().As16()}},
	} {
		fd, err := unix.Socket(p.domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if errors.Is(err, unix.EAFNOSUPPORT) {
			continue // no IPv6, and so no pod's
		}
		if err != nil {
			return fmt.Errorf("open a socket: %w", err)
		}
		err = unix.Connect(fd, p.to)
		_ = unix.Close(fd) // nothing was sent
		// Without the programs it is unreachable, or nobody objects.
		if err == nil {
			return errors.New("the programs do not see what processes in the cgroup connect to")
		}
		if !errors.Is(err, unix.ECONNREFUSED) {
			return fmt.Errorf("the programs do not see what processes in the cgroup connect to: %w", err)
		}
	}
	return nil
}
