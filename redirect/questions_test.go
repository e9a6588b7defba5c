package redirect

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/weirnet/weir/flow"
	"github.com/weirnet/weir/test/node"
)

// listener is where something can listen: a pod, or the node itself.
type listener interface {
	ListenPacket(network, address string) (net.PacketConn, error)
	Listen(network, address string) (net.Listener, error)
}

// serveDNS answers TXT questions with who asked, for names that begin with "big"
// with 4,000 bytes more.
func serveDNS(t *testing.T, in listener, a netip.Addr) {
	t.Helper()
	answer := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		client := netip.MustParseAddrPort(w.RemoteAddr().String())
		txt := &dns.TXT{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 60}}
		txt.Txt = []string{client.Addr().Unmap().String()}
		for range 16 {
			if strings.HasPrefix(q.Question[0].Name, "big") {
				txt.Txt = append(txt.Txt, strings.Repeat("x", 250))
			}
		}
		m.Answer = []dns.RR{txt}
		_ = w.WriteMsg(m)
	})
	at := netip.AddrPortFrom(a, dnsPort).String()
	pc, err := in.ListenPacket("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := in.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: answer}, {Listener: ln, Handler: answer, MaxTCPQueries: -1}} {
		go func() { _ = s.ActivateAndServe() }()
		t.Cleanup(func() { _ = s.Shutdown() })
	}
}

// question asks from the client, by a new socket.
func (l *lane) question(network string, server netip.AddrPort, name string) (*dns.Msg, error) {
	c, err := l.client.Dial(l.t.Context(), &net.Dialer{Timeout: patience}, network, server.String())
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	q := new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeTXT).SetEdns0(8192, false)
	client := &dns.Client{Net: network, Timeout: patience, UDPSize: 8192}
	m, _, err := client.ExchangeWithConn(q, &dns.Conn{Conn: c, UDPSize: 8192})
	return m, err
}

// said is what the server told of the client, and how much else.
func said(m *dns.Msg) (who string, size int) {
	for _, rr := range m.Answer {
		if txt, ok := rr.(*dns.TXT); ok {
			return txt.Txt[0], len(strings.Join(txt.Txt[1:], ""))
		}
	}
	return "", 0
}

// Questions of real sockets go through the real proxy: to a pod of the node, to
// the node itself, to somebody elsewhere.
func TestQuestionsThroughTheProxy(t *testing.T) {
	for wiring, name := range map[node.Wiring]string{node.Routed: "routed", node.Bridged: "bridged"} {
		t.Run(name, func(t *testing.T) {
			l := openLaneOf(t, wiring)
			elsewhere, err := l.network.AddNode(node.NodeOptions{Name: "b"})
			if err != nil {
				t.Fatal(err)
			}
			far, err := elsewhere.AddPod(node.PodObject("ns", "far"), node.Routed)
			if err != nil {
				t.Fatal(err)
			}
			for i := range l.server.Addrs {
				own := l.node.Addrs()[i]
				for _, s := range []struct {
					name string
					in   listener
					addr netip.Addr
				}{
					{"a pod of the node", l.server, l.server.Addrs[i]},
					{"the node", l.node.Host, own},
					{"elsewhere", far, far.Addrs[i]},
				} {
					serveDNS(t, s.in, s.addr)
					t.Run(fmt.Sprintf("IPv%d/%s", 4+2*i, s.name), func(t *testing.T) {
						l.questions(t, s.addr, l.client.Addrs[i])
					})
				}
			}
			l.manyQuestions(t, netip.AddrPortFrom(l.server.Addrs[0], dnsPort))
			l.whilePolicyMoves(t, l.server.Addrs[0], l.server.Addrs[1], far.Addrs[0], far.Addrs[1])
			if n := l.order("strays"); n != 0 {
				t.Errorf("%d packets of the proxy belonged to no flow", n)
			}
			l.order("leave")
			if m, err := l.question("udp", netip.AddrPortFrom(far.Addrs[0], dnsPort), "alone."+allowedZone); err != nil || len(m.Answer) != 1 {
				t.Errorf("without an agent: %v, %v", m, err)
			}
		})
	}
}

