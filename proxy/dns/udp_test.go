package dns

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/weirnet/weir/policy"
)

// zone answers with an address made of the name's first letter, and remembers
// who asked.
func zone(w dns.ResponseWriter, q *dns.Msg) {
	m := new(dns.Msg)
	m.SetReply(q)
	rr, _ := dns.NewRR(q.Question[0].Name + " 60 A 192.0.2." + string('1'+q.Question[0].Name[0]%8))
	m.Answer = append(m.Answer, rr)
	w.WriteMsg(m)
}

func TestQuestionsByUDP(t *testing.T) {
	g := newRig(t)
	g.rules.Store(&Rules{Egress: allow("*.example.com", "a.test")})
	for name, ends := range map[string]struct{ pod, server netip.Addr }{"IPv4": {pod4, server4}, "IPv6": {pod6, server6}} {
		t.Run(name, func(t *testing.T) {
			server := netip.AddrPortFrom(ends.server, 53)
			var seen atomic.Value
			g.miekg(server, func(w dns.ResponseWriter, q *dns.Msg) {
				seen.Store(netip.MustParseAddrPort(w.RemoteAddr().String()))
				zone(w, q)
			})
			c := g.dial(ends.pod, server)
			client := netip.MustParseAddrPort(c.LocalAddr().String())
			a := g.ask(c, query("wWw.Example.com", dns.TypeA))
			if len(a.Answer) != 1 || a.Question[0].Name != "wWw.Example.com." {
				t.Errorf("answer:\n%v", a)
			}
			from := seen.Load().(netip.AddrPort)
			if from.Addr() != ends.pod || from.Port() == client.Port() || from.Port() < firstPort {
				t.Errorf("the server was asked by %v, the pod is %v", from, client)
			}
			r := g.records(1)[0]
			if r.Verdict != Allowed || r.Reason != ReasonRule || r.Failure != ReasonNone || r.EgressRule != 1 || !r.Answered ||
				r.RCode != 0 || len(r.Records) != 1 || r.ClientPort != client.Port() || r.Kind != dns.TypeA || r.Class != 1 ||
				string(AppendName(nil, r.Question)) != "wWw.Example.com" || r.Start.IsZero() {
				t.Errorf("recorded: %+v", r)
			}
			a = g.ask(c, query("www.example.net", dns.TypeA))
			if a.Rcode != dns.RcodeRefused || len(a.Answer) != 0 || a.Question[0].Name != "www.example.net." {
				t.Errorf("denied:\n%v", a)
			}
			if r := g.records(1)[0]; r.Verdict != Denied || r.Reason != ReasonNoRule || r.Direction != policy.Egress || !r.Answered || r.RCode != 5 || r.ClientPort != client.Port() {
				t.Errorf("denial recorded: %+v", r)
			}
			g.server.SetNXDomain(true)
			if a = g.ask(c, query("www.example.net", dns.TypeA)); a.Rcode != dns.RcodeNameError {
				t.Errorf("denied by NXDOMAIN:\n%v", a)
			}
			g.server.SetNXDomain(false)
			g.records(1)
		})
	}
	if g.opened != 2 {
		t.Errorf("%d sessions", g.opened)
	}
}

// server is a server that a test speaks for.
type server struct {
	*rig
	c    *net.UDPConn
	addr netip.AddrPort
}

func (g *rig) scripted() server {
	addr := netip.AddrPortFrom(server4, 53)
	return server{g, g.listen(addr), addr}
}

// next is the next question that comes.
func (s server) next() (*dns.Msg, netip.AddrPort) {
	s.t.Helper()
	b := make([]byte, maxMessage)
	s.must(s.c.SetReadDeadline(time.Now().Add(5 * time.Second)))
	n, from, err := s.c.ReadFromUDPAddrPort(b)
	s.must(err)
	q := new(dns.Msg)
	s.must(q.Unpack(b[:n]))
	return q, from
}

func (s server) answer(to netip.AddrPort, m *dns.Msg) {
	s.t.Helper()
	s.bytes(to, pack(s.t, m))
}

func (s server) bytes(to netip.AddrPort, b []byte) {
	s.t.Helper()
	_, err := s.c.WriteToUDPAddrPort(b, to)
	s.must(err)
}

