package fqdn

import (
	"cmp"
	"encoding/binary"
	"maps"
	"slices"
	"time"

	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy/dnsrules"
)

// selection is a set of selectors that names, or the names of an address,
// match; its place in a universe stands for it. The empty one is at place 0.
type selection struct {
	selectors []uint32 // places in the universe, in order
	id        identity.ID
	// best are the identities of the largest subsets that have one, where it
	// has none itself; computed when first needed.
	best      []identity.ID
	bestKnown bool

	names, addrs uint32 // how many have it
	wanted       bool   // the agent is told of it
	// owner is the pod whose share of wants it takes, or would; cost is how much.
	owner uint32
	cost  int32
	// since is when it was first told to those who watch now.
	since time.Time
	used  uint32 // when an answer had an address of it
	idle  uint32 // when the last address went
}

// Bounds of what is made of selections.
const (
	// maxSelections bounds distinct ones. Beyond it an address keeps a part of
	// what its names ask for.
	maxSelections = 1 << 16
)

// universe is the selectors there are, and the sets of them in use.
type universe struct {
	selectors []dnsrules.Selector // ordered, distinct
	of        map[string]part     // by namespace
	epoch     uint32

	sets   []selection
	vacant []uint32
	byKey  map[string]uint32
	// known are the sets that have an identity, the largest first; ofID is their
	// inverse.
	known []uint32
	ofID  map[identity.ID]uint32
	wants wants
	// ahead are the sets of names, by place and plus one, that were found before
	// this universe counted. Each is one of the set's names.
	ahead []uint32
	// full counts sets that were not made for want of room.
	full uint64

	// Of whoever holds the cache's lock:
	key   []byte
	union []uint32
	match []int
}

// selectorsOf are the selectors of all identities, in one order.
func selectorsOf(ids map[identity.ID][]dnsrules.Selector) []dnsrules.Selector {
	seen := map[dnsrules.Selector]bool{}
	for _, list := range ids {
		for _, s := range list {
			seen[s] = true
		}
	}
	return slices.SortedFunc(maps.Keys(seen), dnsrules.Selector.Compare)
}

// part are the selectors of a namespace, which stand one after another.
type part struct {
	index *dnsrules.Index
	first uint32
}

func newUniverse(selectors []dnsrules.Selector, epoch uint32) *universe {
	u := &universe{
		selectors: selectors, of: map[string]part{}, epoch: epoch, sets: []selection{{}}, byKey: map[string]uint32{"": 0},
	}
	for first := 0; first < len(selectors); {
		end, in := first+1, selectors[first].Namespace
		for end < len(selectors) && selectors[end].Namespace == in {
			end++
		}
		u.of[in] = part{dnsrules.NewIndex(selectors[first:end]), uint32(first)}
		first = end
	}
	return u
}

