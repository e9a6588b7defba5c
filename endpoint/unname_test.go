package endpoint

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy"
)

// Addresses lose an identity of names before its number is free, though no proxy
// runs that would see to it: what is numbered next would be believed of them.
func TestFreedNumbersStandForNoAddress(t *testing.T) {
	row := func(last byte) bpf.Addr { return bpf.AddrOf(netip.AddrFrom4([4]byte{192, 0, 2, last})) }
	number := func(id uint32) bpf.Number { return bpf.Number{Kind: bpf.NumberIdentity, Id: id} }
	frees := func(ids ...uint32) policy.Delta {
		d := policy.Delta{
			Freed: policy.Seeds{Identities: map[uint32]identity.Digest{}},
			Names: map[identity.ID]*policy.NameSet{},
		}
		for _, id := range ids {
			d.Freed.Identities[id], d.Names[identity.ID(id)] = identity.Digest{byte(id)}, nil
		}
		return d
	}
	f := newFakeKernel()
	r := newRealiser(f.kernel(), f)
	d := policy.Delta{
		Numbers: policy.Seeds{Identities: map[uint32]identity.Digest{301: {1}, 302: {2}, 303: {3}}},
		Names: map[identity.ID]*policy.NameSet{
			301: nameSet("a.test"), 302: nameSet("b.test"), 303: nameSet("c.test"),
		},
	}
	r.fold(d)
	pass(t, r)
	f.fqdn.m = map[bpf.Addr]uint32{row(1): 301, row(2): 302, row(3): 303, row(4): 302}
	r.fold(frees(302))
	f.unnameFail = errors.New("no")
	if err := r.realise(t.Context(), true); !errors.Is(err, f.unnameFail) {
		t.Fatalf("got %v", err)
	}
	if _, ok := f.numbers.m[number(302)]; !ok {
		t.Fatal("the number is free, and addresses have it")
	}
	if f.names.m[302] != 0 {
		t.Error("it is still believed")
	}
	f.unnameFail = nil
	f.after = func() {
		if _, ok := f.numbers.m[number(302)]; !ok && (f.fqdn.m[row(2)] != 0 || f.fqdn.m[row(4)] != 0) {
			t.Error("the number was free before the addresses had lost it")
		}
	}
	pass(t, r)
	f.after = nil
	if _, ok := f.numbers.m[number(302)]; ok {
		t.Error("the number is never free")
	}
	want := map[bpf.Addr]uint32{row(1): 301, row(3): 303}
	if !maps.Equal(f.fqdn.m, want) {
		t.Errorf("the addresses are %v", f.fqdn.m)
	}

	// A successor knows a number only as one of a predecessor's.
	r = newRealiser(f.kernel(), f)
	seeds, err := r.adopt()
	if err != nil {
		t.Fatal(err)
	}
	if got := slices.Sorted(maps.Keys(seeds.Identities)); !slices.Equal(got, []uint32{301, 303}) {
		t.Fatalf("it adopts %d", got)
	}
	d.Numbers.Identities = map[uint32]identity.Digest{301: {1}}
	d.Names = map[identity.ID]*policy.NameSet{301: nameSet("a.test")}
	r.fold(d)
	free := frees(303)
	free.Names = nil
	r.fold(free)
	pass(t, r)
	if _, ok := f.numbers.m[number(303)]; ok || !maps.Equal(f.fqdn.m, map[bpf.Addr]uint32{row(1): 301}) {
		t.Errorf("numbers %v, addresses %v", f.numbers.m, f.fqdn.m)
	}
}

// The kernel's table loses these rows, in time also where it is as full as names
// may make it.
func TestUnname(t *testing.T) {
	if !ownNamespace(t) {
		return
	}
	n := newNode(t)
	d, err := bpf.Load(bpf.Options{Pins: n.pins})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}()
	const rows = 400_000
	for i := range rows {
		a := netip.AddrFrom4([4]byte{100, byte(i >> 16), byte(i >> 8), byte(i)})
		if err := d.FQDN.Update(bpf.AddrOf(a), 301+uint32(i%100)); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	if err := unname(d, map[uint32]bool{302: true, 400: true}); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	left := 0
	if err := d.FQDN.Scan(func(_ bpf.Addr, id uint32) {
		if left++; id == 302 || id == 400 {
			t.Fatalf("%d is left", id)
		}
	}); err != nil {
		t.Fatal(err)
	}
	if left != rows-rows/50 {
		t.Errorf("%d rows are left", left)
	}
	t.Logf("took %v", took)
	if took > 3*time.Second {
		t.Errorf("took %v", took)
	}
}
