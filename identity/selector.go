package identity

import (
	"fmt"
	"slices"
	"strings"
)

// Operator is what a requirement asks of a key.
type Operator uint8

const (
	// In: the key is there with one of the values.
	In Operator = iota
	// NotIn: the key is absent or has none of the values.
	NotIn
	// Exists: the key is there.
	Exists
	// Absent: the key is not there.
	Absent
)

// Requirement is one condition on a label set. Source may be SourceAny.
type Requirement struct {
	Source, Key string
	Operator    Operator
	Values      []string // sorted; of In and NotIn
}

// Matches tells whether the set fulfils the requirement.
func (r *Requirement) Matches(ls Labels) bool {
	value, ok := ls.Get(r.Source, r.Key)
	switch r.Operator {
	case In:
		return ok && slices.Contains(r.Values, value)
	case NotIn:
		return !ok || !slices.Contains(r.Values, value)
	case Exists:
		return ok
	case Absent:
		return !ok
	}
	return false
}

// Selector selects the label sets that fulfil all its requirements; without
// any, every set.
type Selector []Requirement

// Matches tells whether the set is selected.
func (s Selector) Matches(ls Labels) bool {
	for i := range s {
		if !s[i].Matches(ls) {
			return false
		}
	}
	return true
}

// Key is a text that only selectors with the same requirements share.
func (s Selector) Key() string {
	parts := make([]string, len(s))
	for i, r := range s {
		parts[i] = fmt.Sprintf("%q:%q %s %q", r.Source, r.Key, [...]string{"in", "not in", "exists", "absent"}[r.Operator], r.Values)
	}
	slices.Sort(parts)
	return strings.Join(slices.Compact(parts), ";")
}

// Values returns the values a key may have in a selected set, if the selector
// pins it down: one In requirement on it, of the source or any.
func (s Selector) Values(source, key string) (values []string, ok bool) {
	for i := range s {
		if r := &s[i]; r.Key == key && r.Operator == In && (r.Source == source || r.Source == SourceAny) {
			return r.Values, true
		}
	}
	return nil, false
}
