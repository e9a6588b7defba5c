package test

import (
	"fmt"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// TestDeadServers: a server that is not there is told of at once, one that says
// nothing costs only who asked it, and a pod's second resolver helps.
func TestDeadServers(t *testing.T) {
	t.Parallel()
	needRoot(t)
	muslFetch(t)
	s := tell(t, "setups/dns-own.txtar")
	o := s.serveOwn(s.places["kube-system/dns"])
	s.must("world api 198.18.5.1 2001:db8:2:5::1")
	o.name("api", "60", s.places["api"])
	o.on("servfail", func(q *dns.Msg) []*dns.Msg { return []*dns.Msg{new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)} })
	o.on("silence", func(*dns.Msg) []*dns.Msg { return nil })
	s.must("start")
	web, live := s.places["shop/web"], s.places["kube-system/dns"]

	// Nobody listens there.
	for family := range 2 {
		began := time.Now()
		m, err := web.askDNS(t.Context(), "udp", addrPort(s.places["ns"], family, 53), typeOf(family), "api.good.test", patience)
		if err != nil || m.Rcode != dns.RcodeServerFailure || time.Since(began) > time.Second {
			t.Errorf("IPv%d: nobody listens: %v, %v after %v", 4+2*family, m, err, time.Since(began))
		}
		_, err = web.askDNS(t.Context(), "tcp", addrPort(s.places["ns"], family, 53), typeOf(family), "api.good.test", patience)
		if got := outcome(err); got != "reset" && got != "refused" || time.Since(began) > 2*time.Second {
			t.Errorf("IPv%d: nobody listens by TCP: %v after %v", 4+2*family, err, time.Since(began))
		}
	}
	s.check("shop/web resolve kube-system/dns:53/servfail.good.test => SERVFAIL")

	// Nothing comes back, and what else the pod asks does not wait for that.
	if _, err := s.network.Outside.Run(t.Context(), `table inet silence {
	chain input {
		type filter hook input priority filter;
		ip daddr 198.18.0.53 drop
		ip6 daddr 2001:db8:2::53 drop
	}
}`, "nft", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for family := range 2 {
		for _, network := range []string{"udp", "tcp"} {
			for range 20 {
				all.Go(func() {
					m, err := web.askDNS(t.Context(), network, addrPort(s.places["ns"], family, 53), typeOf(family), "api.good.test", 2*time.Second)
					if err == nil {
						t.Errorf("IPv%d, %s: a server that says nothing: %v", 4+2*family, network, m)
					}
				})
			}
		}
	}
	for end := time.Now().Add(time.Second); time.Now().Before(end); {
		for family := range 2 {
			for _, network := range []string{"udp", "tcp"} {
				began := time.Now()
				m, err := web.askDNS(t.Context(), network, addrPort(live, family, 53), typeOf(family), "api.good.test", patience)
				if err != nil || len(addresses(m)) != 1 || time.Since(began) > time.Second {
					t.Fatalf("IPv%d, %s: beside a server that says nothing: %v, %v after %v", 4+2*family, network, m, err, time.Since(began))
				}
			}
		}
	}
	all.Wait()
	if got := s.dig(web, "@"+live.addrs[0].String(), "+time=1", "silence.good.test"); !strings.Contains(got, "timed out") && !strings.Contains(got, "no servers could be reached") {
		t.Errorf("dig: %s", got)
	}
	for client, ask := range clients {
		all.Go(func() {
			conf := fmt.Sprintf("nameserver %s\nnameserver %s\noptions timeout:1 attempts:2\n", s.places["ns"].addrs[0], live.addrs[0])
			if _, err := ask(s, web, conf, "api.good.test"); err != nil {
				t.Errorf("%s, whose first resolver says nothing: %v", client, err)
			}
		})
	}
	all.Wait()
	out, err := s.nodes[0].Weir().Command(t.Context(), "flows", "--last", "-1", "--layer", "l7", "--reason", "dns-server-refused")
	if err != nil || !regexp.MustCompile(`api\.good\.test.*SERVFAIL`).MatchString(out) {
		t.Errorf("flows of a server that is not there: %v\n%s", err, out)
	}
}
