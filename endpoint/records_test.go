package endpoint

import (
	"encoding/json"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/flow"
	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/policy/api"
)

// seeing makes a manager of the pods a and b, of which b is open to a only, and
// events of one kind each.
func seeing(t testing.TB) (m *Manager, events map[string]bpf.Event) {
	t.Helper()
	m, err := newManager(Options{
		Node: "n1", RuleSets: newFakeKernel(), Log: slog.New(slog.DiscardHandler), Metrics: NewMetrics(prometheus.NewRegistry()),
	}, newFakeKernel().kernel())
	if err != nil {
		t.Fatal(err)
	}
	takeIn(t, m, podObject("a", "1", "10.9.0.1"), podObject("b", "2", "10.9.0.2"), onlyFrom("b", "a"))
	a, b := netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("10.9.0.2")
	e := bpf.Event{
		Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Protocol: unix.IPPROTO_TCP,
		Source: netip.AddrPortFrom(a, 40000), SourceIdentity: m.r.pods[a].Identity,
		Dest: netip.AddrPortFrom(b, 80), DestIdentity: m.r.pods[b].Identity,
		Policy: m.r.pods[b].Policy, Verdict: flow.Forwarded, Reason: flow.ReasonPolicyAllowed, Direction: policy.Ingress,
	}
	for _, entry := range m.r.policies.want[e.Policy].Entries {
		e.Rule = max(e.Rule, entry.Rule)
	}
	denied, ping := e, e
	denied.Source, denied.SourceIdentity = netip.MustParseAddrPort("192.0.2.1:40000"), identity.WorldIPv4
	denied.Rule, denied.Verdict, denied.Reason = 0, flow.Dropped, flow.ReasonPolicyDenied
	ping.Protocol, ping.ICMPType, ping.Rule, ping.Reason = unix.IPPROTO_ICMP, 8, 0, flow.ReasonNotEnforced
	ping.Source, ping.Dest = netip.AddrPortFrom(a, 0), netip.AddrPortFrom(b, 0)
	return m, map[string]bpf.Event{"allowed": e, "denied": denied, "ping": ping}
}

func takeIn(t testing.TB, m *Manager, objects ...policy.Change) {
	t.Helper()
	answer := make(chan error, 1)
	m.apply(submit{objects, answer})
	if err := <-answer; err != nil {
		t.Fatal(err)
	}
}

func TestRecord(t *testing.T) {
	m, events := seeing(t)
	text := func(event string) string {
		e := events[event]
		r := flow.Record{Policies: []string{"of another record"}, HTTP: &flow.HTTP{}}
		m.record(&r, &e)
		for _, p := range []*flow.Peer{&r.Source, &r.Dest} {
			if p.Identity == 0 || len(p.Labels) == 0 {
				t.Fatalf("%s: no identity, or no labels: %+v", event, p)
			}
			p.Identity, p.Labels = 0, p.Labels[:1] // the first is the app
		}
		b, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	const (
		head = `{"time":"2026-01-02T03:04:05Z","node":"n1","layer":"L3/L4","verdict":`
		a    = `"namespace":"shop","pod":"a","identity":0,"labels":["k8s:app=a"]}`
		b    = `"namespace":"shop","pod":"b","identity":0,"labels":["k8s:app=b"]}`
	)
	for event, want := range map[string]string{
		"allowed": head + `"FORWARDED","reason":"policy-allowed","direction":"ingress","source":{"ip":"10.9.0.1","port":40000,` + a +
			`,"destination":{"ip":"10.9.0.2","port":80,` + b + `,"protocol":"TCP","rule":{"policy":"NetworkPolicy shop/b","rule":"spec.ingress[0].ports[0]"}}`,
		"denied": head + `"DROPPED","reason":"policy-denied","direction":"ingress","source":{"ip":"192.0.2.1","port":40000,"identity":0,"labels":["reserved:world-ipv4"]}` +
			`,"destination":{"ip":"10.9.0.2","port":80,` + b + `,"protocol":"TCP","policies":["NetworkPolicy shop/b"]}`,
		"ping": head + `"FORWARDED","reason":"not-enforced","direction":"ingress","source":{"ip":"10.9.0.1",` + a +
			`,"destination":{"ip":"10.9.0.2",` + b + `,"protocol":"ICMP","icmpType":8}`,
	} {
		if got := text(event); got != want {
			t.Errorf("%s:\n got %s\nwant %s", event, got, want)
		}
	}
}

// TestRecordsStayAsTheyWere: the names are those of the time of the event, in
// records of before and of after a change.
func TestRecordsStayAsTheyWere(t *testing.T) {
	m, events := seeing(t)
	e := events["allowed"]
	var before, after flow.Record
	m.record(&before, &e)
	was, err := json.Marshal(before)
	if err != nil {
		t.Fatal(err)
	}
	takeIn(t, m, gone(podObject("a", "1")), gone(onlyFrom("b", "a")), podObject("c", "3", "10.9.0.1"))
	m.record(&after, &e)
	if after.Source.Pod != "c" || after.Source.Labels != nil || after.Rule != nil {
		t.Errorf("afterwards: %+v", after)
	}
	if is, err := json.Marshal(before); err != nil || string(is) != string(was) {
		t.Errorf("a record was %s and is %s (%v)", was, is, err)
	}
}

// TestRecordsAllocateNothing: there are thousands a second, and what they leave
// behind would cost as much again.
func TestRecordsAllocateNothing(t *testing.T) {
	m, events := seeing(t)
	publish := publisher()
	for name, e := range events {
		var r flow.Record
		if n := testing.AllocsPerRun(1000, func() {
			m.record(&r, &e)
			publish(&r)
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// publisher is what the agent does with records.
func publisher() func(*flow.Record) {
	ring, counters := flow.NewRing(16384), flow.NewMetrics(prometheus.NewRegistry())
	return func(r *flow.Record) {
		counters.Observe(r)
		ring.Publish(r)
	}
}

// BenchmarkRecord is an event's way from the ring buffer's reader to the ring.
func BenchmarkRecord(b *testing.B) {
	m, events := seeing(b)
	for _, name := range []string{"allowed", "denied", "ping"} {
		b.Run(name, func(b *testing.B) {
			e, publish := events[name], publisher()
			var r flow.Record
			b.ReportAllocs()
			for b.Loop() {
				m.record(&r, &e)
				publish(&r)
			}
		})
	}
}

// TestDeniedRecordNamesAll policies that put the pod under default deny, be it
// the kernel or the proxy that denied.
func TestDeniedRecordNamesAll(t *testing.T) {
	m, events := seeing(t)
	second := onlyFrom("b", "c")
	second.Object.Name = "b-too"
	second.Value.(*api.Policy).Name = "b-too"
	takeIn(t, m, second, onlyFrom("a", "c"))
	want := []string{"NetworkPolicy shop/b", "NetworkPolicy shop/b-too"}
	e := events["denied"]
	e.Policy = m.r.pods[e.Dest.Addr()].Policy
	var r flow.Record
	m.record(&r, &e)
	if !slices.Equal(r.Policies, want) {
		t.Errorf("the kernel's: %q, want %q", r.Policies, want)
	}
	r = flow.Record{
		Layer: "L7", Verdict: flow.Dropped, Reason: "http-denied", Direction: policy.Ingress.String(),
		Source: flow.Peer{Addr: events["allowed"].Source.Addr()}, Dest: flow.Peer{Addr: e.Dest.Addr()},
	}
	if m.Complete(&r, 0); !slices.Equal(r.Policies, want) {
		t.Errorf("the proxy's: %q, want %q", r.Policies, want)
	}
}
