package endpoint

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy"
)

// fullNumbers returns a node with one pod whose policy took all numbers that
// there is room for, and then a second one, with HTTP rules.
func fullNumbers(t *testing.T) (*fakeKernel, *realiser) {
	t.Helper()
	f := newFakeKernel()
	r := newRealiser(f.kernel(), f)
	d := delta("10.0.0.1", "1", 5, resolved(true, allow80))
	d.Numbers = policy.Seeds{
		Policies: map[uint32]identity.Digest{5: {5}}, Rules: map[uint32]identity.Digest{1: {1}},
		Identities: map[uint32]identity.Digest{300: {30}, 301: {31}},
	}
	r.fold(d)
	r.veths = testVeths(testVeth(3, "10.0.0.1"), testVeth(4, "10.0.0.2"))
	pass(t, r)
	f.numbers.max = 4

	d = delta("10.0.0.2", "2", 6, resolved(true, ruled80))
	d.RuleSets = map[uint32]*policy.RuleSet{7: {ID: 7}}
	d.Numbers = policy.Seeds{Policies: map[uint32]identity.Digest{6: {6}}, RuleSets: map[uint32]identity.Digest{7: {7}}}
	r.fold(d)
	return f, r
}

// removed is the first pod's end; its identities are the second one's, too.
var removed = policy.Delta{
	Policies:  map[uint32]*policy.Resolved{5: nil},
	Endpoints: map[netip.Addr]*policy.Endpoint{netip.MustParseAddr("10.0.0.1"): nil},
	Freed:     policy.Seeds{Policies: map[uint32]identity.Digest{5: {5}}, Rules: map[uint32]identity.Digest{1: {1}}},
}

// A full table keeps nothing from being enforced, and what is given back is
// used at once.
func TestNumbersFull(t *testing.T) {
	f, r := fullNumbers(t)
	synced := f.synced
	for range 3 {
		r.place()
		if err := r.realise(t.Context(), true); !errors.Is(err, errFull) {
			t.Fatalf("error %v", err)
		}
	}
	if len(f.endpoints.m) != 2 || len(f.policies.m) != 2 || len(f.entries.m) != 2 {
		t.Errorf("not enforced: %v %v %v", f.endpoints.m, f.policies.m, f.entries.m)
	}
	if len(f.sets) != 0 || f.synced != synced {
		t.Errorf("the proxy has rule sets %v by numbers that a successor may give to others", f.sets)
	}
	r.fold(removed)
	f.steps()
	pass(t, r)
	if len(f.numbers.m) != 4 || len(r.numbers.open) != 0 || f.sets[7] == nil || !r.ruleSets.settled() {
		t.Errorf("numbers %v, still open %v, rule sets %v", f.numbers.m, r.numbers.open, f.sets)
	}
	if _, left := f.numbers.m[bpf.Number{Kind: bpf.NumberPolicy, Id: 5}]; left {
		t.Error("a number that is free is still written down")
	}
	f.steps()
	pass(t, r)
	wantSteps(t, f)
}

// What can't be done for another reason does not keep numbers that no table
// speaks of.
func TestNumbersFullAndMore(t *testing.T) {
	f, r := fullNumbers(t)
	f.numbers.max++ // one is short
	f.attachFail[9] = errors.New("no such device")
	r.fold(policy.Delta{Endpoints: map[netip.Addr]*policy.Endpoint{netip.MustParseAddr("10.0.0.9"): {Name: "other", Identity: 300, Policy: 6}}})
	r.veths[9] = testVeth(9, "10.0.0.9")
	r.fold(removed)
	r.place()
	if err := r.realise(t.Context(), true); err == nil || errors.Is(err, errFull) {
		t.Fatalf("error %v", err)
	}
	for n := range r.named() {
		if _, ok := f.numbers.m[n]; !ok {
			t.Errorf("%+v is not written down", n)
		}
	}
	if _, left := f.numbers.m[bpf.Number{Kind: bpf.NumberPolicy, Id: 5}]; left || f.sets[7] == nil {
		t.Errorf("numbers %v, rule sets %v", f.numbers.m, f.sets)
	}
}

// A successor leaves numbers alone that it finds in tables and knows nothing
// about, and only those.
func TestUnrecordedNumbersAreNotGivenOut(t *testing.T) {
	f, r := fullNumbers(t)
	r.fold(policy.Delta{Prefixes: map[netip.Prefix]policy.Peer{prefix10: {Identity: 400}, netip.MustParsePrefix("0.0.0.0/0"): {Identity: identity.WorldIPv4}}})
	r.place()
	if err := r.realise(t.Context(), true); !errors.Is(err, errFull) {
		t.Fatalf("error %v", err)
	}
	seeds, err := newRealiser(f.kernel(), f).adopt()
	if err != nil {
		t.Fatal(err)
	}
	if len(seeds.Policies) != 2 || seeds.Policies[5] != (identity.Digest{5}) || seeds.Policies[6] == (identity.Digest{6}) ||
		len(seeds.RuleSets) != 1 || seeds.RuleSets[7] == (identity.Digest{7}) ||
		len(seeds.Identities) != 3 || seeds.Identities[400] == (identity.Digest{}) || len(seeds.Rules) != 1 {
		t.Errorf("seeds: %+v", seeds)
	}
	engine, err := policy.NewEngine(policy.Options{NodeName: "n1", Seeds: seeds})
	if err != nil {
		t.Fatal(err)
	}
	d, err := engine.Apply([]policy.Change{{Object: policy.Object{Kind: policy.KindPod, Namespace: "a", Name: "b"},
		Value: &policy.Pod{Namespace: "a", Name: "b", Node: "n1", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.7")}}}})
	if err != nil {
		t.Fatal(err)
	}
	for id := range d.Numbers.Identities {
		if id <= 400 {
			t.Errorf("identity %d is another's", id)
		}
	}
	// Once nothing stands for them they are free.
	engine.DropUnusedSeeds()
	if d, err = engine.Apply(nil); err != nil || len(d.Freed.Policies) != 2 || len(d.Freed.RuleSets) != 1 {
		t.Errorf("freed: %+v, %v", d.Freed, err)
	}
}
