package proxy

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/policy"
)

// asking is a client's connection for questions through a succession, to a server
// that answers when it is let.
type asking struct {
	t      *testing.T
	client *mdns.Conn
	tuple  bpf.Tuple
	asked  chan string
	answer chan struct{}
}

// connectAsking adds a connection for questions to the
// predecessor, as the first.
func (s *succession) connectAsking() *asking {
	s.t.Helper()
	for _, d := range []*dataSide{s.old, s.new} {
		d.sets.set([]policy.RuleSet{dnsSet(5, false, "a.x", "b.x", "c.x")}, nil, false)
	}
	up, server := tcpPair(s.t)
	accepted, dialed := tcpPair(s.t)
	client, to := ends(accepted)
	others := s.old.dial
	s.old.dial = func(ctx context.Context, from, to netip.AddrPort, local bool) (*net.TCPConn, error) {
		if from == client {
			return up, nil
		}
		return others(ctx, from, to, local)
	}
	a := &asking{
		t: s.t, client: &mdns.Conn{Conn: dialed}, tuple: bpf.TupleOf(client, to, unix.IPPROTO_TCP),
		asked: make(chan string, 1), answer: make(chan struct{}, 1),
	}
	s.flows.set(a.tuple, bpf.Conn{Id: 900, Generation: 3, Ifindex: 7, L7: 1 << policy.Egress, RuleSet: [2]uint32{0, 5}})
	go func() {
		c := &mdns.Conn{Conn: server}
		defer c.Close()
		for {
			q, err := c.ReadMsg()
			if err != nil {
				return
			}
			a.asked <- q.Question[0].Name
			<-a.answer
			if c.WriteMsg(new(mdns.Msg).SetReply(q)) != nil {
				return
			}
		}
	}()
	s.old.admit(accepted)
	a.ask("a.x.")
	a.answered(mdns.RcodeSuccess)
	return a
}

// ask has a question reach the server.
func (a *asking) ask(name string) {
	a.t.Helper()
	if err := a.client.WriteMsg(new(mdns.Msg).SetQuestion(name, mdns.TypeA)); err != nil {
		a.t.Fatal(err)
	}
	select {
	case got := <-a.asked:
		if got != name {
			a.t.Errorf("the server is asked for %s, not %s", got, name)
		}
	case <-time.After(5 * time.Second):
		a.t.Fatalf("the server is not asked for %s", name)
	}
}

func (a *asking) answered(rcode int) {
	a.t.Helper()
	if rcode == mdns.RcodeSuccess {
		a.answer <- struct{}{}
	}
	_ = a.client.SetReadDeadline(time.Now().Add(5 * time.Second))
	if m, err := a.client.ReadMsg(); err != nil || m.Rcode != rcode {
		a.t.Fatalf("%v, %v", m, err)
	}
}

// TestHandOverOfQuestions: a connection for questions goes over when none waits on
// it, and is judged by the successor's rules from then on.
func TestHandOverOfQuestions(t *testing.T) {
	s := newSuccession(t)
	a := s.connectAsking()
	s.connect(1)
	s.bridge(nil, nil)
	a.ask("b.x.")
	s.old.handOver()
	s.wait("the hand-over of what is idle", func() bool { return s.new.pairs.len() == 1 })
	time.Sleep(20 * time.Millisecond)
	if s.old.pairs.len() != 1 || s.old.over() {
		t.Fatal("a question waits, and the connection is not there any more")
	}
	a.answered(mdns.RcodeSuccess)
	s.wait("the hand-over", func() bool { return s.new.pairs.len() == 2 && s.old.pairs.len() == 0 })
	if !slices.ContainsFunc(s.new.pairs.all(), func(p *pair) bool { return p.asks }) {
		t.Error("the successor takes it for another kind")
	}
	a.ask("c.x.")
	a.answered(mdns.RcodeSuccess)
	s.new.sets.set([]policy.RuleSet{dnsSet(5, false, "e.x")}, nil, false)
	if err := a.client.WriteMsg(new(mdns.Msg).SetQuestion("d.x.", mdns.TypeA)); err != nil {
		t.Fatal(err)
	}
	a.answered(mdns.RcodeRefused)
	if err := a.client.Close(); err != nil {
		t.Fatal(err)
	}
	s.wait("its end", func() bool { _, ok, _ := s.flows.get(a.tuple); return s.new.pairs.len() == 1 && !ok })
}

// TestQuestionsComeBack: a connection for questions that can't be sent is served
// on, and goes to the next successor.
func TestQuestionsComeBack(t *testing.T) {
	s := newSuccession(t)
	a := s.connectAsking()
	dead, b := seqPackets(t)
	h := newHeir(dead, 4)
	b.Close()
	s.old.heir.Store(h)
	s.old.superseded.Store(true)
	s.old.yield()
	s.wait("the offer", func() bool { return s.old.pairs.len() == 0 })
	s.running.Go(func() { s.old.serveHeir(h, "boot", nil) })
	s.wait("that it is back", func() bool { return s.old.pairs.len() == 1 })
	a.ask("b.x.")
	a.answered(mdns.RcodeSuccess)
	s.bridge(nil, nil)
	s.wait("the hand-over", func() bool { return s.new.pairs.len() == 1 })
	a.ask("c.x.")
	a.answered(mdns.RcodeSuccess)
}