// TestBytesAreLeftAlone: of questions and answers that pass nothing is changed
// but the id.
func TestBytesAreLeftAlone(t *testing.T) {
	g := newRig(t)
	s := g.scripted()
	c := g.dial(pod4, s.addr)
	for name, prepare := range map[string]func(q, a *dns.Msg){
		"EDNS and DNSSEC": func(q, a *dns.Msg) { q.SetEdns0(1400, true); a.SetEdns0(900, true); a.AuthenticatedData = true },
		"unknown type":    func(q, _ *dns.Msg) { q.Question[0].Qtype = 65399 },
		"unknown class":   func(q, _ *dns.Msg) { q.Question[0].Qclass = 4660 },
		"case":            func(q, _ *dns.Msg) { q.Question[0].Name = "wWW.eXaMpLe." },
		"strange name":    func(q, _ *dns.Msg) { q.Question[0].Name = `\000\.\255.x.` },
		"the root":        func(q, _ *dns.Msg) { q.Question[0].Name = "." },
		"truncated":       func(_, a *dns.Msg) { a.Truncated = true },
		"large": func(_, a *dns.Msg) {
			a.Answer = records(t, "x. 1 TXT \""+strings.Repeat("a", 250)+"\"")
			for range 230 {
				a.Answer = append(a.Answer, a.Answer[0])
			}
		},
		"update": func(q, a *dns.Msg) {
			q.Opcode = dns.OpcodeUpdate
			q.Ns = records(t, "x. 1 A 192.0.2.1")
			a.Opcode = q.Opcode
		},
		"failure": func(_, a *dns.Msg) { a.Rcode = dns.RcodeServerFailure },
		"cookie": func(q, _ *dns.Msg) {
			q.SetEdns0(1232, false)
			q.IsEdns0().Option = append(q.IsEdns0().Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0123456789abcdef"})
		},
	} {
		q := query("a.x", dns.TypeA)
		a := new(dns.Msg)
		prepare(q, a)
		asked := pack(t, q)
		g.send(c, asked)
		b := make([]byte, maxMessage)
		n, from, err := s.c.ReadFromUDPAddrPort(b)
		g.must(err)
		got := b[:n]
		id := messageID(got)
		a.Id, a.Response, a.Question = id, true, q.Question
		answer := pack(t, a)
		s.bytes(from, answer)
		if setMessageID(got, q.Id); !bytes.Equal(got, asked) {
			t.Errorf("%s: asked\n%x, the server got\n%x", name, asked, got)
		}
		setMessageID(answer, q.Id)
		if got := g.receive(c, 2*time.Second); !bytes.Equal(got, answer) {
			t.Errorf("%s: answered\n%x, the pod got\n%x", name, answer, got)
		}
	}
}

// TestOnlyTheAnswer: what does not answer the question is dropped, and does not
// keep the answer from coming.
func TestOnlyTheAnswer(t *testing.T) {
	g := newRig(t)
	s := g.scripted()
	other := g.listen(netip.AddrPortFrom(server4, 5353)) // of the same host
	c := g.dial(pod4, s.addr)
	q := query("a.x", dns.TypeA)
	g.send(c, pack(t, q))
	sent, from := s.next()
	right := replyTo(t, sent, "a.x. 60 A 192.0.2.1")
	foreign := 0
	wrong := func(name string, change func(*dns.Msg)) {
		m := right.Copy()
		change(m)
		s.answer(from, m)
		foreign++
		g.waitDropped(ReasonAnswerForeign, foreign)
		_ = name
	}
	wrong("id", func(m *dns.Msg) { m.Id++ })
	wrong("name", func(m *dns.Msg) { m.Question[0].Name = "b.x." })
	wrong("type", func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA })
	wrong("class", func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS })
	wrong("question", func(m *dns.Msg) { m.Response = false })
	wrong("opcode", func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify })
	wrong("nothing asked, something said", func(m *dns.Msg) { m.Question = nil })
	wrong("nothing asked, success", func(m *dns.Msg) { m.Question, m.Answer = nil, nil })
	wrong("two questions", func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) })
	for _, b := range []string{"", "x", "0123456789a", "\x00\x00\x80\x00"} {
		s.bytes(from, []byte(b))
		foreign++
		g.waitDropped(ReasonAnswerForeign, foreign)
	}
	// Another port of the server is not the server: that is a datagram of a pod
	// to a server, as far as the proxy can see, and from none.
	g.revoked.Store(true)
	_, err := other.WriteToUDPAddrPort(pack(t, right), from)
	g.must(err)
	g.waitDropped(ReasonNoSession, 1)
	g.revoked.Store(false)
	if b := g.receive(c, 50*time.Millisecond); b != nil {
		t.Fatalf("the pod got %x", b)
	}
	// Nor is somebody else the pod: nobody but the kernel's own neighbours could
	// send from there, and sockets are connected.
	s.answer(from, right)
	if b := g.receive(c, 2*time.Second); b == nil || messageID(b) != q.Id {
		t.Fatalf("the pod got %x", b)
	}
	s.answer(from, right) // once more
	g.waitDropped(ReasonAnswerForeign, foreign+1)
	if b := g.receive(c, 50*time.Millisecond); b != nil {
		t.Errorf("the pod got it twice")
	}
	g.records(1)
	// A server that could not read the question may say no more than that.
	g.send(c, pack(t, q))
	sent, from = s.next()
	s.answer(from, &dns.Msg{MsgHdr: dns.MsgHdr{Id: sent.Id, Response: true, Rcode: dns.RcodeFormatError}})
	if b := g.receive(c, 2*time.Second); b == nil || messageID(b) != q.Id || rcode(b) != dns.RcodeFormatError {
		t.Errorf("the pod got %x", b)
	}
}

