package endpoint

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/policy/api"
	"github.com/weirnet/weir/policy/dnsrules"
)

// fakeNames is the proxy's knowledge of names.
type fakeNames struct {
	mu        sync.Mutex
	f         *fakeKernel // nil: nobody notes the order
	sets      map[identity.ID]*policy.NameSet
	resolvers []policy.Server
	whole     bool
	calls     int
	fail      error
}

func server(at string) policy.Server {
	return policy.Server{Addr: netip.MustParseAddrPort(at), Protocol: unix.IPPROTO_UDP}
}

func (n *fakeNames) SetNames(_ context.Context, sets map[identity.ID]*policy.NameSet, resolvers []policy.Server, whole bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.calls++
	if n.fail != nil {
		return n.fail
	}
	if n.f != nil {
		if len(sets) >= len(n.sets) {
			n.f.note("proxy +")
		} else {
			n.f.note("proxy -")
		}
	}
	if whole || n.sets == nil {
		n.sets = map[identity.ID]*policy.NameSet{}
	}
	maps.Copy(n.sets, sets)
	n.resolvers, n.whole = resolvers, whole
	return nil
}

func nameSet(names ...string) *policy.NameSet {
	set := &policy.NameSet{}
	for _, n := range names {
		set.Selectors = append(set.Selectors, dnsrules.NewSelector(n, ""))
	}
	return set
}

func (n *fakeNames) known() (out []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, set := range n.sets {
		var names []string
		for _, s := range set.Selectors {
			names = append(names, s.String())
		}
		out = append(out, strings.Join(names, " "))
	}
	slices.Sort(out)
	return out
}

// An identity for both of what an address is known as is there as long as its
// entries are.
func TestPairsKeepTheOrder(t *testing.T) {
	f := newFakeKernel()
	r := newRealiser(f.kernel(), f)
	d := delta("10.0.0.1", "1", 5, resolved(true, map[policy.Key]policy.Entry{{Identity: 303}: {Action: policy.Allow}}))
	d.Pairs = map[policy.Pair]identity.ID{{Outside: 300, Names: 301}: 303}
	r.fold(d)
	pass(t, r)
	wantSteps(t, f, "policy +", "policies +", "pairs +", "revise")
	if got := f.pairs.m[bpf.Pair{Outside: 300, Names: 301}]; got != 303 {
		t.Errorf("the pair is %d", got)
	}
	r.fold(policy.Delta{Policies: map[uint32]*policy.Resolved{5: resolved(true, map[policy.Key]policy.Entry{{Identity: 304}: {Action: policy.Allow}})}, Pairs: map[policy.Pair]identity.ID{{Outside: 300, Names: 301}: 0}})
	pass(t, r)
	if len(f.pairs.m) > 0 {
		t.Errorf("pairs left: %v", f.pairs.m)
	}
	wantSteps(t, f, "policy +", "revise", "pairs -", "policy -", "revise")

	// A successor takes away what nobody wants any more.
	f.pairs.m[bpf.Pair{Outside: 1, Names: 2}] = 3
	next := newRealiser(f.kernel(), f)
	if _, err := next.adopt(); err != nil {
		t.Fatal(err)
	}
	pass(t, next)
	if len(f.pairs.m) > 0 {
		t.Errorf("a predecessor's pairs are left: %v", f.pairs.m)
	}
}

