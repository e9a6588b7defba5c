package endpoint

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy"
)

var (
	allow80  = map[policy.Key]policy.Entry{{Identity: 301, Protocol: 6, Port: 80, PortBits: 16}: {Action: policy.Allow, Rule: 1}}
	ruled80  = map[policy.Key]policy.Entry{{Identity: 301, Protocol: 6, Port: 80, PortBits: 16}: {Action: policy.Redirect, RuleSet: 7, Rule: 1}}
	prefix10 = netip.MustParsePrefix("10.0.0.2/32")
)

func TestRealiseKeepsTheOrder(t *testing.T) {
	f := newFakeKernel()
	r := newRealiser(f.kernel(), f)
	d := delta("10.0.0.1", "1", 5, resolved(true, ruled80))
	d.RuleSets = map[uint32]*policy.RuleSet{7: {ID: 7}}
	d.Prefixes = map[netip.Prefix]policy.Peer{prefix10: {Identity: 301}}
	d.Numbers = policy.Seeds{Policies: map[uint32]identity.Digest{5: {5}}}
	r.fold(d)
	r.veths = testVeths(testVeth(3, "10.0.0.1"))
	pass(t, r)
	wantSteps(t, f, "numbers +", "rules +", "policy +", "policies +", "ipcache +", "forget", "devices +", "attach 3", "endpoints +", "revise")
	if f.synced != 1 {
		t.Errorf("synced %d times", f.synced)
	}
	row := f.endpoints.m[bpf.AddrOf(netip.MustParseAddr("10.0.0.1"))]
	if row.Ifindex != 3 || row.Policy != 5 || row.Identity != 300 || row.PodMac != [6]byte{4, 3} || row.HostMac != [6]byte{2, 3} {
		t.Errorf("row %+v", row)
	}

	pass(t, r)
	wantSteps(t, f) // nothing to do

	// Everything goes.
	r.fold(policy.Delta{
		Policies:  map[uint32]*policy.Resolved{5: nil},
		Endpoints: map[netip.Addr]*policy.Endpoint{netip.MustParseAddr("10.0.0.1"): nil},
		RuleSets:  map[uint32]*policy.RuleSet{7: nil},
		Prefixes:  map[netip.Prefix]policy.Peer{prefix10: {}},
		Freed:     policy.Seeds{Policies: map[uint32]identity.Digest{5: {5}}},
	})
	pass(t, r)
	wantSteps(t, f, "endpoints -", "detach 3", "devices -", "ipcache -", "policies -", "policy -", "revise", "rules -", "numbers -")
	if f.synced != 1 || !r.policies.settled() {
		t.Errorf("synced %d times, policies settled: %v", f.synced, r.policies.settled())
	}
}

func TestRealiseAddressChangesHands(t *testing.T) {
	f := newFakeKernel()
	r := newRealiser(f.kernel(), f)
	a := netip.MustParseAddr("10.0.0.1")
	r.fold(delta("10.0.0.1", "1", 5, resolved(true, allow80)))
	r.veths = testVeths(testVeth(3, "10.0.0.1"))
	pass(t, r)
	f.steps()
	f.forgotten = nil
	// A pod with the same address behind another veth; the old one is still
	// there, without the address.
	d := delta("10.0.0.1", "2", 6, resolved(true, allow80))
	r.fold(d)
	r.veths = testVeths(testVeth(3), testVeth(4, "10.0.0.1"))
	pass(t, r)
	wantSteps(t, f, "policy +", "policies +", "endpoints -", "forget", "devices +", "attach 4", "endpoints +", "revise", "detach 3", "devices -", "revise")
	if len(f.forgotten) != 1 || f.forgotten[0] != a {
		t.Errorf("forgotten: %v", f.forgotten)
	}
	// The veth made anew, with the same name.
	f.forgotten = nil
	r.veths = testVeths(testVeth(9, "10.0.0.1"))
	pass(t, r)
	if len(f.forgotten) != 1 || f.endpoints.m[bpf.AddrOf(a)].Ifindex != 9 || f.programs[4] || !f.programs[9] {
		t.Errorf("forgotten %v, row %+v, programs %v", f.forgotten, f.endpoints.m, f.programs)
	}
	// It goes: no row is left pointing to it.
	r.veths = testVeths()
	pass(t, r)
	if len(f.endpoints.m) != 0 || len(f.devices.m) != 0 || len(f.programs) != 0 {
		t.Errorf("left: %v %v %v", f.endpoints.m, f.devices.m, f.programs)
	}
}

