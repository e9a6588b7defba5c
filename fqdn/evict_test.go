package fqdn

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/identity"
)

func addr4(i int) string {
	return netip.AddrFrom4([4]byte{100, byte(i >> 16), byte(i >> 8), byte(i)}).String()
}

// known lists the addresses of a name.
func (r *rig) known(name string) (out []string) {
	r.t.Helper()
	if err := r.List(context.Background(), name, func(n Name) error {
		for _, a := range n.Addresses {
			out = append(out, a.Addr.String())
		}
		return nil
	}); err != nil {
		r.t.Fatal(err)
	}
	slices.Sort(out)
	return out
}

// Of a name's addresses beyond its bound the least recently alive go, never one
// that is in use or was just learned.
func TestBoundPerName(t *testing.T) {
	r := newRig(t, Settings{PerName: 3})
	r.names(map[identity.ID]string{300: "a.test"})
	for i := range 6 { // 0 is the oldest
		r.learn("a.test", time.Hour, addr4(i))
		r.clock.advance(time.Second)
	}
	r.sweepNow() // all are young
	if got := len(r.known("a.test")); got != 6 {
		t.Fatalf("%d are left of 6 young ones", got)
	}
	r.clock.advance(time.Minute)
	r.flows.set(netip.MustParseAddr(addr4(0)))
	r.sweepNow() // 0 is alive: 1, 2 and 3 go
	if got, want := r.known("a.test"), []string{addr4(0), addr4(4), addr4(5)}; !slices.Equal(got, want) {
		t.Fatalf("left are %q, want %q", got, want)
	}
	r.want(map[string]identity.ID{addr4(0): 300, addr4(4): 300, addr4(5): 300})
	r.clock.advance(time.Second)
	r.flows.set()
	r.learn("a.test", time.Hour, addr4(6))
	r.clock.advance(time.Minute)
	r.sweepNow() // 0 was alive last, after 4 and 5 were learned
	if got, want := r.known("a.test"), []string{addr4(0), addr4(5), addr4(6)}; !slices.Equal(got, want) {
		t.Fatalf("left are %q, want %q", got, want)
	}
	if got := r.Counts().Evicted; got != 4 {
		t.Errorf("%d were evicted", got)
	}
	if err := r.consistent(); err != nil {
		t.Error(err)
	}
	// All are in use: none goes.
	for i := range 5 {
		r.learn("b.test", time.Hour, addr4(20+i))
	}
	r.clock.advance(time.Minute)
	var all []netip.Addr
	for i := range 5 {
		all = append(all, netip.MustParseAddr(addr4(20+i)))
	}
	r.flows.set(all...)
	r.sweepNow()
	if got := len(r.known("b.test")); got != 5 {
		t.Errorf("%d of 5 that are in use are left", got)
	}
}

// The same for all names; those that no selector is for go first.
func TestBoundInAll(t *testing.T) {
	r := newRig(t, Settings{Addresses: 80})
	r.names(map[identity.ID]string{300: "*.a.test"})
	for i := range 100 {
		name := fmt.Sprintf("n%d.a.test", i)
		if i >= 95 {
			name = fmt.Sprintf("n%d.b.test", i)
		}
		a := answer(name, time.Hour, addr4(i))
		a.Pod = netip.AddrFrom4([4]byte{10, 0, 1, byte(i % 10)})
		if err := r.Learn(context.Background(), a); err != nil {
			t.Fatal(err)
		}
		r.clock.advance(time.Second)
	}
	err := r.Learn(context.Background(), answer("more.a.test", time.Hour, addr4(1000)))
	if !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "more.a.test") {
		t.Fatalf("got %v", err)
	}
	r.learn("n7.a.test", time.Hour, addr4(7)) // what is known is welcome
	r.clock.advance(time.Minute)
	alive := []netip.Addr{}
	for i := range 3 {
		alive = append(alive, netip.MustParseAddr(addr4(i)))
	}
	r.flows.set(alive...)
	r.sweepNow()
	names, addrs := r.Len()
	if names != 75 || addrs != 75 {
		t.Fatalf("%d names and %d addresses are left", names, addrs)
	}
	for i := range 100 {
		gone := len(r.known(fmt.Sprintf("n%d.", i))) == 0
		// 95 to 99 match nothing; then 3, 4, ... are the oldest that are not alive.
		if want := i >= 95 || i >= 3 && i < 24 && i != 7; gone != want {
			t.Errorf("n%d: gone %v, want %v", i, gone, want)
		}
	}
	if err := r.consistent(); err != nil {
		t.Error(err)
	}
	r.learn("more.a.test", time.Hour, addr4(1000))
}

