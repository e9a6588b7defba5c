package dnsrules

// Set is a compiled list of DNS rules. It is safe for concurrent use.
type Set struct {
	numbers []uint32
	index   *Index
}

// Compile makes a Set of rules.
func Compile(rules []Rule) *Set {
	s := &Set{numbers: make([]uint32, len(rules))}
	selectors := make([]Selector, len(rules))
	for i, r := range rules {
		s.numbers[i], selectors[i] = r.Rule, r.Selector
	}
	s.index = NewIndex(selectors)
	return s
}

// Len is the number of rules.
func (s *Set) Len() int { return len(s.numbers) }

// Match tells which rule, the first in their order, lets a question for a name
// pass: its number (Rule.Rule). The name is in normal form (see Normalize and
// the package comment). A lone "*" is for every name, whatever it is made of.
// Match allocates nothing.
func (s *Set) Match(name []byte) (rule uint32, ok bool) { return match(s, name) }

// MatchString is Match for a string.
func (s *Set) MatchString(name string) (rule uint32, ok bool) { return match(s, name) }

func match[T text](s *Set, name T) (rule uint32, ok bool) {
	in := search[T]{Index: s.index, name: name, first: none}
	in.tell(s.index.any)
	in.run()
	if in.first == none {
		return 0, false
	}
	return s.numbers[in.first], true
}
