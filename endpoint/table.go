package endpoint

import (
	"fmt"
	"maps"
	"slices"
)

// store is one table of the kernel; see bpf.Table, which is one. Deleting
// what is not there is no error.
type store[K comparable, V comparable] interface {
	Snapshot() (map[K]V, error)
	Update(K, V) error
	Delete(K) error
}

// table brings a store to what is wanted: updates and deletes are separate
// steps, since what points to an entry comes after it and goes before it.
// Whatever fails stays to be done, so calling the steps again converges.
type table[K comparable, V comparable] struct {
	name  string
	store store[K, V]
	want  map[K]V
	have  map[K]V        // what the store holds, as far as is known
	open  map[K]struct{} // keys where the two may differ
	err   error          // of the last step
}

func newTable[K comparable, V comparable](name string, s store[K, V]) *table[K, V] {
	return &table[K, V]{name: name, store: s, want: map[K]V{}, have: map[K]V{}, open: map[K]struct{}{}}
}

// adopt reads what a predecessor left. Everything not wanted by the time of
// the first prune goes.
func (t *table[K, V]) adopt() error {
	have, err := t.store.Snapshot()
	if err != nil {
		return fmt.Errorf("read %s: %w", t.name, err)
	}
	t.have = have
	for k := range have {
		t.open[k] = struct{}{}
	}
	return nil
}

func (t *table[K, V]) set(k K, v V) {
	if old, ok := t.want[k]; ok && old == v {
		return
	}
	t.want[k] = v
	t.open[k] = struct{}{}
}

func (t *table[K, V]) unset(k K) {
	if _, ok := t.want[k]; ok {
		delete(t.want, k)
		t.open[k] = struct{}{}
	}
}

// replace makes want the whole of what is wanted.
func (t *table[K, V]) replace(want map[K]V) {
	for k := range t.want {
		if _, ok := want[k]; !ok {
			t.unset(k)
		}
	}
	for k, v := range want {
		t.set(k, v)
	}
}

// update writes what is wanted and not there as wanted. Entries for which
// hold is true wait for another time.
func (t *table[K, V]) update(hold func(K, V) bool) (written int, err error) {
	return t.updateOnly(keysOf(t.open), hold)
}

// updateOnly is update for these keys.
func (t *table[K, V]) updateOnly(among []K, hold func(K, V) bool) (written int, err error) {
	var keys []K
	var values []V
	for _, k := range among {
		v, wanted := t.want[k]
		if !wanted {
			continue // prune's
		}
		if old, ok := t.have[k]; ok && old == v {
			delete(t.open, k)
			continue
		}
		if hold == nil || !hold(k, v) {
			keys, values = append(keys, k), append(values, v)
		}
	}
	written, failed, err := putAll(t.store, keys, values)
	for i, k := range keys {
		if !failed[i] {
			t.have[k] = values[i]
			delete(t.open, k)
		}
	}
	return written, t.note("write", err, len(failed))
}

// prune deletes what is there and not wanted. Entries for which hold is true
// wait for another time.
func (t *table[K, V]) prune(hold func(K) bool) (deleted int, err error) {
	var keys []K
	for k := range t.open {
		if _, wanted := t.want[k]; wanted {
			continue
		}
		if _, ok := t.have[k]; !ok {
			delete(t.open, k)
			continue
		}
		if hold == nil || !hold(k) {
			keys = append(keys, k)
		}
	}
	return t.drop(keys)
}

// drop deletes these keys now; those that are wanted are written again by the
// next update.
func (t *table[K, V]) drop(keys []K) (deleted int, err error) {
	keys = slices.DeleteFunc(keys, func(k K) bool { _, ok := t.have[k]; return !ok })
	deleted, failed, err := deleteAll(t.store, keys)
	for i, k := range keys {
		if failed[i] {
			continue
		}
		delete(t.have, k)
		if _, wanted := t.want[k]; wanted {
			t.open[k] = struct{}{}
		} else {
			delete(t.open, k)
		}
	}
	return deleted, t.note("delete from", err, len(failed))
}

func (t *table[K, V]) note(verb string, err error, failed int) error {
	if err != nil {
		err = fmt.Errorf("%s %s (%d entries): %w", verb, t.name, failed, err)
	}
	t.err = err
	return err
}

// putAll writes everything it can: after an entry that fails it goes on with
// the next. The error is the first one, failed holds indexes.
func putAll[K comparable, V comparable](s store[K, V], keys []K, values []V) (done int, failed map[int]bool, first error) {
	return each(len(keys), func(i int) error { return s.Update(keys[i], values[i]) })
}

func deleteAll[K comparable, V comparable](s store[K, V], keys []K) (done int, failed map[int]bool, first error) {
	return each(len(keys), func(i int) error { return s.Delete(keys[i]) })
}

// maxFailures in a row are enough: a full table is not asked a million times.
const maxFailures = 64

func each(n int, do func(int) error) (done int, failed map[int]bool, first error) {
	failed = map[int]bool{}
	row := 0
	for i := range n {
		if row >= maxFailures {
			failed[i] = true
			continue
		}
		err := do(i)
		if err == nil {
			done, row = done+1, 0
			continue
		}
		row++
		failed[i] = true
		if first == nil {
			first = err
		}
	}
	return done, failed, first
}

func keysOf[K comparable, V any](m map[K]V) []K { return slices.Collect(maps.Keys(m)) }