// places finds selectors; one that is not there is left out.
func (u *universe) places(list []dnsrules.Selector) []uint32 {
	out := make([]uint32, 0, len(list))
	for _, s := range list {
		if i, ok := slices.BinarySearchFunc(u.selectors, s, dnsrules.Selector.Compare); ok {
			out = append(out, uint32(i))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// identify says which sets have an identity now.
func (u *universe) identify(ids map[identity.ID][]dnsrules.Selector) {
	old := u.known
	for i := range u.sets {
		u.sets[i].id, u.sets[i].best, u.sets[i].bestKnown = 0, nil, false
	}
	u.known, u.ofID = nil, make(map[identity.ID]uint32, len(ids))
	for _, id := range slices.Sorted(maps.Keys(ids)) {
		at, ok := u.intern(u.places(ids[id]))
		if !ok || at == 0 {
			continue // no selectors, and so no addresses
		}
		if u.sets[at].id == 0 {
			u.sets[at].id = id
			u.known = append(u.known, at)
		}
		u.ofID[id] = at
	}
	slices.SortFunc(u.known, func(a, b uint32) int {
		return cmp.Or(cmp.Compare(len(u.sets[b].selectors), len(u.sets[a].selectors)), cmp.Compare(u.sets[a].id, u.sets[b].id))
	})
	for _, at := range old {
		u.tidy(at)
	}
}

// intern returns the place of a set, which it makes if need be; false: there is
// no room. The list is copied.
func (u *universe) intern(selectors []uint32) (uint32, bool) {
	u.key = u.key[:0]
	for _, s := range selectors {
		u.key = binary.NativeEndian.AppendUint32(u.key, s)
	}
	if at, ok := u.byKey[string(u.key)]; ok {
		return at, true
	}
	var at uint32
	if n := len(u.vacant); n > 0 {
		at, u.vacant = u.vacant[n-1], u.vacant[:n-1]
	} else if len(u.sets) >= maxSelections+len(u.known) {
		u.full++
		return 0, false
	} else {
		at = uint32(len(u.sets))
		u.sets = append(u.sets, selection{})
	}
	u.sets[at] = selection{selectors: slices.Clone(selectors)}
	u.byKey[string(u.key)] = at
	return at, true
}

// tidy forgets a set that nothing needs.
func (u *universe) tidy(at uint32) {
	s := &u.sets[at]
	if at == 0 || s.selectors == nil || s.names+s.addrs > 0 || s.wanted || s.id != 0 {
		return
	}
	u.key = u.key[:0]
	for _, p := range s.selectors {
		u.key = binary.NativeEndian.AppendUint32(u.key, p)
	}
	delete(u.byKey, string(u.key))
	*s = selection{}
	u.vacant = append(u.vacant, at)
}

// matching returns the set of the selectors that match a name that counts for a
// namespace, or for all ("").
func (u *universe) matching(text []byte, namespace string) uint32 {
	in, ok := u.of[namespace]
	if !ok {
		return 0
	}
	u.match = in.index.AppendMatches(u.match[:0], text)
	if len(u.match) == 0 {
		return 0
	}
	u.union = u.union[:0]
	for _, m := range u.match {
		u.union = append(u.union, in.first+uint32(m))
	}
	if at, ok := u.intern(u.union); ok {
		return at
	}
	// No room: as much as is there.
	return u.bestSubset(u.union)
}

// lose takes a name away from a set.
func (u *universe) lose(set uint32) {
	u.sets[set].names--
	u.tidy(set)
}

// foretell finds the set of a name, as long as nobody asks for it.
func (u *universe) foretell(at uint32, text []byte, namespace string) {
	for uint32(len(u.ahead)) <= at {
		u.ahead = append(u.ahead, 0)
	}
	if u.ahead[at] == 0 {
		set := u.matching(text, namespace)
		u.sets[set].names++
		u.ahead[at] = set + 1
	}
}

// foretold is the set that was found for a name, which counts as one of its names.
func (u *universe) foretold(at uint32) (set uint32, ok bool) {
	if at >= uint32(len(u.ahead)) || u.ahead[at] == 0 {
		return 0, false
	}
	set, u.ahead[at] = u.ahead[at]-1, 0
	return set, true
}

// join returns the union of two sets; where there is no room for it, the first.
func (u *universe) join(a, b uint32) uint32 {
	if a == b || b == 0 {
		return a
	}
	if a == 0 {
		return b
	}
	x, y := u.sets[a].selectors, u.sets[b].selectors
	u.union = u.union[:0]
	for len(x) > 0 && len(y) > 0 {
		switch {
		case x[0] < y[0]:
			u.union, x = append(u.union, x[0]), x[1:]
		case x[0] > y[0]:
			u.union, y = append(u.union, y[0]), y[1:]
		default:
			u.union, x, y = append(u.union, x[0]), x[1:], y[1:]
		}
	}
	u.union = append(append(u.union, x...), y...)
	if at, ok := u.intern(u.union); ok {
		return at
	}
	return a
}

// bestSubset is the largest set with an identity that these selectors contain.
func (u *universe) bestSubset(selectors []uint32) uint32 {
	for _, at := range u.known {
		if subset(u.sets[at].selectors, selectors) {
			return at
		}
	}
	return 0
}

// bestOf are the identities of the largest known subsets of a set that has none
// itself.
func (u *universe) bestOf(at uint32) []identity.ID {
	s := &u.sets[at]
	if s.bestKnown {
		return s.best
	}
	size := 0
	for _, k := range u.known {
		known := &u.sets[k]
		if len(known.selectors) < size {
			break
		}
		if subset(known.selectors, s.selectors) {
			size = len(known.selectors)
			s.best = append(s.best, known.id)
		}
	}
	s.bestKnown = true
	return s.best
}

// narrower tells whether an identity is for some of a set's selectors and no
// others.
func (u *universe) narrower(id identity.ID, at uint32) bool {
	k, ok := u.ofID[id]
	return ok && subset(u.sets[k].selectors, u.sets[at].selectors)
}

// subset tells whether all of a, which is in order, are in b, which is, too.
func subset(a, b []uint32) bool {
	if len(a) > len(b) {
		return false
	}
	if len(a) == 1 {
		_, ok := slices.BinarySearch(b, a[0])
		return ok
	}
	for _, x := range a {
		for len(b) > 0 && b[0] < x {
			b = b[1:]
		}
		if len(b) == 0 || b[0] != x {
			return false
		}
		b = b[1:]
	}
	return true
}

func (u *universe) list(at uint32) []dnsrules.Selector {
	out := make([]dnsrules.Selector, len(u.sets[at].selectors))
	for i, s := range u.sets[at].selectors {
		out[i] = u.selectors[s]
	}
	return out
}
