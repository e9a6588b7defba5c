package fqdn

import "encoding/binary"

// texts keeps many short byte strings in large chunks without pointers, in
// units of 16 bytes. Room that was freed is used again for a text of as many
// units.
type texts struct {
	chunks [][]byte
	next   uint32           // unit behind the last one given out
	vacant [maxUnits]uint32 // first vacant run of so many units, plus one; the next one is written in it
	bytes  int              // given out
}

const (
	textUnit   = 16
	chunkUnits = 4096
	maxUnits   = maxName/textUnit + 2
)

func unitsOf(n int) int { return max((n+textUnit-1)/textUnit, 1) }

// roomFor is how many bytes a text of n takes.
func roomFor(n int) int32 { return int32(unitsOf(n) * textUnit) }

// add keeps a text of at most maxName bytes, and tells where.
func (t *texts) add(s string) uint32 {
	units := unitsOf(len(s))
	t.bytes += units * textUnit
	at := t.vacant[units]
	if at > 0 {
		at--
		t.vacant[units] = binary.NativeEndian.Uint32(t.room(at, units))
	} else {
		// A text does not cross chunks.
		if t.next%chunkUnits+uint32(units) > chunkUnits {
			t.next += chunkUnits - t.next%chunkUnits
		}
		if t.next/chunkUnits == uint32(len(t.chunks)) {
			t.chunks = append(t.chunks, make([]byte, chunkUnits*textUnit))
		}
		at = t.next
		t.next += uint32(units)
	}
	copy(t.room(at, units), s)
	return at
}

func (t *texts) room(at uint32, units int) []byte {
	from := int(at%chunkUnits) * textUnit
	return t.chunks[at/chunkUnits][from : from+units*textUnit]
}

// get returns the text of n bytes at a place; it is valid until it is removed.
func (t *texts) get(at uint32, n uint16) []byte {
	from := int(at%chunkUnits) * textUnit
	return t.chunks[at/chunkUnits][from : from+int(n) : from+int(n)]
}

func (t *texts) remove(at uint32, n uint16) {
	units := unitsOf(int(n))
	t.bytes -= units * textUnit
	binary.NativeEndian.PutUint32(t.room(at, units), t.vacant[units])
	t.vacant[units] = at + 1
}
