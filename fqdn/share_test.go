package fqdn

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weirnet/weir/identity"
)

// learnAs is learn of a pod, which may fail.
func (r *rig) learnAs(pod, names string, addrs ...string) error {
	a := answer(names, time.Hour, addrs...)
	a.Pod = netip.MustParseAddr(pod)
	return r.Learn(context.Background(), a)
}

// flood learns names of a pod until there is no room.
func (r *rig) flood(pod string, name func(int) string, addrs ...string) (n int) {
	r.t.Helper()
	for ; n < 1_000_000; n++ {
		if err := r.learnAs(pod, name(n), addrs...); errors.Is(err, ErrFull) {
			return n
		} else if err != nil {
			r.t.Fatal(err)
		}
	}
	r.t.Fatal("there is room for everything")
	return n
}

// A few flows of one pod don't keep a table full of names: other pods learn,
// and keep what they learned, and the flows keep their rows.
func TestFewFlowsManyNames(t *testing.T) {
	r := newRig(t, Settings{Addresses: 40_000})
	r.names(map[identity.ID]string{300: "**.evil.test", 301: "good.test", 302: "x1.evil.test", 303: "x1.evil.test **.evil.test"})
	rows := map[string]identity.ID{}
	var addrs []string
	var live []netip.Addr
	for i := range 200 {
		addrs = append(addrs, addr4(i))
		live = append(live, netip.MustParseAddr(addr4(i)))
		rows[addr4(i)] = 303
	}
	r.flows.set(live...)
	evil := func(i int) string { return fmt.Sprintf("x%d.evil.test", i) }
	r.flood("10.0.0.66", evil, addrs...)
	if err := r.learnAs("10.0.0.7", "good.test", "192.0.2.1"); err != nil {
		t.Fatal(err)
	}
	rows["192.0.2.1"] = 301
	for i := range 4 {
		r.sweepNow() // at once: they are young, too
		if n := r.pairs.len(); n > r.settings.trimmed() {
			t.Fatalf("sweep %d leaves %d pairs", i, n)
		}
		r.want(rows)
		r.flood("10.0.0.66", func(n int) string { return evil(1000*i + n) }, addrs...)
		r.clock.advance(11 * time.Second)
	}
	r.sweepNow()
	r.want(rows)
	if err := r.consistent(); err != nil {
		t.Error(err)
	}
}

// Where a pod has nothing but what is in use, that makes room for others, not
// what others have without using it; and it loses no more than needs be.
func TestLivePairsMakeRoom(t *testing.T) {
	r := newRig(t, Settings{Addresses: 800})
	r.names(map[identity.ID]string{300: "*.evil.test", 301: "*.good.test"})
	var live []netip.Addr
	for i := range 1000 {
		live = append(live, netip.MustParseAddr(addr4(i)))
	}
	r.flows.set(live...)
	for i := range 150 {
		if err := r.learnAs("10.0.0.7", fmt.Sprintf("n%d.good.test", i), addr4(2000+i)); err != nil {
			t.Fatal(err)
		}
	}
	r.clock.advance(time.Minute)
	for i := range 1000 {
		_ = r.learnAs("10.0.0.66", fmt.Sprintf("n%d.evil.test", i), addr4(i))
	}
	r.clock.advance(time.Minute)
	r.sweepNow()
	if got := len(r.known("good")); got != 150 {
		t.Errorf("%d of 150 are left of the pod that has few", got)
	}
	if got := len(r.known("evil")); got != 600 {
		t.Errorf("%d are left of the pod that has most, want 600", got)
	}
	if err := r.consistent(); err != nil {
		t.Error(err)
	}
}

// Pods that together fill everything, none of them more than its share, give
// way to one that has little.
func TestManyPodsTogether(t *testing.T) {
	r := newRig(t, Settings{Addresses: 800})
	r.names(map[identity.ID]string{300: "*.test"})
	var live []netip.Addr
	for pod := range 6 {
		for i := range 190 {
			a := addr4(200*pod + i)
			live = append(live, netip.MustParseAddr(a))
			_ = r.learnAs(fmt.Sprintf("10.0.1.%d", pod), fmt.Sprintf("p%dn%d.test", pod, i), a)
		}
	}
	r.flows.set(live...)
	if err := r.learnAs("10.0.0.7", "good.test", "192.0.2.1"); !errors.Is(err, ErrFull) {
		t.Fatalf("not full: %v", err)
	}
	r.sweepNow()
	if err := r.learnAs("10.0.0.7", "good.test", "192.0.2.1"); err != nil {
		t.Fatal(err)
	}
	r.clock.advance(time.Minute)
	r.sweepNow()
	if got := r.table.get("192.0.2.1"); got != 300 {
		t.Errorf("the row is %d", got)
	}
}

// Long names of one pod on one live address leave other pods room for theirs.
func TestShareOfText(t *testing.T) {
	r := newRig(t, Settings{Addresses: 20_000})
	r.names(map[identity.ID]string{300: "**.evil.test", 301: "*.good.test"})
	long := strings.Repeat("x", 240)
	r.flows.set(netip.MustParseAddr("203.0.113.1"))
	evil := func(i int) string { return fmt.Sprintf("%d.%s.%s.%s.evil.test", i, long, long, long) }
	n := r.flood("10.0.0.66", evil, "203.0.113.1")
	for i := range 100 {
		if err := r.learnAs("10.0.0.7", fmt.Sprintf("n%d.good.test", i), addr4(i)); err != nil {
			t.Fatal(err)
		}
		if i%10 == 0 {
			r.sweepNow()
			n += r.flood("10.0.0.66", func(i int) string { return evil(n + i) }, "203.0.113.1")
			r.clock.advance(11 * time.Second)
		}
	}
	r.sweepNow()
	if got := len(r.known("good.test")); got != 100 {
		t.Errorf("%d of 100 are left", got)
	}
	if got := r.table.get("203.0.113.1"); got != 300 {
		t.Errorf("the row of a flow is %d", got)
	}
	if r.texts.bytes > r.settings.textOf() {
		t.Errorf("%d bytes of text", r.texts.bytes)
	}
	if err := r.consistent(); err != nil {
		t.Error(err)
	}
}

