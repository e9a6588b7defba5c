package test

import (
	"context"
	"errors"
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

// resolver is the cluster's DNS server, a pod.
type resolver struct {
	*node.Pod
	mu    sync.Mutex
	asked map[string]netip.Addr // by name: who asked last
	slow  chan struct{}         // closed when names that begin with "slow" are answered
}

// addResolver makes the pod kube-system/dns with a server in it. Names below
// example.test stand for the outside, nN.many.test for an address of their own.
func (s *story) addResolver() *resolver {
	s.t.Helper()
	n := s.nodes[0]
	p, err := n.AddPod(node.PodObject("kube-system", "dns", "k8s-app=kube-dns"), node.Routed)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := errors.Join(s.objects.PutNamespace("kube-system"), s.objects.PutPod(p)); err != nil {
		s.t.Fatal(err)
	}
	r := &resolver{Pod: p, asked: map[string]netip.Addr{}, slow: make(chan struct{})}
	for _, network := range []string{"4", "6"} {
		packets, err := p.Netns.ListenPacket("udp"+network, ":53")
		if err != nil {
			s.t.Fatal(err)
		}
		streams, err := p.Netns.Listen("tcp"+network, ":53")
		if err != nil {
			s.t.Fatal(err)
		}
		for _, server := range []*dns.Server{{PacketConn: packets, Handler: r}, {Listener: streams, Handler: r, MaxTCPQueries: -1}} {
			go func() { _ = server.ActivateAndServe() }()
			s.t.Cleanup(func() { _ = server.Shutdown() })
		}
	}
	return r
}

// ServeDNS implements dns.Handler.
func (r *resolver) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	m := new(dns.Msg)
	m.SetReply(q)
	name := q.Question[0].Name
	r.mu.Lock()
	from, _, _ := net.SplitHostPort(w.RemoteAddr().String())
	r.asked[name], _ = netip.ParseAddr(from)
	r.mu.Unlock()
	if strings.HasPrefix(name, "slow.") {
		<-r.slow
	}
	text := ""
	var number int
	switch _, err := fmt.Sscanf(name, "n%d.many.test.", &number); {
	case err == nil && q.Question[0].Qtype == dns.TypeA:
		text = fmt.Sprintf("%s 0 A 198.18.%d.%d", name, number>>8, number&255)
	case name == "slow.many.test." && q.Question[0].Qtype == dns.TypeA:
		text = name + " 3600 A 198.18.255.1"
	case name == "api.example.test." && q.Question[0].Qtype == dns.TypeA:
		m.Answer = append(m.Answer, rr(name+" 5 CNAME edge.elsewhere.test."))
		text = "edge.elsewhere.test. 5 A 198.51.100.2"
	case name == "api.example.test." && q.Question[0].Qtype == dns.TypeAAAA:
		text = name + " 5 AAAA 2001:db8:1::2"
	case name == "other.example.test." && q.Question[0].Qtype == dns.TypeA:
		text = name + " 5 A 198.51.100.3"
	}
	if text != "" {
		m.Answer = append(m.Answer, rr(text))
	}
	for i := range 16 * strings.Count(name, "large.") { // 4 KB
		m.Answer = append(m.Answer, rr(fmt.Sprintf("%s 5 TXT %02d%s", name, i, strings.Repeat("x", 240))))
	}
	_ = w.WriteMsg(m)
}

func rr(text string) dns.RR {
	r, err := dns.NewRR(text)
	if err != nil {
		panic(err)
	}
	return r
}

func (r *resolver) whoAsked(name string) netip.Addr {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asked[name]
}

// stub is a pod's connection to a server.
type stub struct{ conn *dns.Conn }

func (s *story) stub(from *place, network string, to netip.Addr) *stub {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := from.DialContext(ctx, network, netip.AddrPortFrom(to, 53).String())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close() })
	return &stub{&dns.Conn{Conn: c, UDPSize: 8192}}
}

