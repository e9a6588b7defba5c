package endpoint

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy"
)

// Policies that are edited in place are followed by what was edited, whatever
// fails in between.
func TestRealiseFollowsEdits(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	for round := range 300 {
		f := newFakeKernel()
		r := newRealiser(f.kernel(), f)
		broken := false
		flaky := func() error {
			if broken && rng.IntN(3) == 0 {
				return errors.New("flaky")
			}
			return nil
		}
		f.entries.fail = func(bpf.PolicyKey) error { return flaky() }
		f.policies.fail = func(uint32) error { return flaky() }
		enforced := [2]bool{true, rng.IntN(2) == 0}
		entries := map[policy.Key]policy.Entry{}
		edit := func() policy.Key {
			k := policy.Key{Direction: policy.Direction(rng.IntN(2)), Identity: identity.ID(300 * rng.IntN(3))}
			if rng.IntN(3) > 0 {
				k.Protocol, k.PortBits = 6, []uint8{0, 15, 16}[rng.IntN(3)]
				k.Port = uint16(80+rng.IntN(2)) & (0xffff << (16 - k.PortBits))
			}
			if rng.IntN(3) == 0 {
				delete(entries, k)
			} else {
				entries[k] = policy.Entry{Action: policy.Action(1 + rng.IntN(4)), Rule: uint32(rng.IntN(3))}
			}
			return k
		}
		for range 10 {
			edit()
		}
		r.fold(delta("10.0.0.1", "1", 5, &policy.Resolved{Enforced: enforced, Entries: entries}))
		r.veths = testVeths(testVeth(3, "10.0.0.1"))
		pass(t, r)
		for range 6 {
			broken = rng.IntN(2) == 0
			now := &policy.Resolved{Enforced: enforced, Entries: entries, Edited: []policy.Key{}}
			for range rng.IntN(4) {
				now.Edited = append(now.Edited, edit())
			}
			if rng.IntN(4) == 0 {
				enforced[1] = !enforced[1]
				now.Enforced = enforced
			}
			r.fold(policy.Delta{Policies: map[uint32]*policy.Resolved{5: now}})
			r.place()
			_ = r.realise(t.Context(), rng.IntN(3) > 0)
		}
		broken = false
		pass(t, r)
		want := map[bpf.PolicyKey]bpf.PolicyEntry{}
		for k, e := range entries {
			want[bpf.PolicyKeyOf(5, k)] = bpf.PolicyEntryOf(e)
		}
		if !maps.Equal(f.entries.m, want) || r.policies.held != len(want) {
			t.Fatalf("round %d: entries %v (%d counted), want %v", round, f.entries.m, r.policies.held, want)
		}
		if info := bpf.PolicyInfoOf(r.policies.want[5]); f.policies.m[5] != info || !r.policies.settled() {
			t.Fatalf("round %d: announced %+v, want %+v", round, f.policies.m[5], info)
		}
	}
}

// wideNode has 100 pods, each with a policy that names 10,000 identities.
func wideNode(b *testing.B) (r *realiser, f *fakeKernel, entries map[policy.Key]policy.Entry) {
	f = newFakeKernel()
	r = newRealiser(f.kernel(), f)
	entries = map[policy.Key]policy.Entry{}
	for i := range 10_000 {
		entries[policy.Key{Identity: identity.ID(300 + i)}] = policy.Entry{Action: policy.Allow, Rule: 1}
	}
	d := policy.Delta{Policies: map[uint32]*policy.Resolved{}, Endpoints: map[netip.Addr]*policy.Endpoint{}}
	var veths []Veth
	for i := range 100 {
		addr, id := fmt.Sprintf("10.0.0.%d", i+1), uint32(i+1)
		d.Policies[id] = resolved(true, entries)
		d.Endpoints[netip.MustParseAddr(addr)] = &policy.Endpoint{Namespace: "shop", Name: addr, UID: addr, Identity: 300, Policy: id}
		veths = append(veths, testVeth(i+3, addr))
	}
	r.fold(d)
	r.veths = testVeths(veths...)
	for len(f.endpoints.m) < len(veths) {
		r.place()
		if err := r.realise(b.Context(), true); err != nil {
			b.Fatal(err)
		}
	}
	return r, f, entries
}

// BenchmarkWidePod realises that a pod of a new identity came, or went, where
// every policy names every pod of a large cluster.
func BenchmarkWidePod(b *testing.B) {
	r, f, entries := wideNode(b)
	k := policy.Key{Identity: 20_000}
	for i := 0; b.Loop(); i++ {
		if i%2 == 0 {
			entries[k] = policy.Entry{Action: policy.Allow, Rule: 1}
		} else {
			delete(entries, k)
		}
		d := policy.Delta{Policies: map[uint32]*policy.Resolved{}}
		for id := range r.policies.want {
			d.Policies[id] = &policy.Resolved{Enforced: [2]bool{true, false}, Entries: entries, Edited: []policy.Key{k}}
		}
		r.fold(d)
		f.log = nil
		r.place()
		if err := r.realise(b.Context(), true); err != nil {
			b.Fatal(err)
		}
	}
}
