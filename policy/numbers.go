package policy

import (
	"maps"

	"github.com/weirnet/weir/identity"
)

// numbering gives out numbers of one kind and keeps account of what changed,
// for Delta.Numbers and Delta.Freed.
type numbering struct {
	alloc *identity.Allocator
	// seeds nobody has asked for since the start
	unused map[uint32]identity.Digest
	fresh  map[uint32]identity.Digest
	freed  map[uint32]identity.Digest
}

func newNumbering(first uint32, seed map[uint32]identity.Digest) *numbering {
	a := identity.NewAllocator(first, seed)
	return &numbering{alloc: a, unused: maps.Clone(a.All()), fresh: map[uint32]identity.Digest{}, freed: map[uint32]identity.Digest{}}
}

func (n *numbering) get(d identity.Digest) (uint32, error) {
	if id, ok := n.alloc.Lookup(d); ok {
		delete(n.unused, id)
		return id, nil
	}
	id, err := n.alloc.Get(d)
	if err != nil {
		return 0, err
	}
	n.fresh[id] = d
	return id, nil
}

func (n *numbering) release(id uint32) {
	d, ok := n.alloc.All()[id]
	if !ok {
		return
	}
	n.alloc.Release(id)
	if _, ok := n.fresh[id]; ok { // it never left
		delete(n.fresh, id)
		return
	}
	n.freed[id] = d
}

// releaseUnused frees the seeds nobody asked for.
func (n *numbering) releaseUnused() {
	for id := range n.unused {
		n.release(id)
	}
	clear(n.unused)
}

// flush returns what was given out and freed since the last call.
func (n *numbering) flush() (fresh, freed map[uint32]identity.Digest) {
	fresh, freed = n.fresh, n.freed
	n.fresh, n.freed = map[uint32]identity.Digest{}, map[uint32]identity.Digest{}
	return fresh, freed
}
