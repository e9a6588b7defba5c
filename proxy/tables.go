package proxy

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/bpf"
)

// flowTable is the conns table: what the kernel decided about each redirected
// flow. Safe for concurrent use, but for walk.
type flowTable interface {
	// get returns the entry of a flow; false: there is none.
	get(bpf.Tuple) (bpf.Conn, bool, error)
	// remove deletes the entry of a flow if it still is the one with this id:
	// a successor with the same addresses and ports keeps its own.
	remove(t bpf.Tuple, id uint64) error
	// walk calls visit for some entries, a few more than n at most, and goes
	// on behind them the next time. end: it came to the end of the table.
	walk(n int, visit func(bpf.Tuple, bpf.Conn)) (end bool, err error)
	// size is how many entries there can be.
	size() int
}

// walker reads a table of the kernel bit by bit.
type walker[K, V any] struct {
	m      *ebpf.Map
	cursor *ebpf.MapBatchCursor
	keys   []K
	values []V
}

// walk is that of flowTable.
func (w *walker[K, V]) walk(n int, visit func(K, V)) (end bool, err error) {
	if w.cursor == nil {
		w.cursor = &ebpf.MapBatchCursor{}
	}
	if len(w.keys) < n {
		w.keys, w.values = make([]K, n), make([]V, n)
	}
	got, err := w.m.BatchLookup(w.cursor, w.keys[:n], w.values[:n], nil)
	end = errors.Is(err, ebpf.ErrKeyNotExist)
	if most := int(w.m.MaxEntries()); errors.Is(err, unix.ENOSPC) && n < most {
		// The next bucket holds more than n: this step has to be longer.
		return w.walk(min(n*4, most), visit)
	}
	if err != nil {
		w.cursor = nil // from the beginning the next time
	}
	if err != nil && !end {
		return false, err
	}
	for i := range got {
		visit(w.keys[i], w.values[i])
	}
	return end, nil
}

// mapFlows is the flowTable in the kernel.
type mapFlows struct {
	walker[bpf.Tuple, bpf.Conn]
	mu sync.Mutex // held while remove may have a successor's entry out
}

func (f *mapFlows) size() int { return int(f.m.MaxEntries()) }

func (f *mapFlows) get(t bpf.Tuple) (c bpf.Conn, ok bool, err error) {
	err = f.m.Lookup(&t, &c)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		f.mu.Lock()
		err = f.m.Lookup(&t, &c)
		f.mu.Unlock()
	}
	switch {
	case err == nil:
		return c, true, nil
	case errors.Is(err, ebpf.ErrKeyNotExist):
		return c, false, nil
	}
	return c, false, fmt.Errorf("look up %v in conns: %w", t, err)
}

func (f *mapFlows) remove(t bpf.Tuple, id uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var c bpf.Conn
	err := f.m.Lookup(&t, &c)
	if err == nil && c.Id == id {
		// The kernel may write a successor's entry between the two calls.
		if err = f.m.LookupAndDelete(&t, &c); err == nil && c.Id != id {
			if err = f.m.Update(&t, &c, ebpf.UpdateNoExist); errors.Is(err, ebpf.ErrKeyExist) {
				err = nil // and a yet newer one
			}
		}
	}
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("remove %v from conns: %w", t, err)
	}
	return nil
}

func (f *mapFlows) walk(n int, visit func(bpf.Tuple, bpf.Conn)) (end bool, err error) {
	if end, err = f.walker.walk(n, visit); err != nil {
		err = fmt.Errorf("walk through conns: %w", err)
	}
	return end, err
}

// shareTable is what each veth has made of conns, and may make.
type shareTable interface {
	// read returns all there are, by veth. It must not be called concurrently.
	read() (map[uint32]bpf.Share, error)
	grant(veth uint32, g bpf.Grant) error
}

// mapShares is the shareTable in the kernel.
type mapShares struct {
	walker[uint32, bpf.Share]
	grants *ebpf.Map
}

func (s *mapShares) read() (map[uint32]bpf.Share, error) {
	all := map[uint32]bpf.Share{}
	for end := false; !end; {
		var err error
		if end, err = s.walk(256, func(veth uint32, share bpf.Share) { all[veth] = share }); err != nil {
			return nil, fmt.Errorf("read shares: %w", err)
		}
	}
	return all, nil
}

func (s *mapShares) grant(veth uint32, g bpf.Grant) error {
	if err := s.grants.Put(&veth, &g); err != nil {
		return fmt.Errorf("grant veth %d room: %w", veth, err)
	}
	return nil
}

// revisions tells which policy is in force, by memory shared with the agent.
type revisions struct{ word *uint32 }

// mapRevisions maps the revision table, for reading. The table's descriptor is
// not needed any more then.
func mapRevisions(m *ebpf.Map) (revisions, error) {
	b, err := unix.Mmap(m.FD(), 0, os.Getpagesize(), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return revisions{}, fmt.Errorf("map the revision table: %w", err)
	}
	return revisions{(*uint32)(unsafe.Pointer(&b[0]))}, nil
}

func (r revisions) now() uint32 { return atomic.LoadUint32(r.word) }