// ask asks once, and tells the code of the answer and how many records it has.
func (c *stub) ask(name string, kind uint16) (rcode, n int, err error) {
	q := new(dns.Msg)
	q.SetQuestion(name, kind)
	q.SetEdns0(8192, false)
	if err := c.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return 0, 0, err
	}
	if err := c.conn.WriteMsg(q); err != nil {
		return 0, 0, err
	}
	for {
		a, err := c.conn.ReadMsg()
		if err != nil {
			return 0, 0, err
		}
		if a.Id == q.Id && a.Question[0] == q.Question[0] {
			return a.Rcode, len(a.Answer), nil
		}
	}
}

func (s *story) mustAnswer(c *stub, name string, kind uint16, rcode, n int) {
	s.t.Helper()
	gotCode, got, err := c.ask(name, kind)
	if err != nil || gotCode != rcode || got != n {
		s.t.Errorf("%s %s: %s with %d records, %v; want %s with %d", name, dns.Type(kind), dns.RcodeToString[gotCode], got, err, dns.RcodeToString[rcode], n)
	}
}

// TestQuestions: what a pod asks is judged, by UDP and TCP, over IPv4 and IPv6,
// and what it is answered opens the way to where it may go, and nowhere else.
func TestQuestions(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/dns.txtar")
	server := s.addResolver()
	s.must("start")
	s.must("wait")
	client, plain := s.places["shop/client"], s.places["shop/plain"]
	s.check("shop/client GET outside:80/ => dropped")
	for family := range 2 {
		to := server.Addrs[family]
		for _, network := range []string{"udp", "tcp"} {
			c := s.stub(client, network, to)
			s.mustAnswer(c, "aPi.Example.test.", dns.TypeTXT, dns.RcodeSuccess, 0)
			s.mustAnswer(c, "evil.test.", dns.TypeA, dns.RcodeRefused, 0)
			s.mustAnswer(c, "large.example.test.", dns.TypeTXT, dns.RcodeSuccess, 16) // in fragments
			if who := server.whoAsked("aPi.Example.test."); who != client.addrs[family] {
				t.Errorf("IPv%d, %s: the server was asked by %v", 4+2*family, network, who)
			}
			if who := server.whoAsked("evil.test."); who.IsValid() {
				t.Errorf("IPv%d, %s: the server heard of a question that is denied", 4+2*family, network)
			}
		}
	}
	s.check("shop/client GET outside:80/ => dropped")
	c := s.stub(client, "udp", server.Addrs[0])
	s.mustAnswer(c, "other.example.test.", dns.TypeA, dns.RcodeSuccess, 1)
	s.check("shop/client GET outside:80/ => dropped")
	s.mustAnswer(c, "api.example.test.", dns.TypeA, dns.RcodeSuccess, 2)
	s.mustAnswer(c, "api.example.test.", dns.TypeAAAA, dns.RcodeSuccess, 1)
	s.check("shop/client GET outside:80/ => 200")
	s.check("shop/client GET outside:8080/ => dropped")

	r, err := s.awaitRecord(func(r flow.Record) bool { return r.DNS != nil && r.DNS.Name == "api.example.test" && r.DNS.Type == "A" })
	if err != nil || r.Verdict != flow.Forwarded || r.Source.Pod != "client" || r.Dest.Pod != "dns" || r.Protocol != "UDP" || r.DNS.RCode != "NOERROR" ||
		len(r.DNS.Chain) != 1 || len(r.DNS.Addresses) != 1 || r.Rule == nil || r.Direction != "egress" {
		t.Errorf("recorded: %+v, %+v, %v", r, r.DNS, err)
	}
	r, err = s.awaitRecord(func(r flow.Record) bool { return r.DNS != nil && r.DNS.Name == "evil.test" && r.Protocol == "TCP" })
	if err != nil || r.Verdict != flow.Dropped || r.Reason != "dns-denied" || r.DNS.RCode != "REFUSED" || len(r.Policies) != 1 {
		t.Errorf("recorded: %+v, %+v, %v", r, r.DNS, err)
	}

	// One that has names, but no rule about questions.
	s.check("shop/plain GET outside:80/ => 200") // the address is known by now
	c = s.stub(plain, "udp", server.Addrs[0])
	s.mustAnswer(c, "evil.test.", dns.TypeA, dns.RcodeSuccess, 0)
	s.mustAnswer(s.stub(plain, "tcp", server.Addrs[1]), "evil.test.", dns.TypeA, dns.RcodeSuccess, 0)
	if r, err = s.awaitRecord(func(r flow.Record) bool { return r.DNS != nil && r.DNS.Name == "evil.test" && r.Source.Pod == "plain" }); err != nil || r.Reason != "dns-allow-all" {
		t.Errorf("recorded: %+v, %v", r, err)
	}
}

