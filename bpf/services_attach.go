package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// serviceHook is a program and the event at sockets that it stands at.
type serviceHook struct {
	name    string
	program *ebpf.Program
	attach  ebpf.AttachType
}

// hooks lists them in the order they are attached: a socket must not be sent
// somewhere before it can be told what it named.
func (s *Services) hooks() []serviceHook {
	o := &s.objects
	return []serviceHook{
		{"recvmsg4", o.Recvmsg4, ebpf.AttachCGroupUDP4Recvmsg},
		{"recvmsg6", o.Recvmsg6, ebpf.AttachCGroupUDP6Recvmsg},
		{"getpeername4", o.Getpeername4, ebpf.AttachCgroupInet4GetPeername},
		{"getpeername6", o.Getpeername6, ebpf.AttachCgroupInet6GetPeername},
		{"sendmsg4", o.Sendmsg4, ebpf.AttachCGroupUDP4Sendmsg},
		{"sendmsg6", o.Sendmsg6, ebpf.AttachCGroupUDP6Sendmsg},
		{"connect4", o.Connect4, ebpf.AttachCGroupInet4Connect},
		{"connect6", o.Connect6, ebpf.AttachCGroupInet6Connect},
	}
}

// Attach puts the programs at the sockets of processes in a cgroup (v2) and
// below, in place of a predecessor's and beside those of others. Call it when the
// tables hold what is to be translated. Programs that stand at another cgroup,
// and tables of other layouts, go once these stand. It may be repeated.
func (s *Services) Attach(cgroup string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	dir, err := os.Open(cgroup)
	if err != nil {
		return fmt.Errorf("open the cgroup of services: %w", err)
	}
	defer dir.Close()
	var fs unix.Statfs_t
	var st unix.Stat_t
	if err := errors.Join(unix.Fstatfs(int(dir.Fd()), &fs), unix.Fstat(int(dir.Fd()), &st)); err != nil {
		return fmt.Errorf("inspect cgroup %s: %w", cgroup, err)
	}
	if fs.Type != unix.CGROUP2_SUPER_MAGIC {
		return fmt.Errorf("%s is no cgroup (v2)", cgroup)
	}
	for _, h := range s.hooks() {
		if err := s.attach(h, dir, st.Ino); err != nil {
			return err
		}
	}
	stale, err := staleMapsIn(filepath.Join(s.pins, servicesDir), s.paths)
	if err != nil {
		return err
	}
	return dropMaps(stale)
}

func (s *Services) serviceLink(name string) string {
	return filepath.Join(s.pins, serviceLinksDir, name)
}

// attach replaces the program of a link that stands at this cgroup, or makes a
// link and takes off the one at another.
func (s *Services) attach(h serviceHook, cgroup *os.File, id uint64) error {
	path := s.serviceLink(h.name)
	on, err := linkedCgroup(path)
	if err != nil {
		return err
	}
	if on == id {
		l, err := link.LoadPinnedLink(path, nil)
		if err != nil {
			return fmt.Errorf("open the link of %s: %w", h.name, err)
		}
		defer letGo(l)
		if err := l.Update(h.program); err != nil {
			return fmt.Errorf("replace %s: %w", h.name, err)
		}
		return nil
	}
	// Not link.AttachCgroup: what that falls back to can't be pinned.
	l, err := link.AttachRawLink(link.RawLinkOptions{Target: int(cgroup.Fd()), Program: h.program, Attach: h.attach})
	if err != nil {
		return fmt.Errorf("attach %s to cgroup %s: %w", h.name, cgroup.Name(), err)
	}
	defer letGo(l)
	if err := unpinLink(path); err != nil {
		return err
	}
	if err := l.Pin(path); err != nil {
		return fmt.Errorf("pin the link of %s: %w", h.name, err)
	}
	return nil
}

// Attached tells whether all programs are at the sockets of that cgroup.
func (s *Services) Attached(cgroup string) (bool, error) {
	var st unix.Stat_t
	if err := unix.Stat(cgroup, &st); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return false, nil
		}
		return false, fmt.Errorf("inspect cgroup %s: %w", cgroup, err)
	}
	for _, h := range s.hooks() {
		if on, err := linkedCgroup(s.serviceLink(h.name)); err != nil || on != st.Ino {
			return false, err
		}
	}
	return true, nil
}

// linkedCgroup is the cgroup where the link pinned at path holds its program; 0
// for none: there is no link, its cgroup has gone, or somebody took it off.
func linkedCgroup(path string) (uint64, error) {
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("open pinned link %s: %w", filepath.Base(path), err)
	}
	defer letGo(l)
	info, err := l.Info()
	if err != nil {
		return 0, fmt.Errorf("inspect pinned link %s: %w", filepath.Base(path), err)
	}
	at := info.Cgroup()
	if at == nil {
		return 0, nil
	}
	return at.CgroupId, nil
}

// RemoveServices takes the programs of services off and unpins their tables;
// kube-proxy alone goes on. It works without a Services, so also for another
// version's; nothing there is not an error.
func RemoveServices(pins string) error {
	// From the last to the first: who is sent to a backend is told what it named
	// until the end.
	var failed []error
	for _, kind := range []string{"connect", "sendmsg", "getpeername", "recvmsg"} {
		for _, family := range []string{"4", "6"} {
			failed = append(failed, unpinLink(filepath.Join(pins, serviceLinksDir, kind+family)))
		}
	}
	failed = append(failed, removeLinks(filepath.Join(pins, serviceLinksDir)))
	return errors.Join(append(failed, removeTree(filepath.Join(pins, servicesDir)))...)
}
