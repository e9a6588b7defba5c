package proxy

import (
	"fmt"
	"maps"
	"sync"
	"sync/atomic"

	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/proxy/dns"
	"github.com/weirnet/weir/proxy/http"
)

// ruleSets are the compiled rule sets by number. Reading is free of locks and
// allocations; a table that was read is never changed.
type ruleSets struct {
	mu  sync.Mutex // writers
	now atomic.Pointer[setTable]
}

// setTable has the sets of each protocol: who looks for a number among those of
// another finds none.
type setTable struct {
	http map[uint32]*http.RuleSet
	dns  map[uint32]*dns.RuleSet
}

func newSetTable() *setTable {
	return &setTable{http: make(map[uint32]*http.RuleSet), dns: make(map[uint32]*dns.RuleSet)}
}

func newRuleSets() *ruleSets {
	s := &ruleSets{}
	s.now.Store(newSetTable())
	return s
}

// set compiles upsert and puts it in force with the rest, less the deleted
// ones; replace: with nothing else. Sets that do not compile are returned,
// with the reason, and let nothing pass.
func (s *ruleSets) set(upsert []policy.RuleSet, del []uint32, replace bool) map[uint32]error {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, table := s.now.Load(), newSetTable()
	if !replace {
		table.http, table.dns = maps.Clone(old.http), maps.Clone(old.dns)
	}
	var rejected map[uint32]error
	for i := range upsert {
		if err := table.add(&upsert[i], old); err != nil {
			if rejected == nil {
				rejected = make(map[uint32]error)
			}
			rejected[upsert[i].ID] = err
		}
	}
	for _, id := range del {
		delete(table.http, id)
		delete(table.dns, id)
	}
	s.now.Store(table)
	return rejected
}

// add makes a set ready, unless that was done before: one number, one set.
func (t *setTable) add(rs *policy.RuleSet, old *setTable) (err error) {
	switch rs.Protocol {
	case policy.ProtocolHTTP:
		set := old.http[rs.ID]
		if set == nil {
			if set, err = http.NewRuleSet(rs); err != nil {
				set = http.Closed()
			}
		}
		t.http[rs.ID] = set
	case policy.ProtocolDNS:
		set := old.dns[rs.ID]
		if set == nil {
			set = dns.NewRuleSet(rs)
		}
		t.dns[rs.ID] = set
	default:
		err = fmt.Errorf("protocol %d is unknown", rs.Protocol)
	}
	return err
}

func (s *ruleSets) len() int {
	t := s.now.Load()
	return len(t.http) + len(t.dns)
}
