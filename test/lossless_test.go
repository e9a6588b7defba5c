package test

import (
	"context"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// TestNothingIsLost: under questions, requests and plain flows, on connections that
// stay and on new ones, the agent is killed and the proxy is replaced twice, and
// nothing fails.
func TestNothingIsLost(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/lossless.txtar")
	server := s.addResolver()
	s.routeMany()
	s.must("start")
	s.must("wait")
	w := s.nodes[0].Weir()
	first := w.ProxyPids()
	loads := []*load{s.questions(s.places["shop/client"], server.Addrs), s.questions(s.places["shop/client2"], server.Addrs), s.allow()}
	attempts, reached := s.unchecked()
	time.Sleep(time.Second)
	w.Agent().Kill()
	time.Sleep(500 * time.Millisecond)
	if err := w.Start(); err != nil {
		t.Fatal(err)
	}
	s.must("wait")
	for range 2 {
		if _, err := w.Command(t.Context(), "proxy", "replace"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
	}
	gone(t, w, first)
	until(t, "the end of the old proxies", func() bool { return len(s.proxies().Replaced) == 0 })
	time.Sleep(500 * time.Millisecond)
	for _, l := range loads {
		s.stopped(l)
	}
	attempts.end()
	if n := reached(); n != 0 {
		t.Errorf("%d flows passed that no rule allows", n)
	}
}

// TestAnswerAfterReplacement: what a proxy learns from an answer that comes when it
// has a successor is known there, for as long as the answer says.
func TestAnswerAfterReplacement(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/dns.txtar")
	server := s.addResolver()
	s.routeMany()
	s.must("start")
	s.must("wait")
	w := s.nodes[0].Weir()
	first := w.ProxyPids()
	client := s.places["shop/client"]
	done := make(chan struct{})
	answer := sync.OnceFunc(func() { close(server.slow) })
	defer func() { answer(); <-done }()
	go func() {
		defer close(done)
		to := netip.AddrPortFrom(server.Addrs[0], 53)
		m, err := client.askDNS(context.Background(), "udp", to, dns.TypeA, "slow.many.test.", 4*patience)
		if err != nil || m.Rcode != dns.RcodeSuccess || len(m.Answer) != 1 {
			t.Errorf("%v, %v", m, err)
		}
	}()
	until(t, "the question", func() bool { return server.whoAsked("slow.many.test.").IsValid() })
	if _, err := w.Command(t.Context(), "proxy", "replace"); err != nil {
		t.Fatal(err)
	}
	if got := s.names("slow.many"); len(got) != 0 {
		t.Fatalf("before the answer weir fqdn lists %q", got)
	}
	answer()
	<-done
	gone(t, w, first)
	if got := s.names("slow.many"); len(got) != 1 || got[0] != "shop/slow.many.test 1 of 1 [shop/client]" {
		t.Errorf("weir fqdn lists %q", got)
	}
}
