package test

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// TestOddQuestions: servers that are no pods of a cluster IP: the nodes
// themselves, and a cache on the node's link-local address; another port than
// 53; clients that ask from port 53, or several servers from one socket, or
// everything at once.
func TestOddQuestions(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/dns-own.txtar")
	a := s.nodes[0]
	cache := &place{Netns: a.Host, addrs: []netip.Addr{netip.MustParseAddr("169.254.20.10"), netip.MustParseAddr("fd00:10::10")}}
	for _, addr := range cache.addrs {
		if err := a.Host.AddAddress("lo", addr); err != nil {
			t.Fatal(err)
		}
	}
	o := s.serveOwn(cache)
	o.numbered(300)
	near := s.places["kube-system/dns"]
	for _, at := range []*place{near, s.places["kube-system/far"], s.places["host-a"], s.places["host-b"], s.places["ns"]} {
		s.serveAt(o, at, 53)
	}
	s.serveAt(o, near, 5353)
	s.must("apply odd.yaml")
	s.must("start")
	n := 0
	for _, from := range []string{"shop/web", "shop/web2"} {
		for _, server := range []struct {
			name string
			at   *place
			port uint16
		}{
			{"a cache on the node", cache, 53}, {"the node", s.places["host-a"], 53}, {"another node", s.places["host-b"], 53},
			{"another port", near, 5353},
		} {
			for _, network := range []string{"udp", "tcp"} {
				for family := range 2 {
					what := fmt.Sprintf("%s asks %s by %s, IPv%d", from, server.name, network, 4+2*family)
					to, want := addrPort(server.at, family, server.port), manyAddrs(n)[family]
					m, err := s.places[from].askDNS(t.Context(), network, to, typeOf(family), fmt.Sprintf("n%d.good.test", n), patience)
					if err != nil || !slices.Equal(addresses(m), []netip.Addr{want}) {
						t.Errorf("%s: %v, %v", what, m, err)
					} else {
						s.places[from].open(t, what, want)
					}
					if m, err = s.places[from].askDNS(t.Context(), network, to, typeOf(family), "n1.bad.test", patience); err != nil || m.Rcode != dns.RcodeRefused {
						t.Errorf("%s for what it may not: %v, %v", what, m, err)
					}
					n++
				}
			}
		}
	}

	for _, from := range []string{"shop/web", "shop/web2"} {
		for family := range 2 {
			web := s.places[from]
			for _, network := range []string{"udp", "tcp"} {
				local := netip.AddrPortFrom(web.addrs[family], 53)
				d := &net.Dialer{Timeout: patience, LocalAddr: net.UDPAddrFromAddrPort(local)}
				if network == "tcp" {
					d.LocalAddr = net.TCPAddrFromAddrPort(local)
				}
				c, err := web.Dial(t.Context(), d, network, addrPort(near, family, 53).String())
				if err != nil {
					t.Errorf("%s, %s, IPv%d, from port 53: %v", from, network, 4+2*family, err)
					continue
				}
				m, _, err := (&dns.Client{Net: network, Timeout: patience}).ExchangeWithConnContext(t.Context(),
					new(dns.Msg).SetQuestion("n250.good.test.", typeOf(family)), &dns.Conn{Conn: c})
				if err != nil || len(addresses(m)) != 1 {
					t.Errorf("%s, %s, IPv%d, from port 53: %v, %v", from, network, 4+2*family, m, err)
				}
				c.Close()
			}
			s.severalServers(t, from, family)
			// In fragments.
			q := new(dns.Msg).SetQuestion("n252.good.test.", typeOf(family)).SetEdns0(4096, false)
			q.Extra[0].(*dns.OPT).Option = []dns.EDNS0{&dns.EDNS0_PADDING{Padding: make([]byte, 3500)}}
			c, err := web.DialContext(t.Context(), "udp", addrPort(near, family, 53).String())
			if err != nil {
				t.Fatal(err)
			}
			m, _, err := (&dns.Client{Timeout: patience}).ExchangeWithConnContext(t.Context(), q, &dns.Conn{Conn: c})
			if err != nil || len(addresses(m)) != 1 {
				t.Errorf("%s, IPv%d, a question of 3.5 KB: %v, %v", from, 4+2*family, m, err)
			}
			c.Close()
		}
	}

	var all sync.WaitGroup
	for i := range 200 {
		all.Go(func() {
			at, network := s.places[[]string{"shop/web", "shop/web2"}[i%2]], []string{"udp", "tcp"}[i/2%2]
			m, err := at.askDNS(t.Context(), network, addrPort(near, i/4%2, 53), dns.TypeA, fmt.Sprintf("n%d.good.test", i), patience)
			if err != nil || !slices.Equal(addresses(m), manyAddrs(i)[:1]) {
				t.Errorf("question %d of many: %v, %v", i, m, err)
				return
			}
			at.open(t, "one of many", manyAddrs(i)[0])
		})
	}
	all.Wait()
}

// severalServers asks each of them the same from one socket, as musl does: each
// answers in its own name.
func (s *story) severalServers(t *testing.T, from string, family int) {
	t.Helper()
	web := s.places[from]
	c, err := web.ListenPacket("udp", netip.AddrPortFrom(web.addrs[family], 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	q := new(dns.Msg).SetQuestion("n251.good.test.", typeOf(family))
	b, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	waiting := map[netip.AddrPort]bool{}
	for _, server := range []string{"kube-system/dns", "kube-system/far", "ns", "host-a"} {
		to := addrPort(s.places[server], family, 53)
		waiting[to] = true
		if _, err := c.WriteTo(b, net.UDPAddrFromAddrPort(to)); err != nil {
			t.Fatal(err)
		}
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	for buf := make([]byte, 1500); len(waiting) > 0; {
		n, peer, err := c.ReadFrom(buf)
		if err != nil {
			t.Errorf("%s, IPv%d: no answer from %v: %v", from, 4+2*family, waiting, err)
			return
		}
		m := new(dns.Msg)
		if err := m.Unpack(buf[:n]); err != nil || m.Id != q.Id || !slices.Equal(addresses(m), manyAddrs(251)[family:family+1]) {
			t.Errorf("%s, IPv%d: %v told %v, %v", from, 4+2*family, peer, m, err)
		}
		by := netip.MustParseAddrPort(peer.String())
		delete(waiting, netip.AddrPortFrom(by.Addr().Unmap(), by.Port()))
	}
}
