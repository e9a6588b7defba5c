package test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// lie is an answer of a hostile server: it may have good, and must not have
// evil opened. What it sends comes in the order it is returned.
type lie struct {
	name string
	// opens: the question is answered in the end, and good is open then.
	opens bool
	udp   bool // by TCP the connection would end
	tell  func(q *dns.Msg, good, evil netip.Addr) []*dns.Msg
}

var lies = []lie{
	{"wrong-id", true, true, func(q *dns.Msg, good, evil netip.Addr) []*dns.Msg {
		forged := reply(q, addrRR(q.Question[0].Name, "60", evil))
		forged.Id ^= 1
		return []*dns.Msg{forged, reply(q, addrRR(q.Question[0].Name, "60", good))}
	}},
	{"wrong-question", true, true, func(q *dns.Msg, good, evil netip.Addr) []*dns.Msg {
		forged := reply(q, addrRR("another.good.test", "60", evil))
		forged.Question[0].Name = "another.good.test."
		return []*dns.Msg{forged, reply(q, addrRR(q.Question[0].Name, "60", good))}
	}},
	{"wrong-type", true, true, func(q *dns.Msg, good, evil netip.Addr) []*dns.Msg {
		forged := reply(q, addrRR(q.Question[0].Name, "60", evil))
		forged.Question[0].Qtype = dns.TypeTXT
		return []*dns.Msg{forged, reply(q, addrRR(q.Question[0].Name, "60", good))}
	}},
	{"no-question", true, true, func(q *dns.Msg, good, evil netip.Addr) []*dns.Msg {
		forged := reply(q, addrRR(q.Question[0].Name, "60", evil))
		forged.Question = nil
		return []*dns.Msg{forged, reply(q, addrRR(q.Question[0].Name, "60", good))}
	}},
	{"a-question", true, true, func(q *dns.Msg, good, evil netip.Addr) []*dns.Msg {
		forged := reply(q, addrRR(q.Question[0].Name, "60", evil))
		forged.Response = false
		return []*dns.Msg{forged, reply(q, addrRR(q.Question[0].Name, "60", good))}
	}},
	{"twice", true, true, func(q *dns.Msg, good, evil netip.Addr) []*dns.Msg {
		return []*dns.Msg{reply(q, addrRR(q.Question[0].Name, "60", good)), reply(q, addrRR(q.Question[0].Name, "60", evil))}
	}},
	{"another-owner", true, false, func(q *dns.Msg, good, evil netip.Addr) []*dns.Msg {
		return []*dns.Msg{reply(q, addrRR("another.good.test", "60", evil), addrRR(q.Question[0].Name, "60", good))}
	}},
	{"additional", true, false, func(q *dns.Msg, good, evil netip.Addr) []*dns.Msg {
		m := reply(q, addrRR(q.Question[0].Name, "60", good))
		m.Ns = []dns.RR{addrRR(q.Question[0].Name, "60", evil)}
		m.Extra = []dns.RR{addrRR(q.Question[0].Name, "60", evil), addrRR("another.good.test", "60", evil)}
		return []*dns.Msg{m}
	}},
	{"chain-from-elsewhere", true, false, func(q *dns.Msg, good, evil netip.Addr) []*dns.Msg {
		return []*dns.Msg{reply(q,
			rr("start.good.test. 60 CNAME another.good.test."), addrRR("another.good.test", "60", evil), addrRR(q.Question[0].Name, "60", good))}
	}},
	{"chain-backwards", false, false, func(q *dns.Msg, _, evil netip.Addr) []*dns.Msg {
		return []*dns.Msg{reply(q, rr("another.good.test. 60 CNAME "+q.Question[0].Name), addrRR("another.good.test", "60", evil))}
	}},
	{"chain-in-a-circle", false, false, func(q *dns.Msg, _, evil netip.Addr) []*dns.Msg {
		name := q.Question[0].Name
		return []*dns.Msg{reply(q, rr(name+" 60 CNAME b.good.test."), rr("b.good.test. 60 CNAME "+name), addrRR("c.good.test", "60", evil))}
	}},
	{"another-class", true, false, func(q *dns.Msg, good, evil netip.Addr) []*dns.Msg {
		chaos := addrRR(q.Question[0].Name, "60", evil)
		chaos.Header().Class = dns.ClassCHAOS
		return []*dns.Msg{reply(q, chaos, addrRR(q.Question[0].Name, "60", good))}
	}},
	{"no-such-name", false, false, func(q *dns.Msg, _, evil netip.Addr) []*dns.Msg {
		m := reply(q, addrRR(q.Question[0].Name, "60", evil))
		m.Rcode = dns.RcodeNameError
		return []*dns.Msg{m}
	}},
}

