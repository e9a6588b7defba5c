package httprules

import (
	"fmt"
	"math"
	"regexp/syntax"
	"unicode"
)

// A program is the regular expressions of one dimension, compiled and laid end
// to end: a non-deterministic automaton over ASCII. What a match of rule i
// reaches is a step that accepts i.
type program struct {
	steps  []step
	starts []uint32
	sets   []byteSet
	// class maps a byte to its class: bytes of one class are never told apart.
	class   [128]uint8
	classes int
	// sample is a byte of each class.
	sample []byte
	// empty tells whether any step asserts something about its place.
	empty bool
}

type byteSet [2]uint64

func (s *byteSet) has(c byte) bool { return s[c>>6&1]&(1<<(c&63)) != 0 }

type stepKind uint8

const (
	stepFail   stepKind = iota
	stepByte            // consumes a byte of sets[arg]
	stepSplit           // goes on at out and at arg
	stepJump            // goes on at out
	stepAssert          // goes on at out where the syntax.EmptyOp arg holds
	stepAccept          // rule arg matches if the input ends here
)

type step struct {
	kind stepKind
	out  uint32
	arg  uint32
}

// builder lays programs end to end.
type builder struct {
	program
	setIndex map[byteSet]uint32
	rules    []int
}

// add takes in the program of rule index.
func (b *builder) add(index int, prog *syntax.Prog) error {
	if len(b.steps)+len(prog.Inst) > maxSetSteps {
		return fmt.Errorf("the rules' regular expressions are too large together (more than %d steps)", maxSetSteps)
	}
	if index > math.MaxInt32 {
		return fmt.Errorf("more than %d rules", math.MaxInt32)
	}
	if b.setIndex == nil {
		b.setIndex = map[byteSet]uint32{}
	}
	base := uint32(len(b.steps))
	for i := range prog.Inst {
		inst := &prog.Inst[i]
		s := step{out: base + inst.Out}
		switch inst.Op {
		case syntax.InstAlt, syntax.InstAltMatch:
			s.kind, s.arg = stepSplit, base+inst.Arg
		case syntax.InstCapture, syntax.InstNop:
			s.kind = stepJump
		case syntax.InstEmptyWidth:
			s.kind, s.arg = stepAssert, inst.Arg
			b.empty = true
		case syntax.InstMatch:
			s.kind, s.arg = stepAccept, uint32(index)
		case syntax.InstFail:
			s.kind = stepFail
		default:
			s.kind, s.arg = stepByte, b.set(inst)
		}
		b.steps = append(b.steps, s)
	}
	b.starts = append(b.starts, base+uint32(prog.Start))
	b.rules = append(b.rules, index)
	return nil
}

// set returns the index of the set of ASCII bytes that inst consumes.
func (b *builder) set(inst *syntax.Inst) uint32 {
	var set byteSet
	switch inst.Op {
	case syntax.InstRuneAny:
		set = byteSet{math.MaxUint64, math.MaxUint64}
	case syntax.InstRuneAnyNotNL:
		set = byteSet{math.MaxUint64 &^ (1 << '\n'), math.MaxUint64}
	default:
		if len(inst.Rune) == 1 {
			for r, first := inst.Rune[0], true; first || r != inst.Rune[0]; r, first = unicode.SimpleFold(r), false {
				if r < 128 {
					set[r>>6] |= 1 << (r & 63)
				}
				if syntax.Flags(inst.Arg)&syntax.FoldCase == 0 {
					break
				}
			}
			break
		}
		for i := 0; i+1 < len(inst.Rune); i += 2 {
			for r := inst.Rune[i]; r <= min(inst.Rune[i+1], 127); r++ {
				set[r>>6] |= 1 << (r & 63)
			}
		}
	}
	index, ok := b.setIndex[set]
	if !ok {
		index = uint32(len(b.sets))
		b.sets = append(b.sets, set)
		b.setIndex[set] = index
	}
	return index
}

// classify splits the bytes into classes that no step tells apart.
func (p *program) classify() {
	sets := p.sets
	if p.empty {
		// Assertions look at word characters and line ends.
		var word byteSet
		for c := range byte(128) {
			if wordByte(c) {
				word[c>>6] |= 1 << (c & 63)
			}
		}
		sets = append(sets[:len(sets):len(sets)], word, byteSet{1 << '\n'})
	}
	p.class, p.classes = [128]uint8{}, 1
	for i := range sets {
		// Split every class that has bytes within the set and without it.
		var within, without [128]bool
		for c := range byte(128) {
			if sets[i].has(c) {
				within[p.class[c]] = true
			} else {
				without[p.class[c]] = true
			}
		}
		var moved [128]uint8
		for c := range byte(128) {
			k := p.class[c]
			if !sets[i].has(c) || !within[k] || !without[k] {
				continue
			}
			if moved[k] == 0 {
				moved[k] = uint8(p.classes)
				p.classes++
			}
			p.class[c] = moved[k]
		}
	}
	p.sample = make([]byte, p.classes)
	for c := range byte(128) {
		p.sample[p.class[c]] = c
	}
}

