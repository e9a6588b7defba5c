package httprules

import (
	"encoding/binary"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"
)

const (
	// tableBytes, and tableBytesRule for each rule, bound the states kept of
	// one automaton. Requests of a service visit a few hundred states of some
	// 400 bytes, and some more for each rule they match. Input made to visit
	// ever new ones fills the table, is then followed step by step, and now
	// and then the table is begun anew for those that behave.
	tableBytes     = 512 << 10
	tableBytesRule = 16 << 10
	// renewAfter is how many inputs find the table full before it is begun
	// anew: filling it costs about as much as following so many.
	renewAfter = 1024
	// maxWork bounds the steps followed for one value, those of the states
	// made on the way included: some ten milliseconds. A loop that serves
	// others, too, would stand still for them. Only a large regular expression
	// of the kind that must follow all its steps at once, with a long value,
	// gets there; then it does not match.
	maxWork = 4 << 20
)

// automaton tells which rules one value of a request does not rule out. Its
// states are sets of the program's steps, made when an input first leads to
// them. Reading them takes no lock.
type automaton struct {
	program
	// others are the rules that do not speak of this dimension.
	others []uint64
	limit  int // of a table's bytes
	table  atomic.Pointer[table]

	mu      sync.Mutex // for making states
	next    *threads
	tmp     *threads
	key     []byte
	accept  []uint64
	scratch sync.Pool // of *simulation
}

// table is a generation of states.
type table struct {
	start *state
	// The rest is under automaton.mu.
	states map[string]*state
	bytes  int
	full   bool
	missed int
}

type state struct {
	// next by class of byte; nil: not made yet.
	next []atomic.Pointer[state]
	// accept are the rules that the input does not rule out if it ends here,
	// the automaton's others included.
	accept []uint64
	steps  []uint32
	before before
	// dead: no step is left, no input leads on.
	dead bool
}

// automaton finishes the builder's work; nil if no rule was added. all is the
// set of all rules.
func (b *builder) automaton(all []uint64) *automaton {
	if len(b.rules) == 0 {
		return nil
	}
	a := &automaton{program: b.program, others: slices.Clone(all), limit: tableBytes + len(b.rules)*tableBytesRule}
	for _, i := range b.rules {
		a.others[i/64] &^= 1 << (i % 64)
	}
	a.classify()
	a.scratch.New = func() any { return newSimulation(len(a.steps)) }
	return a
}

// restrict removes from found the rules that value rules out, and tells
// whether any is left. A value with bytes beyond ASCII matches no regular
// expression. exceeded: nor does this one, since it costs too much to tell.
func (a *automaton) restrict(found []uint64, value []byte) (left, exceeded bool) {
	t := a.table.Load()
	if t == nil {
		t = a.renew(nil)
	}
	st := t.start
	for i, c := range value {
		if c >= 128 {
			return intersect(found, a.others), false
		}
		next := st.next[a.class[c]].Load()
		if next == nil {
			return a.restrictSlow(found, t, st, value[i:])
		}
		if next.dead {
			return intersect(found, a.others), false
		}
		st = next
	}
	return intersect(found, st.accept), false
}

// restrictSlow does the same from state st on, making states on the way.
func (a *automaton) restrictSlow(found []uint64, t *table, st *state, value []byte) (left, exceeded bool) {
	work := 0
	for i, c := range value {
		if c >= 128 || st.dead {
			return intersect(found, a.others), false
		}
		next := st.next[a.class[c]].Load()
		if next == nil {
			if work += len(st.steps); work > maxWork {
				return intersect(found, a.others), true
			}
			if next = a.make(t, st, a.class[c]); next == nil {
				return a.simulate(found, st, value[i:], work)
			}
		}
		st = next
	}
	return intersect(found, st.accept), false
}

// renew replaces old, unless someone else did, and returns the table in force.
func (a *automaton) renew(old *table) *table {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.renewLocked(old)
}

func (a *automaton) renewLocked(old *table) *table {
	if t := a.table.Load(); t != old {
		return t
	}
	if a.next == nil {
		a.next, a.tmp = newThreads(len(a.steps)), newThreads(len(a.steps))
	}
	t := &table{states: map[string]*state{}}
	a.start(a.next)
	t.start = a.state(t, a.next.dense, beforeStart)
	a.table.Store(t)
	return t
}

// make returns the state that class leads to from st, nil if t is full.
func (a *automaton) make(t *table, st *state, class uint8) *state {
	a.mu.Lock()
	defer a.mu.Unlock()
	if next := st.next[class].Load(); next != nil {
		return next
	}
	if t.full {
		if t.missed++; t.missed >= renewAfter {
			a.renewLocked(t)
		}
		return nil
	}
	c := a.sample[class]
	a.advance(a.next, st.steps, st.before, c, a.tmp)
	next := a.state(t, a.next.dense, beforeOf(c))
	st.next[class].Store(next)
	return next
}

// state returns the state of these steps, an old one if there is. Its caller
// holds the lock.
func (a *automaton) state(t *table, steps []uint32, b before) *state {
	if b != beforeStart && !a.asserting(steps) {
		b = beforeOther // what stood before matters to assertions only
	}
	key := append(a.key[:0], byte(b))
	for _, pc := range steps {
		switch a.steps[pc].kind {
		case stepByte, stepAssert, stepAccept:
			key = binary.LittleEndian.AppendUint32(key, pc)
		}
	}
	a.key = key
	if st, ok := t.states[string(key)]; ok {
		return st
	}
	kept := make([]uint32, 0, len(key)/4)
	for k := key[1:]; len(k) > 0; k = k[4:] {
		kept = append(kept, binary.LittleEndian.Uint32(k))
	}
	st := &state{
		next:   make([]atomic.Pointer[state], a.classes),
		accept: a.others,
		steps:  kept,
		before: b,
		dead:   len(kept) == 0,
	}
	a.accept = append(a.accept[:0], a.others...)
	a.accepted(a.accept, kept, b, a.tmp)
	if !slices.Equal(a.accept, a.others) { // few do
		st.accept = slices.Clone(a.accept)
		t.bytes += 8 * len(st.accept)
	}
	t.states[string(key)] = st
	t.bytes += int(unsafe.Sizeof(*st)) + 8*len(st.next) + 4*len(kept) + len(key) + 64
	t.full = t.bytes > a.limit
	return st
}

// simulation is memory to follow an input step by step.
type simulation struct {
	at, next, tmp *threads
	accept        []uint64
}

func newSimulation(n int) *simulation {
	return &simulation{at: newThreads(n), next: newThreads(n), tmp: newThreads(n)}
}

// simulate follows value from state st on without making states.
func (a *automaton) simulate(found []uint64, st *state, value []byte, work int) (left, exceeded bool) {
	sim := a.scratch.Get().(*simulation)
	defer a.scratch.Put(sim)
	sim.at.clear()
	for _, pc := range st.steps {
		sim.at.add(pc)
	}
	b := st.before
	for _, c := range value {
		if c >= 128 || len(sim.at.dense) == 0 {
			return intersect(found, a.others), false
		}
		if work += len(sim.at.dense); work > maxWork {
			return intersect(found, a.others), true
		}
		a.advance(sim.next, sim.at.dense, b, c, sim.tmp)
		sim.at, sim.next = sim.next, sim.at
		b = beforeOf(c)
	}
	sim.accept = append(sim.accept[:0], a.others...)
	a.accepted(sim.accept, sim.at.dense, b, sim.tmp)
	return intersect(found, sim.accept), false
}
