package bpf

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// revisionCopy is a second copy of State.Revision, for the proxy: it has to
// look at the revision before every request, in memory, and the kernel maps a
// table only by a descriptor that may write. So the proxy gets one for this
// table, which no program reads.
type revisionCopy struct {
	mu     sync.Mutex // held while the two copies are raised
	table  *ebpf.Map
	mapped []byte
	word   *uint32
}

const revisionTable = "revision"

func revisionSpec() *ebpf.MapSpec {
	return &ebpf.MapSpec{
		Name: revisionTable, Type: ebpf.Array, Flags: unix.BPF_F_MMAPABLE,
		KeySize: 4, ValueSize: 4, MaxEntries: 1,
	}
}

// mapRevision opens the copy and brings it up to date.
func (d *Datapath) mapRevision() (err error) {
	spec := revisionSpec()
	if d.paths[revisionTable], err = mapPath(d.opts.Pins, spec); err != nil {
		return err
	}
	c := &d.revision
	if c.table, _, err = adoptMap(d.paths[revisionTable], spec); err != nil {
		return err
	}
	c.mapped, err = unix.Mmap(c.table.FD(), 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map table %s: %w", revisionTable, err)
	}
	c.word = (*uint32)(unsafe.Pointer(&c.mapped[0]))
	first, err := d.firstRevision(atomic.LoadUint32(c.word))
	if err != nil {
		return err
	}
	atomic.StoreUint32(c.word, first)
	atomic.StoreUint32(&d.state.Revision, first)
	return nil
}

// firstRevision is where to go on from. A state that was made anew must begin
// above all that flows were judged at before: copied is the last of it.
func (d *Datapath) firstRevision(copied uint32) (uint32, error) {
	revision := d.Revision()
	if copied > revision {
		return copied + 1, nil
	}
	if revision > 0 {
		return revision, nil
	}
	stale, err := staleMaps(d.opts.Pins, d.paths)
	if err != nil || len(stale) == 0 {
		return 0, err
	}
	return uint32(time.Now().Unix()), nil // the copy is new as well
}

// bump raises both. The proxy's goes first: a proxy that is ahead asks conns
// once more than needed, one that is behind would judge by what was.
func (c *revisionCopy) bump(kernel *uint32) uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := atomic.LoadUint32(kernel) + 1
	atomic.StoreUint32(c.word, next)
	atomic.StoreUint32(kernel, next)
	return next
}

func (c *revisionCopy) close() (err error) {
	if c.mapped != nil {
		err = unix.Munmap(c.mapped)
		c.mapped, c.word = nil, nil
	}
	if c.table != nil {
		letGo(c.table)
		c.table = nil
	}
	return err
}
