package endpoint

import (
	"errors"
	"maps"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy"
)

func TestRealiseChangesAPolicyEntryByEntry(t *testing.T) {
	f := newFakeKernel()
	r := newRealiser(f.kernel(), f)
	r.veths = testVeths(testVeth(3, "10.0.0.1"))
	many := maps.Clone(allow80)
	for port := range uint16(50) {
		many[policy.Key{Identity: 302, Protocol: 6, Port: 1000 + port, PortBits: 16}] = policy.Entry{Action: policy.Allow, Rule: 2}
	}
	r.fold(delta("10.0.0.1", "1", 5, resolved(true, many)))
	pass(t, r)
	f.steps()
	less := maps.Clone(many)
	delete(less, policy.Key{Identity: 302, Protocol: 6, Port: 1000, PortBits: 16})
	less[policy.Key{Identity: 303}] = policy.Entry{Action: policy.Deny, Rule: 3}
	f.log = nil
	r.fold(policy.Delta{Policies: map[uint32]*policy.Resolved{5: resolved(true, less)}})
	pass(t, r)
	if n := len(f.log); n > 7 {
		t.Errorf("%d steps to change two entries: %q", n, f.log)
	}
	if len(f.entries.m) != len(less) {
		t.Errorf("%d entries in the kernel, want %d", len(f.entries.m), len(less))
	}
}

// At every step of a change, what both the old and the new policy deny is
// denied, and what both allow is allowed.
func TestRealiseNeverOpensNorInterrupts(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	random := func() *policy.Resolved {
		m := map[policy.Key]policy.Entry{}
		for range rng.IntN(12) {
			k := policy.Key{Identity: identity.ID(rng.IntN(3) * 300)}
			if rng.IntN(4) > 0 {
				k.Protocol = 6
				k.PortBits = []uint8{16, 15, 14, 0}[rng.IntN(4)]
				k.Port = uint16(80+rng.IntN(4)) & (0xffff << (16 - k.PortBits))
			}
			m[k] = policy.Entry{Action: policy.Action(1 + rng.IntN(4)), RuleSet: 0, Rule: uint32(rng.IntN(9))}
		}
		return resolved(rng.IntN(4) > 0, m)
	}
	// verdict as the kernel finds it: only probes that the info announces.
	type question struct {
		id   identity.ID
		port uint16
	}
	verdict := func(infos map[uint32]bpf.PolicyInfo, entries map[bpf.PolicyKey]bpf.PolicyEntry, q question) (allowed, denied bool) {
		info, ok := infos[5]
		if !ok {
			return false, true
		}
		if info.Enforced[0] == 0 {
			return true, false
		}
		found := map[policy.Key]policy.Entry{}
		for k, e := range entries {
			key := policy.Key{Identity: identity.ID(k.Identity), Protocol: k.Proto, Port: k.Port, PortBits: k.PortBits}
			one := bpf.PolicyInfoOf(&policy.Resolved{Entries: map[policy.Key]policy.Entry{key: {}}})
			if one.PortBits[0]&^info.PortBits[0] == 0 && one.AnyPortBits[0]&^info.AnyPortBits[0] == 0 {
				found[key] = policy.Entry{Action: policy.Action(e.Action)}
			}
		}
		e, ok := policy.Lookup(found, policy.Ingress, []identity.ID{q.id}, 6, q.port)
		return ok && e.Action != policy.Deny && e.Action != policy.Refuse, !ok || e.Action == policy.Deny || e.Action == policy.Refuse
	}
	for round := range 400 {
		f := newFakeKernel()
		r := newRealiser(f.kernel(), f)
		before, after := random(), random()
		r.fold(delta("10.0.0.1", "1", 5, before))
		r.veths = testVeths(testVeth(3, "10.0.0.1"))
		pass(t, r)
		var questions []question
		for _, id := range []identity.ID{300, 600, 900} {
			for port := uint16(79); port < 86; port++ {
				questions = append(questions, question{id, port})
			}
		}
		was := map[question]bool{}
		for _, q := range questions {
			was[q], _ = verdict(f.policies.m, f.entries.m, q)
		}
		var seen []map[question]bool
		f.after = func() {
			now := map[question]bool{}
			for _, q := range questions {
				now[q], _ = verdict(f.policies.m, f.entries.m, q)
			}
			seen = append(seen, now)
		}
		r.fold(policy.Delta{Policies: map[uint32]*policy.Resolved{5: after}})
		pass(t, r)
		if len(seen) == 0 {
			continue
		}
		end := seen[len(seen)-1]
		for _, q := range questions {
			for step, now := range seen {
				if was[q] == end[q] && now[q] != was[q] && !redirects(before, after) {
					t.Fatalf("round %d: %v is allowed=%v before and after, but %v at step %d\nbefore %+v\nafter %+v\nsteps %q", round, q, was[q], now[q], step, before, after, f.log)
				}
			}
		}
	}
}

// redirects tells whether Refuse entries are in play: an allow that is written
// beside a refusal not yet deleted is refused for that moment, which is closed
// rather than open; that is the price of changing in place.
func redirects(all ...*policy.Resolved) bool {
	for _, r := range all {
		for _, e := range r.Entries {
			if e.Action == policy.Refuse {
				return true
			}
		}
	}
	return false
}

func TestRealiseTableFull(t *testing.T) {
	f := newFakeKernel()
	r := newRealiser(f.kernel(), f)
	f.entries.max = 3
	r.veths = testVeths(testVeth(3, "10.0.0.1"), testVeth(4, "10.0.0.2"))
	entries := func(n int) map[policy.Key]policy.Entry {
		m := map[policy.Key]policy.Entry{}
		for port := range uint16(n) {
			m[policy.Key{Protocol: 6, Port: 80 + port, PortBits: 16}] = policy.Entry{Action: policy.Allow}
		}
		return m
	}
	r.fold(delta("10.0.0.1", "1", 5, resolved(true, entries(2))))
	pass(t, r)
	r.fold(delta("10.0.0.2", "2", 6, resolved(true, entries(3))))
	r.place()
	if err := r.realise(t.Context(), true); !errors.Is(err, errFull) {
		t.Fatalf("error %v", err)
	}
	// The first pod is as it was, the second is closed: its policy is not there.
	if _, there := f.policies.m[6]; there || f.policies.m[5].Enforced[0] != 1 {
		t.Errorf("policies %v", f.policies.m)
	}
	if row := f.endpoints.m[bpf.AddrOf(netip.MustParseAddr("10.0.0.2"))]; row.Policy != 6 || !f.programs[4] {
		t.Errorf("second pod: row %+v, programs %v", row, f.programs)
	}
	if s := r.unready(netip.MustParseAddr("10.0.0.2"), 4, r.pods[netip.MustParseAddr("10.0.0.2")]); !strings.Contains(s, "full") {
		t.Errorf("status of the second pod: %q", s)
	}
	// The first pod goes: there is room, by deletes that come before writes.
	r.fold(policy.Delta{
		Policies:  map[uint32]*policy.Resolved{5: nil},
		Endpoints: map[netip.Addr]*policy.Endpoint{netip.MustParseAddr("10.0.0.1"): nil},
	})
	for range 3 {
		r.place()
		if err := r.realise(t.Context(), true); err == nil {
			break
		}
	}
	if len(f.entries.m) != 3 || f.policies.m[6].Enforced[0] != 1 {
		t.Errorf("entries %v, policies %v", f.entries.m, f.policies.m)
	}
}