func (l *lane) questions(t *testing.T, server, client netip.Addr) {
	at := netip.AddrPortFrom(server, dnsPort)
	for _, network := range []string{"udp", "tcp"} {
		for _, c := range []struct {
			name string
			size int
		}{{"small." + allowedZone, 0}, {"big." + allowedZone, 4000}} {
			m, err := l.question(network, at, c.name)
			if err != nil {
				t.Errorf("%s %s: %v", network, c.name, err)
				continue
			}
			if who, size := said(m); who != client.String() || size != c.size {
				t.Errorf("%s %s: the server sees %q, the client is %v; %d bytes", network, c.name, who, client, size)
			}
		}
		if m, err := l.question(network, at, "denied.test"); err != nil || m.Rcode != dns.RcodeRefused || len(m.Answer) != 0 {
			t.Errorf("%s: a denied name: %v, %v", network, m, err)
		}
	}
	// The server's own error comes to the proxy, which says so at once.
	start := time.Now()
	if m, err := l.question("udp", netip.AddrPortFrom(server, deadDNSPort), "small."+allowedZone); err != nil || m.Rcode != dns.RcodeServerFailure || time.Since(start) > time.Second {
		t.Errorf("nobody listens: %v, %v after %v", m, err, time.Since(start))
	}
	name := "recorded-" + strings.ReplaceAll(strings.ReplaceAll(server.String(), ".", "-"), ":", "-") + "." + allowedZone
	if _, err := l.question("udp", at, name); err != nil {
		t.Error(err)
	}
	waitFor(t, "the record", patience, func() bool { return len(l.asked(name)) > 0 })
	for _, r := range l.asked(name) {
		if r.Verdict != flow.Forwarded || r.Protocol != "UDP" || r.Source.Addr != client || r.Source.Port == 0 || r.Dest.Addr != server || r.Direction != "egress" {
			t.Errorf("%+v %+v", r, r.DNS)
		}
	}
}

// manyQuestions: each from a port of its own, they are one session.
func (l *lane) manyQuestions(t *testing.T, server netip.AddrPort) {
	t.Helper()
	before := l.order("conns")
	for i := range 200 {
		if m, err := l.question("udp", server, fmt.Sprintf("n%d.%s", i, allowedZone)); err != nil || len(m.Answer) != 1 {
			t.Fatalf("question %d: %v, %v", i, m, err)
		}
	}
	if after := l.order("conns"); after > before+1 {
		t.Errorf("%d entries in conns, %d before", after, before)
	}
}

// whilePolicyMoves: no question is lost by that.
func (l *lane) whilePolicyMoves(t *testing.T, servers ...netip.Addr) {
	t.Helper()
	l.order("move")
	var all sync.WaitGroup
	for _, server := range servers {
		for _, network := range []string{"udp", "tcp"} {
			all.Go(func() {
				c, err := l.client.Dial(t.Context(), &net.Dialer{Timeout: patience}, network, netip.AddrPortFrom(server, dnsPort).String())
				if err != nil {
					t.Error(err)
					return
				}
				defer func() { _ = c.Close() }()
				client := &dns.Client{Net: network, Timeout: patience}
				n := 0
				for start := time.Now(); n < 10 || time.Since(start) < time.Second; n++ {
					// By one socket all along, and by another each time.
					m, _, err := client.ExchangeWithConn(new(dns.Msg).SetQuestion("a."+allowedZone+".", dns.TypeTXT), &dns.Conn{Conn: c})
					if err == nil {
						m, err = l.question(network, netip.AddrPortFrom(server, dnsPort), "b."+allowedZone)
					}
					if err != nil || len(m.Answer) != 1 {
						t.Errorf("%s to %v, question %d: %v, %v", network, server, n, m, err)
						return
					}
				}
			})
		}
	}
	all.Wait()
}

// asked are the records of questions for a name.
func (l *lane) asked(name string) (out []flow.Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.records {
		if r.DNS != nil && strings.TrimSuffix(r.DNS.Name, ".") == name {
			out = append(out, r)
		}
	}
	return out
}
