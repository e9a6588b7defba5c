package httprules

import (
	"encoding/binary"
	"sync"
	"sync/atomic"
	"unsafe"
)

const (
	// maxTableBytes bounds the states kept of one automaton. Requests of a
	// service visit a few hundred small states; input made to visit ever new
	// ones fills the table, is then followed step by step, and now and then
	// the table is begun anew for those that behave.
	maxTableBytes = 4 << 20
	// renewAfter is how many inputs find the table full before it is begun
	// anew: filling it costs about as much as following so many.
	renewAfter = 64
)

// automaton tells which rules one value of a request does not rule out. Its
// states are sets of the program's steps, made when an input first leads to
// them. Reading them takes no lock.
type automaton struct {
	program
	// others are the rules that do not speak of this dimension.
	others []uint64
	table  atomic.Pointer[table]

	mu      sync.Mutex // for making states
	next    *threads
	tmp     *threads
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
	a := &automaton{program: b.program, others: append([]uint64(nil), all...)}
	for _, i := range b.rules {
		a.others[i/64] &^= 1 << (i % 64)
	}
	a.classify()
	a.scratch.New = func() any { return newSimulation(len(a.steps)) }
	return a
}

// restrict removes from found the rules that value rules out, and tells
// whether any is left. A value with bytes beyond ASCII matches no regular
// expression.
func (a *automaton) restrict(found []uint64, value []byte) bool {
	t := a.table.Load()
	if t == nil {
		t = a.renew(nil)
	}
	st := t.start
	for i, c := range value {
		if c >= 128 {
			return intersect(found, a.others)
		}
		next := st.next[a.class[c]].Load()
		if next == nil {
			return a.restrictSlow(found, t, st, value[i:])
		}
		if next.dead {
			return intersect(found, a.others)
		}
		st = next
	}
	return intersect(found, st.accept)
}

// restrictSlow does the same from state st on, making states on the way.
func (a *automaton) restrictSlow(found []uint64, t *table, st *state, value []byte) bool {
	for i, c := range value {
		if c >= 128 || st.dead {
			return intersect(found, a.others)
		}
		next := st.next[a.class[c]].Load()
		if next == nil {
			if next = a.make(t, st, a.class[c]); next == nil {
				return a.simulate(found, st, value[i:])
			}
		}
		st = next
	}
	return intersect(found, st.accept)
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
	kept := make([]uint32, 0, len(steps))
	for _, pc := range steps {
		switch a.steps[pc].kind {
		case stepByte, stepAssert, stepAccept:
			kept = append(kept, pc)
		}
	}
	key := make([]byte, 0, 4*len(kept)+1)
	for _, pc := range kept {
		key = binary.LittleEndian.AppendUint32(key, pc)
	}
	key = append(key, byte(b))
	if st, ok := t.states[string(key)]; ok {
		return st
	}
	st := &state{
		next:   make([]atomic.Pointer[state], a.classes),
		accept: append([]uint64(nil), a.others...),
		steps:  kept,
		before: b,
		dead:   len(kept) == 0,
	}
	a.accepted(st.accept, kept, b, a.tmp)
	t.states[string(key)] = st
	t.bytes += int(unsafe.Sizeof(*st)) + 8*len(st.next) + 8*len(st.accept) + 4*cap(kept) + len(key) + 64
	t.full = t.bytes > maxTableBytes
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
func (a *automaton) simulate(found []uint64, st *state, value []byte) bool {
	sim := a.scratch.Get().(*simulation)
	defer a.scratch.Put(sim)
	sim.at.clear()
	for _, pc := range st.steps {
		sim.at.add(pc)
	}
	b := st.before
	for _, c := range value {
		if c >= 128 || len(sim.at.dense) == 0 {
			return intersect(found, a.others)
		}
		a.advance(sim.next, sim.at.dense, b, c, sim.tmp)
		sim.at, sim.next = sim.next, sim.at
		b = beforeOf(c)
	}
	sim.accept = append(sim.accept[:0], a.others...)
	a.accepted(sim.accept, sim.at.dense, b, sim.tmp)
	return intersect(found, sim.accept)
}
