package dns

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/weirnet/weir/fqdn"
)

// silent fails where a server is asked once more.
func (s server) silent(within time.Duration) {
	s.t.Helper()
	s.must(s.c.SetReadDeadline(time.Now().Add(within)))
	b := make([]byte, maxMessage)
	if n, _, err := s.c.ReadFromUDPAddrPort(b); err == nil {
		s.t.Fatalf("the server was asked %x", b[:n])
	}
}

// numbered is a question with an id.
func numbered(id uint16, name string) *dns.Msg {
	q := query(name, dns.TypeA)
	q.Id = id
	return q
}

// TestEqualQuestionsAreAskedOnce: whoever asks the same bytes waits for one
// answer, and gets it under its own id.
func TestEqualQuestionsAreAskedOnce(t *testing.T) {
	for _, later := range []bool{false, true} {
		t.Run(fmt.Sprintf("learned later %v", later), func(t *testing.T) {
			g := newRig(t)
			g.rules.Store(&Rules{Egress: allow(), Believed: later})
			learned := 0
			g.learn(func(ctx context.Context, _ fqdn.Answer) error {
				if ctx.Err() == nil {
					learned++
				}
				return ctx.Err()
			})
			s := g.scripted()
			const n = 100 // more than one flush
			var pods []*net.UDPConn
			for i := range n {
				c := g.dial(pod4, s.addr)
				g.send(c, pack(t, numbered(uint16(7*i+1), "wWw.x")))
				pods = append(pods, c)
			}
			sent, from := s.next()
			s.silent(50 * time.Millisecond)
			s.answer(from, replyTo(t, sent, "www.x. 60 A 192.0.2.1"))
			want := replyTo(t, numbered(0, "wWw.x"), "www.x. 60 A 192.0.2.1")
			for i, c := range pods {
				want.Id = uint16(7*i + 1)
				if b := g.receive(c, 2*time.Second); !bytes.Equal(b, pack(t, want)) {
					t.Fatalf("pod's socket %d got\n%x, want\n%x", i, b, pack(t, want))
				}
			}
			ports := map[uint16]bool{}
			for _, r := range g.records(n) {
				if ports[r.ClientPort] = true; r.Verdict != Allowed || r.Failure != ReasonNone || !r.Answered || len(r.Records) != 1 {
					t.Fatalf("%+v", r)
				}
			}
			if len(ports) != n || later && learned != 1 {
				t.Errorf("records of %d ports, learned %d times", len(ports), learned)
			}
			g.loop(func(r *relay) {
				if r.pendings.n+r.pendings.asking+r.waiting != 0 {
					t.Errorf("%d questions, %d who ask", r.pendings.n, r.pendings.asking)
				}
				for _, b := range r.pendings.askers {
					if b != nil {
						t.Error("an asker is still found")
					}
				}
			})
		})
	}
}

// TestOtherQuestionsAreAsked: what differs by a bit is another question.
func TestOtherQuestionsAreAsked(t *testing.T) {
	g := newRig(t)
	s := g.scripted()
	c := g.dial(pod4, s.addr)
	answers := map[uint16]*dns.Msg{}
	for i, change := range []func(*dns.Msg){
		func(*dns.Msg) {},
		func(m *dns.Msg) { m.Question[0].Name = "wWw.X." },
		func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA },
		func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS },
		func(m *dns.Msg) { m.CheckingDisabled = true },
		func(m *dns.Msg) { m.RecursionDesired = false },
		func(m *dns.Msg) { m.SetEdns0(1232, false) },
		func(m *dns.Msg) { m.SetEdns0(1232, true) },
		func(m *dns.Msg) { m.SetEdns0(4096, true) },
	} {
		q := numbered(uint16(i+1), "www.x")
		change(q)
		g.send(c, pack(t, q))
		sent, from := s.next()
		a := new(dns.Msg).SetReply(sent)
		a.Id = sent.Id
		s.answer(from, a)
		a = a.Copy()
		a.Id = q.Id
		answers[q.Id] = a
	}
	for range answers {
		b := g.receive(c, 2*time.Second)
		if b == nil || !bytes.Equal(b, pack(t, answers[messageID(b)])) {
			t.Errorf("got %x", b)
		}
	}
	// Nor is another pod's, or one to another server.
	other := server{g, g.listen(netip.AddrPortFrom(server4, 5353)), netip.AddrPortFrom(server4, 5353)}
	q := pack(t, numbered(77, "www.x"))
	g.send(c, q)
	s.next()
	g.send(g.dial(otherPod4, s.addr), q)
	if _, from := s.next(); from.Addr() != otherPod4 {
		t.Errorf("asked by %v", from)
	}
	g.send(g.dial(pod4, other.addr), q)
	other.next()
}

