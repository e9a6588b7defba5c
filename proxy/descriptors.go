package proxy

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/proxy/control"
)

// tables are what comes with a Wiring.
type tables struct {
	conns, revision, listeners, fqdn, conntrack, shares, grants *ebpf.Map
	checkpoint                                                  [2]*os.File
}

// mapIDs tell the tables of one agent's from another's.
type mapIDs struct{ conns, revision, listeners, fqdn, conntrack, shares, grants ebpf.MapID }

// openMaps opens what the names say; the descriptors stay the caller's. Others
// than those of a proxy are left alone.
func openMaps(names []string, files []*os.File) (_ *tables, err error) {
	if len(names) != len(files) {
		return nil, fmt.Errorf("%d tables and %d descriptors", len(names), len(files))
	}
	t := &tables{}
	places := map[string]**ebpf.Map{
		control.MapConns: &t.conns, control.MapRevision: &t.revision, control.MapListeners: &t.listeners,
		control.MapFQDN: &t.fqdn, control.MapConntrack: &t.conntrack,
		control.MapShares: &t.shares, control.MapGrants: &t.grants,
	}
	plain := map[string]**os.File{
		control.MapCheckpoint0: &t.checkpoint[0], control.MapCheckpoint1: &t.checkpoint[1],
	}
	defer func() {
		if err != nil {
			t.close()
			_ = t.revision.Close() // nil is fine
		}
	}()
	for i, name := range names {
		if place := places[name]; place != nil && *place == nil {
			if *place, err = openMap(files[i]); err != nil {
				return nil, fmt.Errorf("open table %s: %w", name, err)
			}
		}
		if place := plain[name]; place != nil && *place == nil {
			fd, err := unix.FcntlInt(files[i].Fd(), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				return nil, fmt.Errorf("open %s: %w", name, err)
			}
			*place = os.NewFile(uintptr(fd), name)
		}
	}
	for name, place := range places {
		if *place == nil {
			return nil, fmt.Errorf("no descriptor of table %s", name)
		}
	}
	for name, place := range plain {
		if *place == nil {
			return nil, fmt.Errorf("no descriptor of %s", name)
		}
	}
	return t, nil
}

func openMap(f *os.File) (*ebpf.Map, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	m, err := ebpf.NewMapFromFD(fd)
	if err != nil {
		_ = unix.Close(fd)
	}
	return m, err
}

// close closes all but the revision, which is needed no longer than for mapping
// it.
func (t *tables) close() {
	for _, m := range []*ebpf.Map{t.conns, t.listeners, t.fqdn, t.conntrack, t.shares, t.grants} {
		_ = m.Close() // nil is fine
	}
	for _, f := range t.checkpoint {
		if f != nil {
			_ = f.Close()
		}
	}
}

func (t *tables) ids() (ids mapIDs, err error) {
	for _, x := range []struct {
		m  *ebpf.Map
		id *ebpf.MapID
	}{
		{t.conns, &ids.conns}, {t.revision, &ids.revision}, {t.listeners, &ids.listeners},
		{t.fqdn, &ids.fqdn}, {t.conntrack, &ids.conntrack},
		{t.shares, &ids.shares}, {t.grants, &ids.grants},
	} {
		if *x.id, err = mapID(x.m); err != nil {
			return ids, fmt.Errorf("identify a table: %w", err)
		}
	}
	return ids, nil
}

// mapID asks the kernel for a table's number. (The library also looks into
// /proc, which is not there for a sealed proxy.)
func mapID(m *ebpf.Map) (ebpf.MapID, error) {
	var info struct{ kind, id uint32 } // the beginning of struct bpf_map_info
	attr := struct {
		fd, size uint32
		info     uint64
	}{uint32(m.FD()), uint32(unsafe.Sizeof(info)), uint64(uintptr(unsafe.Pointer(&info)))}
	_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_OBJ_GET_INFO_BY_FD, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	runtime.KeepAlive(&info)
	if errno != 0 {
		return 0, errno
	}
	return ebpf.MapID(info.id), nil
}
