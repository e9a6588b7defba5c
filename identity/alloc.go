package identity

import (
	"crypto/sha256"
	"fmt"
)

// Digest names some content: labels, a policy, a rule set, a rule.
type Digest [16]byte

// DigestOf returns the digest of canonical bytes.
func DigestOf(canonical []byte) Digest {
	sum := sha256.Sum256(canonical)
	return Digest(sum[:16])
}

// Allocator gives content a small number that stays the same as long as
// anything holds it, also across a restart of the agent: what the kernel's
// tables hold are these numbers, so a successor that numbered anew would have
// to rewrite all of them while packets pass. It is not safe for concurrent use.
type Allocator struct {
	first, next uint32
	byDigest    map[Digest]uint32
	byID        map[uint32]Digest
}

// NewAllocator hands out numbers from first on. The seed is what a
// predecessor had given out (nil for none); entries below first are ignored.
// The next number is one beyond the seed's: what of it is released may stand
// in tables for a while, and must not come to mean something else there.
func NewAllocator(first uint32, seed map[uint32]Digest) *Allocator {
	a := &Allocator{first: first, next: first, byDigest: map[Digest]uint32{}, byID: map[uint32]Digest{}}
	for id, d := range seed {
		if id < first {
			continue
		}
		a.byDigest[d], a.byID[id] = id, d
		a.next = max(a.next, id+1) // 0 behind the last: then they begin anew
	}
	return a
}

// Get returns the number of d, allocating one if it has none.
func (a *Allocator) Get(d Digest) (uint32, error) {
	if id, ok := a.byDigest[d]; ok {
		return id, nil
	}
	for range uint64(1) << 32 {
		id := a.next
		a.next++
		if a.next < a.first { // wrapped
			a.next = a.first
		}
		if _, taken := a.byID[id]; !taken && id >= a.first {
			a.byDigest[d], a.byID[id] = id, d
			return id, nil
		}
	}
	return 0, fmt.Errorf("allocate a number: all %d are taken", len(a.byID))
}

// Lookup returns the number of d, if it has one.
func (a *Allocator) Lookup(d Digest) (uint32, bool) {
	id, ok := a.byDigest[d]
	return id, ok
}

// Release gives the number back. Releasing a number nobody holds does nothing.
// Numbers are handed out in turn, so a released one is not reused soon.
func (a *Allocator) Release(id uint32) {
	if d, ok := a.byID[id]; ok {
		delete(a.byID, id)
		delete(a.byDigest, d)
	}
}

// All returns every number in use. The caller must not change the map.
func (a *Allocator) All() map[uint32]Digest { return a.byID }
