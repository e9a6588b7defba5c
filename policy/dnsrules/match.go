package dnsrules

import "slices"

// search is the way of one name through an Index.
type search[T text] struct {
	*Index
	name T
	// clean is the name's cleanPart, where "**." can stand.
	clean int
	// first is the first of the selectors found, in order, or none; all are
	// those found, if collect is set.
	first   int32
	collect bool
	all     []int
}

// AppendMatches appends the places of the selectors that are for a name in
// normal form, in order: what toFQDNs selectors mean. (A lone "*" is for all
// names of letters, digits, hyphens and underscores, and for the root.)
func (x *Index) AppendMatches(to []int, name []byte) []int {
	s := search[[]byte]{Index: x, name: name, collect: true, all: to, first: none}
	s.run()
	if ordinary(name) {
		s.tell(x.any)
	}
	slices.Sort(s.all[len(to):])
	return s.all
}

// run finds all selectors for the name but x.any.
func (s *search[T]) run() {
	if first, ok := s.names[string(s.name)]; ok {
		s.tell(first)
	}
	if len(s.nodes) > 1 {
		s.clean = cleanPart(s.name)
		s.from(0, len(s.name))
	}
}

// from goes on at a node with the labels before end, of which there is at
// least one.
func (s *search[T]) from(at int32, end int) {
	if end > 0 && end <= s.clean && s.name[end-1] != '.' {
		s.tell(s.nodes[at].more)
	}
	begin := lastLabel(s.name, end)
	label := s.name[begin:end]
	if to, ok := s.plain[edge{at, string(label)}]; ok {
		s.behind(to, begin)
	}
	for _, n := range s.nodes[at].prefixes {
		if n <= len(label) {
			s.branches(s.byPrefix[edge{at, string(label[:n])}], label, begin)
		}
	}
	for _, n := range s.nodes[at].suffixes {
		if n <= len(label) {
			s.branches(s.bySuffix[edge{at, string(label[len(label)-n:])}], label, begin)
		}
	}
}

func (s *search[T]) branches(list []branch, label T, begin int) {
	for i := range list {
		if labelMatches(list[i].label, label) {
			s.behind(list[i].to, begin)
		}
	}
}

// behind goes on at a node behind the label that begins there.
func (s *search[T]) behind(to int32, begin int) {
	if begin == 0 {
		s.tell(s.nodes[to].end)
		return
	}
	s.from(to, begin-1)
}

// tell notes a chain of selectors.
func (s *search[T]) tell(chain int32) {
	if chain == none {
		return
	}
	if s.first == none || chain < s.first {
		s.first = chain
	}
	if !s.collect {
		return
	}
	for i := chain; i != none; i = s.next[i] {
		s.all = append(s.all, int(i))
	}
}

// Matches tells whether a toFQDNs selector in normal form is for a name in
// normal form. (A lone "*" is for all names of letters, digits, hyphens and
// underscores, and for the root.) It allocates nothing; whoever has many
// selectors makes an Index.
func (s Selector) Matches(name string) bool {
	switch {
	case !s.valid():
		return false
	case s.Pattern == "":
		return s.Name == name
	case s.Pattern == anything:
		return ordinary(name)
	}
	pattern, more := cutLabels(s.Pattern)
	p, n := len(pattern), len(name)
	for {
		pb, nb := lastLabel(pattern, p), lastLabel(name, n)
		switch {
		case !labelMatches(pattern[pb:p], name[nb:n]):
			return false
		case pb > 0 && nb > 0:
			p, n = pb-1, nb-1
			continue
		case !more:
			return pb == 0 && nb == 0
		}
		return pb == 0 && nb > 1 && ordinary(name[:nb-1])
	}
}
