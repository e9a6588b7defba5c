package flow

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/weirnet/weir/policy"
)

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

// record number n; odd ones are dropped.
func record(n int) *Record {
	r := &Record{
		Time: noon.Add(time.Duration(n) * time.Second), Verdict: Forwarded, Reason: "policy-allowed", Protocol: "TCP",
		Source: Peer{Addr: netip.MustParseAddr("10.0.0.1"), Port: uint16(n), Namespace: "shop", Pod: "a"},
		Dest:   Peer{Addr: netip.MustParseAddr("10.0.0.2"), Port: 80, Namespace: "shop", Pod: "b"},
	}
	if n%2 == 1 {
		r.Verdict, r.Reason = Dropped, "policy-denied"
	}
	return r
}

func read(t *testing.T, r *Ring, q Query) (got []int, lost uint64) {
	t.Helper()
	err := r.Read(t.Context(), q, func(rec *Record, n uint64) error {
		lost += n
		if rec != nil {
			got = append(got, int(rec.Source.Port))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got, lost
}

func TestRingKeepsTheLatest(t *testing.T) {
	r := NewRing(8)
	if got, _ := read(t, r, Query{Last: -1}); got != nil {
		t.Errorf("an empty ring gives %v", got)
	}
	for n := range 20 {
		r.Publish(record(n))
	}
	dropped := Filter{Verdict: []string{"dropped"}}
	for _, c := range []struct {
		name string
		q    Query
		want []int
	}{
		{"all", Query{Last: -1}, []int{12, 13, 14, 15, 16, 17, 18, 19}},
		{"last", Query{Last: 3}, []int{17, 18, 19}},
		{"more than there is", Query{Last: 100}, []int{12, 13, 14, 15, 16, 17, 18, 19}},
		{"none", Query{Last: 0}, nil},
		{"last that match", Query{Last: 2, Filter: dropped}, []int{17, 19}},
		{"since", Query{Last: -1, Since: noon.Add(18 * time.Second)}, []int{18, 19}},
		{"since and last", Query{Last: 5, Since: noon.Add(17 * time.Second), Filter: dropped}, []int{17, 19}},
	} {
		if got, lost := read(t, r, c.q); !slices.Equal(got, c.want) || lost != 0 {
			t.Errorf("%s: got %v, lost %d, want %v", c.name, got, lost, c.want)
		}
	}
	if r.Published() != 20 {
		t.Errorf("published %d", r.Published())
	}
}

// TestRingKeepsCopies: neither who publishes nor who reads can change what is
// kept, and more than one batch comes back in order.
func TestRingKeepsCopies(t *testing.T) {
	const records = 3*readBatch + 1
	r := NewRing(records)
	var rec Record
	for n := range records + 5 {
		rec = *record(n)
		r.Publish(&rec)
	}
	rec.Source.Port = 0
	for _, q := range []Query{{Last: -1}, {Last: 2 * records}, {Last: records - 7}} {
		want := records + 5 - min(records, uint(q.Last))
		for range 2 { // what the first reader did is not seen by the second
			next := want
			err := r.Read(t.Context(), q, func(rec *Record, lost uint64) error {
				if uint(rec.Source.Port) != next || lost != 0 {
					t.Errorf("last %d: record %d, lost %d, want %d", q.Last, rec.Source.Port, lost, next)
				}
				next++
				*rec = Record{}
				return nil
			})
			if err != nil || next != records+5 {
				t.Errorf("last %d: ended before %d: %v", q.Last, next, err)
			}
		}
	}
}

func TestRingFollowersSeeEverythingOrAreTold(t *testing.T) {
	const records = 20000
	r := NewRing(256)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	started := make(chan struct{}, 4)
	done := errors.New("done")
	for reader := range 4 {
		wg.Go(func() {
			next, first := uint64(0), true
			started <- struct{}{}
			err := r.Read(ctx, Query{Last: -1, Follow: true}, func(rec *Record, lost uint64) error {
				next += lost
				if rec == nil {
					return nil
				}
				if first { // it may have begun after the first ones were gone
					next, first = uint64(rec.Time.Sub(noon)/time.Second), false
				}
				if got := uint64(rec.Time.Sub(noon) / time.Second); got != next {
					return fmt.Errorf("record %d, want %d", got, next)
				}
				next++
				if next == records {
					return done
				}
				if reader == 0 && next%100 == 0 {
					time.Sleep(time.Millisecond) // a slow one
				}
				return nil
			})
			if !errors.Is(err, done) {
				t.Errorf("reader %d: %v", reader, err)
			}
		})
	}
	for range 4 {
		<-started
	}
	for n := range records {
		r.Publish(record(n))
		if n%64 == 0 {
			time.Sleep(50 * time.Microsecond)
		}
	}
	// Nothing comes after the last record, so even the slow one finds it.
	wg.Wait()
}

func TestRingReadEndsWithItsContext(t *testing.T) {
	r := NewRing(8)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- r.Read(ctx, Query{Last: 0, Follow: true}, func(*Record, uint64) error { return nil })
	}()
	r.Publish(record(1))
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("still reading")
	}
}

func BenchmarkPublish(b *testing.B) {
	r := NewRing(16384)
	rec := record(1)
	b.ReportAllocs()
	for b.Loop() {
		r.Publish(rec)
	}
}

func TestFilter(t *testing.T) {
	l7 := &Record{
		Layer: "L7", Verdict: Dropped, Reason: "http-denied", Direction: "ingress", Protocol: "TCP",
		Source:   Peer{Addr: netip.MustParseAddr("10.0.0.1"), Port: 1234, Namespace: "shop", Pod: "web-1"},
		Dest:     Peer{Addr: netip.MustParseAddr("2001:db8::1"), Port: 80},
		Policies: []string{"CiliumNetworkPolicy shop/http", "CiliumClusterwideNetworkPolicy base"},
		HTTP:     &HTTP{Method: "GET", Path: "/admin/x", Status: 403},
	}
	l4 := &Record{
		Layer: "L3/L4", Verdict: Forwarded, Reason: "policy-allowed", Direction: "egress", Protocol: "UDP",
		Source: Peer{Addr: netip.MustParseAddr("10.0.0.3"), Port: 5353, Namespace: "kube-system", Pod: "dns"},
		Dest:   Peer{Addr: netip.MustParseAddr("192.0.2.7"), Port: 53},
		Rule:   &policy.RuleRef{Policy: "NetworkPolicy kube-system/dns"},
		DNS:    &DNS{Name: "www.example.com", Type: "A"},
	}
	for _, c := range []struct {
		name   string
		f      Filter
		l7, l4 bool
	}{
		{"nothing", Filter{}, true, true},
		{"pod by name", Filter{Pod: []string{"dns"}}, false, true},
		{"pod by namespace and name", Filter{Pod: []string{"shop/web-1"}}, true, false},
		{"pod in another namespace", Filter{Pod: []string{"other/web-1"}}, false, false},
		{"all pods of a namespace", Filter{Pod: []string{"shop/"}}, true, false},
		{"address", Filter{Pod: []string{"192.0.2.7"}}, false, true},
		{"IPv6 address, spelled out", Filter{Pod: []string{"2001:db8:0::1"}}, true, false},
		{"prefix", Filter{To: []string{"192.0.2.0/24"}}, false, true},
		{"one of several", Filter{Pod: []string{"nobody", "dns"}}, false, true},
		{"from", Filter{From: []string{"dns"}}, false, true},
		{"to", Filter{To: []string{"dns"}}, false, false},
		{"namespace", Filter{Namespace: []string{"kube-system"}}, false, true},
		{"verdict", Filter{Verdict: []string{"DROPPED"}}, true, false},
		{"reason", Filter{Reason: []string{"policy-allowed"}}, false, true},
		{"direction", Filter{Direction: []string{"ingress"}}, true, false},
		{"protocol", Filter{Protocol: []string{"udp"}}, false, true},
		{"port", Filter{Port: []uint16{80, 443}}, true, false},
		{"layer", Filter{Layer: []string{"l7"}}, true, false},
		{"policy that decided", Filter{Policy: []string{"kube-system/dns"}}, false, true},
		{"policy that selects", Filter{Policy: []string{"http"}}, true, false},
		{"clusterwide policy", Filter{Policy: []string{"base"}}, true, false},
		{"policy in full", Filter{Policy: []string{"CiliumNetworkPolicy shop/http"}}, true, false},
		{"method", Filter{Method: []string{"GET"}}, true, false},
		{"path", Filter{Path: "^/admin/"}, true, false},
		{"other path", Filter{Path: "^/public"}, false, false},
		{"status", Filter{Status: []int{403}}, true, false},
		{"name", Filter{Name: `example\.com$`}, false, true},
		{"other name", Filter{Name: "example.net"}, false, false},
		{"two fields", Filter{Verdict: []string{"dropped"}, Protocol: []string{"udp"}}, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			q := Query{Filter: c.f, Last: 7, Since: noon, Follow: true}
			// As it travels to the agent.
			parsed, err := ParseQuery(q.Values())
			if err != nil {
				t.Fatal(err)
			}
			if parsed.Last != 7 || !parsed.Since.Equal(noon) || !parsed.Follow {
				t.Errorf("query %+v", parsed)
			}
			match, err := parsed.Filter.compile()
			if err != nil {
				t.Fatal(err)
			}
			if match(l7) != c.l7 || match(l4) != c.l4 {
				t.Errorf("l7 %v, l4 %v", match(l7), match(l4))
			}
		})
	}
	for _, f := range []Filter{{Verdict: []string{"maybe"}}, {Path: "("}, {Name: "("}, {Direction: []string{"up"}}, {Layer: []string{"l3"}}} {
		if _, err := ParseQuery(Query{Filter: f}.Values()); err == nil {
			t.Errorf("%+v is taken", f)
		}
	}
	if _, err := ParseQuery(map[string][]string{"verdcit": {"dropped"}}); err == nil {
		t.Error("an unknown filter is taken")
	}
	if _, err := ParseQuery(map[string][]string{"port": {"70000"}}); err == nil {
		t.Error("port 70000 is taken")
	}
}

