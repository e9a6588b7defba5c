package endpoint

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/policy"
)

// fakeKernel is a kernel in memory that notes what is done in which order.
type fakeKernel struct {
	numbers   *fakeStore[bpf.Number, bpf.Digest]
	entries   *fakeStore[bpf.PolicyKey, bpf.PolicyEntry]
	policies  *fakeStore[uint32, bpf.PolicyInfo]
	ipcache   *fakeStore[bpf.Prefix, bpf.Peer]
	fronts    *fakeStore[bpf.FrontKey, bpf.Front]
	devices   *fakeStore[uint32, bpf.Device]
	endpoints *fakeStore[bpf.Addr, bpf.Endpoint]
	names     *fakeStore[uint32, uint32]
	pairs     *fakeStore[bpf.Pair, uint32]

	log        []string
	programs   map[int]bool
	attachFail map[int]error
	overtaken  []bpf.Overtaken
	revision   uint32
	activated  int
	forgotten  []netip.Addr
	fqdn       *fakeStore[bpf.Addr, uint32]
	unnameFail error

	sets   map[uint32]*policy.RuleSet
	synced int
	down   error // of the proxy

	// after is called after every step: what must hold at any time.
	after func()
}

func newFakeKernel() *fakeKernel {
	f := &fakeKernel{programs: map[int]bool{}, attachFail: map[int]error{}, sets: map[uint32]*policy.RuleSet{}}
	f.numbers = newFakeStore[bpf.Number, bpf.Digest](f, "numbers")
	f.entries = newFakeStore[bpf.PolicyKey, bpf.PolicyEntry](f, "policy")
	f.policies = newFakeStore[uint32, bpf.PolicyInfo](f, "policies")
	f.ipcache = newFakeStore[bpf.Prefix, bpf.Peer](f, "ipcache")
	f.fronts = newFakeStore[bpf.FrontKey, bpf.Front](f, "fronts")
	f.devices = newFakeStore[uint32, bpf.Device](f, "devices")
	f.endpoints = newFakeStore[bpf.Addr, bpf.Endpoint](f, "endpoints")
	f.names = newFakeStore[uint32, uint32](f, "names")
	f.fqdn = newFakeStore[bpf.Addr, uint32](f, "fqdn")
	f.pairs = newFakeStore[bpf.Pair, uint32](f, "pairs")
	return f
}

func (f *fakeKernel) note(format string, args ...any) {
	f.log = append(f.log, fmt.Sprintf(format, args...))
	if f.after != nil {
		f.after()
	}
}

// steps returns and clears what was done, repeats of one kind as one.
func (f *fakeKernel) steps() []string {
	out := slices.Compact(f.log)
	f.log = nil
	return out
}

func (f *fakeKernel) kernel() kernel {
	return kernel{
		numbers: f.numbers, entries: f.entries, policies: f.policies, ipcache: f.ipcache, fronts: f.fronts, devices: f.devices, endpoints: f.endpoints, names: f.names, pairs: f.pairs,
		forget: func(addrs map[bpf.Addr]bool) error {
			for a := range addrs {
				f.forgotten = append(f.forgotten, a.Netip())
			}
			f.note("forget")
			return nil
		},
		unname: func(ids map[uint32]bool) error {
			if f.unnameFail != nil {
				return f.unnameFail
			}
			maps.DeleteFunc(f.fqdn.m, func(_ bpf.Addr, id uint32) bool { return ids[id] })
			return nil
		},
		attach: func(i int) error {
			if err := f.attachFail[i]; err != nil {
				return err
			}
			f.programs[i] = true
			f.note("attach %d", i)
			return nil
		},
		detach: func(i int) error {
			delete(f.programs, i)
			f.note("detach %d", i)
			return nil
		},
		overtaken: func() ([]bpf.Overtaken, error) { return f.overtaken, nil },
		sent:      func(int) (uint64, error) { return 0, nil },
		attached:  func() ([]int, error) { return slices.Sorted(maps.Keys(f.programs)), nil },
		activate:  func() error { f.activated++; return nil },
		revise:    func() uint32 { f.revision++; f.note("revise"); return f.revision },
		revision:  func() uint32 { return f.revision },
	}
}

// SetRuleSets implements RuleSets.
func (f *fakeKernel) SetRuleSets(_ context.Context, upsert []*policy.RuleSet, remove []uint32) error {
	if f.down != nil {
		return f.down
	}
	for _, s := range upsert {
		f.sets[s.ID] = s
		f.note("rules +")
	}
	for _, id := range remove {
		delete(f.sets, id)
		f.note("rules -")
	}
	return nil
}

// Synced implements RuleSets.
func (f *fakeKernel) Synced(context.Context) error { f.synced++; return nil }

var errFull = errors.New("table full")

type fakeStore[K comparable, V comparable] struct {
	f    *fakeKernel
	name string
	m    map[K]V
	max  int // 0: no limit
	fail func(K) error
}

func newFakeStore[K comparable, V comparable](f *fakeKernel, name string) *fakeStore[K, V] {
	return &fakeStore[K, V]{f: f, name: name, m: map[K]V{}}
}

func (s *fakeStore[K, V]) Snapshot() (map[K]V, error) { return maps.Clone(s.m), nil }

func (s *fakeStore[K, V]) Update(k K, v V) error {
	if s.fail != nil {
		if err := s.fail(k); err != nil {
			return err
		}
	}
	if _, there := s.m[k]; !there && s.max > 0 && len(s.m) >= s.max {
		return errFull
	}
	s.m[k] = v
	s.f.note("%s +", s.name)
	return nil
}

func (s *fakeStore[K, V]) Delete(k K) error {
	if s.fail != nil {
		if err := s.fail(k); err != nil {
			return err
		}
	}
	delete(s.m, k)
	s.f.note("%s -", s.name)
	return nil
}

// delta makes a policy.Delta for one pod with one policy.
func delta(addr string, uid string, id uint32, r *policy.Resolved) policy.Delta {
	d := policy.Delta{
		Policies:  map[uint32]*policy.Resolved{id: r},
		Endpoints: map[netip.Addr]*policy.Endpoint{netip.MustParseAddr(addr): {Namespace: "shop", Name: "pod-" + addr, UID: uid, Identity: 300, Policy: id}},
	}
	return d
}

func resolved(enforced bool, entries map[policy.Key]policy.Entry) *policy.Resolved {
	return &policy.Resolved{Enforced: [2]bool{enforced, false}, Entries: entries}
}

func testVeth(index int, addrs ...string) Veth {
	v := Veth{Ifindex: index, Name: fmt.Sprintf("v%d", index), HostMAC: [6]byte{2, byte(index)}, PodMAC: [6]byte{4, byte(index)}}
	for _, a := range addrs {
		v.Addresses = append(v.Addresses, netip.MustParseAddr(a))
	}
	return v
}

func testVeths(list ...Veth) map[int]Veth {
	m := map[int]Veth{}
	for _, v := range list {
		m[v.Ifindex] = v
	}
	return m
}

func pass(t *testing.T, r *realiser) {
	t.Helper()
	r.place()
	if err := r.realise(t.Context(), true); err != nil {
		t.Fatalf("realise: %v", err)
	}
}

func wantSteps(t *testing.T, f *fakeKernel, want ...string) {
	t.Helper()
	if got := f.steps(); !slices.Equal(got, want) {
		t.Errorf("steps:\n got %q\nwant %q", got, want)
	}
}