// What an address is known as comes after the entries for it, the kernel's word
// before the proxy's, and goes the other way.
func TestNamesKeepTheOrder(t *testing.T) {
	f := newFakeKernel()
	names := &fakeNames{f: f}
	r := newRealiser(f.kernel(), f)
	r.nameSets.proxy = names
	pass(t, r)
	wantSteps(t, f, "proxy +") // that there are none
	d := delta("10.0.0.1", "1", 5, resolved(true, allow80))
	d.Names = map[identity.ID]*policy.NameSet{301: nameSet("a.test")}
	r.fold(d)
	pass(t, r)
	wantSteps(t, f, "policy +", "policies +", "names +", "proxy +", "revise")
	pass(t, r)
	wantSteps(t, f)

	// One comes, another goes.
	r.fold(policy.Delta{
		Policies: map[uint32]*policy.Resolved{5: resolved(true, map[policy.Key]policy.Entry{{Identity: 302}: {Action: policy.Allow}})},
		Names:    map[identity.ID]*policy.NameSet{301: nil, 302: nameSet("b.test")},
	})
	f.after = func() {
		for id := range names.sets {
			if f.names.m[uint32(id)] == 0 {
				t.Errorf("the proxy gives identity %d to addresses, which the kernel does not believe", id)
			}
		}
		for id := range f.names.m {
			if !slices.ContainsFunc(slices.Collect(maps.Keys(f.entries.m)), func(k bpf.PolicyKey) bool { return k.Identity == id }) {
				t.Errorf("there are no entries for identity %d", id)
			}
		}
	}
	pass(t, r)
	f.after = nil
	if got := names.known(); !slices.Equal(got, []string{"b.test"}) {
		t.Errorf("the proxy knows %q", got)
	}
	f.steps()
	r.fold(policy.Delta{
		Policies: map[uint32]*policy.Resolved{5: resolved(true, nil)},
		Names:    map[identity.ID]*policy.NameSet{302: nil},
	})
	pass(t, r)
	if got := f.steps(); !slices.Equal(got[:2], []string{"proxy -", "names -"}) {
		t.Errorf("steps %q", got)
	}
}

