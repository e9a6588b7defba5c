package fqdn

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy/dnsrules"
)

// needRoot ends a test that needs what only root has.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("needs root")
	}
	t.Skip("needs root")
}

func newMap(t testing.TB, spec *ebpf.MapSpec) *ebpf.Map {
	t.Helper()
	needRoot(t)
	m, err := ebpf.NewMap(spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m
}

// newFQDN is a table as maps.h declares it.
func newFQDN(t testing.TB, n uint32) *ebpf.Map {
	return newMap(t, &ebpf.MapSpec{Type: ebpf.Hash, KeySize: 16, ValueSize: 4, MaxEntries: n, Flags: unix.BPF_F_NO_PREALLOC})
}

func newConntrack(t testing.TB, n uint32) *ebpf.Map {
	return newMap(t, &ebpf.MapSpec{Type: ebpf.LRUHash, KeySize: 40, ValueSize: uint32(unsafe.Sizeof(bpf.Conntrack{})), MaxEntries: n})
}

func TestKernelTable(t *testing.T) {
	table := NewTable(newFQDN(t, 4))
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	rows := func() map[netip.Addr]identity.ID {
		out := map[netip.Addr]identity.ID{}
		must(table.Walk(context.Background(), func(list []Row) {
			for _, r := range list {
				out[r.Addr] = r.Identity
			}
		}))
		return out
	}
	if got := rows(); len(got) != 0 {
		t.Fatalf("%v", got)
	}
	must(table.Set(a, 300))
	must(table.Set(b, 301))
	must(table.Set(a, 302))
	if id, ok, err := table.Get(a); id != 302 || !ok || err != nil {
		t.Errorf("%d, %v, %v", id, ok, err)
	}
	if got, want := rows(), (map[netip.Addr]identity.ID{a: 302, b: 301}); !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	must(table.Delete(a))
	must(table.Delete(a))
	if _, ok, err := table.Get(a); ok || err != nil {
		t.Errorf("%v, %v", ok, err)
	}
	for i := range 3 {
		must(table.Set(netip.MustParseAddr(addr4(i)), 300))
	}
	if err := table.Set(a, 300); !errors.Is(err, unix.E2BIG) {
		t.Errorf("a full table: %v", err)
	}
	if table.Size() != 4 {
		t.Errorf("size %d", table.Size())
	}
}

// What is alive is what the kernel takes to be, however many flows there are,
// and through a descriptor that only allows reading.
func TestKernelFlows(t *testing.T) {
	m := newConntrack(t, 1<<16)
	var clock unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &clock); err != nil {
		t.Fatal(err)
	}
	now := uint64(clock.Nano())
	client := netip.MustParseAddrPort("10.0.0.5:40000")
	put := func(to string, proto uint8, age time.Duration, flags uint32) {
		t.Helper()
		tuple := bpf.TupleOf(client, netip.AddrPortFrom(netip.MustParseAddr(to), 443), proto)
		key, swapped := tuple.Canonical()
		if swapped {
			flags |= bpf.CTSwapped
		}
		ct := bpf.Conntrack{LastSeen: now - uint64(age), Flags: flags}
		if err := m.Put(&key, &ct); err != nil {
			t.Fatal(err)
		}
	}
	tcp, udp := uint8(unix.IPPROTO_TCP), uint8(unix.IPPROTO_UDP)
	put("192.0.2.1", tcp, time.Hour, bpf.CTReplied)
	put("192.0.2.2", tcp, 3*time.Hour, bpf.CTReplied)
	put("192.0.2.3", tcp, time.Second, bpf.CTReplied|bpf.CTCut)
	put("192.0.2.4", tcp, 2*time.Minute, 0)
	put("192.0.2.5", udp, 2*time.Minute, bpf.CTReplied)
	put("192.0.2.6", udp, 4*time.Minute, bpf.CTReplied)
	put("192.0.2.7", tcp, 5*time.Second, bpf.CTReplied|bpf.CTFinForward|bpf.CTFinReply)
	put("192.0.2.8", tcp, 15*time.Second, bpf.CTReplied|bpf.CTFinForward|bpf.CTFinReply)
	put("1.0.0.1", tcp, 0, 0) // below the client
	put("2001:db8::1", udp, 0, 0)
	for i := range 20_000 {
		put(addr4(i), tcp, 0, bpf.CTReplied)
	}

	dir := t.TempDir()
	if err := bpf.MountPins(dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	pin := filepath.Join(dir, "conntrack")
	if err := m.Pin(pin); err != nil {
		t.Fatal(err)
	}
	reader, err := ebpf.LoadPinnedMap(pin, &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()

	seen := map[netip.Addr]bool{}
	began := time.Now()
	if err := NewFlows(reader).Walk(context.Background(), func(list []netip.Addr) {
		for _, a := range list {
			seen[a] = true
		}
	}); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d flows in %v", 20_010, time.Since(began))
	for a, want := range map[string]bool{
		"192.0.2.1": true, "192.0.2.2": false, "192.0.2.3": false, "192.0.2.4": false, "192.0.2.5": true,
		"192.0.2.6": false, "192.0.2.7": true, "192.0.2.8": false, "1.0.0.1": true, "2001:db8::1": true,
		"10.0.0.5": false,
	} {
		if seen[netip.MustParseAddr(a)] != want {
			t.Errorf("%s: alive %v", a, !want)
		}
	}
	if len(seen) < 19_000 { // an LRU table may have dropped some
		t.Errorf("%d addresses are alive", len(seen))
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := NewFlows(reader).Walk(ctx, func([]netip.Addr) {}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// Whoever connects right after an answer finds the row, whatever goes on beside.
func TestRowBeforeAnswer(t *testing.T) {
	table := NewTable(newFQDN(t, 1<<19))
	c := New(Options{
		Settings: Settings{MinTTL: time.Second}, Table: table, Flows: NewFlows(newConntrack(t, 1<<14)),
		Checkpoints: [2]File{tempFile(t), tempFile(t)},
	})
	sets := []identitySets{
		{300: sel("**.test"), 301: sel("*.a.test"), 302: sel("**.test *.a.test")},
		{300: sel("**.test"), 301: sel("*.a.test"), 302: sel("**.test *.a.test"), 303: sel("*.b.test")},
		{310: sel("**.test"), 301: sel("*.a.test"), 302: sel("**.test *.a.test"), 303: sel("*.b.test")},
	}
	if err := c.SetNames(sets[0], nil); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() {
		if err := c.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	work.Go(func() { // the agent
		_ = c.Watch(ctx, func([][]dnsrules.Selector) error { return nil })
	})
	work.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			if err := c.SetNames(sets[i%3], nil); err != nil {
				t.Error(err)
			}
			if err := c.sweep(ctx); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		}
	})
	work.Go(func() {
		for ctx.Err() == nil {
			_ = c.List(ctx, "x", func(Name) error { return nil })
			time.Sleep(time.Millisecond)
		}
	})
	rounds := 20_000
	if testing.Short() {
		rounds = 2000
	}
	var askers sync.WaitGroup
	for g := range 3 {
		askers.Go(func() {
			for i := range rounds / 3 {
				a := netip.AddrFrom4([4]byte{100, byte(g), byte(i >> 8), byte(i)})
				answer := Answer{Name: fmt.Sprintf("x%d-%d.a.test", g, i/5), Records: []Record{{a, time.Second}}, Pod: netip.AddrFrom4([4]byte{10, 0, 0, byte(g)})}
				if err := c.Learn(ctx, answer); err != nil {
					t.Error(err)
					return
				}
				if id, ok, err := table.Get(a); id != 302 || !ok || err != nil {
					t.Errorf("after the answer %s is %d, %v, %v", a, id, ok, err)
					return
				}
			}
		})
	}
	askers.Wait()
	cancel()
	work.Wait()
	if err := c.consistent(); err != nil {
		t.Error(err)
	}
}

func BenchmarkKernelTable(b *testing.B) {
	table := NewTable(newFQDN(b, 1<<19))
	c := New(Options{Table: table})
	if err := c.SetNames(manySelectors(1000), nil); err != nil {
		b.Fatal(err)
	}
	for i := 0; b.Loop(); i++ {
		a := Answer{Name: "x.example.test", Records: []Record{{addrNo(i % 400_000), time.Hour}}}
		_ = c.Learn(context.Background(), a)
	}
}

// Looking through a full conntrack.
func BenchmarkKernelFlows(b *testing.B) {
	m := newConntrack(b, 262144)
	for i := range 250_000 {
		tuple := bpf.TupleOf(netip.MustParseAddrPort("10.0.0.5:40000"), netip.AddrPortFrom(netip.MustParseAddr(addr4(i)), 443), unix.IPPROTO_TCP)
		if err := m.Put(&tuple, &bpf.Conntrack{LastSeen: 1 << 60}); err != nil {
			b.Fatal(err)
		}
	}
	c := New(Options{Flows: NewFlows(m)})
	fill(b, c, 1000)
	for b.Loop() {
		if _, err := c.scan(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}
