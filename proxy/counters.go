package proxy

import (
	"maps"
	"sync"
	"sync/atomic"
)

// counters of a proxy, since it started.
type counters struct {
	connections atomic.Uint64
	requests    atomic.Uint64
	questions   atomic.Uint64 // of them
	swept       atomic.Uint64
	handed      atomic.Uint64 // to a successor
	takenOver   atomic.Uint64 // from predecessors

	mu     sync.Mutex
	denied map[string]uint64
}

func newCounters() *counters { return &counters{denied: make(map[string]uint64)} }

// deny counts a request or connection that was not let through.
func (c *counters) deny(reason string) { c.denyMany(reason, 1) }

func (c *counters) denyMany(reason string, n uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.denied[reason] += n
}

func (c *counters) denials() map[string]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.denied)
}
