package fqdn

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/weirnet/weir/identity"
)

// An address with very many names keeps what the others ask for as they go, and
// nobody waits for that.
func TestManyNamesOfOneAddress(t *testing.T) {
	const many = 100_000
	r := newRig(t, Settings{})
	r.names(map[identity.ID]string{300: "*.a.test", 301: "*.b.test", 302: "*.a.test *.b.test"})
	learn := func(name string, ttl time.Duration) {
		t.Helper()
		if err := r.Learn(context.Background(), answer(name, ttl, "192.0.2.1")); err != nil {
			t.Fatal(err)
		}
	}
	learn("last.b.test", time.Hour)
	for i := range many {
		learn(fmt.Sprintf("n%d.%s.test", i, []string{"a", "b", "c"}[i%3]), 2*time.Minute)
	}
	learn("late.a.test", 10*time.Minute)
	r.want(map[string]identity.ID{"192.0.2.1": 302})
	var worst time.Duration
	sweep := func() {
		t.Helper()
		done := make(chan error, 1)
		go func() { done <- r.sweep(context.Background()) }()
		for {
			began := time.Now()
			r.Len()
			worst = max(worst, time.Since(began))
			select {
			case err := <-done:
				if err != nil {
					t.Fatal(err)
				}
				return
			case <-time.After(time.Millisecond):
			}
		}
	}
	r.clock.advance(3 * time.Minute)
	began := time.Now()
	sweep()
	t.Logf("%d names went in %v; somebody waited for %v", many, time.Since(began), worst)
	r.want(map[string]identity.ID{"192.0.2.1": 302})
	if err := r.consistent(); err != nil {
		t.Error(err)
	}
	if n, _ := r.Len(); n != 2 {
		t.Errorf("%d names are left", n)
	}
	r.clock.advance(10 * time.Minute)
	sweep()
	r.want(map[string]identity.ID{"192.0.2.1": 301})
	r.clock.advance(time.Hour)
	sweep()
	r.want(map[string]identity.ID{})
}