// TestLies: whatever a server answers, only what it says of the asked name, and
// of names that one is an alias of, opens an address; and the true answer comes
// through.
func TestLies(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/dns-own.txtar")
	o := s.serveOwn(s.places["kube-system/dns"])
	s.must("start")
	web := s.places["shop/web"]
	good := func(i, family int) netip.Addr {
		return netip.MustParseAddr([]string{fmt.Sprintf("198.18.7.%d", i+1), fmt.Sprintf("2001:db8:2:7::%x", i+1)}[family])
	}
	evil := func(i, family int) netip.Addr {
		return netip.MustParseAddr([]string{fmt.Sprintf("198.18.66.%d", i+1), fmt.Sprintf("2001:db8:2:66::%x", i+1)}[family])
	}
	var all sync.WaitGroup
	for j, network := range []string{"udp", "tcp"} {
		for k, l := range lies {
			if l.udp && network == "tcp" {
				continue
			}
			i := j*len(lies) + k
			o.on(l.name+"-"+network, func(q *dns.Msg) []*dns.Msg {
				family := 0
				if q.Question[0].Qtype == dns.TypeAAAA {
					family = 1
				}
				return l.tell(q, good(i, family), evil(i, family))
			})
			for family := range 2 {
				all.Go(func() {
					what := fmt.Sprintf("%s, %s, IPv%d", l.name, network, 4+2*family)
					server := addrPort(s.places["kube-system/dns"], family, 53)
					m, err := web.askDNS(t.Context(), network, server, typeOf(family), l.name+"-"+network+".good.test", patience)
					if err != nil {
						t.Errorf("%s: %v", what, err)
						return
					}
					if found := addresses(m); l.udp && !slices.Equal(found, []netip.Addr{good(i, family)}) {
						t.Errorf("%s: the client was told %v", what, found)
					}
					if l.opens {
						web.open(t, what, good(i, family))
					}
					web.closed(t, what, evil(i, family))
				})
			}
		}
	}
	all.Wait()
}

