package fqdn

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/policy/dnsrules"
)

// fill learns names with three addresses each, as long as names usually are.
func fill(t testing.TB, c *Cache, names int) {
	a := Answer{Pod: netip.MustParseAddr("10.0.0.1"), Records: make([]Record, 3)}
	for i := range names {
		a.Name = nameOf(i)
		for j := range a.Records {
			a.Records[j] = Record{addrNo(3*i + j), time.Hour}
		}
		if err := c.Learn(context.Background(), a); err != nil {
			t.Fatal(err)
		}
	}
}

func nameOf(i int) string { return fmt.Sprintf("host-%d.service.region.example.test", i) }

func addrNo(i int) netip.Addr {
	if i%4 == 0 {
		return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 12: byte(i >> 24), 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)})
	}
	return netip.AddrFrom4([4]byte{100, byte(i >> 16), byte(i >> 8), byte(i)})
}

// manySelectors are n selectors, the last of which is for all names of fill.
func manySelectors(n int) identitySets {
	ids := identitySets{}
	for i := range n - 1 {
		ids[identity.ID(1000+i)] = []dnsrules.Selector{{Pattern: fmt.Sprintf("*.s%d.example.test", i)}}
	}
	ids[999] = []dnsrules.Selector{{Pattern: "**.example.test"}}
	return ids
}

// 100,000 names with 300,000 addresses take a part of the proxy's 120 MB that
// leaves room for the rest of it: 60 MB of live memory would, since the
// collector lets garbage grow to a part of that before it runs.
func TestMemory(t *testing.T) {
	before := liveBytes()
	c := New(Options{})
	if err := c.SetNames(manySelectors(1000), nil); err != nil {
		t.Fatal(err)
	}
	fill(t, c, 100_000)
	used := liveBytes() - before
	names, addrs := c.Len()
	runtime.KeepAlive(c)
	t.Logf("%d names, %d addresses: %d bytes live, %d an address", names, addrs, used, used/addrs)
	if used > 45<<20 {
		t.Errorf("%d MB live", used>>20)
	}
}

func liveBytes() int {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// Resident memory with everything that goes on beside: a process of its own
// would start smaller, so growth counts.
func TestResident(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a while")
	}
	debug.FreeOSMemory()
	before := resident(t)
	c := New(Options{Checkpoints: [2]File{tempFile(t), tempFile(t)}})
	if err := c.SetNames(manySelectors(1000), nil); err != nil {
		t.Fatal(err)
	}
	fill(t, c, 100_000)
	for range 3 {
		if err := c.Save(); err != nil {
			t.Fatal(err)
		}
		fill(t, c, 100_000)
	}
	t.Logf("resident: %d MB more than %d", (resident(t)-before)>>20, before>>20)
	if n := resident(t) - before; n > 90<<20 {
		t.Errorf("%d MB", n>>20)
	}
	runtime.KeepAlive(c)
}

func tempFile(t testing.TB) *os.File {
	f, err := os.CreateTemp(t.TempDir(), "checkpoint")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func resident(t testing.TB) int {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(b))[1])
	if err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize()
}

// Where nothing is new an answer costs no memory.
func TestLearnAllocatesNothing(t *testing.T) {
	c := New(Options{Table: newFakeTable()})
	if err := c.SetNames(manySelectors(10), nil); err != nil {
		t.Fatal(err)
	}
	fill(t, c, 100)
	a := answer("host-1.service.region.example.test", time.Hour, "192.0.2.1", "192.0.2.2", "2001:db8::1")
	a.Chain = []string{"host-2.service.region.example.test"}
	if err := c.Learn(context.Background(), a); err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() {
		if err := c.Learn(context.Background(), a); err != nil {
			t.Fatal(err)
		}
		if !c.Believed(policy.Server{Addr: netip.AddrPortFrom(a.Pod, 53), Protocol: 17}) && a.Name == "" {
			t.Fatal()
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkLearnKnown(b *testing.B) {
	for _, names := range []int{100, 100_000} {
		b.Run(fmt.Sprint(names), func(b *testing.B) {
			c := New(Options{})
			if err := c.SetNames(manySelectors(1000), nil); err != nil {
				b.Fatal(err)
			}
			fill(b, c, names)
			list := make([]Answer, min(names, 10_000))
			for i := range list {
				k := i * (names / len(list))
				list[i] = Answer{Name: nameOf(k), Pod: netip.MustParseAddr("10.0.0.1"), Records: []Record{
					{addrNo(3 * k), time.Hour}, {addrNo(3*k + 1), time.Hour}, {addrNo(3*k + 2), time.Hour}}}
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				_ = c.Learn(context.Background(), list[i%len(list)])
				i++
			}
		})
	}
}

func BenchmarkLearnNew(b *testing.B) {
	c := New(Options{})
	if err := c.SetNames(manySelectors(1000), nil); err != nil {
		b.Fatal(err)
	}
	a := Answer{Pod: netip.MustParseAddr("10.0.0.1"), Records: make([]Record, 1)}
	text := nameOf(1)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if i%1000 == 0 {
			text = nameOf(i)
		}
		if i%400_000 == 0 {
			b.StopTimer()
			c = New(Options{})
			if err := c.SetNames(manySelectors(1000), nil); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
		a.Name, a.Records[0] = text, Record{addrNo(i), time.Hour}
		if err := c.Learn(context.Background(), a); err != nil {
			b.Fatal(err)
		}
		i++
	}
}

// How long the longest answers take while everything else goes on.
func TestLearnStaysFlat(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a while")
	}
	table := newFakeTable()
	c := New(Options{Table: table, Flows: &fakeFlows{}, Checkpoints: [2]File{tempFile(t), tempFile(t)}})
	if err := c.SetNames(manySelectors(1000), nil); err != nil {
		t.Fatal(err)
	}
	fill(t, c, 100_000)
	var work sync.WaitGroup
	stop := make(chan struct{})
	work.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			ids := manySelectors(1000 + i%2)
			if err := c.SetNames(ids, nil); err != nil {
				t.Error(err)
			}
			if err := errorsOf(c.Save(), c.sweep(context.Background())); err != nil {
				t.Error(err)
			}
			c.tend(1)
			c.tendPods()
		}
	})
	var took []time.Duration
	a := Answer{Pod: netip.MustParseAddr("10.0.0.1"), Records: make([]Record, 3)}
	for end, i := time.Now().Add(3*time.Second), 0; time.Now().Before(end); i++ {
		a.Name = nameOf(i * 7 % 101_000)
		for j := range a.Records {
			a.Records[j] = Record{addrNo(3*(i*7%101_000) + j), time.Hour}
		}
		began := time.Now()
		if err := c.Learn(context.Background(), a); err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Since(began))
		time.Sleep(100 * time.Microsecond)
	}
	close(stop)
	work.Wait()
	tell(t, took)
}

func errorsOf(list ...error) error {
	for _, err := range list {
		if err != nil {
			return err
		}
	}
	return nil
}

func tell(t *testing.T, took []time.Duration) {
	slices.Sort(took)
	at := func(part float64) time.Duration { return took[int(float64(len(took)-1)*part)] }
	t.Logf("%d answers: p50 %v, p99 %v, p99.9 %v, longest %v", len(took), at(.5), at(.99), at(.999), at(1))
	if at(.99) > 5*time.Millisecond {
		t.Errorf("one of a hundred takes %v", at(.99))
	}
}
