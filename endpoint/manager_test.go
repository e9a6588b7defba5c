package endpoint

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/flow"
	"github.com/weirnet/weir/policy"
)

func TestManagerEnforcesAndSurvivesARestart(t *testing.T) {
	if !ownNamespace(t) {
		return
	}
	n := newNode(t)
	a, b, c := newPod(t, "va", "10.9.0.1/24"), newPod(t, "vb", "10.9.0.2/24"), newPod(t, "vc", "10.9.0.3/24")
	bridged(t, a, b, c)
	b.serve("10.9.0.2:80")
	objects := []policy.Change{podObject("a", "1", "10.9.0.1"), podObject("b", "2", "10.9.0.2"), podObject("c", "3", "10.9.0.3"), onlyFrom("b", "a")}
	n.start(objects...)
	check := func(when string) {
		t.Helper()
		if !a.dial("10.9.0.2:80") {
			t.Errorf("%s: a does not reach b", when)
		}
		if c.dial("10.9.0.2:80") {
			t.Errorf("%s: c reaches b", when)
		}
	}
	check("at first")
	if s := n.state("b"); s.State != EndpointReady || s.Veth != "vb" || !s.Ingress || s.Egress || !slices.Equal(s.IngressPolicies, []string{"NetworkPolicy shop/b"}) {
		t.Errorf("status of b: %+v", s)
	}
	row, _ := n.row("10.9.0.2")
	if row.Ifindex != ifindex(t, "vb") || row.PodMac != b.mac() {
		t.Errorf("row of b: %+v", row)
	}
	revision := n.m.Status().Revision

	n.stop()
	check("without an agent")
	n.prepare()
	check("before the first read")
	n.submit(objects...)
	n.wait()
	check("after the restart")
	if got := n.m.Status().Revision; got != revision {
		t.Errorf("revision %d after a restart without changes, was %d", got, revision)
	}

	// The policy goes while nobody looks.
	n.stop()
	n.start(objects[:3]...)
	if !c.dial("10.9.0.2:80") {
		t.Error("c does not reach b although the policy is gone")
	}
}

