package dns

import (
	"hash/maphash"
	"time"
)

// pending is a question that went to a server and waits for its answer.
type pending struct {
	session *session
	up      *upstream
	id      uint16 // towards the server
	equal   equality
	start   time.Time // when it was asked first
	sent    time.Time // last
	repeats int       // after the first time
	kind    uint16
	class   uint16
	size    uint16
	wire    [maxQuestion]byte

	// Who asked it, in their order, first among them, and how many.
	first asker
	last  *asker
	n     int

	next *pending      // in its bucket
	same *pending      // in its bucket by name
	turn node[pending] // of all
	mate node[pending] // of its upstream's
}

// asker is one who asked a question: a port of the pod and an id.
type asker struct {
	question *pending
	asked    asked
	port     [2]byte
	verdict  judgement
	start    time.Time
	next     *asker // of the question's
	beside   *asker // in its bucket
}

// equality tells whether two messages of a session ask the same.
type equality struct {
	message uint64 // all bytes but the id
	name    uint64 // name and type, whatever the case
}

// question is the question section that was sent.
func (p *pending) question() []byte { return p.wire[:p.size] }

// pendings finds them by socket and id, by what they ask, and by who asked, and
// knows the oldest.
type pendings struct {
	buckets [1 << tableBits]*pending
	names   [1 << tableBits]*pending
	askers  [1 << tableBits]*asker
	seed    maphash.Seed
	all     ring[pending]
	n       int // questions
	asking  int // askers
	free    []*pending
	spare   []*asker
}

const tableBits = 14

// How many are kept for later.
const (
	keptPendings  = 4096
	keptAskers    = 1024
	keptScratches = 64 // 4 MiB
)

func (t *pendings) init() {
	t.seed = maphash.MakeSeed()
	t.all.init()
}

func bucketOf(up *upstream, id uint16) uint32 {
	// Ids are random; sockets must not share their buckets all the same.
	return (uint32(id) ^ up.serial*0x9e3779b1>>16) & (1<<tableBits - 1)
}

func (t *pendings) find(up *upstream, id uint16) *pending {
	for p := t.buckets[bucketOf(up, id)]; p != nil; p = p.next {
		if p.up == up && p.id == id {
			return p
		}
	}
	return nil
}

// equalityOf is of a message with a question that was read. Nobody knows the
// seed, so nobody can make two that differ and are taken for one.
func (t *pendings) equalityOf(s *session, m []byte, q *question) equality {
	name := maphash.Bytes(t.seed, q.name) ^ (uint64(s.serial)<<16 | uint64(q.kind))
	return equality{message: maphash.Bytes(t.seed, m[2:]), name: name * 0x9e3779b97f4a7c15}
}

// equals finds the question of a session that is asked by the same bytes, and has
// room for one more who asks; else nil and how many there are of the same name
// and type.
func (t *pendings) equals(s *session, e equality, q *question) (p *pending, variants int) {
	for p = t.names[e.name>>(64-tableBits)]; p != nil; p = p.same {
		if p.session != s || p.equal.name != e.name || p.kind != q.kind || !sameQuestion(p.question(), q.wire) {
			continue
		}
		if p.equal.message == e.message && p.n < maxAskers {
			return p, 0
		}
		variants++
	}
	return nil, variants
}

func (t *pendings) askerBucket(s *session, port [2]byte, id uint16) **asker {
	h := uint64(s.serial)<<32 | uint64(port[0])<<24 | uint64(port[1])<<16 | uint64(id)
	return &t.askers[maphash.Comparable(t.seed, h)>>(64-tableBits)]
}

// repeated finds the question that has been asked before by the same bytes, from
// the same port and with the same id; nil: it is a new one.
func (t *pendings) repeated(s *session, e equality, port [2]byte, id uint16) *pending {
	for a := *t.askerBucket(s, port, id); a != nil; a = a.beside {
		if p := a.question; a.port == port && a.asked.id == id && p.session == s && p.equal == e {
			return p
		}
	}
	return nil
}

// take returns a question without anything in it.
func (t *pendings) take() *pending {
	if k := len(t.free); k > 0 {
		p := t.free[k-1]
		t.free = t.free[:k-1]
		return p
	}
	return new(pending)
}

// add enters a question by p.up and p.id, which no other has, without askers.
func (t *pendings) add(p *pending) {
	t.enter(p)
	b := &t.names[p.equal.name>>(64-tableBits)]
	p.same, *b = *b, p
	t.all.push(&p.turn, p)
	t.n++
}

// enter makes a question found by its socket and id.
func (t *pendings) enter(p *pending) {
	b := &t.buckets[bucketOf(p.up, p.id)]
	p.next, *b = *b, p
	p.up.pending.push(&p.mate, p)
}

// leave undoes enter.
func (t *pendings) leave(p *pending) {
	b := &t.buckets[bucketOf(p.up, p.id)]
	for *b != p {
		b = &(*b).next
	}
	*b, p.next = p.next, nil
	p.mate.remove()
}

// join makes one more wait for the answer.
func (t *pendings) join(p *pending, a asker) {
	to := &p.first
	if p.n > 0 {
		if k := len(t.spare); k > 0 {
			to, t.spare = t.spare[k-1], t.spare[:k-1]
		} else {
			to = new(asker)
		}
		p.last.next = to
	}
	*to = a
	b := t.askerBucket(p.session, a.port, a.asked.id)
	to.question, to.beside, *b = p, *b, to
	p.last = to
	p.n++
	t.asking++
}

// remove takes a question out, which nobody finds any more; it has its askers
// still, and the caller releases it.
func (t *pendings) remove(p *pending) {
	t.leave(p)
	b := &t.names[p.equal.name>>(64-tableBits)]
	for *b != p {
		b = &(*b).same
	}
	*b, p.same = p.same, nil
	p.turn.remove()
	for a := &p.first; a != nil; a = a.next {
		b := t.askerBucket(p.session, a.port, a.asked.id)
		for *b != a {
			b = &(*b).beside
		}
		*b, a.beside = a.beside, nil
	}
	t.n--
}

func (t *pendings) release(p *pending) {
	t.asking -= p.n
	for a := p.first.next; a != nil; {
		next := a.next
		a.question, a.next = nil, nil
		if len(t.spare) < keptAskers {
			t.spare = append(t.spare, a)
		}
		a = next
	}
	p.session, p.up, p.first, p.last, p.n = nil, nil, asker{}, nil, 0
	if len(t.free) < keptPendings {
		t.free = append(t.free, p)
	}
}
