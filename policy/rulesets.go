package policy

import (
	"encoding/json"
	"fmt"

	"github.com/weirnet/weir/identity"
)

// ruleSetTable numbers rule sets by content and counts who uses them.
type ruleSetTable struct {
	numbers *numbering
	byID    map[uint32]*ruleSetUse
	changed map[uint32]struct{} // since the last flush: new, or without users
}

type ruleSetUse struct {
	set   *RuleSet
	users int
	known bool // it was in a Delta
	// compiled is made when a question first needs it.
	compiled *compiledSet
}

func newRuleSetTable(n *numbering) *ruleSetTable {
	return &ruleSetTable{numbers: n, byID: map[uint32]*ruleSetUse{}, changed: map[uint32]struct{}{}}
}

// get returns the number of the set with that content. It is forgotten at the
// next flush unless somebody holds it.
func (t *ruleSetTable) get(set RuleSet) (uint32, error) {
	set.ID = 0
	id, err := t.numbers.get(digestOf(set))
	if err != nil {
		return 0, fmt.Errorf("number a rule set: %w", err)
	}
	if _, ok := t.byID[id]; !ok {
		set.ID = id
		t.byID[id] = &ruleSetUse{set: &set}
		t.changed[id] = struct{}{}
	}
	return id, nil
}

func (t *ruleSetTable) hold(id uint32) {
	t.byID[id].users++
	t.changed[id] = struct{}{}
}

func (t *ruleSetTable) release(id uint32) {
	t.byID[id].users--
	t.changed[id] = struct{}{}
}

// flush returns the sets that are new (value) or gone (nil) since the last call.
func (t *ruleSetTable) flush() map[uint32]*RuleSet {
	out := map[uint32]*RuleSet{}
	for id := range t.changed {
		u := t.byID[id]
		switch {
		case u.users > 0 && !u.known:
			u.known = true
			out[id] = u.set
		case u.users <= 0:
			if u.known {
				out[id] = nil
			}
			delete(t.byID, id)
			t.numbers.release(id)
		}
	}
	clear(t.changed)
	return out
}

// digestOf digests a value by its JSON, which is canonical for the types here:
// structs and slices only.
func digestOf(v any) identity.Digest {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("encode %T: %v", v, err)) // strings, numbers and slices only
	}
	return identity.DigestOf(b)
}
