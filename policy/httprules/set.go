package httprules

import (
	"fmt"
	"math/bits"
)

// The dimensions that a regular expression may speak of.
const (
	dimPath = iota
	dimMethod
	dimHost
	dimensions
)

var dimensionNames = [dimensions]string{"path", "method", "host"}

// Set is a compiled list of rules. It is safe for concurrent use.
//
// A set of rules is a bitset, bit i for rule i, in words uint64s. Each
// dimension yields the rules that it does not rule out; their intersection is
// what matches, less those whose headers are not there.
type Set struct {
	numbers []uint32
	words   int
	all     []uint64
	dims    [dimensions]*automaton // nil: no rule speaks of it
	headers []headerGroup
	changes []ruleChanges // of rules that may change a request, in order
}

// Compile makes a Set of rules. The error names the rule by its place.
func Compile(rules []Rule) (*Set, error) {
	s := &Set{numbers: make([]uint32, len(rules)), words: (len(rules) + 63) / 64}
	s.all = make([]uint64, s.words)
	var builders [dimensions]builder
	var headers headerBuilder
	for i, r := range rules {
		p, err := parseRule(r)
		if err != nil {
			return nil, fmt.Errorf("HTTP rule %d: %w", i, err)
		}
		s.numbers[i] = r.Rule
		s.all[i/64] |= 1 << (i % 64)
		for d, prog := range p.dims {
			if prog == nil {
				continue
			}
			if err := builders[d].add(i, prog); err != nil {
				return nil, fmt.Errorf("HTTP rule %d: %s: %w", i, dimensionNames[d], err)
			}
		}
		if c := headers.add(i, r.Rule, p.conds); len(c.conds) > 0 {
			s.changes = append(s.changes, c)
		}
	}
	for d := range builders {
		s.dims[d] = builders[d].automaton(s.all)
	}
	s.headers = headers.groups(s.words)
	return s, nil
}

// Len is the number of rules.
func (s *Set) Len() int { return len(s.numbers) }

// NeedsHeaders tells whether Match looks at Request.Headers.
func (s *Set) NeedsHeaders() bool { return len(s.headers)+len(s.changes) > 0 }

// Match tells which rule lets req pass, if any, and what is to be changed in
// it. Once the Request was used it allocates nothing (but while automata meet
// input of a new kind).
func (s *Set) Match(req *Request) Result {
	none := Result{Index: -1}
	if s.words == 0 {
		return none
	}
	if cap(req.found) < s.words {
		req.found = make([]uint64, s.words)
	}
	found := req.found[:s.words]
	copy(found, s.all)
	for d, a := range s.dims {
		if a == nil {
			continue
		}
		var value []byte
		switch d {
		case dimPath:
			value = req.Path
		case dimMethod:
			value = req.Method
		case dimHost:
			value = req.Host
		}
		left, exceeded := a.restrict(found, value)
		none.Exceeded = none.Exceeded || exceeded
		if !left {
			return none
		}
	}
	for i := range s.headers {
		if !s.headers[i].restrict(found, req.Headers) {
			return none
		}
	}
	res := none
	for w, word := range found {
		if word != 0 {
			res.Index = w*64 + bits.TrailingZeros64(word)
			res.Rule = s.numbers[res.Index]
			break
		}
	}
	if len(s.changes) > 0 && res.Index >= 0 {
		req.changes = req.changes[:0]
		for i := range s.changes {
			c := &s.changes[i]
			if found[c.index/64]&(1<<(c.index%64)) != 0 {
				req.changes = c.appendTo(req.changes, req.Headers)
			}
		}
		res.Changes = req.changes
	}
	return res
}

// intersect keeps in found what is in with, too, and tells whether anything is
// left.
func intersect(found, with []uint64) bool {
	var any uint64
	for i := range found {
		found[i] &= with[i]
		any |= found[i]
	}
	return any != 0
}
