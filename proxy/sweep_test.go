package proxy

import (
	"errors"
	"maps"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/weirnet/weir/bpf"
)

// sweepClock is what the tests' walks take for now, and ages of entries by it.
const (
	sweepClock = uint64(100e9)
	oldEntry   = sweepClock - uint64(sweepAge) - 1
	youngEntry = sweepClock - uint64(sweepAge) + 1
)

func TestSweep(t *testing.T) {
	d, _, _ := newData(t)
	f := newMapFlows(t, 64)
	d.flows = f
	put(t, f, numbered(0), bpf.Conn{Id: oldEntry, Generation: 3})
	put(t, f, numbered(1), bpf.Conn{Id: youngEntry, Generation: 3})
	put(t, f, numbered(2), bpf.Conn{Id: oldEntry, Generation: 2}) // another proxy's
	put(t, f, numbered(3), bpf.Conn{Id: oldEntry, Generation: 3}) // has a pair
	if _, ok := d.pairs.put(&pair{tuple: numbered(3)}, 10, 10); !ok {
		t.Fatal("no room for a pair")
	}
	asked, unasked := testSession, testSession
	unasked.Dport++
	for _, session := range []bpf.Tuple{asked, unasked} {
		put(t, f, session, bpf.Conn{Id: oldEntry, Generation: 3})
	}
	d.sessions.put(asked)
	if err := newSweeper(d).walk(nil, sweepClock); err != nil {
		t.Fatal(err)
	}
	if _, ok, _ := f.get(asked); !ok {
		t.Error("the entry of a session is gone")
	}
	if _, ok, _ := f.get(unasked); ok {
		t.Error("an entry without a session is there")
	}
	for i, want := range []bool{false, true, true, true} {
		if _, ok, _ := f.get(numbered(i)); ok != want {
			t.Errorf("entry %d is there: %v, want %v", i, ok, want)
		}
	}
	if n := d.counters.swept.Load(); n != 2 {
		t.Errorf("%d counted", n)
	}
}

// TestGrants: what a walk finds is taken off a veth's part, whichever proxy has
// it and whether or not it goes.
func TestGrants(t *testing.T) {
	d, flows, _ := newData(t)
	shares := d.shares.(*memoryShares)
	s := newSweeper(d)
	if s.part != 1<<14 {
		t.Fatalf("the part of a veth is %d", s.part)
	}
	s.part = 4
	for i, c := range []bpf.Conn{
		{Ifindex: 7, Id: youngEntry, Generation: 3}, {Ifindex: 7, Id: oldEntry, Generation: 3}, {Ifindex: 7, Id: oldEntry, Generation: 2},
		{Ifindex: 8}, {Ifindex: 8}, {Ifindex: 8}, {Ifindex: 8}, {Ifindex: 8},
		{Ifindex: 10}, // made nothing that is known
	} {
		flows.set(numbered(i), c)
	}
	shares.shares = map[uint32]bpf.Share{7: {Born: 1, Made: 100}, 8: {Born: 2, Made: 200}, 9: {Born: 3, Made: 300}}
	want := func(grants map[uint32]bpf.Grant, writes int) {
		t.Helper()
		before, err := shares.read()
		if err != nil {
			t.Fatal(err)
		}
		if err := s.walk(before, sweepClock); err != nil {
			t.Fatal(err)
		}
		if !maps.Equal(shares.grants, grants) || shares.writes != writes {
			t.Errorf("granted %v with %d writes, want %v with %d", shares.grants, shares.writes, grants, writes)
		}
	}
	want(map[uint32]bpf.Grant{7: {Born: 1, Until: 101}, 8: {Born: 2, Until: 200}, 9: {Born: 3, Until: 304}}, 3)
	// The old entry has gone; what stays as it was is not written.
	want(map[uint32]bpf.Grant{7: {Born: 1, Until: 102}, 8: {Born: 2, Until: 200}, 9: {Born: 3, Until: 304}}, 4)
	// A share that was made anew is another one.
	shares.shares[9] = bpf.Share{Born: 4, Made: 300}
	want(map[uint32]bpf.Grant{7: {Born: 1, Until: 102}, 8: {Born: 2, Until: 200}, 9: {Born: 4, Until: 304}}, 5)
}

