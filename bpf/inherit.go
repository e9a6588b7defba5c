package bpf

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// inheritState fills a state that was made anew from that of another layout, if
// there is one: flows that need the proxy would find none, until somebody says
// again which it is. The revision has a way of its own (firstRevision).
func (d *Datapath) inheritState() error {
	path, err := latestOther(d.opts.Pins, d.paths, "state")
	if err != nil || path == "" {
		return err
	}
	m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return fmt.Errorf("open table %s: %w", filepath.Base(path), err)
	}
	defer letGo(m)
	value, err := m.LookupBytes(uint32(0))
	if err != nil {
		return fmt.Errorf("read table %s: %w", filepath.Base(path), err)
	}
	fields, err := numbersOf(m, "state", value)
	if err != nil {
		return fmt.Errorf("read table %s: %w", filepath.Base(path), err)
	}
	d.SetGeneration(uint8(fields["generation"]))
	d.state.MidstreamUntil = fields["midstream_until"]
	return nil
}

// latestOther is the table of that name that was pinned last with another layout
// than ours; "" if there is none.
func latestOther(pins string, ours map[string]string, name string) (string, error) {
	stale, err := staleMaps(pins, ours)
	if err != nil {
		return "", err
	}
	latest, at := "", time.Time{}
	for _, path := range stale {
		if base, _, _ := strings.Cut(filepath.Base(path), "@"); base != name {
			continue
		}
		info, err := os.Stat(path)
		if err != nil {
			return "", fmt.Errorf("inspect a pinned table: %w", err)
		}
		if latest == "" || info.ModTime().After(at) {
			latest, at = path, info.ModTime()
		}
	}
	return latest, nil
}

// numbersOf reads the numbers of a table's value, which is a struct of that name,
// by field. What it has no such field of is not there.
func numbersOf(m *ebpf.Map, name string, value []byte) (map[string]uint64, error) {
	info, err := m.Info()
	if err != nil {
		return nil, err
	}
	id, ok := info.BTFID()
	if !ok {
		return nil, nil // made without a description: nothing is known of it
	}
	handle, err := btf.NewHandleFromID(id)
	if err != nil {
		return nil, fmt.Errorf("find its description: %w", err)
	}
	defer letGo(handle)
	spec, err := handle.Spec(nil)
	if err != nil {
		return nil, fmt.Errorf("read its description: %w", err)
	}
	var s *btf.Struct
	if err := spec.TypeByName(name, &s); err != nil {
		return nil, fmt.Errorf("read its description: %w", err)
	}
	out := map[string]uint64{}
	for _, f := range s.Members {
		number, ok := btf.UnderlyingType(f.Type).(*btf.Int)
		if from := int(f.Offset.Bytes()); ok && from+int(number.Size) <= len(value) {
			var n uint64
			for i := range int(number.Size) { // little endian, as the programs are
				n |= uint64(value[from+i]) << (8 * i)
			}
			out[f.Name] = n
		}
	}
	return out, nil
}