// TestLostQuestionsAreSentAgain: who asks again makes the proxy ask again, not
// too often, by the same port and id, and is answered once.
func TestLostQuestionsAreSentAgain(t *testing.T) {
	g := newRig(t)
	s := g.scripted()
	c, other := g.dial(pod4, s.addr), g.dial(pod4, s.addr)
	q := pack(t, numbered(9, "www.x"))
	g.send(c, q)
	first, port := s.next() // and lost
	for range 3 {
		g.send(c, q)
	}
	s.silent(firstRepeat / 2)
	same := func(what string) {
		t.Helper()
		m, from := s.next()
		if from != port || m.Id != first.Id {
			t.Errorf("%s: %v asked %d, before %v %d", what, from, m.Id, port, first.Id)
		}
	}
	time.Sleep(firstRepeat)
	g.send(c, q)
	same("asked again")
	g.send(c, q)
	time.Sleep(firstRepeat)
	g.send(c, q)
	s.silent(firstRepeat / 2) // it's to wait twice as long now
	time.Sleep(firstRepeat)
	g.send(other, pack(t, numbered(10, "www.x")))
	same("asked by another socket")
	s.answer(port, replyTo(t, first, "www.x. 60 A 192.0.2.1"))
	for i, c := range []*net.UDPConn{c, other} {
		if b := g.receive(c, 2*time.Second); b == nil || messageID(b) != uint16(9+i) {
			t.Errorf("socket %d got %x", i, b)
		}
		if b := g.receive(c, 20*time.Millisecond); b != nil {
			t.Errorf("socket %d got %x as well", i, b)
		}
	}
	g.records(2)
	g.send(c, q) // it is over: a new one
	if m, _ := s.next(); m.Id == first.Id {
		t.Error("with the same id by chance?")
	}
}

// TestVariantsAreBounded: of one name and type so many questions are out, however
// they are written and whoever asks.
func TestVariantsAreBounded(t *testing.T) {
	g := newRig(t)
	s := g.scripted()
	c := g.dial(pod4, s.addr)
	spelled := func(i int) string {
		b := []byte("abcdefgh.x")
		for k := range 8 {
			if i>>k&1 != 0 {
				b[k] -= 'a' - 'A'
			}
		}
		return string(b)
	}
	for i := range maxVariants {
		g.send(c, pack(t, query(spelled(i), dns.TypeA)))
		s.next()
	}
	if m := g.ask(c, query(spelled(maxVariants), dns.TypeA)); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("one too many:\n%v", m)
	}
	if r := g.records(1)[0]; r.Verdict != Failed || r.Reason != ReasonFlood {
		t.Errorf("%+v", r)
	}
	g.send(c, pack(t, query(spelled(1), dns.TypeA))) // equal to one that is out
	s.silent(50 * time.Millisecond)
	for _, kind := range []uint16{dns.TypeAAAA, dns.TypeMX} {
		g.send(c, pack(t, query(spelled(0), kind)))
		s.next()
	}
	// As many may wait for one answer, then it is asked once more.
	var pods [4]*net.UDPConn // whose queues have room for the answers
	for i := range pods {
		pods[i] = g.dial(pod4, s.addr)
	}
	for i := range maxAskers + 1 {
		g.send(pods[i%len(pods)], pack(t, numbered(uint16(i), "b.x")))
	}
	first, _ := s.next()
	second, from := s.next()
	if first.Id == second.Id {
		t.Error("the same id twice")
	}
	s.silent(50 * time.Millisecond)
	s.answer(from, replyTo(t, second, "b.x. 60 A 192.0.2.1"))
	s.answer(from, replyTo(t, first, "b.x. 60 A 192.0.2.1"))
	var ids []int
	for i := range maxAskers + 1 {
		b := g.receive(pods[i%len(pods)], 5*time.Second)
		if b == nil {
			t.Fatalf("%d answers", len(ids))
		}
		ids = append(ids, int(messageID(b)))
	}
	if slices.Sort(ids); ids[0] != 0 || ids[maxAskers] != maxAskers || len(slices.Compact(ids)) != maxAskers+1 {
		t.Errorf("ids %v", ids)
	}
}

