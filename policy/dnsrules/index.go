package dnsrules

import (
	"slices"
	"strings"
)

// Index finds those of many selectors that are for a name. It is safe for
// concurrent use.
//
// Names stand in a table. Of a pattern each label but a leading "**." is a
// step in a tree, from the right: a plain label is found by its text, one with
// wildcards by what it begins or ends with.
type Index struct {
	names map[string]int32 // to a selector
	any   int32            // a selector that is for every name
	nodes []node           // the root first
	plain map[edge]int32
	// wild are the labels with wildcards, by prefix where they have one, else
	// by suffix.
	byPrefix, bySuffix map[edge][]branch
	// next chains selectors that are for the same names.
	next []int32
}

// none is no selector, and ends a chain.
const none = -1

// edge is a label, or a part of one, below a node.
type edge struct {
	node int32
	text string
}

type branch struct {
	label string
	to    int32
}

// node stands for the labels of a pattern up to some label, from the right.
type node struct {
	end  int32 // selectors whose pattern ends here
	more int32 // selectors whose pattern has "**." next
	// The lengths of prefixes and suffixes to look for.
	prefixes, suffixes []int
}

// NewIndex makes an Index of selectors; results speak of their places in the
// list. Selectors need not be in normal form. One without name and pattern, or
// with both, is for no name.
func NewIndex(selectors []Selector) *Index {
	x := &Index{names: map[string]int32{}, any: none, nodes: []node{{end: none, more: none}}, plain: map[edge]int32{},
		byPrefix: map[edge][]branch{}, bySuffix: map[edge][]branch{}, next: make([]int32, len(selectors))}
	// From the last on, so that chains are in order.
	for i := len(selectors) - 1; i >= 0; i-- {
		s := NewSelector(selectors[i].Name, selectors[i].Pattern)
		if x.next[i] = none; s.valid() {
			x.add(s, int32(i))
		}
	}
	return x
}

func (x *Index) add(s Selector, i int32) {
	if s.Name != "" {
		if first, ok := x.names[s.Name]; ok {
			x.next[i] = first
		}
		x.names[s.Name] = i
		return
	}
	if s.Pattern == anything {
		x.any, x.next[i] = i, x.any
		return
	}
	rest, more := cutLabels(s.Pattern)
	at := int32(0)
	for label := range labelsFromRight(rest) {
		at = x.step(at, label)
	}
	to := &x.nodes[at].end
	if more {
		to = &x.nodes[at].more
	}
	*to, x.next[i] = i, *to
}

// step returns the node behind a label, which it makes if need be.
func (x *Index) step(at int32, label string) int32 {
	if !strings.Contains(label, "*") {
		to, ok := x.plain[edge{at, label}]
		if !ok {
			to = x.newNode()
			x.plain[edge{at, label}] = to
		}
		return to
	}
	list, e, lengths := x.byPrefix, edge{at, label[:strings.IndexByte(label, '*')]}, &x.nodes[at].prefixes
	if e.text == "" {
		list, e, lengths = x.bySuffix, edge{at, label[strings.LastIndexByte(label, '*')+1:]}, &x.nodes[at].suffixes
	}
	for _, b := range list[e] {
		if b.label == label {
			return b.to
		}
	}
	if n := len(e.text); !slices.Contains(*lengths, n) {
		*lengths = append(*lengths, n)
	}
	to := x.newNode()
	list[e] = append(list[e], branch{label, to})
	return to
}

func (x *Index) newNode() int32 {
	x.nodes = append(x.nodes, node{end: none, more: none})
	return int32(len(x.nodes) - 1)
}

func labelsFromRight(s string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for {
			i := strings.LastIndexByte(s, '.')
			if !yield(s[i+1:]) || i < 0 {
				return
			}
			s = s[:i]
		}
	}
}
