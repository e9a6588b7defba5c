package fqdn

// none stands for no place in a slab, and ends a list.
const none = ^uint32(0)

// slab holds many values of a type without pointers. It grows by pages that
// never move, so growing costs no copy, and the collector has nothing to look
// at. A value is known by its place, which is given out anew once it is freed.
type slab[T any] struct {
	pages  [][]T
	vacant []uint32
	end    uint32 // places below were given out at some time
}

const slabPage = 1024

// take gives out a place; what is there is whatever was left.
func (s *slab[T]) take() uint32 {
	if n := len(s.vacant); n > 0 {
		place := s.vacant[n-1]
		s.vacant = s.vacant[:n-1]
		return place
	}
	if s.end == uint32(len(s.pages))*slabPage {
		s.pages = append(s.pages, make([]T, slabPage))
	}
	s.end++
	return s.end - 1
}

func (s *slab[T]) give(place uint32) { s.vacant = append(s.vacant, place) }

func (s *slab[T]) at(place uint32) *T { return &s.pages[place/slabPage][place%slabPage] }

// len is how many places are taken.
func (s *slab[T]) len() int { return int(s.end) - len(s.vacant) }

// index finds places by the hash of what is there. Whoever asks compares. It
// is made of many small tables, each of which grows for itself: no single call
// pays for a large one.
type index struct{ parts [indexParts]indexPart }

type indexPart struct {
	// slots hold a place and, in the upper bits, part of its hash.
	slots []uint32
	used  int // slots that hold a place
	dead  int // slots that held one
}

const (
	indexParts = 256
	placeBits  = 20 // places beyond are never given out: see maxPlaces
	placeMask  = 1<<placeBits - 1
	slotFree   = 0xffffffff
	slotDead   = 0xfffffffe
	maxPlaces  = placeMask - 1
)

func slotOf(hash uint64, place uint32) uint32 {
	return uint32(hash>>40)<<placeBits | place
}

// find returns the place with this hash that is the one looked for.
func (x *index) find(hash uint64, is func(place uint32) bool) (place uint32, ok bool) {
	p := &x.parts[hash%indexParts]
	if len(p.slots) == 0 {
		return none, false
	}
	tag := uint32(hash>>40) << placeBits
	for i := p.start(hash); ; i++ {
		switch slot := p.slots[i&(len(p.slots)-1)]; {
		case slot == slotFree:
			return none, false
		case slot&^placeMask == tag && slot != slotDead && is(slot&placeMask):
			return slot & placeMask, true
		}
	}
}

func (p *indexPart) start(hash uint64) int { return int(hash >> 8 & uint64(len(p.slots)-1)) }

// add puts in a place that is not there yet. hashOf tells the hash of any place
// that is.
func (x *index) add(hash uint64, place uint32, hashOf func(uint32) uint64) {
	p := &x.parts[hash%indexParts]
	if (p.used+p.dead+1)*4 > len(p.slots)*3 {
		p.rebuild(hashOf)
	}
	p.put(hash, place)
	p.used++
}

func (p *indexPart) put(hash uint64, place uint32) {
	for i := p.start(hash); ; i++ {
		slot := &p.slots[i&(len(p.slots)-1)]
		if *slot == slotFree {
			*slot = slotOf(hash, place)
			return
		}
	}
}

// rebuild makes room, and gets rid of the dead.
func (p *indexPart) rebuild(hashOf func(uint32) uint64) {
	size := 8
	for size < (p.used+1)*2 {
		size *= 2
	}
	old := p.slots
	p.slots, p.dead = make([]uint32, size), 0
	for i := range p.slots {
		p.slots[i] = slotFree
	}
	for _, slot := range old {
		if slot != slotFree && slot != slotDead {
			p.put(hashOf(slot&placeMask), slot&placeMask)
		}
	}
}

// remove takes out a place that is there.
func (x *index) remove(hash uint64, place uint32) {
	p := &x.parts[hash%indexParts]
	want := slotOf(hash, place)
	for i := p.start(hash); ; i++ {
		slot := &p.slots[i&(len(p.slots)-1)]
		if *slot == want {
			*slot = slotDead
			if p.slots[(i+1)&(len(p.slots)-1)] == slotFree {
				*slot = slotFree // nobody comes by
			} else {
				p.dead++
			}
			p.used--
			return
		}
	}
}
