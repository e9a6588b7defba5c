package test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// questions starts questions of all kinds, and connections to what the answers
// say, none of which may fail.
func (s *story) questions(from *place, servers []netip.Addr) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{stop: cancel}
	s.t.Cleanup(cancel)
	answered := func(rcode, n int, err error) error {
		if err == nil && (rcode != dns.RcodeSuccess || n != 1) {
			err = fmt.Errorf("%s with %d records", dns.RcodeToString[rcode], n)
		}
		return err
	}
	var number atomic.Int64
	for family, server := range servers {
		stays := s.stub(from, "udp", server)
		l.repeat(ctx, "a socket that stays", 3*time.Millisecond, func() error {
			return answered(stays.ask("other.example.test.", dns.TypeA))
		})
		for name, pause := range map[string]time.Duration{"a busy connection": 2 * time.Millisecond, "an idle connection": 300 * time.Millisecond} {
			stays := s.stub(from, "tcp", server)
			l.repeat(ctx, name+" for questions", pause, func() error {
				return answered(stays.ask("other.example.test.", dns.TypeA))
			})
		}
		for _, network := range []string{"udp", "tcp"} {
			l.repeat(ctx, "a new socket, "+network, 5*time.Millisecond, func() error {
				m, err := from.askDNS(context.Background(), network, netip.AddrPortFrom(server, 53), dns.TypeA, "other.example.test.", patience)
				if err != nil {
					return err
				}
				return answered(m.Rcode, len(m.Answer), nil)
			})
		}
		asks := s.stub(from, "udp", server)
		l.repeat(ctx, fmt.Sprintf("a name nobody has asked for, IPv%d", 4+2*family), time.Millisecond, func() error {
			i := int(number.Add(1)) % (1 << 16)
			if err := answered(asks.ask(fmt.Sprintf("n%d.many.test.", i), dns.TypeA)); err != nil {
				return err
			}
			d := net.Dialer{Timeout: 900 * time.Millisecond} // no repeated SYN
			conn, err := from.Dial(context.Background(), &d, "tcp", fmt.Sprintf("198.18.%d.%d:80", i>>8, i&255))
			if err != nil {
				return fmt.Errorf("connect to what was answered: %w", err)
			}
			_ = conn.(*net.TCPConn).SetLinger(0)
			_ = conn.Close()
			return nil
		})
	}
	return l
}

// TestProxyReplacedUnderQuestions replaces the proxy while names are asked for
// and gone to, and kills the agent: no question is lost, what an answer says is
// in force when it comes, and what was learned before is known to the successor.
func TestProxyReplacedUnderQuestions(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/dns.txtar")
	server := s.addResolver()
	s.routeMany()
	s.must("start")
	s.must("wait")
	w := s.nodes[0].Weir()
	client := s.places["shop/client"]
	s.mustAnswer(s.stub(client, "udp", server.Addrs[0]), "api.example.test.", dns.TypeA, dns.RcodeSuccess, 2)
	s.check("shop/client GET outside:80/ family=4 => 200")
	first := w.ProxyPids()
	l := s.questions(client, server.Addrs)
	time.Sleep(500 * time.Millisecond)
	for round := range 3 {
		if _, err := w.Command(t.Context(), "proxy", "replace"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(300 * time.Millisecond)
		if round == 1 {
			w.Agent().Kill()
			time.Sleep(time.Second)
			if err := w.Start(); err != nil {
				t.Fatal(err)
			}
			s.must("wait")
		}
	}
	gone(t, w, first)
	until(t, "the end of the old proxies", func() bool { return len(s.proxies().Replaced) == 0 })
	time.Sleep(500 * time.Millisecond)
	s.stopped(l)
	if err := s.follow(s.nodes[0]); err != nil {
		t.Fatal(err)
	}
	if got := s.names("api.example"); len(got) != 1 || got[0] != "shop/api.example.test 1 of 1 [shop/client]" {
		t.Errorf("weir fqdn lists %q", got)
	}
	s.check("shop/client GET outside:80/ family=4 => 200")
}

// TestPortsOfAnOldProxy: the new proxy asks by ports from which the pod has asked
// the old one, which goes on; the answers are the new one's.
func TestPortsOfAnOldProxy(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/dns.txtar")
	server := s.addResolver()
	s.must("start")
	s.must("wait")
	client, w := s.places["shop/client"], s.nodes[0].Weir()
	first := w.ProxyPids()
	to := netip.AddrPortFrom(server.Addrs[0], 53)
	// Whichever port the new one takes, the pod has asked from it.
	denied, err := new(dns.Msg).SetQuestion("evil.test.", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	pace := s.stub(client, "udp", to.Addr())
	for port := 1024; port < 1<<16; port++ {
		if port%512 == 0 { // no more than its queue takes
			s.mustAnswer(pace, "other.example.test.", dns.TypeA, dns.RcodeSuccess, 1)
		}
		c, err := client.ListenPacket("udp4", fmt.Sprintf(":%d", port))
		if errors.Is(err, unix.EADDRINUSE) {
			continue // that is what paces
		}
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.WriteTo(denied, net.UDPAddrFromAddrPort(to))
		_ = c.Close()
		if err != nil {
			t.Fatal(err)
		}
	}
	// It keeps the old proxy.
	slow := make(chan error, 1)
	answer := sync.OnceFunc(func() { close(server.slow) })
	defer answer()
	go func() {
		_, err := client.askDNS(context.Background(), "udp", to, dns.TypeA, "slow.many.test.", 4*patience)
		slow <- err
	}()
	until(t, "the question", func() bool { return server.whoAsked("slow.many.test.").IsValid() })
	if _, err := w.Command(t.Context(), "proxy", "replace"); err != nil {
		t.Fatal(err)
	}
	s.mustAnswer(s.stub(client, "udp", to.Addr()), "other.example.test.", dns.TypeA, dns.RcodeSuccess, 1)
	if now := w.ProxyPids(); !slices.Contains(now, first[len(first)-1]) {
		t.Errorf("processes %v; the old proxy was %v", now, first)
	}
	answer()
	if err := <-slow; err != nil {
		t.Errorf("the old proxy's question: %v", err)
	}
	gone(t, w, first)
}
