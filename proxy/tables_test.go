package proxy

import (
	"net/netip"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/bpf"
)

func newMapFlows(t testing.TB, n uint32) *mapFlows {
	t.Helper()
	needRoot(t)
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 40, ValueSize: 56, MaxEntries: n})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return &mapFlows{walker: walker[bpf.Tuple, bpf.Conn]{m: m}}
}

func numbered(i int) bpf.Tuple {
	client := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 16), byte(i >> 8)}), uint16(1024+i))
	return bpf.TupleOf(client, testServer, unix.IPPROTO_TCP)
}

func put(t testing.TB, f *mapFlows, tuple bpf.Tuple, c bpf.Conn) {
	t.Helper()
	if err := f.m.Put(&tuple, &c); err != nil {
		t.Fatal(err)
	}
}

func TestMapFlows(t *testing.T) {
	f := newMapFlows(t, 16)
	if _, ok, err := f.get(testTuple); ok || err != nil {
		t.Fatalf("in an empty table: %v, %v", ok, err)
	}
	want := bpf.Conn{Id: 7, Revision: 8, RuleSet: [2]uint32{1, 2}, L7: 3, Generation: 4}
	put(t, f, testTuple, want)
	if got, ok, err := f.get(testTuple); got != want || !ok || err != nil {
		t.Fatalf("%+v, %v, %v", got, ok, err)
	}
	if err := f.remove(testTuple, 6); err != nil {
		t.Fatal(err)
	}
	if _, ok, _ := f.get(testTuple); !ok {
		t.Fatal("a successor's entry was removed")
	}
	if err := f.remove(testTuple, 7); err != nil {
		t.Fatal(err)
	}
	if _, ok, _ := f.get(testTuple); ok {
		t.Fatal("the entry was not removed")
	}
	if err := f.remove(testTuple, 7); err != nil {
		t.Fatalf("remove what is not there: %v", err)
	}
	if f.size() != 16 {
		t.Errorf("size %d", f.size())
	}
}

// TestRemoveLeavesSuccessors removes entries while the kernel, here another
// goroutine, writes new ones for the same flow.
func TestRemoveLeavesSuccessors(t *testing.T) {
	f := newMapFlows(t, 16)
	const rounds = 20000
	var kernel sync.WaitGroup
	kernel.Go(func() {
		for id := uint64(1); id <= rounds; id++ {
			c := bpf.Conn{Id: id}
			tuple := testTuple
			if err := f.m.Put(&tuple, &c); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for id := uint64(1); id < rounds; id += 3 {
		if err := f.remove(testTuple, id); err != nil {
			t.Fatal(err)
		}
	}
	kernel.Wait()
	c, ok, err := f.get(testTuple)
	if err != nil || !ok || c.Id != rounds {
		t.Fatalf("the last entry: %v, %v, %v", c, ok, err)
	}
}

func TestWalk(t *testing.T) {
	f := newMapFlows(t, 4096)
	const entries = 3000
	for i := range entries {
		put(t, f, numbered(i), bpf.Conn{Id: uint64(i)})
	}
	for range 2 { // from the beginning again after the end
		seen := map[bpf.Tuple]int{}
		steps := 0
		for end := false; !end; {
			before := len(seen)
			var err error
			if end, err = f.walk(256, func(t bpf.Tuple, _ bpf.Conn) { seen[t]++ }); err != nil {
				t.Fatal(err)
			}
			if steps++; len(seen)-before > 1024 || steps > 100 {
				t.Fatalf("step %d saw %d entries", steps, len(seen)-before)
			}
		}
		if len(seen) != entries {
			t.Fatalf("saw %d of %d entries in %d steps", len(seen), entries, steps)
		}
	}
}

// TestWalkSmallSteps: a step that is too small for what the kernel gives at
// once still goes on.
func TestWalkSmallSteps(t *testing.T) {
	f := newMapFlows(t, 64)
	for i := range 64 {
		put(t, f, numbered(i), bpf.Conn{})
	}
	seen := 0
	for end, steps := false, 0; !end; steps++ {
		var err error
		if end, err = f.walk(1, func(bpf.Tuple, bpf.Conn) { seen++ }); err != nil || steps > 200 {
			t.Fatalf("step %d: %v", steps, err)
		}
	}
	if seen != 64 {
		t.Errorf("saw %d of 64", seen)
	}
}

func TestRevisionIsShared(t *testing.T) {
	needRoot(t)
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1, Flags: unix.BPF_F_MMAPABLE})
	if err != nil {
		t.Fatal(err)
	}
	r, err := mapRevisions(m)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []uint32{0, 1, 1 << 31} {
		if err := m.Put(uint32(0), want); err != nil {
			t.Fatal(err)
		}
		if got := r.now(); got != want {
			t.Errorf("revision %d, want %d", got, want)
		}
	}
	if id, err := mapID(m); err != nil || id == 0 {
		t.Errorf("number %d, %v", id, err)
	}
	_ = m.Close() // the mapping stays
	if got := r.now(); got != 1<<31 {
		t.Errorf("without the descriptor: %d", got)
	}
}

func BenchmarkRemove(b *testing.B) {
	f := newMapFlows(b, 1024)
	for b.Loop() {
		put(b, f, testTuple, bpf.Conn{Id: 1})
		if err := f.remove(testTuple, 1); err != nil {
			b.Fatal(err)
		}
	}
}