// A pod that takes its address off, or a namespace that can't be read for a
// moment, keeps programs and policy; a successor of the pod doesn't get its veth.
func TestRealiseAddressTakenOff(t *testing.T) {
	f := newFakeKernel()
	r := newRealiser(f.kernel(), f)
	r.fold(delta("10.0.0.1", "1", 5, resolved(true, allow80)))
	r.veths = testVeths(testVeth(3, "10.0.0.1"))
	pass(t, r)
	f.steps()
	row := f.endpoints.m[bpf.AddrOf(netip.MustParseAddr("10.0.0.1"))]
	bare := testVeth(3)
	bare.PodMAC = [6]byte{}
	r.veths = testVeths(bare)
	pass(t, r)
	wantSteps(t, f)
	if got := f.endpoints.m[bpf.AddrOf(netip.MustParseAddr("10.0.0.1"))]; got != row || !f.programs[3] {
		t.Errorf("row %+v, was %+v; programs %v", got, row, f.programs)
	}
	r.fold(delta("10.0.0.1", "2", 6, resolved(true, allow80)))
	pass(t, r)
	if len(f.endpoints.m) != 0 || len(f.programs) != 0 {
		t.Errorf("the successor has %v, programs %v", f.endpoints.m, f.programs)
	}
	r.veths = testVeths(testVeth(3, "10.0.0.1"), testVeth(4, "10.0.0.1"))
	pass(t, r)
	if got := f.endpoints.m[bpf.AddrOf(netip.MustParseAddr("10.0.0.1"))]; got.Ifindex != 4 {
		t.Errorf("the successor is at %d", got.Ifindex)
	}
}

