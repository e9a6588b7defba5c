package proxy

import (
	"maps"
	"sync"
	"sync/atomic"

	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/proxy/http"
)

// ruleSets are the compiled rule sets by number. Reading is free of locks and
// allocations; a table that was read is never changed.
type ruleSets struct {
	mu  sync.Mutex // writers
	now atomic.Pointer[map[uint32]*http.RuleSet]
}

func newRuleSets() *ruleSets {
	s := &ruleSets{}
	s.now.Store(&map[uint32]*http.RuleSet{})
	return s
}

// set compiles upsert and puts it in force with the rest, less the deleted
// ones; replace: with nothing else. Sets that do not compile are returned,
// with the reason, and let nothing pass.
func (s *ruleSets) set(upsert []policy.RuleSet, del []uint32, replace bool) map[uint32]error {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := *s.now.Load()
	var table map[uint32]*http.RuleSet
	if replace {
		table = make(map[uint32]*http.RuleSet, len(upsert))
	} else {
		table = maps.Clone(old)
	}
	var rejected map[uint32]error
	for i := range upsert {
		id := upsert[i].ID
		if have, ok := old[id]; ok {
			table[id] = have // sets never change: one number, one set
			continue
		}
		compiled, err := http.NewRuleSet(&upsert[i])
		if err != nil {
			if rejected == nil {
				rejected = make(map[uint32]error)
			}
			rejected[id] = err
			compiled = http.Closed()
		}
		table[id] = compiled
	}
	for _, id := range del {
		delete(table, id)
	}
	s.now.Store(&table)
	return rejected
}

func (s *ruleSets) len() int { return len(*s.now.Load()) }