func TestManagerFollowsPodsAndVeths(t *testing.T) {
	if !ownNamespace(t) {
		return
	}
	n := newNode(t)
	a := newPod(t, "va", "10.9.0.1/24")
	n.start(podObject("a", "1", "10.9.0.1"), podObject("b", "2", "10.9.0.2"), onlyFrom("b", "a"))
	if s := n.state("b"); s.State != EndpointWaiting {
		t.Errorf("status of b without a veth: %+v", s)
	}
	if _, there := n.row("10.9.0.2"); there {
		t.Error("an endpoint without a veth")
	}
	b := newPod(t, "vb", "10.9.0.2/24")
	eventually(t, "b's veth is found", func() bool {
		row, ok := n.row("10.9.0.2")
		return ok && row.Ifindex == ifindex(t, "vb")
	})
	attached := func() []int {
		list, err := n.datapath.Attached()
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	if !slices.Contains(attached(), int(ifindex(t, "vb"))) {
		t.Error("no programs on vb")
	}
	// Made anew with the same name.
	old := ifindex(t, "vb")
	run(t, "ip link del vb")
	eventually(t, "the endpoint goes with its veth", func() bool { _, ok := n.row("10.9.0.2"); return !ok })
	b.link("10.9.0.2/24")
	eventually(t, "the new veth is found", func() bool {
		row, ok := n.row("10.9.0.2")
		return ok && row.Ifindex != old && row.Ifindex == ifindex(t, "vb")
	})
	bridged(t, a, b)
	b.serve("10.9.0.2:80")
	if !a.dial("10.9.0.2:80") {
		t.Error("a does not reach b")
	}
	// Another pod takes the address over: it inherits no flow.
	tuple, _ := bpf.TupleOf(netip.MustParseAddrPort("10.9.0.77:1234"), netip.MustParseAddrPort("10.9.0.2:80"), 6).Canonical()
	if err := n.datapath.Conntrack.Update(tuple, bpf.Conntrack{LastSeen: 1}); err != nil {
		t.Fatal(err)
	}
	other, _ := bpf.TupleOf(netip.MustParseAddrPort("10.9.0.77:1234"), netip.MustParseAddrPort("10.9.0.1:80"), 6).Canonical()
	if err := n.datapath.Conntrack.Update(other, bpf.Conntrack{LastSeen: 1}); err != nil {
		t.Fatal(err)
	}
	newPod(t, "vc", "10.9.0.2/24")
	b.addr("del", "10.9.0.2/24")
	n.submit(gone(podObject("b", "2")), podObject("c", "3", "10.9.0.2"))
	eventually(t, "c has the address", func() bool {
		row, ok := n.row("10.9.0.2")
		return ok && row.Ifindex == ifindex(t, "vc")
	})
	if _, there, err := n.datapath.Conntrack.Lookup(tuple); there || err != nil {
		t.Errorf("c inherits a flow of b (%v)", err)
	}
	if _, there, err := n.datapath.Conntrack.Lookup(other); !there || err != nil {
		t.Errorf("a lost a flow (%v)", err)
	}
	if slices.Contains(attached(), int(ifindex(t, "vb"))) {
		t.Error("programs are left on vb")
	}
	n.submit(gone(podObject("c", "3")), gone(podObject("a", "1")))
	eventually(t, "everything is taken off", func() bool { return len(attached()) == 0 })
}

func TestManagerNamesWhatItSees(t *testing.T) {
	if !ownNamespace(t) {
		return
	}
	n := newNode(t)
	a, b := newPod(t, "va", "10.9.0.1/24"), newPod(t, "vb", "10.9.0.2/24")
	bridged(t, a, b)
	b.serve("10.9.0.2:81")
	n.start(podObject("a", "1", "10.9.0.1"), podObject("b", "2", "10.9.0.2"), onlyFrom("b", "a"))
	ring := flow.NewRing(100)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.m.Records(ctx, n.datapath, ring.Publish) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	a.dial("10.9.0.2:81")
	var got *flow.Record
	eventually(t, "the drop is recorded", func() bool {
		_ = ring.Read(ctx, flow.Query{Last: -1, Filter: flow.Filter{Verdict: []string{"dropped"}, Protocol: []string{"tcp"}}}, func(r *flow.Record, _ uint64) error {
			kept := *r
			got = &kept
			return nil
		})
		return got != nil
	})
	if got.Source.Pod != "a" || got.Dest.Pod != "b" || got.Dest.Namespace != "shop" || got.Dest.Port != 81 || got.Protocol != "TCP" ||
		got.Reason != "policy-denied" || got.Direction != "ingress" || got.Node != "n1" || got.Rule != nil ||
		!slices.Equal(got.Policies, []string{"NetworkPolicy shop/b"}) || !slices.Contains(got.Source.Labels, "k8s:app=a") ||
		time.Since(got.Time).Abs() > 10*time.Second {
		t.Errorf("record %+v", got)
	}
}

// TestNumbersWaitForTheWholeSource: what is not read yet keeps the number that a
// predecessor gave it, and none of its numbers becomes another's.
func TestNumbersWaitForTheWholeSource(t *testing.T) {
	f := newFakeKernel()
	whole := true
	var m *Manager
	begin := func() {
		t.Helper()
		var err error
		m, err = newManager(Options{
			Node: "n1", RuleSets: f, Complete: func() bool { return whole },
			Log: slog.New(slog.DiscardHandler), Metrics: NewMetrics(prometheus.NewRegistry()),
		}, f.kernel())
		if err != nil {
			t.Fatal(err)
		}
	}
	give := func(objects ...policy.Change) {
		t.Helper()
		answer := make(chan error, 1)
		m.apply(submit{objects, answer})
		if err := <-answer; err != nil {
			t.Fatal(err)
		}
		m.r.place()
		if err := m.r.realise(t.Context(), m.whole); err != nil {
			t.Fatal(err)
		}
	}
	identity := func(addr string) uint32 { return f.ipcache.m[bpf.PrefixOf(netip.MustParsePrefix(addr+"/32"))].Identity }
	a, b, c := podObject("a", "1", "10.9.0.1"), podObject("b", "2", "10.9.0.2"), podObject("c", "3", "10.9.0.3")
	begin()
	give(a, b, onlyFrom("a", "b"))
	of := identity("10.9.0.2")

	whole = false // b can't be read at the restart
	begin()
	give(a, c)
	if got := identity("10.9.0.3"); got == 0 || got == of {
		t.Errorf("c is %d, b was %d", got, of)
	}
	give(b)
	if got := identity("10.9.0.2"); got != of {
		t.Errorf("b is %d, was %d", got, of)
	}
	give(onlyFrom("a", "b"))
	held := len(f.numbers.m)
	whole = true
	give()
	if got := len(f.numbers.m); got != held {
		t.Errorf("%d numbers, %d of them in use", got, held)
	}

	whole = false
	begin()
	give(a, onlyFrom("a", "b"))
	before := len(f.numbers.m)
	whole = true // b is gone for good: the source says so without a change
	give()
	if got := len(f.numbers.m); got >= before || got == 0 {
		t.Errorf("%d numbers are kept, %d before it was known that b is gone", got, before)
	}
}