func wordByte(c byte) bool { return c < 128 && syntax.IsWordChar(rune(c)) }

// threads is a set of steps that the input may stand at, in the order they
// were added. Its memory is for one program.
type threads struct {
	dense  []uint32
	sparse []uint32
	stack  []uint32
}

func newThreads(n int) *threads {
	return &threads{dense: make([]uint32, 0, n), sparse: make([]uint32, n)}
}

func (t *threads) clear() { t.dense = t.dense[:0] }

func (t *threads) add(pc uint32) bool {
	if i := t.sparse[pc]; int(i) < len(t.dense) && t.dense[i] == pc {
		return false
	}
	t.sparse[pc] = uint32(len(t.dense))
	t.dense = append(t.dense, pc)
	return true
}

// follow adds all steps that can be reached from pc without input. Assertions
// are passed where they hold under flags; those that don't stay in t, since
// flags may say less than is known later.
func (p *program) follow(t *threads, pc uint32, flags syntax.EmptyOp) {
	t.stack = append(t.stack[:0], pc)
	for len(t.stack) > 0 {
		pc := t.stack[len(t.stack)-1]
		t.stack = t.stack[:len(t.stack)-1]
		if !t.add(pc) {
			continue
		}
		switch s := &p.steps[pc]; s.kind {
		case stepJump:
			t.stack = append(t.stack, s.out)
		case stepSplit:
			t.stack = append(t.stack, s.arg, s.out)
		case stepAssert:
			if syntax.EmptyOp(s.arg)&^flags == 0 {
				t.stack = append(t.stack, s.out)
			}
		}
	}
}

// before is what stood in front of the place the input is at, as far as
// assertions ask for it.
type before uint8

const (
	beforeOther before = iota
	beforeStart
	beforeWord
	beforeLine
)

func beforeOf(c byte) before {
	switch {
	case wordByte(c):
		return beforeWord
	case c == '\n':
		return beforeLine
	}
	return beforeOther
}

// flags tells what holds between b and next, which is negative at the end.
func (b before) flags(next rune) syntax.EmptyOp {
	prev := rune('.')
	switch b {
	case beforeStart:
		prev = -1
	case beforeWord:
		prev = 'a'
	case beforeLine:
		prev = '\n'
	}
	return syntax.EmptyOpContext(prev, next)
}

// asserting tells whether t holds an assertion.
func (p *program) asserting(t []uint32) bool {
	if !p.empty {
		return false
	}
	for _, pc := range t {
		if p.steps[pc].kind == stepAssert {
			return true
		}
	}
	return false
}

// advance sets next to where t leads on byte c. tmp is scratch memory.
func (p *program) advance(next *threads, t []uint32, b before, c byte, tmp *threads) {
	next.clear()
	if p.asserting(t) {
		tmp.clear()
		flags := b.flags(rune(c))
		for _, pc := range t {
			p.resume(tmp, pc, flags)
		}
		t = tmp.dense
	}
	for _, pc := range t {
		if s := &p.steps[pc]; s.kind == stepByte && p.sets[s.arg].has(c) {
			p.follow(next, s.out, 0)
		}
	}
}

// resume adds pc and, where it is an assertion that holds, what is behind it.
func (p *program) resume(t *threads, pc uint32, flags syntax.EmptyOp) {
	if s := &p.steps[pc]; s.kind == stepAssert {
		if syntax.EmptyOp(s.arg)&^flags == 0 {
			p.follow(t, s.out, flags)
		}
		return
	}
	t.add(pc)
}

// accepted adds to rules those that match if the input ends at t.
func (p *program) accepted(rules []uint64, t []uint32, b before, tmp *threads) {
	if p.asserting(t) {
		tmp.clear()
		flags := b.flags(-1)
		for _, pc := range t {
			p.resume(tmp, pc, flags)
		}
		t = tmp.dense
	}
	for _, pc := range t {
		if s := &p.steps[pc]; s.kind == stepAccept {
			rules[s.arg/64] |= 1 << (s.arg % 64)
		}
	}
}

// start sets t to where every input begins.
func (p *program) start(t *threads) {
	t.clear()
	for _, pc := range p.starts {
		p.follow(t, pc, 0)
	}
}
