package bpf

import (
	"errors"
	"fmt"
	"iter"
	"maps"

	"github.com/cilium/ebpf"
)

// Table is one of the kernel's tables. It is safe for concurrent use, as the
// kernel's side is: an operation on one key is atomic, several are not.
type Table[K comparable, V comparable] struct {
	name string
	m    *ebpf.Map
}

// Name is the table's name, as in types.h and on the command line.
func (t Table[K, V]) Name() string { return t.name }

// Update adds the key or replaces its value.
func (t Table[K, V]) Update(key K, value V) error {
	if err := t.m.Update(&key, &value, ebpf.UpdateAny); err != nil {
		return fmt.Errorf("update %v in table %s: %w", key, t.name, err)
	}
	return nil
}

// Delete removes the key. A key that is not there is not an error.
func (t Table[K, V]) Delete(key K) error {
	if err := t.m.Delete(&key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("delete %v from table %s: %w", key, t.name, err)
	}
	return nil
}

// Lookup returns the key's value; ok is false if it is not there.
func (t Table[K, V]) Lookup(key K) (value V, ok bool, err error) {
	switch err := t.m.Lookup(&key, &value); {
	case err == nil:
		return value, true, nil
	case errors.Is(err, ebpf.ErrKeyNotExist):
		return value, false, nil
	default:
		return value, false, fmt.Errorf("look up %v in table %s: %w", key, t.name, err)
	}
}

// All iterates over the table in no order. Entries that come or go meanwhile
// may be seen or not. An error ends the iteration and is told by *err, which
// must not be nil.
func (t Table[K, V]) All(err *error) iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		var (
			key   K
			value V
			it    = t.m.Iterate()
		)
		for it.Next(&key, &value) {
			if !yield(key, value) {
				return
			}
		}
		if e := it.Err(); e != nil {
			*err = fmt.Errorf("iterate over table %s: %w", t.name, e)
		}
	}
}

// Snapshot returns all entries.
func (t Table[K, V]) Snapshot() (map[K]V, error) {
	var err error
	out := maps.Collect(t.All(&err))
	return out, err
}

// Changes counts what Reconcile did.
type Changes struct{ Added, Changed, Deleted int }

// Reconcile makes the table equal to desired: adds first, then changes, then
// deletes, so that nothing that holds before and after is missing in between.
// It returns what was done, also with an error, which does not stop it.
func (t Table[K, V]) Reconcile(desired map[K]V) (Changes, error) {
	var (
		done   Changes
		failed []error
	)
	actual, err := t.Snapshot()
	if err != nil {
		return done, err
	}
	apply := func(err error, count *int) {
		if err != nil {
			failed = append(failed, err)
			return
		}
		*count++
	}
	for k, v := range desired {
		if _, ok := actual[k]; !ok {
			apply(t.Update(k, v), &done.Added)
		}
	}
	for k, v := range desired {
		if old, ok := actual[k]; ok && old != v {
			apply(t.Update(k, v), &done.Changed)
		}
	}
	for k := range actual {
		if _, ok := desired[k]; !ok {
			apply(t.Delete(k), &done.Deleted)
		}
	}
	return done, errors.Join(failed...)
}
