package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// scanBatch is how many entries are read with one call. A bucket of a hash
// table has to fit.
const scanBatch = 4096

// Scan calls each for every entry, as All does, in batches: for large tables,
// and for those the kernel changes all the time, where a walk from key to key
// may never end. An entry that moves meanwhile may be seen twice or not.
func (t Table[K, V]) Scan(each func(K, V)) error {
	var (
		cursor ebpf.MapBatchCursor
		keys   = make([]K, scanBatch)
		values = make([]V, scanBatch)
	)
	for {
		n, err := t.m.BatchLookup(&cursor, keys, values, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			if errors.Is(err, unix.ENOSPC) { // a bucket larger than a batch
				keys, values = make([]K, 2*len(keys)), make([]V, 2*len(values))
				continue
			}
			return fmt.Errorf("scan table %s: %w", t.name, err)
		}
		for i := range keys[:n] {
			each(keys[i], values[i])
		}
		if err != nil {
			return nil
		}
	}
}
