package bpf

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// What is pinned below Options.Pins:
//
//	maps/NAME@LAYOUT             the shared tables
//	links/PROGRAM-IFINDEX        tcx links of pods
//	proxies/GENERATION/listeners the sockmap of one proxy
//	proxies/GENERATION/steer     its sk_lookup link
//	proxies/GENERATION/from_proxy its tcx link
//	services/NAME@LAYOUT         the tables of services
//	services/links/PROGRAM       links of a cgroup
const (
	mapsDir    = "maps"
	linksDir   = "links"
	proxiesDir = "proxies"

	servicesDir     = "services"
	serviceLinksDir = "services/links"
)

// meaning is part of a table's layout: raise it when the same bytes come to mean
// something else.
func meaning(table string) int {
	if table == "ipcache" {
		return 2 // 1: the node's own addresses were told by identity 1, not by PEER_HOST
	}
	return 1
}

// MountPins makes dir and mounts a bpffs there, unless it is on one already.
func MountPins(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make directory for pins: %w", err)
	}
	on, err := onBPFFS(dir)
	if err != nil || on {
		return err
	}
	if err := unix.Mount("weir", dir, "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount a bpffs on %s: %w", dir, err)
	}
	return nil
}

// UsePins makes dir, which must be on a bpffs that is mounted already.
func UsePins(dir string) error {
	above := filepath.Clean(dir)
	for {
		if _, err := os.Lstat(above); err == nil {
			break
		} else if !errors.Is(err, os.ErrNotExist) || filepath.Dir(above) == above {
			return fmt.Errorf("make directory for pins: %w", err)
		}
		above = filepath.Dir(above)
	}
	if on, err := onBPFFS(above); err != nil {
		return fmt.Errorf("make directory for pins: %w", err)
	} else if !on {
		return fmt.Errorf("make directory for pins: %s is on no bpf file system: mount one (mount -t bpf bpf /sys/fs/bpf)", above)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make directory for pins: %w", err)
	}
	return nil
}

// UnmountPins undoes MountPins: it unmounts the bpffs whose root dir is. A
// directory that is not such a root, or not there, is left as it is.
func UnmountPins(dir string) error {
	on, err := onBPFFS(dir)
	if errors.Is(err, os.ErrNotExist) || err == nil && !on {
		return nil
	}
	if err != nil {
		return err
	}
	if parent, err := onBPFFS(filepath.Dir(dir)); err != nil || parent {
		return err
	}
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}

func onBPFFS(dir string) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return false, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return st.Type == unix.BPF_FS_MAGIC, nil
}

// layout names what a table's bytes are: kind, sizes, fields and meaning. Two
// versions of Weir share a pinned table if they agree on it, and each has its
// own if not.
func layout(spec *ebpf.MapSpec) (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, meaning(spec.Name), spec.Type, spec.KeySize, spec.ValueSize, spec.MaxEntries, spec.Flags)
	var f btf.GoFormatter
	for _, t := range []btf.Type{spec.Key, spec.Value} {
		if t == nil {
			continue
		}
		decl, err := f.TypeDeclaration("t", t)
		if err != nil {
			return "", fmt.Errorf("describe table %s: %w", spec.Name, err)
		}
		fmt.Fprintln(h, decl)
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:4]), nil
}

// mapPath is where the table of this spec is pinned.
func mapPath(pins string, spec *ebpf.MapSpec) (string, error) {
	return mapPathIn(pins, mapsDir, spec)
}

func mapPathIn(pins, dir string, spec *ebpf.MapSpec) (string, error) {
	l, err := layout(spec)
	if err != nil {
		return "", err
	}
	return filepath.Join(pins, dir, spec.Name+"@"+l), nil
}

// adoptMaps adopts all shared tables of an object, pinned below dir, notes their
// paths, and tells which it made. On error it returns those that are open.
func adoptMaps(pins, dir string, spec *ebpf.CollectionSpec, paths map[string]string) (shared map[string]*ebpf.Map, made map[string]bool, err error) {
	shared, made = map[string]*ebpf.Map{}, map[string]bool{}
	for name, ms := range spec.Maps {
		if isData(name) {
			continue
		}
		if paths[name], err = mapPathIn(pins, dir, ms); err != nil {
			return shared, made, err
		}
		m, fresh, err := adoptMap(paths[name], ms)
		if err != nil {
			return shared, made, err
		}
		shared[name], made[name] = m, fresh
	}
	return shared, made, nil
}

// adoptMap opens the table that is pinned at path, or makes and pins it and
// tells so.
func adoptMap(path string, spec *ebpf.MapSpec) (_ *ebpf.Map, made bool, err error) {
	m, err := ebpf.LoadPinnedMap(path, nil)
	if err == nil {
		if err := spec.Compatible(m); err != nil {
			letGo(m)
			return nil, false, fmt.Errorf("adopt table %s: %w", spec.Name, err)
		}
		return m, false, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return nil, false, fmt.Errorf("open pinned table %s: %w", spec.Name, err)
	}
	m, err = ebpf.NewMap(spec)
	if err != nil {
		return nil, false, fmt.Errorf("make table %s: %w", spec.Name, err)
	}
	if err := m.Pin(path); err != nil {
		letGo(m)
		return nil, false, fmt.Errorf("pin table %s: %w", spec.Name, err)
	}
	return m, true, nil
}

// staleMaps lists the pinned tables of other layouts: programs of another
// version may still judge by them.
func staleMaps(pins string, current map[string]string) ([]string, error) {
	return staleMapsIn(filepath.Join(pins, mapsDir), current)
}

func staleMapsIn(dir string, current map[string]string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list pinned tables: %w", err)
	}
	ours := map[string]bool{}
	for _, path := range current {
		ours[path] = true
	}
	var stale []string
	for _, e := range entries {
		if path := filepath.Join(dir, e.Name()); !e.IsDir() && !ours[path] {
			stale = append(stale, path)
		}
	}
	return stale, nil
}

// dropMaps unpins tables. The kernel frees each when the last program and
// process lets go of it.
func dropMaps(paths []string) error {
	for _, path := range paths {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("unpin table %s: %w", filepath.Base(path), err)
		}
	}
	return nil
}

// linkPath is where the tcx link of a pod's program is pinned.
func linkPath(pins, program string, ifindex int) string {
	return filepath.Join(pins, linksDir, program+"-"+strconv.Itoa(ifindex))
}

// pinnedLinks lists the pinned links of pods: path to program name and ifindex.
func pinnedLinks(pins string) (map[string]attachment, error) {
	dir := filepath.Join(pins, linksDir)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list pinned links: %w", err)
	}
	out := map[string]attachment{}
	for _, e := range entries {
		program, index, _ := strings.Cut(e.Name(), "-")
		ifindex, err := strconv.Atoi(index)
		if err != nil {
			continue // not ours
		}
		out[filepath.Join(dir, e.Name())] = attachment{program, ifindex}
	}
	return out, nil
}

// letGo closes a descriptor. What it stands for stays where it is pinned or
// attached, so no error of it matters.
func letGo(c io.Closer) { c.Close() }

// attachment is one program on one interface.
type attachment struct {
	program string
	ifindex int
}
