package test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/test/node"
)

// ownServer is a server of names that answers as a test wants it: by its first
// label.
type ownServer struct {
	mu      sync.Mutex
	answers map[string]func(q *dns.Msg) []*dns.Msg
}

// serveOwn starts one at a place, for UDP and TCP.
func (s *story) serveOwn(at *place) *ownServer {
	s.t.Helper()
	o := &ownServer{answers: map[string]func(*dns.Msg) []*dns.Msg{}}
	s.serveAt(o, at, 53)
	return o
}

// serveAt has it listen at one more place.
func (s *story) serveAt(o *ownServer, at *place, port uint16) {
	s.t.Helper()
	for _, a := range at.addrs {
		pc, err := at.ListenPacket("udp", node.To(a, port))
		if err != nil {
			s.t.Fatal(err)
		}
		ln, err := at.Listen("tcp", node.To(a, port))
		if err != nil {
			s.t.Fatal(err)
		}
		for _, server := range []*dns.Server{{PacketConn: pc, Handler: o, UDPSize: 8192}, {Listener: ln, Handler: o, MaxTCPQueries: -1}} {
			go func() { _ = server.ActivateAndServe() }()
			s.t.Cleanup(func() { _ = server.Shutdown() })
		}
	}
}

// on has questions for label.anything answered by these messages, one after the
// other.
func (o *ownServer) on(label string, answer func(q *dns.Msg) []*dns.Msg) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.answers[label] = answer
}

// ServeDNS implements dns.Handler.
func (o *ownServer) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	label, _, _ := strings.Cut(strings.ToLower(q.Question[0].Name), ".")
	o.mu.Lock()
	answer := o.answers[label]
	o.mu.Unlock()
	if answer == nil {
		_ = w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeNameError))
		return
	}
	for _, m := range answer(q) {
		_ = w.WriteMsg(m)
	}
}

// reply answers a question with records.
func reply(q *dns.Msg, records ...dns.RR) *dns.Msg {
	m := new(dns.Msg).SetReply(q)
	m.Answer = records
	return m
}

// addrRR is the record of an address.
func addrRR(name string, ttl string, a netip.Addr) dns.RR {
	kind := "A"
	if a.Is6() {
		kind = "AAAA"
	}
	return rr(dns.Fqdn(name) + " " + ttl + " IN " + kind + " " + a.String())
}

// typeOf is the type of question for a family.
func typeOf(family int) uint16 { return []uint16{dns.TypeA, dns.TypeAAAA}[family] }

// closed fails the test if an address can be connected to.
func (p *place) closed(t *testing.T, what string, a netip.Addr) {
	t.Helper()
	if got := outcome(p.connects(a, 80, silence)); got != "dropped" {
		t.Errorf("%s: a connection to %s: %s, not dropped", what, a, got)
	}
}

// open fails it if not.
func (p *place) open(t *testing.T, what string, a netip.Addr) {
	t.Helper()
	if err := p.connects(a, 80, patience); err != nil {
		t.Errorf("%s: a connection to %s: %v", what, a, err)
	}
}

// sendAs sends a datagram from an address and port that need not be the
// sender's.
func (p *place) sendAs(from, to netip.AddrPort, b []byte) error {
	network, level, option := "udp4", unix.SOL_IP, unix.IP_TRANSPARENT
	if to.Addr().Is6() {
		network, level, option = "udp6", unix.SOL_IPV6, unix.IPV6_TRANSPARENT
	}
	return p.Do(func() error {
		l := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
			var err error
			return errors.Join(c.Control(func(fd uintptr) {
				// Another one may be sending from there at this moment.
				err = errors.Join(unix.SetsockoptInt(int(fd), level, option, 1),
					unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
			}), err)
		}}
		c, err := l.ListenPacket(context.Background(), network, from.String())
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.WriteTo(b, net.UDPAddrFromAddrPort(to))
		return err
	})
}
