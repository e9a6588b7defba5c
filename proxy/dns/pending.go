package dns

import "time"

// pending is a question that went to a server and waits for its answer.
type pending struct {
	session *session
	up      *upstream
	id      uint16 // towards the server
	asked   asked  // by the client
	port    [2]byte
	verdict judgement
	start   time.Time
	kind    uint16
	class   uint16
	size    uint16
	wire    [maxQuestion]byte

	next *pending      // in its bucket
	turn node[pending] // of all
	mate node[pending] // of its upstream's
}

// question is the question section that was sent.
func (p *pending) question() []byte { return p.wire[:p.size] }

// pendings finds them by socket and id, and knows the oldest.
type pendings struct {
	buckets [1 << 14]*pending
	all     ring[pending]
	n       int
	free    []*pending
}

// How many are kept for later.
const (
	keptPendings  = 4096
	keptScratches = 64 // 4 MiB
)

func bucketOf(up *upstream, id uint16) uint32 {
	// Ids are random; sockets must not share their buckets all the same.
	return (uint32(id) ^ up.serial*0x9e3779b1>>16) & (1<<14 - 1)
}

func (t *pendings) find(up *upstream, id uint16) *pending {
	for p := t.buckets[bucketOf(up, id)]; p != nil; p = p.next {
		if p.up == up && p.id == id {
			return p
		}
	}
	return nil
}

// add enters a question by p.up and p.id, which no other has.
func (t *pendings) take() *pending {
	if k := len(t.free); k > 0 {
		p := t.free[k-1]
		t.free = t.free[:k-1]
		return p
	}
	return new(pending)
}

func (t *pendings) add(p *pending) {
	b := &t.buckets[bucketOf(p.up, p.id)]
	p.next, *b = *b, p
	t.all.push(&p.turn, p)
	p.up.pending.push(&p.mate, p)
	t.n++
}

// remove takes a question out; the caller frees it.
func (t *pendings) remove(p *pending) {
	b := &t.buckets[bucketOf(p.up, p.id)]
	for *b != p {
		b = &(*b).next
	}
	*b, p.next = p.next, nil
	p.turn.remove()
	p.mate.remove()
	t.n--
}

func (t *pendings) release(p *pending) {
	p.session, p.up = nil, nil
	if len(t.free) < keptPendings {
		t.free = append(t.free, p)
	}
}