func TestPeerText(t *testing.T) {
	at := netip.MustParseAddr("192.0.2.1")
	for want, p := range map[string]Peer{
		"192.0.2.1":                      {Addr: at, Labels: []string{"k8s:app=web"}},
		"192.0.2.1:53 (kube-system/dns)": {Addr: at, Port: 53, Labels: []string{"service:kube-system/dns"}},
		"192.0.2.1 (*.example.test)":     {Addr: at, Labels: []string{"fqdn:*.example.test"}},
		"192.0.2.1 (a.example.test +2)":  {Addr: at, Labels: []string{"fqdn:a.example.test", "fqdn:*.example.test", "fqdn:*"}},
		"192.0.2.1 (world-ipv4)":         {Addr: at, Labels: []string{"cidr:192.0.2.0/24", "reserved:world-ipv4"}},
		"shop/a:1":                       {Addr: at, Port: 1, Namespace: "shop", Pod: "a", Labels: []string{"fqdn:a.example.test"}},
	} {
		if got := p.Text(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestText(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.Local)
	icmp := uint8(8)
	a := Peer{Addr: netip.MustParseAddr("10.0.0.1"), Port: 40000, Namespace: "shop", Pod: "a"}
	b := Peer{Addr: netip.MustParseAddr("10.0.0.2"), Port: 80, Namespace: "shop", Pod: "b"}
	world := Peer{Addr: netip.MustParseAddr("2001:db8::1"), Port: 443, Labels: []string{"reserved:world-ipv6"}}
	for _, c := range []struct {
		r    Record
		want string
	}{
		{Record{Verdict: Forwarded, Source: a, Dest: world, Protocol: "TCP", Reason: "not-enforced", Direction: "egress"},
			"03:04:05.678 FORWARDED  shop/a:40000 -> [2001:db8::1]:443 (world-ipv6) TCP  not-enforced (egress)"},
		{Record{Verdict: Dropped, Source: a, Dest: b, Protocol: "ICMP", ICMPType: &icmp, Reason: "policy-denied", Direction: "ingress", Policies: []string{"NetworkPolicy shop/b"}},
			"03:04:05.678 DROPPED    shop/a:40000 -> shop/b:80 ICMP type 8  policy-denied (ingress)  no rule in NetworkPolicy shop/b"},
		{Record{Verdict: Forwarded, Source: a, Dest: b, Protocol: "TCP", Reason: "http-rule", HTTP: &HTTP{Method: "GET", Host: "b", Path: "/x\x1b[31m?y", Status: 200, Latency: 1234567},
			Rule: &policy.RuleRef{Policy: "CiliumNetworkPolicy shop/b", Rule: "spec.ingress[0]", File: "p.yaml", Line: 7}},
			"03:04:05.678 FORWARDED  shop/a:40000 -> shop/b:80 TCP  GET b/x?[31m?y 200 1.23ms  http-rule  CiliumNetworkPolicy shop/b spec.ingress[0] (p.yaml:7)"},
		{Record{Verdict: Redirected, Source: a, Dest: b, Protocol: "TCP", Reason: "redirected", Direction: "ingress", Policies: []string{"A 1", "A 2", "A 3", "A 4", "A 5"}},
			"03:04:05.678 REDIRECTED shop/a:40000 -> shop/b:80 TCP  redirected (ingress)  no rule in A 1, A 2, A 3 and 2 more"},
		{Record{Verdict: Forwarded, Source: a, Dest: world, Protocol: "UDP", Reason: "dns-rule", Direction: "egress",
			DNS: &DNS{Name: "wWw.example.com", Type: "A", RCode: "NOERROR", Chain: []string{"a.example.net"}, Latency: 340 * time.Microsecond,
				Addresses: []netip.Addr{b.Addr, world.Addr}}},
			"03:04:05.678 FORWARDED  shop/a:40000 -> [2001:db8::1]:443 (world-ipv6) UDP  A wWw.example.com > a.example.net NOERROR 10.0.0.2 2001:db8::1 340µs  dns-rule (egress)"},
		{Record{Verdict: Forwarded, Source: a, Dest: b, Protocol: "TCP", Reason: "dns-rule",
			DNS: &DNS{Name: ".", Type: "NS", Class: "CH", RCode: "NOERROR", Addresses: []netip.Addr{b.Addr, b.Addr, b.Addr, b.Addr, b.Addr, b.Addr}}},
			"03:04:05.678 FORWARDED  shop/a:40000 -> shop/b:80 TCP  CH NS . NOERROR 10.0.0.2 10.0.0.2 10.0.0.2 10.0.0.2 and 2 more  dns-rule"},
		{Record{Verdict: Forwarded, Source: a, Dest: b, Protocol: "UDP", Reason: "dns-server-timeout", DNS: &DNS{Name: "a\x1b[31m", Type: "A"}},
			"03:04:05.678 FORWARDED  shop/a:40000 -> shop/b:80 UDP  A a?[31m no answer  dns-server-timeout"},
		{Record{Verdict: Dropped, Source: a, Dest: b, Protocol: "UDP", Reason: "dns-malformed", DNS: &DNS{}},
			"03:04:05.678 DROPPED    shop/a:40000 -> shop/b:80 UDP  dns-malformed"},
	} {
		c.r.Time = at
		if got := c.r.Text(false); got != c.want {
			t.Errorf("got  %s\nwant %s", got, c.want)
		}
	}
	r := Record{Time: at, Verdict: Dropped, Source: a, Dest: b, Protocol: "TCP", Reason: "x"}
	if want := "03:04:05.678 \x1b[31mDROPPED\x1b[0m    shop/a"; r.Text(true)[:len(want)] != want {
		t.Errorf("with color: %q", r.Text(true))
	}
}
