package httprules

// headerGroup is what rules demand of one header.
type headerGroup struct {
	name   string   // lower case
	needs  []uint64 // rules that demand anything of it
	others []uint64 // rules that don't
	// present are the others, and those that ask for the header alone.
	present []uint64
	// values are present's, and those that ask for that value.
	values map[string][]uint64
	// longest is the length of the longest key of values.
	longest int
	// several are rules that ask for more than one value, which no request
	// has: the joined value of a header is one.
}

// restrict removes from found the rules whose demands h does not meet, and
// tells whether any is left.
func (g *headerGroup) restrict(found []uint64, headers []Header) bool {
	var asked uint64
	for i := range found {
		asked |= found[i] & g.needs[i]
	}
	if asked == 0 {
		return true
	}
	v, count := lookup(headers, g.name)
	if count == 0 {
		return intersect(found, g.others)
	}
	if count > 1 {
		// Several fields of one name are one value, joined by commas.
		var room [256]byte
		joined, fits := join(room[:0], headers, g.name, g.longest)
		if !fits {
			return intersect(found, g.present)
		}
		v = joined
	}
	if with, ok := g.values[string(v)]; ok {
		return intersect(found, with)
	}
	return intersect(found, g.present)
}

// lookup returns the value of the first field of that name, and how many there
// are.
func lookup(headers []Header, name string) (value []byte, count int) {
	for i := range headers {
		if equalName(headers[i].Name, name) {
			if count == 0 {
				value = headers[i].Value
			}
			count++
		}
	}
	return value, count
}

// join appends the values of every field of that name to dst, with commas
// between, and gives up where that gets longer than limit.
func join(dst []byte, headers []Header, name string, limit int) ([]byte, bool) {
	first := true
	for i := range headers {
		if !equalName(headers[i].Name, name) {
			continue
		}
		if !first {
			dst = append(dst, ',')
		}
		first = false
		if len(dst)+len(headers[i].Value) > limit {
			return dst, false
		}
		dst = append(dst, headers[i].Value...)
	}
	return dst, true
}

// equalName compares a name as it came with one in lower case.
func equalName(name []byte, lower string) bool {
	if len(name) != len(lower) {
		return false
	}
	for i, c := range name {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// ruleChanges are the conditions of one rule that change a request instead of
// failing.
type ruleChanges struct {
	index int
	rule  uint32
	conds []cond
}

// appendTo appends the changes that the rule makes to a request with headers
// and that are not in dst already.
func (r *ruleChanges) appendTo(dst []Change, headers []Header) []Change {
next:
	for i := range r.conds {
		c := &r.conds[i]
		v, count := lookup(headers, c.name)
		if c.present {
			if count > 0 || c.action == ActionDelete {
				continue
			}
		} else {
			if count == 1 && string(v) == c.value {
				continue
			}
			if count > 1 {
				var room [256]byte
				if joined, ok := join(room[:0], headers, c.name, len(c.value)); ok && string(joined) == c.value {
					continue
				}
			}
			if count == 0 && c.action == ActionDelete {
				continue
			}
		}
		change := Change{Action: c.action, Name: c.spelling, Value: c.value, Rule: r.rule}
		for _, have := range dst {
			if have.Action == change.Action && have.Name == change.Name && have.Value == change.Value {
				continue next
			}
		}
		dst = append(dst, change)
	}
	return dst
}

// headerBuilder collects demands on headers, by name in the order they came.
type headerBuilder struct {
	names  []string
	byName map[string][]demand
	rules  int
}

type demand struct {
	rule int
	cond cond
}

// add takes in what rule index demands and returns what it changes.
func (b *headerBuilder) add(index int, number uint32, conds []cond) ruleChanges {
	b.rules = index + 1
	changes := ruleChanges{index: index, rule: number}
	for _, c := range conds {
		if c.optional {
			changes.conds = append(changes.conds, c)
			continue
		}
		if b.byName == nil {
			b.byName = map[string][]demand{}
		}
		if _, ok := b.byName[c.name]; !ok {
			b.names = append(b.names, c.name)
		}
		b.byName[c.name] = append(b.byName[c.name], demand{index, c})
	}
	return changes
}

func (b *headerBuilder) groups(words int) []headerGroup {
	groups := make([]headerGroup, 0, len(b.names))
	for _, name := range b.names {
		g := headerGroup{name: name, needs: make([]uint64, words), others: make([]uint64, words), present: make([]uint64, words), values: map[string][]uint64{}}
		value := map[int]string{}   // the one value a rule asks for
		never := make(map[int]bool) // it asks for two
		for _, d := range b.byName[name] {
			g.needs[d.rule/64] |= 1 << (d.rule % 64)
			if d.cond.present {
				continue
			}
			if v, ok := value[d.rule]; ok && v != d.cond.value {
				never[d.rule] = true
			}
			value[d.rule] = d.cond.value
		}
		for i := range b.rules {
			bit := uint64(1) << (i % 64)
			if g.needs[i/64]&bit == 0 {
				g.others[i/64] |= bit
				g.present[i/64] |= bit
			} else if _, ok := value[i]; !ok {
				g.present[i/64] |= bit
			}
		}
		for i, v := range value {
			if never[i] {
				continue
			}
			with, ok := g.values[v]
			if !ok {
				with = append([]uint64(nil), g.present...)
				g.values[v] = with
			}
			with[i/64] |= 1 << (i % 64)
			g.longest = max(g.longest, len(v))
		}
		groups = append(groups, g)
	}
	return groups
}