// TestMalformed: what can't be read is dropped, of pods and of servers.
func TestMalformed(t *testing.T) {
	g := newRig(t)
	s := g.scripted()
	c := g.dial(pod4, s.addr)
	two := query("a.x", dns.TypeA)
	two.Question = append(two.Question, two.Question[0])
	response := query("a.x", dns.TypeA)
	response.Response = true
	for _, b := range [][]byte{nil, []byte("x"), header(1), append(header(1), 0xc0, 12, 0, 1, 0, 1), header(0), pack(t, two), pack(t, response)} {
		g.send(c, b)
		if r := g.records(1)[0]; r.Verdict != Refused || r.Reason != ReasonMalformed || r.ClientPort == 0 {
			t.Errorf("%x: %+v", b, r)
		}
	}
	q := query("a.x", dns.TypeA)
	g.send(c, pack(t, q))
	sent, from := s.next() // of all that was sent the first
	b := pack(t, replyTo(t, sent, "a.x. 60 A 192.0.2.1"))
	s.bytes(from, b[:len(b)-1])
	if b := g.receive(c, 2*time.Second); b == nil || rcode(b) != rcodeFailed || messageID(b) != q.Id {
		t.Errorf("the pod got %x", b)
	}
	if r := g.records(1)[0]; r.Verdict != Allowed || r.Failure != ReasonAnswerMalformed || r.RCode != rcodeFailed || len(r.Records) != 0 {
		t.Errorf("%+v", r)
	}
}

// TestPodsAreApart: two pods ask the same with the same id from the same port.
func TestPodsAreApart(t *testing.T) {
	g := newRig(t)
	s := g.scripted()
	var pods [2]*net.UDPConn
	port := 0
	g.pods.in(func() {
		for i, a := range []netip.Addr{pod4, otherPod4} {
			c, err := net.DialUDP("udp", &net.UDPAddr{IP: a.AsSlice(), Port: port}, net.UDPAddrFromAddrPort(s.addr))
			if err != nil {
				t.Error(err)
				return
			}
			pods[i], port = c, c.LocalAddr().(*net.UDPAddr).Port
		}
	})
	q := query("a.x", dns.TypeA)
	for i := range 50 {
		q.Id = uint16(i)
		asked := map[netip.Addr]*dns.Msg{}
		from := map[netip.Addr]netip.AddrPort{}
		for _, c := range pods {
			g.send(c, pack(t, q))
		}
		for range pods {
			m, f := s.next()
			asked[f.Addr()], from[f.Addr()] = m, f
		}
		for k, a := range []netip.Addr{otherPod4, pod4} { // the other way round
			s.answer(from[a], replyTo(t, asked[a], fmt.Sprintf("a.x. 60 A 192.0.2.%d", 2-k)))
		}
		for k, c := range pods {
			m := new(dns.Msg)
			if b := g.receive(c, 2*time.Second); b == nil || m.Unpack(b) != nil || m.Id != q.Id || len(m.Answer) != 1 ||
				m.Answer[0].(*dns.A).A.String() != fmt.Sprintf("192.0.2.%d", k+1) {
				t.Fatalf("pod %d got %v", k, m)
			}
		}
	}
	for _, c := range pods {
		c.Close()
	}
}