// One pod that asks for all there is leaves room for the others, and its names
// make room first.
func TestGreedyPod(t *testing.T) {
	r := newRig(t, Settings{Addresses: 80})
	r.names(map[identity.ID]string{300: "*.a.test"})
	ask := func(pod byte, name string, i int) error {
		a := answer(name+".a.test", time.Hour, addr4(i))
		a.Pod = netip.AddrFrom4([4]byte{10, 0, 1, pod})
		return r.Learn(context.Background(), a)
	}
	for i := range 10 {
		if err := ask(1, fmt.Sprintf("early%d", i), i); err != nil {
			t.Fatal(err)
		}
	}
	r.clock.advance(time.Minute)
	for i := range 80 {
		if err := ask(2, fmt.Sprintf("flood%d", i), 100+i); err != nil {
			t.Fatal(err)
		}
	}
	if err := ask(2, "more", 1000); !errors.Is(err, ErrFull) {
		t.Errorf("beyond its share: %v", err)
	}
	for i := range 10 {
		if err := ask(1, fmt.Sprintf("late%d", i), 200+i); err != nil {
			t.Fatal(err)
		}
	}
	r.clock.advance(time.Minute)
	r.sweepNow()
	for name, want := range map[string]int{"early": 10, "late": 10, "flood": 55} {
		if got := len(r.known(name)); got != want {
			t.Errorf("%d of %s are left, want %d", got, name, want)
		}
	}
	if err := r.consistent(); err != nil {
		t.Error(err)
	}
}

// Names as long as can be don't take all memory.
func TestBoundOfText(t *testing.T) {
	r := newRig(t, Settings{Addresses: 8000})
	long := strings.Repeat("x", 900)
	full := 0
	for i := range 2000 {
		if r.Learn(context.Background(), answer(fmt.Sprintf("%s%d.test", long, i), time.Hour, addr4(i))) != nil {
			full++
		}
	}
	most := r.settings.textOf()
	if full == 0 || r.texts.bytes > most*9/8+maxName {
		t.Fatalf("%d bytes of names, %d refused", r.texts.bytes, full)
	}
	r.clock.advance(time.Minute)
	r.sweepNow()
	if r.texts.bytes > most {
		t.Errorf("%d bytes of names are left, the bound is %d", r.texts.bytes, most)
	}
	if err := r.Learn(context.Background(), answer(strings.Repeat("x", maxName+1), time.Hour, addr4(1))); err == nil {
		t.Error("a name that can't be was taken")
	}
}

// Too much is noticed by Run.
func TestPressure(t *testing.T) {
	r := newRig(t, Settings{PerName: 10})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- r.Run(ctx) }()
	for i := range 30 {
		r.learn("a.test", time.Hour, addr4(i))
	}
	r.clock.advance(time.Minute)
	r.learn("a.test", time.Hour, addr4(30))
	for end := time.Now().Add(10 * time.Second); len(r.known("a.test")) > 10; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d are left", len(r.known("a.test")))
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if h, err := readHeader(r.files[fileOf(r.sequence)]); err != nil || h.length == 0 {
		t.Errorf("the last checkpoint: %+v, %v", h, err)
	}
}

// There are only so many sets of selectors, however many addresses have which
// names; an address then has a part of what its names ask for, never more.
func TestManySets(t *testing.T) {
	r := newRig(t, Settings{})
	ids := map[identity.ID]string{}
	for i := range 40 {
		ids[identity.ID(300+i)] = fmt.Sprintf("n%d.test", i)
	}
	r.names(ids)
	for i := range 3000 {
		names := []string{}
		for j := range 12 {
			if i>>j&1 != 0 {
				names = append(names, fmt.Sprintf("n%d.test", j))
			}
		}
		if len(names) > 0 {
			r.learn(strings.Join(names, " "), time.Hour, addr4(i))
		}
	}
	if n := len(r.u.wants.sets); n != maxWanted {
		t.Errorf("%d combinations are wanted", n)
	}
	if err := r.consistent(); err != nil {
		t.Error(err)
	}
	for a, id := range r.table.rows {
		b := a.As4()
		if i := int(b[2])<<8 | int(b[3]); i>>(id-300)&1 == 0 {
			t.Fatalf("%s is %d", a, id)
		}
	}
}
