package test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// numbered has n0, n1 and so on answered by addresses of their own.
func (o *ownServer) numbered(n int) {
	for i := range n {
		o.on(fmt.Sprintf("n%d", i), func(q *dns.Msg) []*dns.Msg {
			family := 0
			if q.Question[0].Qtype == dns.TypeAAAA {
				family = 1
			}
			return []*dns.Msg{reply(q, addrRR(q.Question[0].Name, "600", manyAddrs(i)[family]))}
		})
	}
}

// askAndConnect asks for names that nobody asked for, and connects at once; no
// records are needed.
func (s *story) askAndConnect(when string, from, to int) {
	s.t.Helper()
	for i := from; i < to; i++ {
		at, network := s.places[[]string{"shop/web", "shop/web2"}[i%2]], []string{"udp", "tcp"}[i/2%2]
		for family := range 2 {
			m, err := at.askDNS(s.t.Context(), network, addrPort(s.places["kube-system/dns"], family, 53), typeOf(family), fmt.Sprintf("n%d.good.test", i), patience)
			if err != nil || !slices.Equal(addresses(m), []netip.Addr{manyAddrs(i)[family]}) {
				s.t.Errorf("%s: name %d, %s, IPv%d: %v, %v", when, i, network, 4+2*family, m, err)
				continue
			}
			at.open(s.t, when, manyAddrs(i)[family])
		}
	}
}

// TestNamesWithoutAgent: the agent is killed, and names go on being judged and
// learned; what only an agent can do waits for the next one, which adopts all
// of it.
func TestNamesWithoutAgent(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/dns-own.txtar")
	o := s.serveOwn(s.places["kube-system/dns"])
	o.numbered(60)
	s.must("world chained 198.18.5.1 2001:db8:2:5::1")
	s.must("world chained2 198.18.5.2 2001:db8:2:5::2")
	chain := func(at string) func(*dns.Msg) []*dns.Msg {
		return func(q *dns.Msg) []*dns.Msg {
			return []*dns.Msg{reply(q, rr(q.Question[0].Name+" 600 CNAME "+at+".good.test."), addrRR(at+".good.test", "600", s.places[at].addrs[0]))}
		}
	}
	server, web := addrPort(s.places["kube-system/dns"], 0, 53), s.places["shop/web"]
	s.must("start")
	w := s.nodes[0].Weir()
	proxy := w.ProxyPids()
	s.askAndConnect("at first", 0, 10)

	// A combination of selectors that nobody could foresee.
	asked := func(name string) {
		began := time.Now()
		m, err := web.askDNS(t.Context(), "udp", server, dns.TypeA, name, patience)
		if err != nil || len(addresses(m)) != 1 || time.Since(began) > 2*time.Second {
			t.Errorf("%s: %v, %v after %v", name, m, err, time.Since(began))
		}
	}
	o.on("share", chain("chained"))
	asked("share.short.test")
	for _, port := range []uint16{80, 5432} {
		if err := web.connects(s.places["chained"].addrs[0], port, patience); err != nil {
			t.Errorf("a chain with names of two rules, port %d: %v", port, err)
		}
	}

	w.Agent().Kill()
	s.askAndConnect("without an agent", 10, 40)
	web.closed(t, "without an agent, not asked for", manyAddrs(59)[0])
	if m, err := web.askDNS(t.Context(), "udp", server, dns.TypeA, "not.allowed", patience); err != nil || m.Rcode != dns.RcodeRefused {
		t.Errorf("without an agent, a denied question: %v, %v", m, err)
	}
	o.on("stay", chain("chained2"))
	asked("stay.long.test")
	open := 0
	for _, port := range []uint16{80, 7000} {
		if outcome(web.connects(s.places["chained2"].addrs[0], port, silence)) == "ok" {
			open++
		}
	}
	if open != 1 {
		t.Errorf("without an agent, a chain with names of two rules: %d of 2 ports are open, not that of one rule", open)
	}

	if err := w.Start(); err != nil {
		t.Fatal(err)
	}
	s.must("wait")
	if now := w.ProxyPids(); !slices.Equal(now, proxy) {
		t.Errorf("the proxy is %v, was %v", now, proxy)
	}
	if err := s.follow(s.nodes[0]); err != nil {
		t.Fatal(err)
	}
	if got := s.names("n39.good"); !slices.Equal(got, []string{"shop/n39.good.test 2 of 2 [shop/web2]"}) {
		t.Errorf("weir fqdn lists %q", got)
	}
	s.askAndConnect("with the next agent", 40, 50)
	until(t, "the chain is known by all its names", func() bool {
		return web.connects(s.places["chained2"].addrs[0], 80, silence) == nil && web.connects(s.places["chained2"].addrs[0], 7000, silence) == nil
	})
}