// TestServersThatDoNotAnswer: one that is not there, and one that is silent.
func TestServersThatDoNotAnswer(t *testing.T) {
	g := newRig(t, func(g *rig) { g.relay.limits.answer, g.relay.limits.sweep = 2*time.Second, 10*time.Millisecond })
	for _, a := range []netip.Addr{server4, server6} {
		pod := pod4
		if a.Is6() {
			pod = pod6
		}
		c := g.dial(pod, netip.AddrPortFrom(a, 53)) // nobody listens
		q := query("a.x", dns.TypeA)
		q.SetEdns0(1232, true)
		began := time.Now()
		m := g.ask(c, q)
		if m.Rcode != dns.RcodeServerFailure || m.IsEdns0() == nil || time.Since(began) >= g.relay.limits.answer {
			t.Errorf("%v after %v:\n%v", a, time.Since(began), m)
		}
		if r := g.records(1)[0]; r.Verdict != Allowed || r.Failure != ReasonServerRefused || !r.Answered || r.RCode != 2 {
			t.Errorf("%v: %+v", a, r)
		}
	}
	s := g.scripted()
	c := g.dial(pod4, s.addr)
	g.send(c, pack(t, query("a.x", dns.TypeA)))
	sent, from := s.next()
	if r := g.records(1)[0]; r.Verdict != Allowed || r.Failure != ReasonServerTimeout || r.Answered {
		t.Errorf("%+v", r)
	}
	s.answer(from, replyTo(t, sent, "a.x. 60 A 192.0.2.1")) // too late
	g.waitDropped(ReasonAnswerForeign, 1)
	if g.server.Pending() != 0 {
		t.Errorf("%d wait", g.server.Pending())
	}
}

// TestFloods: what one pod may have unanswered is bounded; others ask on.
func TestFloods(t *testing.T) {
	g := newRig(t)
	s := g.scripted()
	c := g.dial(pod4, s.addr)
	go func() { // the server reads and says nothing
		b := make([]byte, maxMessage)
		for {
			if _, err := s.c.Read(b); err != nil {
				return
			}
		}
	}()
	const over = 10
	for i := range maxPendingSession + over {
		g.send(c, pack(t, query(fmt.Sprintf("a%d.x", i), dns.TypeA)))
		if i%50 == 49 {
			time.Sleep(time.Millisecond)
		}
	}
	refused := g.records(over)
	for _, r := range refused {
		if r.Verdict != Failed || r.Reason != ReasonFlood || r.RCode != rcodeFailed || !r.Answered {
			t.Fatalf("%+v", r)
		}
	}
	g.loop(func(r *relay) {
		ids, ports := map[uint16]bool{}, map[uint16]bool{}
		for n := r.pendings.all.root.newer; n.of != nil; n = n.newer {
			ids[n.of.id], ports[n.of.up.port] = true, true
		}
		if r.pendings.n != maxPendingSession || len(ids) < maxPendingSession*9/10 || len(ports) > 2 {
			t.Errorf("%d wait, %d ids, %d ports", r.pendings.n, len(ids), len(ports))
		}
	})
	other := g.dial(otherPod4, netip.AddrPortFrom(server4, 53))
	g.send(other, pack(t, query("b.x", dns.TypeA)))
	time.Sleep(20 * time.Millisecond)
	g.loop(func(r *relay) {
		if r.pendings.n != maxPendingSession+1 {
			t.Errorf("with another pod's %d wait", r.pendings.n)
		}
	})
}

// TestManyServers: the sessions of one pod are bounded; the oldest gives way.
func TestManyServers(t *testing.T) {
	g := newRig(t)
	g.rules.Store(&Rules{Egress: allow("b.x")}) // denied: nothing goes out
	var c *net.UDPConn
	var err error
	g.pods.in(func() { c, err = net.ListenUDP("udp4", &net.UDPAddr{IP: pod4.AsSlice()}) })
	g.must(err)
	defer c.Close()
	b := pack(t, query("a.x", dns.TypeA))
	for i := range maxSessionsPod + 10 {
		_, err := c.WriteToUDPAddrPort(b, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)}), 53))
		g.must(err)
		if i%50 == 49 {
			time.Sleep(time.Millisecond)
		}
	}
	g.records(maxSessionsPod + 10)
	g.loop(func(r *relay) {
		if len(r.sessions) != maxSessionsPod || len(r.pods) != 1 || g.closed != 10 {
			t.Errorf("%d sessions of %d pods, %d closed", len(r.sessions), len(r.pods), g.closed)
		}
	})
}

