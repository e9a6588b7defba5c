package fqdn

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/identity"
)

// combine has pod number n get addresses, each with another combination of its own
// names.
func (r *rig) combine(n, from, to int) {
	r.t.Helper()
	for i := from; i < to; i++ {
		a := Answer{
			Name: fmt.Sprintf("x%d.net", n), Pod: netip.AddrFrom4([4]byte{10, 0, 0, byte(n)}),
			Records: []Record{{addrNo(n<<16 + i), time.Hour}},
		}
		for j := range 12 {
			if i>>j&1 != 0 {
				a.Chain = append(a.Chain, fmt.Sprintf("n%d.pod%d.test", j, n))
			}
		}
		if err := r.Learn(context.Background(), a); err != nil {
			r.t.Fatal(err)
		}
	}
}

// wantsOf are what is wanted for a pod.
func (r *rig) wantsOf(n int) int {
	return int(r.pods.of(r.pods.number(netip.AddrFrom4([4]byte{10, 0, 0, byte(n)}))).wants)
}

// podSelectors are one for each name of combine, for some pods.
func podSelectors(pods int) map[identity.ID]string {
	ids := map[identity.ID]string{}
	for n := 1; n <= pods; n++ {
		for j := range 12 {
			ids[identity.ID(300+len(ids))] = fmt.Sprintf("n%d.pod%d.test", j, n)
		}
	}
	return ids
}

// One pod can't take all the combinations there may be: who has more than others
// gives some to them, and nobody goes back and forth.
func TestWantsAreShared(t *testing.T) {
	r := newRig(t, Settings{PerName: 1 << 20})
	r.names(podSelectors(3))
	r.combine(1, 1, 1500)
	if n := r.wantsOf(1); n != maxWanted {
		t.Fatalf("one that is alone has %d", n)
	}
	r.combine(2, 7, 8)
	if a, b := r.wantsOf(1), r.wantsOf(2); a != maxWanted-1 || b != 1 {
		t.Errorf("with another that needs one: %d and %d", a, b)
	}
	r.combine(2, 8, 2000)
	r.combine(3, 7, 40)
	three := r.wantsOf(3)
	if a, b := r.wantsOf(1), r.wantsOf(2); a+b+three != maxWanted || max(a, b)-min(a, b) > 2 || three < 25 {
		t.Errorf("all together: %d, %d, %d", a, b, three)
	}
	before := slices.Sorted(slices.Values(r.u.wants.sets))
	r.combine(1, 1, 1500)
	r.tendWants(r.clockNow())
	if now := slices.Sorted(slices.Values(r.u.wants.sets)); !slices.Equal(now, before) {
		t.Errorf("it goes back and forth")
	}
	if err := r.consistent(); err != nil {
		t.Error(err)
	}
	// They survive other selectors, and each still has its own.
	ids := podSelectors(3)
	ids[900] = "other.test"
	r.names(ids)
	if n := r.wantsOf(3); n != three {
		t.Errorf("with other selectors %d, were %d", n, three)
	}
	if err := r.consistent(); err != nil {
		t.Error(err)
	}
}

// What nobody uses gives way first, whosever it is.
func TestUnusedWants(t *testing.T) {
	r := newRig(t, Settings{PerName: 1 << 20, MaxTTL: time.Hour})
	r.names(podSelectors(2))
	r.combine(1, 1, 1500)
	r.clock.advance(time.Hour - 2*time.Second)
	r.combine(1, 1, 100) // these live
	used := len(r.u.wants.sets)
	r.clock.advance(4 * time.Second)
	r.sweepNow()
	if n := len(r.u.wants.sets); n != used {
		t.Fatalf("%d are wanted, were %d", n, used)
	}
	r.combine(2, 1, 1500)
	kept := 0
	for _, set := range r.u.wants.sets {
		if s := &r.u.sets[set]; s.addrs == 0 {
			t.Fatal("one is wanted that nobody uses")
		} else if s.owner == r.pods.number(netip.AddrFrom4([4]byte{10, 0, 0, 1})) {
			kept++
		}
	}
	if kept < 80 || len(r.u.wants.sets) != maxWanted {
		t.Errorf("%d of %d are the first pod's, which has near 100 in use", kept, len(r.u.wants.sets))
	}
}

// A pod whose combinations are in the way of another's costs it one identity, not
// its row: an address that they share has the part that was asked for.
func TestWantsOfSharedAddress(t *testing.T) {
	r := newRig(t, Settings{PerName: 1 << 20})
	r.names(podSelectors(2))
	r.combine(1, 1, 1500)
	before := r.wantsOf(1)
	shared := addrNo(1<<16 + 1499)
	a := Answer{Name: "n0.pod2.test", Pod: netip.AddrFrom4([4]byte{10, 0, 0, 2}), Records: []Record{{shared, time.Hour}}}
	if err := r.Learn(context.Background(), a); err != nil {
		t.Fatal(err)
	}
	at, _ := r.findAddr(shared.As16())
	if s := &r.u.sets[r.addrs.at(at).set]; !s.wanted || r.wantsOf(2) != 1 || r.wantsOf(1) != before-1 {
		t.Errorf("wanted %v, for the pods %d and %d", s.wanted, r.wantsOf(1), r.wantsOf(2))
	}
}

// Who has his share of combinations can't take an address from others by names of
// his own, however many selectors they are for.
func TestNoShareTakesNoRow(t *testing.T) {
	r := newRig(t, Settings{PerName: 1 << 20})
	ids := podSelectors(2)
	all := ""
	for j := range 12 {
		all += fmt.Sprintf(" n%d.pod1.test", j)
	}
	ids[800] = all // larger than any part of what the address gets
	r.names(ids)
	shared := addrNo(9 << 16)
	learn := func(n int, names ...string) {
		t.Helper()
		a := Answer{Name: names[0], Chain: names[1:], Pod: netip.AddrFrom4([4]byte{10, 0, 0, byte(n)}), Records: []Record{{shared, time.Hour}}}
		if err := r.Learn(context.Background(), a); err != nil {
			t.Fatal(err)
		}
	}
	row := func() identity.ID { return r.table.rows[shared] }
	r.combine(1, 1, 1500)
	learn(2, "n3.pod2.test")
	had := row()
	if ids[had] != "n3.pod2.test" {
		t.Fatalf("it is %d at first", had)
	}
	learn(1, strings.Fields(all)...)
	r.tendWants(r.clockNow())
	r.tend(1)
	if row() != had {
		t.Errorf("it is %d, was %d", row(), had)
	}
	learn(2, "n3.pod2.test") // and this one has the room to ask for both
	if at, _ := r.findAddr(shared.As16()); !r.u.sets[r.addrs.at(at).set].wanted {
		t.Error("nobody is asked for both")
	}
}