// A name that a pod with too much asked for first is another's as soon as that
// one asks.
func TestNameChangesOwner(t *testing.T) {
	r := newRig(t, Settings{Addresses: 80})
	r.names(map[identity.ID]string{300: "*.test"})
	if err := r.learnAs("10.0.0.66", "shared.test", "192.0.2.1"); err != nil {
		t.Fatal(err)
	}
	r.flood("10.0.0.66", func(i int) string { return fmt.Sprintf("n%d.test", i) }, addr4(1), addr4(2), addr4(3))
	if err := r.learnAs("10.0.0.7", "shared.test", "192.0.2.1"); err != nil {
		t.Fatal(err)
	}
	r.clock.advance(time.Minute)
	for range 3 {
		r.sweepNow()
		r.flood("10.0.0.66", func(i int) string { return fmt.Sprintf("m%d.test", i) }, addr4(1), addr4(2), addr4(3))
	}
	if got := r.table.get("192.0.2.1"); got != 300 {
		t.Errorf("the row is %d", got)
	}
	if err := r.consistent(); err != nil {
		t.Error(err)
	}
}

// blocker is Flows whose walk takes as long as somebody wants.
type blocker struct{ fakeFlows }

func (b *blocker) Walk(ctx context.Context, visit func([]netip.Addr)) error {
	time.Sleep(50 * time.Millisecond)
	return b.fakeFlows.Walk(ctx, visit)
}

// An answer without room waits until what can go has gone; whoever must not
// wait is told so.
func TestLearnWaitsForRoom(t *testing.T) {
	r := newRig(t, Settings{Addresses: 8000})
	r.Cache.flows = &blocker{}
	r.names(map[identity.ID]string{300: "**.test"})
	name := func(i int) string { return fmt.Sprintf("n%d.test", i) }
	n := r.flood("10.0.0.66", name, addr4(1))
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if err := r.Learn(ended, answer("x.test", time.Hour, addr4(2))); err != nil {
		t.Fatalf("another pod: %v", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- r.Run(ctx) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	for on := false; !on; time.Sleep(time.Millisecond) {
		r.mu.Lock()
		on = r.running
		r.mu.Unlock()
	}
	would := 0
	var failed []error
	var mu sync.Mutex
	var work sync.WaitGroup
	slots := make(chan struct{}, 100)
	for i := range 20_000 {
		a := answer(name(n+i), time.Hour, addr4(3+i))
		a.Pod = netip.MustParseAddr("10.0.0.66")
		err := r.Learn(ended, a)
		if err == nil {
			continue
		}
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("answer %d: %v", i, err)
		}
		would++
		slots <- struct{}{}
		work.Go(func() {
			defer func() { <-slots }()
			if err := r.Learn(context.Background(), a); err != nil {
				mu.Lock()
				failed = append(failed, err)
				mu.Unlock()
			}
		})
	}
	work.Wait()
	if would == 0 {
		t.Error("none had to wait")
	}
	if len(failed) > 0 {
		t.Errorf("%d of %d that waited found no room: %v", len(failed), would, failed[0])
	}
	if got := r.Counts().Full; got != 1 { // of the flood
		t.Errorf("%d are counted without room, want 1", got)
	}
	t.Logf("%d of 20000 waited", would)
	r.mu.Lock()
	if r.waiting != 0 {
		t.Errorf("%d still wait", r.waiting)
	}
	r.mu.Unlock()
}

// Only so many of a pod wait, and nobody where none makes room.
func TestBoundOfWaiting(t *testing.T) {
	r := newRig(t, Settings{Addresses: 80})
	r.names(map[identity.ID]string{300: "*.test"})
	r.flood("10.0.0.66", func(i int) string { return fmt.Sprintf("n%d.test", i) }, addr4(1)) // nobody runs: at once
	r.setRunning(true)
	began := time.Now()
	ended, cancel := context.WithCancel(context.Background())
	ctx, stop := context.WithCancel(context.Background())
	a := answer("x.test", time.Hour, addr4(1))
	a.Pod = netip.MustParseAddr("10.0.0.66")
	cancel()
	var work sync.WaitGroup
	for range maxRoomless {
		work.Go(func() {
			if err := r.Learn(ctx, a); !errors.Is(err, ErrFull) {
				t.Errorf("got %v", err)
			}
		})
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		err := r.Learn(ended, a)
		if errors.Is(err, ErrFull) {
			break
		}
		if !errors.Is(err, context.Canceled) || time.Now().After(end) {
			t.Fatalf("got %v after %v", err, time.Since(began))
		}
	}
	stop()
	work.Wait()
	if err := r.learnAs("10.0.0.66", "x.test", addr4(1)); !errors.Is(err, ErrFull) {
		t.Errorf("after its patience: %v", err)
	}
}
