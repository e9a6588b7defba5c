package fqdn

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/identity"
)

// kernelTable is the Table in the kernel.
type kernelTable struct{ m *ebpf.Map }

// NewTable makes a Table of the kernel's fqdn, whose descriptor must allow
// writing and stays the caller's.
func NewTable(m *ebpf.Map) Table { return kernelTable{m} }

func (t kernelTable) Set(a netip.Addr, id identity.ID) error {
	key, value := bpf.AddrOf(a), uint32(id)
	return t.m.Update(&key, &value, ebpf.UpdateAny)
}

func (t kernelTable) Delete(a netip.Addr) error {
	key := bpf.AddrOf(a)
	if err := t.m.Delete(&key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	return nil
}

func (t kernelTable) Get(a netip.Addr) (identity.ID, bool, error) {
	var value uint32
	key := bpf.AddrOf(a)
	err := t.m.Lookup(&key, &value)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return 0, false, nil
	}
	return identity.ID(value), err == nil, err
}

func (t kernelTable) Size() int { return int(t.m.MaxEntries()) }

func (t kernelTable) Walk(ctx context.Context, visit func([]Row)) error {
	rows := make([]Row, 0, walkStep)
	err := walk(ctx, t.m, func(keys []bpf.Addr, values []uint32) {
		rows = rows[:0]
		for i := range keys {
			rows = append(rows, Row{keys[i].Netip(), identity.ID(values[i])})
		}
		visit(rows)
	})
	if err != nil {
		return fmt.Errorf("walk through table fqdn: %w", err)
	}
	return nil
}

// kernelFlows is conntrack.
type kernelFlows struct{ m *ebpf.Map }

// NewFlows makes Flows of the kernel's conntrack, whose descriptor stays the
// caller's.
func NewFlows(m *ebpf.Map) Flows { return kernelFlows{m} }

func (f kernelFlows) Walk(ctx context.Context, visit func([]netip.Addr)) error {
	var clock unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &clock); err != nil {
		return fmt.Errorf("walk through conntrack: read the clock: %w", err)
	}
	now := uint64(clock.Nano())
	live := make([]netip.Addr, 0, walkStep)
	err := walk(ctx, f.m, func(keys []bpf.Tuple, values []bpf.Conntrack) {
		live = live[:0]
		for i := range keys {
			ct := &values[i]
			if ct.Flags&bpf.CTCut == 0 && ct.LastSeen+uint64(ct.Lifetime(keys[i].Proto)) >= now {
				live = append(live, ct.Responder(keys[i]).Netip())
			}
		}
		visit(live)
	})
	if err != nil {
		return fmt.Errorf("walk through conntrack: %w", err)
	}
	return nil
}

// A walk reads so many entries at a time, and leaves the processor to others in
// between.
const (
	walkStep  = 1024
	walkPause = 200 * time.Microsecond
)

// walk shows all entries of a hash table, some at a time.
func walk[K, V any](ctx context.Context, m *ebpf.Map, visit func([]K, []V)) error {
	var cursor ebpf.MapBatchCursor
	keys, values := make([]K, walkStep), make([]V, walkStep)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		if errors.Is(err, unix.ENOSPC) && len(keys) < int(m.MaxEntries()) {
			keys, values = make([]K, 4*len(keys)), make([]V, 4*len(values)) // a large bucket
			continue
		}
		end := errors.Is(err, ebpf.ErrKeyNotExist)
		if err != nil && !end {
			return err
		}
		visit(keys[:n], values[:n])
		if end {
			return nil
		}
		time.Sleep(walkPause)
	}
}