// TestQuestionsFollowPolicy: the next question is judged by what holds then,
// whatever socket it comes from.
func TestQuestionsFollowPolicy(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/dns.txtar")
	server := s.addResolver()
	s.must("start")
	s.must("wait")
	client := s.places["shop/client"]
	for family := range 2 {
		udp, tcp := s.stub(client, "udp", server.Addrs[family]), s.stub(client, "tcp", server.Addrs[family])
		for _, c := range []*stub{udp, tcp} {
			s.mustAnswer(c, "www.example.test.", dns.TypeA, dns.RcodeSuccess, 0)
		}
		s.must("apply fewer.yaml as=client.yaml")
		s.must("wait")
		for _, c := range []*stub{udp, tcp} {
			s.mustAnswer(c, "www.example.test.", dns.TypeA, dns.RcodeRefused, 0)
			s.mustAnswer(c, "other.example.test.", dns.TypeA, dns.RcodeSuccess, 1)
		}
		s.must("apply closed.yaml as=client.yaml")
		s.must("wait")
		for _, c := range []*stub{udp, tcp} {
			if rcode, _, err := c.ask("other.example.test.", dns.TypeA); err == nil {
				t.Errorf("IPv%d: closed, it is answered %s", 4+2*family, dns.RcodeToString[rcode])
			}
		}
		s.must("apply client.yaml")
		s.must("wait")
		s.mustAnswer(udp, "www.example.test.", dns.TypeA, dns.RcodeSuccess, 0)
		s.mustAnswer(s.stub(client, "tcp", server.Addrs[family]), "www.example.test.", dns.TypeA, dns.RcodeSuccess, 0)
	}
}

// routeMany makes the addresses of many.test those of the outside.
func (s *story) routeMany() {
	s.t.Helper()
	for _, c := range []struct {
		in   *node.Netns
		args []string
	}{
		{s.network.Router, []string{"route", "add", "198.18.0.0/16", "via", "198.51.100.2"}},
		{s.network.Outside, []string{"route", "add", "local", "198.18.0.0/16", "dev", "lo"}},
	} {
		if _, err := c.in.Run(s.t.Context(), "", "ip", c.args...); err != nil {
			s.t.Fatal(err)
		}
	}
}

// TestConnectAfterAnswer: whoever connects right behind the answer is let
// through, every time.
func TestConnectAfterAnswer(t *testing.T) {
	t.Parallel()
	const pairs = 10_000
	s := tell(t, "setups/dns.txtar")
	server := s.addResolver()
	s.routeMany()
	s.must("start")
	s.must("wait")
	client := s.places["shop/client"]
	c := s.stub(client, "udp", server.Addrs[0])
	began := time.Now()
	for i := range pairs {
		rcode, n, err := c.ask(fmt.Sprintf("n%d.many.test.", i), dns.TypeA)
		if err != nil || rcode != 0 || n != 1 {
			t.Fatalf("name %d: %d, %d, %v", i, rcode, n, err)
		}
		d := net.Dialer{Timeout: 900 * time.Millisecond} // no repeated SYN
		conn, err := client.Dial(t.Context(), &d, "tcp", fmt.Sprintf("198.18.%d.%d:80", i>>8, i&255))
		if err != nil {
			t.Fatalf("name %d, %v: %v", i, time.Since(began), err)
		}
		_ = conn.(*net.TCPConn).SetLinger(0)
		_ = conn.Close()
	}
	t.Logf("%d in %v", pairs, time.Since(began))
}
