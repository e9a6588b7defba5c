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

// mapFlows is the flowTable in the kernel.
type mapFlows struct {
	m  *ebpf.Map
	mu sync.Mutex // held while remove may have a successor's entry out

	cursor *ebpf.MapBatchCursor
	keys   []bpf.Tuple
	values []bpf.Conn
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
	if f.cursor == nil {
		f.cursor = &ebpf.MapBatchCursor{}
	}
	if len(f.keys) < n {
		f.keys, f.values = make([]bpf.Tuple, n), make([]bpf.Conn, n)
	}
	got, err := f.m.BatchLookup(f.cursor, f.keys[:n], f.values[:n], nil)
	end = errors.Is(err, ebpf.ErrKeyNotExist)
	if errors.Is(err, unix.ENOSPC) && n < f.size() {
		// The next bucket holds more than n: this step has to be longer.
		return f.walk(min(n*4, f.size()), visit)
	}
	if err != nil {
		f.cursor = nil // from the beginning the next time
	}
	if err != nil && !end {
		return false, fmt.Errorf("walk through conns: %w", err)
	}
	for i := range got {
		visit(f.keys[i], f.values[i])
	}
	return end, nil
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