// Before all is read nothing is taken away, and what fails is sent again.
func TestNamesOfPredecessors(t *testing.T) {
	f := newFakeKernel()
	f.names.m[400] = 1 // a predecessor's
	names := &fakeNames{sets: map[identity.ID]*policy.NameSet{400: nameSet("old.test")}}
	r := newRealiser(f.kernel(), f)
	r.nameSets.proxy = names
	if _, err := r.adopt(); err != nil {
		t.Fatal(err)
	}
	cluster, own := server("10.96.0.10:53"), server("192.0.2.53:53")
	r.nameSets.others = func() []policy.Server { return []policy.Server{own, cluster} }
	r.fold(policy.Delta{Names: map[identity.ID]*policy.NameSet{301: nameSet("a.test")}, Resolvers: []policy.Server{cluster}})
	if err := r.realise(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if got := names.known(); !slices.Equal(got, []string{"a.test", "old.test"}) || names.whole || f.names.m[400] == 0 {
		t.Errorf("the proxy knows %q, whole %v; the kernel %v", got, names.whole, f.names.m)
	}
	if !slices.Equal(names.resolvers, []policy.Server{cluster, own}) {
		t.Errorf("resolvers %v", names.resolvers)
	}
	names.fail = errors.New("no")
	if err := r.realise(t.Context(), true); !errors.Is(err, names.fail) {
		t.Fatalf("got %v", err)
	}
	if len(f.names.m) != 1 || f.names.m[301] == 0 {
		t.Errorf("the kernel believes %v, whatever the proxy says", f.names.m)
	}
	if r.nameSets.settled() {
		t.Error("the proxy is said to have it all")
	}
	names.fail = nil
	if err := r.realise(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if got := names.known(); !slices.Equal(got, []string{"a.test"}) || !names.whole || !r.nameSets.settled() {
		t.Errorf("the proxy knows %q, whole %v", got, names.whole)
	}
	before := names.calls
	own = server("192.0.2.54:53")
	if err := r.realise(t.Context(), false); err != nil { // never less than whole again
		t.Fatal(err)
	}
	if names.calls != before+1 || !names.whole || !slices.Contains(names.resolvers, own) {
		t.Errorf("%d calls, whole %v, resolvers %v", names.calls-before, names.whole, names.resolvers)
	}
}

// namesManager is a Manager whose proxy says what it wants, on fake tables.
func namesManager(t *testing.T, f *fakeKernel, names *fakeNames) *Manager {
	t.Helper()
	m, err := newManager(Options{
		Node: "n1", RuleSets: f, Names: names,
		Log: slog.New(slog.DiscardHandler), Metrics: NewMetrics(prometheus.NewRegistry()),
	}, f.kernel())
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// toNames is a policy that lets pod a go to these names.
func toNames(t *testing.T, selectors string) policy.Change {
	t.Helper()
	read := api.Read("test.yaml", fmt.Appendf(nil, `apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: names, namespace: shop}
spec: {endpointSelector: {matchLabels: {app: a}}, egress: [{toFQDNs: [%s]}]}
`, selectors))
	for _, err := range read.Errors {
		t.Fatal(err)
	}
	p := read.Policies[0]
	return policy.Change{Object: policy.Object{Kind: p.Kind, Namespace: p.Namespace, Name: p.Name}, Value: p}
}

func (m *Manager) giveTest(t *testing.T, objects ...policy.Change) {
	t.Helper()
	answer := make(chan error, 1)
	m.apply(submit{objects, answer})
	if err := <-answer; err != nil {
		t.Fatal(err)
	}
	m.realiseTest(t)
}

func (m *Manager) realiseTest(t *testing.T) {
	t.Helper()
	m.r.place()
	if err := m.r.realise(t.Context(), m.whole); err != nil {
		t.Fatal(err)
	}
}

// A combination that the proxy wants gets an identity, which a successor of the
// agent does not take away.
func TestWantedNames(t *testing.T) {
	f, names := newFakeKernel(), &fakeNames{}
	policies := []policy.Change{podObject("a", "1", "10.9.0.1"), toNames(t, "{matchName: a.test}, {matchName: b.test}")}
	m := namesManager(t, f, names)
	m.giveTest(t, policies...)
	want := func(when string, sets ...string) {
		t.Helper()
		if got := names.known(); !slices.Equal(got, sets) {
			t.Fatalf("%s: the proxy knows %q, want %q", when, got, sets)
		}
		if len(f.names.m) != len(sets) {
			t.Fatalf("%s: the kernel believes %v", when, f.names.m)
		}
	}
	want("at first", "a.test", "b.test")
	if names.whole {
		t.Error("it was told that there is nothing else before it said what it needs")
	}
	m.NameSets(map[string]*policy.NameSet{})
	m.need(m.wants.take())
	m.realiseTest(t)
	if !names.whole {
		t.Error("it was not told that there is nothing else")
	}
	both := map[string]*policy.NameSet{"x": nameSet("a.test", "b.test")}
	m.need(both)
	m.realiseTest(t)
	want("asked for", "a.test", "a.test b.test", "b.test")
	var id identity.ID
	for i, set := range names.sets {
		if len(set.Selectors) == 2 {
			id = i
		}
	}
	entries := len(f.entries.m)

	// Another agent: it hears of it before it takes anything away.
	names.calls = 0
	m = namesManager(t, f, names)
	m.giveTest(t, policies...)
	want("a successor that has not heard", "a.test", "a.test b.test", "b.test")
	if len(f.entries.m) != entries {
		t.Errorf("%d entries, not %d", len(f.entries.m), entries)
	}
	m.need(both)
	m.realiseTest(t)
	want("a successor", "a.test", "a.test b.test", "b.test")
	if set := names.sets[id]; set == nil || len(set.Selectors) != 2 {
		t.Errorf("identity %d is now for %v", id, set)
	}
	m.need(nil)
	m.realiseTest(t)
	want("no longer asked for", "a.test", "b.test")

	// One that never hears goes on after a while.
	m = namesManager(t, f, names)
	m.giveTest(t, policies[0])
	want("before anything is heard", "a.test", "b.test")
	m.need(nil)
	m.realiseTest(t)
	want("nothing is heard")
}

// The same in a Manager that runs: what is told comes without waiting, and who
// waits is answered when it was heard.
func TestManagerHearsOfNames(t *testing.T) {
	if !ownNamespace(t) {
		return
	}
	f, names := newFakeKernel(), &fakeNames{}
	v, err := OpenVeths()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	m := namesManager(t, f, names)
	m.veths, m.tellMTU = v, func(int) error { return nil }
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	defer func() {
		cancel()
		<-done
	}()
	if err := m.Submit(ctx, []policy.Change{podObject("a", "1", "10.9.0.1"), toNames(t, "{matchName: a.test}, {matchName: b.test}")}); err != nil {
		t.Fatal(err)
	}
	soon, stop := context.WithTimeout(ctx, 200*time.Millisecond)
	if err := m.Wait(soon); err == nil {
		t.Error("all was said to be enforced before it was heard what the proxy needs")
	}
	stop()
	m.NameSets(map[string]*policy.NameSet{"x": nameSet("a.test", "b.test")})
	if err := m.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	if got := names.known(); !slices.Equal(got, []string{"a.test", "a.test b.test", "b.test"}) {
		t.Errorf("the proxy knows %q", got)
	}
}