// TestNamesWithoutProxy: the proxy is killed, and what was learned stays open,
// also what it had no time to write down; the next one goes on.
func TestNamesWithoutProxy(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/dns-own.txtar")
	o := s.serveOwn(s.places["kube-system/dns"])
	o.numbered(60)
	s.must("start")
	w := s.nodes[0].Weir()
	s.askAndConnect("at first", 0, 10)
	live := s.connectPair(s.places["shop/web"], &place{Netns: s.network.Outside, addrs: manyAddrs(0)}, 0, 7001)
	time.Sleep(1500 * time.Millisecond) // it is written down
	known := func(when string, n int) {
		t.Helper()
		for i := range n {
			for family := range 2 {
				s.places[[]string{"shop/web", "shop/web2"}[i%2]].open(t, when, manyAddrs(i)[family])
			}
		}
		if err := live.both(patience); err != nil {
			t.Errorf("%s: an open connection: %v", when, err)
		}
	}
	next := 10
	for _, victim := range []string{"worker", "supervisor and worker"} {
		pids := w.ProxyPids()
		if victim == "worker" {
			pids = pids[len(pids)-1:]
		}
		s.askAndConnect("just before", next, next+5)
		next += 5
		for _, pid := range pids {
			kill(pid)
		}
		killed := time.Now()
		known("without a proxy", next)
		until(t, "questions are answered again", func() bool {
			_, err := s.places["shop/web"].askDNS(t.Context(), "udp", addrPort(s.places["kube-system/dns"], 0, 53), dns.TypeA, "n0.good.test", 100*time.Millisecond)
			return err == nil
		})
		if back := time.Since(killed); back > 3*time.Second {
			t.Errorf("%s: questions are answered again after %v", victim, back)
		} else {
			t.Logf("%s: back after %v", victim, back)
		}
		known("with the next proxy", next)
		s.askAndConnect("with the next proxy", next, next+5)
		next += 5
		s.places["shop/web"].closed(t, "not asked for", manyAddrs(59)[0])
		if got := s.names("n3.good"); !slices.Equal(got, []string{"shop/n3.good.test 2 of 2 [shop/web2]"}) {
			t.Errorf("%s: weir fqdn lists %q", victim, got)
		}
	}
}

var (
	perfLost  = regexp.MustCompile(`Queries lost:\s+0 `)
	perfCodes = regexp.MustCompile(`Response codes:\s+NOERROR \d+ \(100\.00%\)\n`)
	perfSent  = regexp.MustCompile(`Queries completed:\s+\d{4,} \(100\.00%\)`)
)

// TestNoQuestionIsLost: agents are killed under load by dnsperf.
func TestNoQuestionIsLost(t *testing.T) {
	t.Parallel()
	needRoot(t)
	need(t, "dnsperf")
	s := tell(t, "setups/resolvers.txtar")
	s.must("start")
	w := s.nodes[1].Weir()
	var questions strings.Builder
	for i := range 400 {
		fmt.Fprintf(&questions, "n%d.many.test %s\n", i, []string{"A", "AAAA"}[i%2])
	}
	file := filepath.Join(t.TempDir(), "questions")
	if err := os.WriteFile(file, []byte(questions.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var all sync.WaitGroup
	for i, network := range []string{"udp", "tcp", "udp", "tcp"} {
		from := []string{"shop/web", "shop/web2"}[i/2]
		server := []string{"ns", "kube-system/near"}[i/2]
		all.Go(func() {
			out, err := s.places[from].Run(ctx, "", "dnsperf", "-s", s.places[server].addrs[i/2].String(), "-d", file,
				"-m", network, "-c", "4", "-l", "6", "-Q", "400", "-t", "5")
			if err != nil || !perfLost.MatchString(out) || !perfCodes.MatchString(out) || !perfSent.MatchString(out) {
				t.Errorf("%s asks %s by %s: %v\n%s", from, server, network, err, out)
			}
		})
	}
	for range 2 {
		time.Sleep(1200 * time.Millisecond)
		w.Agent().Kill()
		time.Sleep(500 * time.Millisecond)
		if err := w.Start(); err != nil {
			t.Fatal(err)
		}
		if err := w.Wait(ctx); err != nil {
			t.Fatal(err)
		}
	}
	all.Wait()
	if err := s.follow(s.nodes[1]); err != nil {
		t.Fatal(err)
	}
	s.check("shop/web GET outside:80/ => dropped")
}