// TestPolicyMoves: the next question is judged by what holds then.
func TestPolicyMoves(t *testing.T) {
	g := newRig(t)
	s := g.scripted()
	c := g.dial(pod4, s.addr)
	g.send(c, pack(t, query("a.x", dns.TypeA)))
	sent, from := s.next()
	g.rules.Store(&Rules{Egress: allow("b.x"), Ingress: Closed()})
	if m := g.ask(c, query("b.x", dns.TypeA)); m.Rcode != dns.RcodeRefused {
		t.Errorf("the other end's rules are unknown:\n%v", m)
	}
	if r := g.records(1)[0]; r.Reason != ReasonClosed || r.Direction != policy.Ingress {
		t.Errorf("%+v", r)
	}
	// What was asked before is answered.
	s.answer(from, replyTo(t, sent, "a.x. 60 A 192.0.2.1"))
	if b := g.receive(c, 2*time.Second); b == nil || rcode(b) != 0 {
		t.Errorf("answer to what passed before: %x", b)
	}
	g.records(1)
	// Unless the pod may not speak to that server any more.
	g.rules.Store(&Rules{})
	g.send(c, pack(t, query("a.x", dns.TypeA)))
	sent, from = s.next()
	g.revoked.Store(true)
	s.answer(from, replyTo(t, sent, "a.x. 60 A 192.0.2.1"))
	if r := g.records(1)[0]; r.Verdict != Allowed || r.Failure != ReasonRevoked || r.Answered {
		t.Errorf("%+v", r)
	}
	if b := g.receive(c, 50*time.Millisecond); b != nil {
		t.Errorf("revoked, the pod got %x", b)
	}
	g.wait("the session's end", func() bool { return g.closed == 1 })
	g.send(c, pack(t, query("a.x", dns.TypeA)))
	g.waitDropped(ReasonNoSession, 1)
	// And a session that stands when it is revoked.
	g.revoked.Store(false)
	g.rules.Store(&Rules{Egress: allow("b.x")})
	g.ask(c, query("a.x", dns.TypeA))
	g.revoked.Store(true)
	g.send(c, pack(t, query("a.x", dns.TypeA)))
	g.waitDropped(ReasonNoSession, 2)
	g.wait("the session's end", func() bool { return g.closed == 2 })
}

// TestAddressOfAnotherPod: whoever has the address now is answered the first
// time it asks, by its own rules.
func TestAddressOfAnotherPod(t *testing.T) {
	g := newRig(t)
	s := g.scripted()
	c := g.dial(pod4, s.addr)
	g.rules.Store(&Rules{Egress: allow("a.x")})
	g.send(c, pack(t, query("a.x", dns.TypeA)))
	late, from := s.next()
	g.rules.Store(&Rules{Egress: allow("b.x")})
	g.lives.Add(1)
	if m := g.ask(c, query("a.x", dns.TypeA)); m.Rcode != dns.RcodeRefused {
		t.Errorf("by the old rules:\n%v", m)
	}
	g.wait("the old session's end", func() bool { return g.closed == 1 && g.opened == 2 })
	// What the one before asked is not answered to this one.
	s.answer(from, replyTo(t, late, "a.x. 60 A 192.0.2.1"))
	g.send(c, pack(t, query("b.x", dns.TypeA)))
	sent, from := s.next()
	s.answer(from, replyTo(t, sent, "b.x. 60 A 192.0.2.2"))
	if b := g.receive(c, 2*time.Second); b == nil || rcode(b) != 0 {
		t.Errorf("answer: %x", b)
	}
	if b := g.receive(c, 50*time.Millisecond); b != nil {
		t.Errorf("and another: %x", b)
	}
}

// TestUpdatesAreNoQuestions: rules for names don't allow to change what they
// name.
func TestUpdatesAreNoQuestions(t *testing.T) {
	g := newRig(t)
	g.rules.Store(&Rules{Egress: allow("*", "a.x")})
	c := g.dial(pod4, netip.AddrPortFrom(server4, 53))
	m := query("a.x", dns.TypeSOA)
	m.Opcode = dns.OpcodeUpdate
	if a := g.ask(c, m); a.Rcode != dns.RcodeRefused || a.Opcode != dns.OpcodeUpdate {
		t.Errorf("update:\n%v", a)
	}
	if r := g.records(1)[0]; r.Verdict != Denied || r.Reason != ReasonOpcode {
		t.Errorf("%+v", r)
	}
}