func TestRealiseAdoptsWithoutInterrupting(t *testing.T) {
	f := newFakeKernel()
	r := newRealiser(f.kernel(), f)
	d := delta("10.0.0.1", "1", 5, resolved(true, ruled80))
	d.RuleSets = map[uint32]*policy.RuleSet{7: {ID: 7}}
	d.Numbers = policy.Seeds{Policies: map[uint32]identity.Digest{5: {5}, 9: {9}}, RuleSets: map[uint32]identity.Digest{7: {7}}}
	r.fold(d)
	// A second policy and a prefix that the successor will not know any more.
	r.fold(policy.Delta{
		Policies: map[uint32]*policy.Resolved{9: resolved(true, allow80)},
		Prefixes: map[netip.Prefix]policy.Peer{prefix10: {Identity: 301}},
	})
	r.veths = testVeths(testVeth(3, "10.0.0.1"))
	pass(t, r)

	f.log, f.synced, f.sets = nil, 0, map[uint32]*policy.RuleSet{}
	r2 := newRealiser(f.kernel(), f)
	seeds, err := r2.adopt()
	if err != nil {
		t.Fatal(err)
	}
	if seeds.Policies[5] != (identity.Digest{5}) || seeds.Policies[9] != (identity.Digest{9}) || seeds.RuleSets[7] != (identity.Digest{7}) {
		t.Errorf("seeds: %+v", seeds)
	}
	d.Numbers = policy.Seeds{}
	d.Freed = policy.Seeds{Policies: map[uint32]identity.Digest{9: {9}}}
	// The first read is not complete: nothing is taken away.
	r2.fold(d)
	r2.veths = r.veths
	r2.place()
	if err := r2.realise(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	wantSteps(t, f, "rules +")
	if len(f.ipcache.m) != 1 || len(f.policies.m) != 2 {
		t.Errorf("taken away too early: %v %v", f.ipcache.m, f.policies.m)
	}
	if err := r2.activate(); err != nil || f.activated != 1 {
		t.Errorf("activate: %v, %d times", err, f.activated)
	}
	pass(t, r2)
	wantSteps(t, f, "ipcache -", "policies -", "policy -", "revise", "numbers -")
	if f.synced != 1 || !f.programs[3] {
		t.Errorf("synced %d times, programs %v", f.synced, f.programs)
	}
	// Numbers in use are there for the next one, too.
	if len(f.numbers.m) != 2 {
		t.Errorf("numbers %v, want those of policy 5 and rule set 7", f.numbers.m)
	}
}

func TestRealiseAttachFirst(t *testing.T) {
	f := newFakeKernel()
	r := newRealiser(f.kernel(), f)
	f.attachFail[3] = errors.New("no such device")
	r.fold(delta("10.0.0.1", "1", 5, resolved(true, allow80)))
	r.veths = testVeths(testVeth(3, "10.0.0.1"))
	r.place()
	err := r.realise(t.Context(), true)
	if err == nil || !strings.Contains(err.Error(), "attach to v3") {
		t.Fatalf("error %v", err)
	}
	if len(f.endpoints.m) != 0 {
		t.Errorf("an endpoint without programs: %v", f.endpoints.m)
	}
	delete(f.attachFail, 3)
	pass(t, r)
	if len(f.endpoints.m) != 1 || !f.programs[3] {
		t.Errorf("endpoints %v, programs %v", f.endpoints.m, f.programs)
	}
}

// TestRealiseClosesNewVeths: a pod that starts is not open while the proxy is
// waited for, one that was there before is not cut off.
func TestRealiseClosesNewVeths(t *testing.T) {
	for _, isNew := range []bool{true, false} {
		f := newFakeKernel()
		h := &waitedFor{fakeKernel: f}
		r := newRealiser(f.kernel(), h)
		d := delta("10.0.0.1", "1", 5, resolved(true, ruled80))
		d.RuleSets = map[uint32]*policy.RuleSet{7: {ID: 7}}
		r.fold(d)
		r.veths = testVeths(testVeth(3, "10.0.0.1"))
		r.strangers[3] = &stranger{isNew: isNew}
		r.place()
		pass(t, r)
		if h.attached != isNew || h.policies != 0 {
			t.Errorf("new %v: when the proxy was asked it was attached: %v, with %d policies", isNew, h.attached, h.policies)
		}
		if !f.programs[3] || len(f.policies.m) != 1 || len(f.endpoints.m) != 1 {
			t.Errorf("new %v: after the pass: %v, %v, %v", isNew, f.programs, f.policies.m, f.endpoints.m)
		}
	}
}

// waitedFor notes what there is when the proxy is first asked.
type waitedFor struct {
	*fakeKernel
	asked, attached bool
	policies        int
}

// SetRuleSets implements RuleSets.
func (w *waitedFor) SetRuleSets(ctx context.Context, upsert []*policy.RuleSet, remove []uint32) error {
	if !w.asked {
		w.asked, w.attached, w.policies = true, w.programs[3], len(w.fakeKernel.policies.m)
	}
	return w.fakeKernel.SetRuleSets(ctx, upsert, remove)
}

// Whatever fails, the next passes converge.
func TestRealiseConverges(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 200 {
		f := newFakeKernel()
		r := newRealiser(f.kernel(), f)
		broken := true
		flaky := func() error {
			if broken && rng.IntN(4) == 0 {
				return errors.New("flaky")
			}
			return nil
		}
		f.entries.fail = func(bpf.PolicyKey) error { return flaky() }
		f.policies.fail = func(uint32) error { return flaky() }
		f.endpoints.fail = func(bpf.Addr) error { return flaky() }
		f.devices.fail = func(uint32) error { return flaky() }
		f.ipcache.fail = func(bpf.Prefix) error { return flaky() }
		f.numbers.fail = func(bpf.Number) error { return flaky() }
		for step := range 8 {
			id := uint32(5 + rng.IntN(2))
			addr := []string{"10.0.0.1", "10.0.0.2"}[rng.IntN(2)]
			d := delta(addr, "1", id, resolved(true, map[policy.Key]policy.Entry{{Protocol: 6, Port: uint16(step), PortBits: 16}: {Action: policy.Allow}, {Identity: 300}: {Action: policy.Deny}}))
			d.Prefixes = map[netip.Prefix]policy.Peer{prefix10: {Identity: identity.ID(rng.IntN(3))}}
			d.Numbers.Policies = map[uint32]identity.Digest{uint32(step): {1}}
			r.fold(d)
			if rng.IntN(3) == 0 {
				r.fold(policy.Delta{Policies: map[uint32]*policy.Resolved{id: nil}, Endpoints: map[netip.Addr]*policy.Endpoint{netip.MustParseAddr("10.0.0.1"): nil, netip.MustParseAddr("10.0.0.2"): nil}})
			}
			r.veths = testVeths(testVeth(3+rng.IntN(2), "10.0.0.1"), testVeth(8, "10.0.0.2"))
			r.place()
			_ = r.realise(t.Context(), true)
		}
		broken = false
		for range 2 { // a policy that an endpoint had waits for the endpoint's row
			r.place()
			_ = r.realise(t.Context(), true)
		}
		f.log = nil
		pass(t, r)
		if len(f.log) != 0 || !r.policies.settled() {
			t.Fatalf("still something to do: %q", f.log)
		}
		if !maps.Equal(f.endpoints.m, r.endpoints.want) || !maps.Equal(f.devices.m, r.devices.want) || !maps.Equal(f.ipcache.m, r.ipcache.want) {
			t.Fatal("tables are not as wanted")
		}
		n := 0
		for id, p := range r.policies.want {
			n += len(p.Entries)
			for k, e := range p.Entries {
				if f.entries.m[bpf.PolicyKeyOf(id, k)] != bpf.PolicyEntryOf(e) {
					t.Fatalf("entry %v of policy %d is not there", k, id)
				}
			}
			if f.policies.m[id] != bpf.PolicyInfoOf(p) {
				t.Fatalf("policy %d: %+v", id, f.policies.m[id])
			}
		}
		if n != len(f.entries.m) || n != r.policies.held || len(f.policies.m) != len(r.policies.want) {
			t.Fatalf("%d entries, %d in the kernel, %d counted", n, len(f.entries.m), r.policies.held)
		}
		for i := range f.programs {
			if _, ok := r.devices.want[uint32(i)]; !ok {
				t.Fatalf("programs left at %d", i)
			}
		}
	}
}

// hung is a proxy that does not answer before it is let go.
type hung struct {
	*fakeKernel
	answer chan struct{}
	calls  atomic.Int32
}

// SetRuleSets implements RuleSets.
func (h *hung) SetRuleSets(ctx context.Context, upsert []*policy.RuleSet, remove []uint32) error {
	h.calls.Add(1)
	select {
	case <-h.answer:
		return h.fakeKernel.SetRuleSets(ctx, upsert, remove)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func TestRealiseDoesNotWaitForAHungProxy(t *testing.T) {
	f := newFakeKernel()
	h := &hung{fakeKernel: f, answer: make(chan struct{})}
	r := newRealiser(f.kernel(), h)
	d := delta("10.0.0.1", "1", 5, resolved(true, ruled80))
	d.RuleSets = map[uint32]*policy.RuleSet{7: {ID: 7}}
	r.fold(d)
	r.veths = testVeths(testVeth(3, "10.0.0.1"))
	r.place()
	start := time.Now()
	for range 50 {
		err := r.realise(t.Context(), true)
		if err == nil || !strings.Contains(err.Error(), "does not answer") {
			t.Fatalf("error %v", err)
		}
	}
	if took := time.Since(start); took > 10*rulesPatience {
		t.Errorf("50 passes took %v", took)
	}
	if len(f.endpoints.m) != 1 || len(f.entries.m) != 1 {
		t.Error("the kernel does not enforce")
	}
	r.fold(policy.Delta{Policies: map[uint32]*policy.Resolved{5: resolved(true, allow80)}, RuleSets: map[uint32]*policy.RuleSet{8: {ID: 8}}})
	start = time.Now()
	_ = r.realise(t.Context(), true)
	if took := time.Since(start); took > rulesPatience/2 || f.entries.m[bpf.PolicyKeyOf(5, policy.Key{Identity: 301, Protocol: 6, Port: 80, PortBits: 16})].Action != uint8(policy.Allow) {
		t.Errorf("the change took %v, or is not there", took)
	}
	close(h.answer)
	eventually(t, "the proxy has all", func() bool { return r.realise(t.Context(), true) == nil })
	if !r.ruleSets.settled() || f.sets[7] == nil || f.sets[8] == nil || f.synced != 1 {
		t.Errorf("sets %v, synced %d times", f.sets, f.synced)
	}
	if n := h.calls.Load(); n != 2 {
		t.Errorf("%d calls", n)
	}
}