// TestPortIsRenewed: who guesses ids has to find out another port soon.
func TestPortIsRenewed(t *testing.T) {
	g := newRig(t)
	s := g.scripted()
	c := g.dial(pod4, s.addr)
	asked := pack(t, numbered(1, "a.x"))
	g.send(c, asked)
	first, port := s.next()
	forge := func(n int) {
		t.Helper()
		g.mu.Lock()
		before := g.dropped[ReasonAnswerForeign]
		g.mu.Unlock()
		m := replyTo(t, first, "a.x. 60 A 192.0.2.66")
		for range n {
			m.Id++
			s.answer(port, m)
			time.Sleep(50 * time.Microsecond)
		}
		g.waitDropped(ReasonAnswerForeign, before+n)
	}
	ask := func(name string) (*dns.Msg, netip.AddrPort) {
		t.Helper()
		g.send(c, pack(t, query(name, dns.TypeA)))
		return s.next()
	}
	// Good answers weigh up wrong ones.
	m, from := ask("b.x")
	s.answer(from, replyTo(t, m, "b.x. 60 A 192.0.2.1"))
	g.receive(c, time.Second)
	forge(maxForeign)
	if _, from = ask("c.x"); from != port {
		t.Fatalf("asked by %v, before by %v", from, port)
	}
	forge(1)
	g.waitDropped(ReasonRenewed, 1)
	if _, from = ask("d.x"); from.Port() == port.Port() {
		t.Errorf("asked by %v still", from)
	}
	// What still waits is answered, and moves when it is asked again.
	s.answer(port, replyTo(t, first, "a.x. 60 A 192.0.2.1"))
	if b := g.receive(c, time.Second); b == nil || messageID(b) != 1 {
		t.Errorf("the pod got %x", b)
	}
	g.records(2)
	time.Sleep(firstRepeat)
	g.send(c, pack(t, query("c.x", dns.TypeA)))
	m, moved := s.next()
	if moved != from {
		t.Errorf("asked again by %v, not %v", moved, from)
	}
	s.answer(moved, replyTo(t, m, "c.x. 60 A 192.0.2.1"))
	for range 2 {
		if b := g.receive(c, time.Second); b == nil {
			t.Error("what was moved is not answered")
		}
	}
	g.records(2)
	g.loop(func(r *relay) {
		if r.opened != 1 {
			t.Errorf("%d sockets", r.opened)
		}
	})
	// Twice as many, and nothing waits there any more.
	port = moved
	first.Id = 0
	forge(2*maxForeign + 1)
	if r := g.records(1)[0]; r.Failure != ReasonRenewed || r.Answered || string(AppendName(nil, r.Question)) != "d.x" {
		t.Errorf("%+v", r)
	}
	if b := g.receive(c, 20*time.Millisecond); b != nil {
		t.Errorf("the pod got %x", b)
	}
	g.loop(func(r *relay) {
		if r.opened != 0 || r.pendings.n != 0 {
			t.Errorf("%d sockets, %d questions", r.opened, r.pendings.n)
		}
	})
}
