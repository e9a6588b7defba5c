package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/weirnet/weir/policy/dnsrules"
)

// nameTable holds what the names of outside addresses can be known as: a peer
// for each selector that rules have, for combinations of them that some name
// is certain or likely to be of, and for those that were asked for.
type nameTable struct {
	uses map[dnsrules.Selector]int // by rules
	// teachers are the policies of a namespace with DNS rules whose servers are
	// believed: only where there is one, its selectors of that namespace have a
	// meaning.
	teachers map[string]int
	// changed: selectors came or went.
	changed bool

	asked map[string][]dnsrules.Selector // by who asks
	dirty map[string]struct{}            // askers since the last settling
	// what each asker has now; "" has those that are there without being asked for
	granted map[string][]*peer
	told    map[*peer]struct{} // in some Delta
}

func newNameTable() *nameTable {
	return &nameTable{uses: map[dnsrules.Selector]int{}, teachers: map[string]int{}, asked: map[string][]dnsrules.Selector{}, dirty: map[string]struct{}{},
		granted: map[string][]*peer{}, told: map[*peer]struct{}{}}
}

// use counts what a policy that comes (1) or goes (-1) says of names.
func (t *nameTable) use(p *policyObject, by int) {
	for _, s := range p.fqdns {
		t.changed = tally(t.uses, s, by) || t.changed
	}
	if p.teaches() {
		t.changed = tally(t.teachers, p.object.Namespace, by) || t.changed
	}
}

// tally adds to a counter, and tells whether it was or is 0.
func tally[K comparable](m map[K]int, k K, by int) bool {
	before := m[k]
	if m[k] = before + by; m[k] == 0 {
		delete(m, k)
	}
	return before == 0 || before+by == 0
}

// has tells whether addresses can be known as what a selector is for.
func (t *nameTable) has(s dnsrules.Selector) bool {
	return t.uses[s] > 0 && (s.Namespace == "" || t.teachers[s.Namespace] > 0)
}

// all lists the selectors that count, in order.
func (t *nameTable) all() []dnsrules.Selector {
	out := slices.Collect(maps.Keys(t.uses))
	return ordered(slices.DeleteFunc(out, func(s dnsrules.Selector) bool { return !t.has(s) }))
}

// ask takes in what somebody asks for; nil: nothing any more.
func (t *nameTable) ask(who string, set *NameSet) {
	who = "asked " + who
	t.dirty[who] = struct{}{}
	if set == nil {
		delete(t.asked, who)
		return
	}
	out := make([]dnsrules.Selector, len(set.Selectors))
	for i, s := range set.Selectors {
		out[i] = dnsrules.NewSelector(s.Name, s.Pattern).In(s.Namespace)
	}
	t.asked[who] = ordered(out)
}

// ordered orders selectors and removes repetition.
func ordered(s []dnsrules.Selector) []dnsrules.Selector {
	slices.SortFunc(s, dnsrules.Selector.Compare)
	return slices.Compact(s)
}

// known returns those of the selectors that count.
func (t *nameTable) known(s []dnsrules.Selector) []dnsrules.Selector {
	return slices.DeleteFunc(slices.Clone(s), func(s dnsrules.Selector) bool { return !t.has(s) })
}

// certain lists the combinations that need not be asked for: each selector
// alone, and with all others of its namespace that match what its own text
// stands for.
func (t *nameTable) certain() (out [][]dnsrules.Selector) {
	for all := t.all(); len(all) > 0; {
		n := slices.IndexFunc(all, func(s dnsrules.Selector) bool { return s.Namespace != all[0].Namespace })
		if n < 0 {
			n = len(all)
		}
		out, all = certainOf(all[:n], out), all[n:]
	}
	return out
}

// certainOf appends those of the selectors of one namespace.
func certainOf(all []dnsrules.Selector, out [][]dnsrules.Selector) [][]dnsrules.Selector {
	index := dnsrules.NewIndex(all)
	var at []int
	for _, s := range all {
		out = append(out, []dnsrules.Selector{s})
		at = index.AppendMatches(at[:0], []byte(example(s)))
		if len(at) < 2 {
			continue
		}
		set := make([]dnsrules.Selector, len(at))
		for i, j := range at {
			set[i] = all[j]
		}
		out = append(out, set)
	}
	return out
}

// example is a name that a selector is for, with something that hardly stands
// in other patterns wherever anything may stand.
func example(s dnsrules.Selector) string {
	if s.Pattern == "" {
		return s.Name
	}
	p := s.Pattern
	if strings.HasPrefix(p, "**") {
		p = p[1:]
	}
	return strings.ReplaceAll(p, "*", "-_-")
}

// settleNames brings the peers of names up to date. What is new is taken
// before what was is let go, so that numbers stay.
func (e *Engine) settleNames() error {
	t := e.names
	if t.changed {
		for who := range t.asked {
			t.dirty[who] = struct{}{}
		}
		t.dirty[""] = struct{}{}
	}
	var before []*peer
	for who := range t.dirty {
		before = append(before, t.granted[who]...)
	}
	var err error
	for _, who := range slices.Sorted(maps.Keys(t.dirty)) {
		var sets [][]dnsrules.Selector
		if who == "" {
			sets = t.certain()
		} else if set := t.known(t.asked[who]); len(set) > 0 {
			sets = append(sets, set)
		}
		var now []*peer
		for _, set := range sets {
			p, aerr := e.peers.acquire(newNamesPeer(set))
			if aerr != nil {
				err = fmt.Errorf("names %v: %w", set, aerr)
				continue
			}
			now = append(now, p)
			if _, ok := t.told[p]; !ok {
				t.told[p] = struct{}{}
				e.delta.Names[p.id] = &NameSet{Selectors: p.fqdns}
			}
		}
		if t.granted[who] = now; len(now) == 0 {
			delete(t.granted, who)
		}
	}
	for _, p := range before {
		if e.peers.release(p); p.refs == 0 {
			delete(t.told, p)
			e.delta.Names[p.id] = nil
		}
	}
	t.changed = false
	clear(t.dirty)
	return err
}

// namesPeer is the peer of an address with these names, made for a question;
// nil: no selector matches any of them. namespace: for whose policies alone the
// names count; "": for all.
func (e *Engine) namesPeer(names []string, namespace string) *peer {
	all := slices.DeleteFunc(e.names.all(), func(s dnsrules.Selector) bool { return s.Namespace != namespace })
	index := dnsrules.NewIndex(all)
	var set []dnsrules.Selector
	for _, n := range names {
		for _, i := range index.AppendMatches(nil, []byte(dnsrules.Normalize(n))) {
			set = append(set, all[i])
		}
	}
	if len(set) == 0 {
		return nil
	}
	return newNamesPeer(ordered(set))
}