// TestWalksAsNeeded: soon where a veth runs out of room, else seldom.
func TestWalksAsNeeded(t *testing.T) {
	d, flows, _ := newData(t)
	shares := d.shares.(*memoryShares)
	s := newSweeper(d)
	s.part = 100
	now := time.Unix(1000, 0)
	look := func(after time.Duration, walks bool) {
		t.Helper()
		now = now.Add(after)
		if err := s.look(now); err != nil {
			t.Fatal(err)
		}
		if walked := s.walked.Equal(now); walked != walks {
			t.Errorf("walked: %v, want %v", walked, walks)
		}
	}
	look(0, true)
	look(sweepEvery, false)
	shares.shares[7] = bpf.Share{Born: 1, Made: 24} // a new veth
	look(sweepEvery, false)
	shares.shares[7] = bpf.Share{Born: 1, Made: 25}
	look(sweepEvery, true)
	shares.shares[7] = bpf.Share{Born: 1, Made: 49}
	look(sweepEvery, false)
	shares.shares[7] = bpf.Share{Born: 1, Made: 50}
	look(sweepEvery, true)
	look(sweepIdle-1, false)
	look(1, true)
	// As long as it has nothing left it is looked whether something went.
	for i := range 100 {
		flows.set(numbered(i), bpf.Conn{Ifindex: 7, Id: sweepClock})
	}
	look(sweepIdle, true)
	look(sweepEvery, true)
	look(sweepEvery, true)
	for i := range 100 {
		_ = flows.remove(numbered(i), sweepClock)
	}
	look(sweepEvery, true)
	look(sweepEvery, false)
	shares.fail = errors.New("gone")
	if err := s.look(now.Add(time.Hour)); !errors.Is(err, shares.fail) {
		t.Errorf("error %v", err)
	}
}

func TestMapShares(t *testing.T) {
	needRoot(t)
	table := func(value uint32) *ebpf.Map {
		m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.LRUHash, KeySize: 4, ValueSize: value, MaxEntries: 1024})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = m.Close() })
		return m
	}
	s := &mapShares{walker: walker[uint32, bpf.Share]{m: table(24)}, grants: table(16)}
	for range 2 {
		if all, err := s.read(); err != nil || len(all) != 0 {
			t.Errorf("at first: %v, %v", all, err)
		}
	}
	want := map[uint32]bpf.Share{}
	for i := range uint32(300) {
		want[i] = bpf.Share{Born: uint64(i), Made: 2, Until: 3}
		if err := s.m.Put(i, want[i]); err != nil {
			t.Fatal(err)
		}
	}
	if all, err := s.read(); err != nil || !maps.Equal(all, want) {
		t.Errorf("%d shares, %v", len(all), err)
	}
	g := bpf.Grant{Born: 5, Until: 6}
	if err := s.grant(7, g); err != nil {
		t.Fatal(err)
	}
	var got bpf.Grant
	if err := s.grants.Lookup(uint32(7), &got); err != nil || got != g {
		t.Errorf("granted %+v, %v", got, err)
	}
}

// BenchmarkWalk goes through conns as it is by default: empty, and full of
// entries that are to stay.
func BenchmarkWalk(b *testing.B) {
	for name, entries := range map[string]int{"empty": 0, "10000": 10000, "full": 1 << 16} {
		b.Run(name, func(b *testing.B) {
			d, _, _ := newData(b)
			f := newMapFlows(b, 1<<16)
			d.flows = f
			for i := range entries {
				put(b, f, numbered(i), bpf.Conn{Id: oldEntry, Ifindex: uint32(i % 100)})
			}
			s := newSweeper(d)
			for b.Loop() {
				if err := s.walk(nil, sweepClock); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