// TestAddressesNobodyCanClaim: a name that is allowed stands for a pod, a node,
// the pod itself, or what only this network has: it opens nothing.
func TestAddressesNobodyCanClaim(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/dns-own.txtar")
	o := s.serveOwn(s.places["kube-system/dns"])
	s.must("start")
	web, open := s.places["shop/web"], netip.MustParseAddr("198.18.7.7")
	claimed := []netip.Addr{
		netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("255.255.255.255"), netip.MustParseAddr("224.0.0.1"),
		netip.MustParseAddr("169.254.169.254"), netip.MustParseAddr("::1"), netip.MustParseAddr("::"), netip.MustParseAddr("ff02::1"),
		netip.MustParseAddr("fe80::1"), netip.MustParseAddr("::ffff:198.18.66.99"), open,
	}
	for _, at := range []string{"shop/other", "kube-system/far", "host-a", "host-b"} {
		claimed = append(claimed, s.places[at].addrs...)
	}
	o.on("claims", func(q *dns.Msg) []*dns.Msg {
		m := reply(q)
		for _, a := range claimed {
			name := q.Question[0].Name
			switch {
			case a.Is4In6(): // as a record of IPv6
				m.Answer = append(m.Answer, &dns.AAAA{
					Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeAAAA, Class: dns.ClassINET, Ttl: 60}, AAAA: a.AsSlice(),
				})
			default:
				m.Answer = append(m.Answer, addrRR(name, "60", a))
			}
		}
		return []*dns.Msg{m}
	})
	for family := range 2 {
		m, err := web.askDNS(t.Context(), "udp", addrPort(s.places["kube-system/dns"], family, 53), typeOf(family), "claims.good.test", patience)
		if err != nil || len(m.Answer) != len(claimed) {
			t.Fatalf("%v, %v", m, err)
		}
	}
	web.open(t, "beside what nobody can claim", open)
	web.closed(t, "mapped", netip.MustParseAddr("198.18.66.99"))
	s.noExplain = true // it is not asked who may claim what
	for _, line := range []string{
		"shop/web GET shop/other:80/ => dropped reason=policy-denied",
		"shop/web GET kube-system/far:80/ => dropped reason=policy-denied",
		"shop/web GET host-a:80/ => dropped reason=policy-denied",
		"shop/web GET host-b:80/ => dropped reason=policy-denied",
		"shop/web GET metadata:80/ family=4 => dropped reason=policy-denied",
	} {
		s.check(line)
	}
	// Those that could never be an outside peer are not even kept.
	if got, want := s.names("claims.good"), []string{"shop/claims.good.test 9 of 9 [shop/web]"}; !slices.Equal(got, want) {
		t.Errorf("weir fqdn lists %q, not %q", got, want)
	}
}

// TestForgedAnswers: who knows all of a pod's question and can use the server's
// address, but does not sit between the two, can't answer it.
func TestForgedAnswers(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/dns-own.txtar")
	dnsAt, forger := s.places["kube-system/dns"], s.places["host-b"]
	o := s.serveOwn(dnsAt)
	s.must("start")
	for _, from := range []string{"shop/web", "shop/web2", "shop/free", "shop/free2"} {
		web := s.places[from]
		for family := range 2 {
			good := netip.MustParseAddr([]string{"198.18.7.8", "2001:db8:2:7::8"}[family])
			evil := netip.MustParseAddr([]string{"198.18.66.8", "2001:db8:2:66::8"}[family])
			server := addrPort(dnsAt, family, 53)
			c, err := web.DialContext(t.Context(), "udp", server.String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			client := netip.MustParseAddrPort(c.LocalAddr().String())
			q := new(dns.Msg).SetQuestion("forged.good.test.", typeOf(family))
			o.on("forged", func(asked *dns.Msg) []*dns.Msg {
				// While it is open: answers to the pod's own port and id, from the
				// server's address, from another port of it, and from the forger's own; and
				// to the id that the server was asked with.
				for _, id := range []uint16{q.Id, asked.Id} {
					m := reply(q, addrRR("forged.good.test", "60", evil))
					m.Id = id
					b, err := m.Pack()
					if err != nil {
						panic(err)
					}
					for _, as := range []netip.AddrPort{
						server, netip.AddrPortFrom(server.Addr(), 5353), addrPort(forger, family, 53),
					} {
						if err := forger.sendAs(as, client, b); err != nil {
							t.Errorf("send as %s: %v", as, err)
						}
					}
				}
				time.Sleep(100 * time.Millisecond)
				return []*dns.Msg{reply(asked, addrRR("forged.good.test", "60", good))}
			})
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			m, _, err := (&dns.Client{Net: "udp", Timeout: patience}).ExchangeWithConnContext(ctx, q, &dns.Conn{Conn: c})
			cancel()
			if strings.HasPrefix(from, "shop/free") { // whom nobody guards
				if err != nil || !slices.Equal(addresses(m), []netip.Addr{evil}) {
					t.Errorf("%s, IPv%d: what is forged does not even arrive without Weir: %v, %v", from, 4+2*family, m, err)
				}
				continue
			}
			if err != nil || !slices.Equal(addresses(m), []netip.Addr{good}) {
				t.Errorf("%s, IPv%d: told %v, %v", from, 4+2*family, m, err)
			}
			web.open(t, "the true answer", good)
			web.closed(t, "the forged answer", evil)
		}
	}
}
