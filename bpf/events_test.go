package bpf

import (
	"context"
	"runtime"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/weirnet/weir/flow"
)

// events runs a reader and hands out what it reads, until the test ends.
func (k *kernel) reader() <-chan Event {
	k.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	out, done := make(chan Event, 1<<16), make(chan error, 1)
	go func() {
		var last error
		for e, err := range k.Events(ctx) {
			if last = err; err == nil {
				out <- e
			}
		}
		done <- last
	}()
	k.t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				k.t.Error(err)
			}
		case <-time.After(5 * time.Second):
			k.t.Error("the reader does not end")
		}
	})
	return out
}

// drops has the programs drop n packets.
func (k *kernel) drops(n int) {
	k.t.Helper()
	var err error
	b := ipv4.udp().bytes()
	k.ns.do(func() {
		for i := 0; i < n && err == nil; i++ {
			_, err = k.objects.FromPod.Run(&ebpf.RunOptions{Data: b, Context: skb{Ifindex: uint32(k.podA)}})
		}
	})
	k.must(err)
}

// TestEventsCome: the first at once, since the programs wake the reader; what
// comes soon after when the reader has paused.
func TestEventsCome(t *testing.T) {
	k := newKernel(t)
	k.policy(policyA, closed)
	events := k.reader()
	for round := range 3 {
		time.Sleep(2 * eventPause) // the reader waits
		start := time.Now()
		k.drops(1)
		first := <-events
		if late := time.Since(start); late > eventPatience/2 {
			t.Errorf("round %d: the first came after %v: nobody woke the reader", round, late)
		}
		if first.Verdict != flow.Dropped || first.Reason != flow.ReasonPolicyDenied || first.Time.Before(start.Add(-time.Second)) || first.Time.After(time.Now().Add(time.Second)) {
			t.Errorf("round %d: %+v", round, first)
		}
		k.drops(10)
		for range 10 {
			<-events
		}
		if late := time.Since(start); late > eventPatience/2 {
			t.Errorf("round %d: the others came after %v", round, late)
		}
	}
}

// TestEventsFloodIsRead: a pause ends when the ring buffer fills.
func TestEventsFloodIsRead(t *testing.T) {
	sizes := small
	sizes.Events = 64 << 10
	k := newKernelOf(t, sizes, 1<<30)
	k.policy(policyA, closed)
	events := k.reader()
	const size = 88 // with its header, in the ring buffer
	const n = 40 * (64 << 10) / size
	before, err := k.LostEvents()
	k.must(err)
	k.drops(n)
	lost, err := k.LostEvents()
	k.must(err)
	full := int(lost.Full - before.Full)
	if full > n/2 {
		t.Errorf("%d of %d found no room: the reader slept", full, n)
	}
	for range n - full {
		select {
		case <-events:
		case <-time.After(5 * time.Second):
			t.Fatal("some never came")
		}
	}
}

// TestEventsAllocateNothing: reading them costs no memory, but for a little at
// each look.
func TestEventsAllocateNothing(t *testing.T) {
	k := newKernel(t)
	k.policy(policyA, closed)
	const n = 5000
	k.drops(n)
	var before, after runtime.MemStats
	seen := 0
	runtime.ReadMemStats(&before)
	for _, err := range k.Events(t.Context()) {
		k.must(err)
		if seen++; seen == n {
			break
		}
	}
	runtime.ReadMemStats(&after)
	if got := after.Mallocs - before.Mallocs; got > n/10 {
		t.Errorf("%d allocations for %d events", got, n)
	}
}

// BenchmarkEvents reads 5,000 events in one look.
func BenchmarkEvents(b *testing.B) {
	k := newKernel(b)
	k.policy(policyA, closed)
	r, err := openEvents(k.objects.Events)
	k.must(err)
	defer r.close()
	const n = 5000
	seen := 0
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		k.drops(n)
		b.StartTimer()
		k.must(r.drain(func(Event, error) bool { seen++; return true }))
	}
	if seen < n {
		b.Errorf("saw %d events", seen)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(seen), "ns/event")
}
