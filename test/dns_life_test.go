package test

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/weirnet/weir/flow"
)

// name has a name answered by the addresses of a place.
func (o *ownServer) name(label, ttl string, at *place) {
	o.on(label, func(q *dns.Msg) []*dns.Msg {
		family := 0
		if q.Question[0].Qtype == dns.TypeAAAA {
			family = 1
		}
		return []*dns.Msg{reply(q, addrRR(q.Question[0].Name, ttl, at.addrs[family]))}
	})
}

// ask asks for both addresses of a name.
func (s *story) ask(from, server, name string) {
	s.t.Helper()
	s.check(fmt.Sprintf("%s resolve %s:53/%s => NOERROR", from, server, name))
}

// forgotten waits until no name is listed that holds a text.
func (s *story) forgotten(t *testing.T, match string) {
	t.Helper()
	until(t, match+" is forgotten", func() bool { return len(s.names(match)) == 0 })
}

// TestTimesToLive: an answer opens an address at once, whatever its time to live
// is; then as long as that, and as long as a connection lives; then not without
// asking again. Of an address with two names one may go.
func TestTimesToLive(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/dns-own.txtar", "--fqdn-min-ttl=1s")
	o := s.serveOwn(s.places["kube-system/dns"])
	s.must("world zero 198.18.5.1 2001:db8:2:5::1")
	s.must("world one 198.18.5.2 2001:db8:2:5::2")
	s.must("world both 198.18.5.3 2001:db8:2:5::3")
	o.name("zero", "0", s.places["zero"])
	o.name("one", "1", s.places["one"])
	o.name("share", "1", s.places["both"])
	o.name("stay", "600", s.places["both"])
	s.must("start")
	web := s.places["shop/web"]
	s.noExplain = true // it knows no time

	s.ask("shop/web", "kube-system/dns", "zero.good.test")
	live := s.connectPair(web, s.places["zero"], 0, 7001)
	s.ask("shop/web", "kube-system/dns", "share.short.test")
	s.ask("shop/web", "kube-system/dns", "stay.long.test")
	s.ask("shop/web", "kube-system/dns", "one.good.test")

	s.forgotten(t, "one.good")
	for family := range 2 {
		web.closed(t, "its time is over", s.places["one"].addrs[family])
	}
	s.ask("shop/web", "kube-system/dns", "one.good.test")
	for family := range 2 {
		web.open(t, "asked again", s.places["one"].addrs[family])
	}
	s.forgotten(t, "share.short")
	s.check("shop/web tcp both:5432 => dropped reason=policy-denied")
	s.check("shop/web tcp both:7000 => ok")

	if err := live.both(patience); err != nil {
		t.Errorf("an open connection after the time of its name: %v", err)
	}
	if got, want := s.names("zero.good"), []string{"shop/zero.good.test 1 of 1 [shop/web]"}; !slices.Equal(got, want) {
		t.Errorf("weir fqdn lists %q, not %q", got, want)
	}
	web.closed(t, "nobody uses it", s.places["zero"].addrs[1])
}

// TestRotation: a name has other addresses each time; clients connect at once to
// those they were given.
func TestRotation(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/dns-own.txtar")
	o := s.serveOwn(s.places["kube-system/dns"])
	var mu sync.Mutex
	next := 0
	o.on("edge", func(q *dns.Msg) []*dns.Msg {
		mu.Lock()
		defer mu.Unlock()
		m := reply(q, rr(q.Question[0].Name+" 300 CNAME edge.provider.test."), rr("edge.provider.test. 60 CNAME e7.provider.test."))
		for range 4 {
			next = (next + 1) % 1000
			a := netip.AddrFrom4([4]byte{198, 18, byte(20 + next/250), byte(1 + next%250)})
			if q.Question[0].Qtype == dns.TypeAAAA {
				a = netip.MustParseAddr(fmt.Sprintf("2001:db8:2:14::%x", next))
			}
			m.Answer = append(m.Answer, addrRR("e7.provider.test", "0", a))
		}
		return []*dns.Msg{m}
	})
	s.must("start")
	var all sync.WaitGroup
	for _, from := range []string{"shop/web", "shop/web2"} {
		for family := range 2 {
			for _, network := range []string{"udp", "tcp"} {
				all.Go(func() {
					for range 50 {
						m, err := s.places[from].askDNS(t.Context(), network, addrPort(s.places["kube-system/dns"], family, 53), typeOf(family), "edge.good.test", patience)
						if err != nil || len(addresses(m)) != 4 {
							t.Errorf("%v, %v", m, err)
							return
						}
						for _, a := range addresses(m) {
							s.places[from].open(t, "an address just given", a)
						}
					}
				})
			}
		}
	}
	all.Wait()
	if got := s.names("edge."); len(got) != 2 {
		t.Errorf("weir fqdn lists %q", got)
	}
}

// TestNamesFollowPolicy: a selector goes, comes again and gets rules for
// requests while connections live.
func TestNamesFollowPolicy(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/dns-own.txtar")
	o := s.serveOwn(s.places["kube-system/dns"])
	s.must("world api 198.18.5.1 2001:db8:2:5::1")
	o.name("api", "0", s.places["api"])
	s.must("start")
	web, api := s.places["shop/web"], s.places["api"]
	s.ask("shop/web", "kube-system/dns", "api.good.test")
	var live [2]pair
	for family := range 2 {
		live[family] = s.connectPair(web, api, family, 7001)
	}
	s.check("shop/web GET api:80/v1 => 200")

	s.must("apply web-other.yaml as=web.yaml")
	s.must("wait")
	s.check("shop/web GET api:80/v1 => dropped reason=policy-denied")
	for family, p := range live {
		if err := say(p.client, p.server, silence); outcome(err) != "dropped" {
			t.Errorf("IPv%d: a connection to a name that no rule selects any more: %v", 4+2*family, err)
		}
		if _, err := s.awaitRecord(func(r flow.Record) bool {
			return r.Verdict == flow.Dropped && r.Dest.Addr == api.addrs[family] && r.Dest.Port == 7001
		}); err != nil {
			t.Errorf("IPv%d: the revocation: %v", 4+2*family, err)
		}
	}
	s.must("apply web.yaml")
	s.must("wait")
	s.check("shop/web GET api:80/v1 => 200") // what was learned is known still
	for family, p := range live {
		if err := p.server.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 64)
		if _, err := p.server.Read(buf); err != nil { // what was dropped is sent again
			t.Errorf("IPv%d: the connection did not come back: %v", 4+2*family, err)
		}
	}
	s.must("apply web-http.yaml as=web.yaml")
	s.must("wait")
	s.check("shop/web GET api:80/v1 => 200 layer=L7")
	s.check("shop/web GET api:80/v2 => 403")
	for family, p := range live { // its beginning can't be read any more
		if err := p.both(patience); err == nil || outcome(err) == "dropped" {
			t.Errorf("IPv%d: a connection whose rule looks inside now: %v, not reset", 4+2*family, err)
		}
	}
	s.must("remove web.yaml")
	s.must("wait")
	s.check("shop/web GET api:8080/ => 200")
	s.must("apply web.yaml")
	s.must("wait")
	s.check("shop/web GET api:80/v2 => 200")
	s.check("shop/web GET api:8080/ => dropped")
}
