package proxy

import (
	"testing"
	"time"
)

// TestOverWhileOneComes: a connection that comes to be served while it is looked
// whether any is left is not overlooked, or it would be cut.
func TestOverWhileOneComes(t *testing.T) {
	s := newSuccession(t)
	s.bridge(nil, nil)
	s.old.handOver()
	old := newSweeper(s.old)
	for range 2 {
		if err := old.walk(nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	if !s.old.over() {
		t.Fatal("something is left at first")
	}
	// Held up behind its look at the connections.
	s.old.estate.mu.Lock()
	over := make(chan bool)
	go func() { over <- s.old.over() }()
	time.Sleep(50 * time.Millisecond)
	s.old.heir.Store(nil) // nobody takes it
	p := &pair{tuple: numbered(1)}
	if _, ok := s.old.pairs.put(p, 10, 10); !ok {
		t.Fatal("no room")
	}
	s.old.estate.mu.Unlock()
	if <-over {
		t.Error("over, and there is a connection")
	}
	s.old.pairs.drop(p)
}
