package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/weirnet/weir/fqdn"
	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/policy/dnsrules"
)

// spell is an answer as text.
func spell(a fqdn.Answer) string {
	s := fmt.Sprintf("%v: %s", a.Pod, strings.Join(append([]string{a.Name}, a.Chain...), " "))
	for _, r := range a.Records {
		s += fmt.Sprintf(" %v/%d", r.Addr, int(r.TTL.Seconds()))
	}
	return s
}

func TestAnswersAreLearned(t *testing.T) {
	g := newRig(t)
	var learned atomic.Value
	learned.Store("")
	g.learn(func(_ context.Context, a fqdn.Answer) error {
		learned.Store(spell(a))
		return nil
	})
	s := g.scripted()
	c := g.dial(pod4, s.addr)
	exchange := func(rules Rules, prepare func(*dns.Msg)) string {
		t.Helper()
		g.rules.Store(&rules)
		learned.Store("")
		g.send(c, pack(t, query("A.x", dns.TypeA)))
		sent, from := s.next()
		a := replyTo(t, sent, "a.x. 60 CNAME b.y.", "b.y. 30 A 192.0.2.1", "b.y. 90 A 192.0.2.2")
		prepare(a)
		s.answer(from, a)
		if g.receive(c, 2*time.Second) == nil {
			t.Error("no answer")
		}
		g.records(1)
		return learned.Load().(string)
	}
	as := func(*dns.Msg) {}
	const all = "10.1.0.7: a.x b.y 192.0.2.1/30 192.0.2.2/60"
	for name, c := range map[string]struct {
		rules   Rules
		prepare func(*dns.Msg)
		want    string
	}{
		"believed":     {Rules{Believed: true}, as, all},
		"with rules":   {Rules{Egress: allow("*.x", "a.x"), Believed: true}, as, all},
		"not believed": {Rules{Egress: allow()}, as, ""},
		"truncated":    {Rules{Believed: true}, func(m *dns.Msg) { m.Truncated = true }, all},
		"failure":      {Rules{Believed: true}, func(m *dns.Msg) { m.Rcode = dns.RcodeServerFailure }, ""},
		"no addresses": {Rules{Believed: true}, func(m *dns.Msg) { m.Answer = m.Answer[:1] }, ""},
	} {
		if got := exchange(c.rules, c.prepare); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestTeachingRuleSets(t *testing.T) {
	for _, teaches := range []bool{false, true} {
		for _, namespace := range []string{"", "shop"} {
			if in, ok := NewRuleSet(&policy.RuleSet{Teaches: teaches, TeachesFor: namespace}).Teaches(); ok != teaches || ok && in != namespace {
				t.Errorf("teaches: %v, %q", ok, in)
			}
		}
	}
	for _, rs := range []*RuleSet{nil, Closed()} {
		if _, ok := rs.Teaches(); ok {
			t.Error("no rule set teaches")
		}
	}
}

// TestReleasedWhenLearned: an answer that can't be learned at once is held back,
// and holds nothing else back.
func TestReleasedWhenLearned(t *testing.T) {
	g := newRig(t)
	g.rules.Store(&Rules{Believed: true})
	var mu sync.Mutex
	calls := 0
	entered, let := make(chan fqdn.Answer), make(chan error)
	g.learn(func(ctx context.Context, a fqdn.Answer) error {
		mu.Lock()
		defer mu.Unlock()
		if calls++; a.Name != "slow.x" {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("it takes an agent: %w", ctx.Err())
		}
		if _, ok := ctx.Deadline(); !ok {
			t.Error("it may take for ever")
		}
		mu.Unlock()
		defer mu.Lock()
		entered <- a
		return <-let
	})
	s := g.scripted()
	c := g.dial(pod4, s.addr)
	for _, result := range []error{nil, errors.New("no room")} {
		slow := query("slow.x", dns.TypeA)
		g.send(c, pack(t, slow))
		sent, from := s.next()
		s.answer(from, replyTo(t, sent, "slow.x. 60 CNAME b.y.", "b.y. 60 A 192.0.2.1"))
		a := <-entered
		// Others' answers pass, and use the same memory.
		for range 3 {
			g.send(c, pack(t, query("fast.x", dns.TypeA)))
			sent, from := s.next()
			s.answer(from, replyTo(t, sent, "fast.x. 60 CNAME d.y.", "d.y. 60 A 192.0.2.9"))
			if b := g.receive(c, 2*time.Second); b == nil || messageID(b) == slow.Id {
				t.Fatalf("got %x", b)
			}
		}
		g.records(3)
		if got := spell(a); got != "10.1.0.7: slow.x b.y 192.0.2.1/60" {
			t.Errorf("learned %s", got)
		}
		// It is counted once the loop comes round.
		for end := time.Now().Add(5 * time.Second); g.server.Pending() != 1; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d wait", g.server.Pending())
			}
		}
		let <- result
		m := new(dns.Msg)
		if b := g.receive(c, 2*time.Second); b == nil || m.Unpack(b) != nil || m.Id != slow.Id || len(m.Answer) != 2 {
			t.Errorf("got %v", m)
		}
		if r := g.records(1)[0]; !r.Answered || len(r.Chain) != 1 || r.Chain[0] != "b.y" || r.Records[0].Addr != netip.MustParseAddr("192.0.2.1") {
			t.Errorf("%+v", r)
		}
	}
	g.waitDropped(ReasonLearn, 1)
	g.loop(func(r *relay) {
		for _, s := range r.sessions {
			if s.pending != 0 || s.pod.pending != 0 || r.waiting != 0 {
				t.Errorf("%d, %d, %d wait", s.pending, s.pod.pending, r.waiting)
			}
		}
	})
}

// TestReleasedWithItsIdentity: the same with what learns in earnest. An address
// of a name that two selectors are for needs an identity that is made when it is
// asked for.
func TestReleasedWithItsIdentity(t *testing.T) {
	g := newRig(t)
	g.rules.Store(&Rules{Believed: true})
	cache := fqdn.New(fqdn.Options{})
	name, pattern := dnsrules.NewSelector("a.x", ""), dnsrules.NewSelector("", "*.x")
	identities := map[identity.ID][]dnsrules.Selector{1: {name}, 2: {pattern}}
	g.must(cache.SetNames(identities, nil))
	wanted := make(chan [][]dnsrules.Selector, 9)
	go cache.Watch(t.Context(), func(sets [][]dnsrules.Selector) error {
		wanted <- sets
		return nil
	})
	if sets := <-wanted; len(sets) != 0 { // it watches
		t.Fatalf("wanted at first: %v", sets)
	}
	g.learn(cache.Learn)
	s := g.scripted()
	c := g.dial(pod4, s.addr)
	exchange := func(name string) {
		q := query(name, dns.TypeA)
		g.send(c, pack(t, q))
		sent, from := s.next()
		s.answer(from, replyTo(t, sent, name+". 60 A 192.0.2.1"))
	}
	exchange("b.x")
	if g.receive(c, 2*time.Second) == nil {
		t.Error("one selector: no answer")
	}
	g.records(1)
	exchange("a.x")
	sets := <-wanted
	if b := g.receive(c, 50*time.Millisecond); b != nil {
		t.Error("it came before there was an identity")
	}
	identities[3] = sets[0]
	g.must(cache.SetNames(identities, nil))
	if g.receive(c, 2*time.Second) == nil {
		t.Error("no answer")
	}
	g.records(1)
}

// TestPortsAreRenewed: a socket is used for a while only, and still gets what it
// asked for.
func TestPortsAreRenewed(t *testing.T) {
	g := newRig(t)
	s := g.scripted()
	c := g.dial(pod4, s.addr)
	ports := map[uint16]bool{}
	g.send(c, pack(t, query("first.x", dns.TypeA)))
	first, from := s.next()
	ports[from.Port()] = true
	g.loop(func(r *relay) {
		for _, s := range r.sessions {
			s.up.asked = socketQuestions
		}
	})
	g.send(c, pack(t, query("a.x", dns.TypeA)))
	second, from2 := s.next()
	ports[from2.Port()] = true
	g.loop(func(r *relay) {
		for _, s := range r.sessions {
			s.up.opened = s.up.opened.Add(-r.limits.socketAge)
		}
	})
	g.send(c, pack(t, query("b.x", dns.TypeA)))
	third, from3 := s.next()
	ports[from3.Port()] = true
	if len(ports) != 3 {
		t.Errorf("ports %v", ports)
	}
	for _, x := range []struct {
		q  *dns.Msg
		to netip.AddrPort
	}{{third, from3}, {first, from}, {second, from2}} {
		s.answer(x.to, replyTo(t, x.q))
		if g.receive(c, 2*time.Second) == nil {
			t.Errorf("no answer to %v", x.q.Question)
		}
	}
	g.loop(func(r *relay) {
		n := 0
		for u := r.upstreams.root.newer; u.of != nil; u = u.newer {
			n++
		}
		if n != 1 || r.opened != 1 {
			t.Errorf("%d sockets are open, %d are counted", n, r.opened)
		}
	})
	// One that is retired and waits goes with its session, and counts once.
	g.send(c, pack(t, query("c.x", dns.TypeA)))
	s.next()
	g.loop(func(r *relay) {
		for _, s := range r.sessions {
			s.up.asked = socketQuestions
		}
	})
	g.send(c, pack(t, query("d.x", dns.TypeA)))
	s.next()
	g.loop(func(r *relay) {
		if r.opened != 2 {
			t.Errorf("%d sockets are counted", r.opened)
		}
		for _, s := range r.sessions {
			r.end(s)
		}
		if r.opened != 0 || r.upstreams.oldest() != nil {
			t.Errorf("%d sockets are counted", r.opened)
		}
	})
}

// TestIdleEnds: sockets are closed and sessions end when nobody uses them.
func TestIdleEnds(t *testing.T) {
	g := newRig(t, func(g *rig) {
		g.relay.limits.sweep = 10 * time.Millisecond
		g.relay.limits.socket, g.relay.limits.replier, g.relay.limits.session = 50*time.Millisecond, 100*time.Millisecond, 200*time.Millisecond
	})
	s := g.scripted()
	c := g.dial(pod4, s.addr)
	sockets := func() (ups, repliers int) {
		g.loop(func(r *relay) {
			for u := r.upstreams.root.newer; u.of != nil; u = u.newer {
				ups++
			}
			repliers = len(r.repliers)
		})
		return
	}
	for range 2 {
		g.send(c, pack(t, query("a.x", dns.TypeA)))
		sent, from := s.next()
		if n, _ := sockets(); n != 1 {
			t.Errorf("%d sockets", n)
		}
		s.answer(from, replyTo(t, sent))
		g.receive(c, 2*time.Second)
		for n, repliers := sockets(); n+repliers > 0; n, repliers = sockets() {
			time.Sleep(10 * time.Millisecond)
		}
	}
	if g.opened != 1 {
		t.Errorf("%d sessions were opened", g.opened)
	}
	g.wait("the session's end", func() bool { return g.closed == 1 })
	g.loop(func(r *relay) {
		if len(r.sessions)+len(r.pods)+r.pendings.n != 0 {
			t.Errorf("%d sessions of %d pods", len(r.sessions), len(r.pods))
		}
		if n := r.turn(); n != -1 { // there is nothing to do
			t.Errorf("it waits for %d ms", n)
		}
	})
}

// TestQuestionsAllocateNothing: neither what passes nor what is denied.
func TestQuestionsAllocateNothing(t *testing.T) {
	g := newRig(t)
	g.rules.Store(&Rules{Egress: allow("*.x"), Believed: true})
	var count atomic.Int64
	s := g.scripted()
	c := g.dial(pod4, s.addr)
	g.send(c, pack(t, query("first.x", dns.TypeA)))
	sent, from := s.next()
	s.answer(from, replyTo(t, sent))
	g.receive(c, 2*time.Second)
	g.loop(func(r *relay) {
		var session *session
		for _, session = range r.sessions {
			session.Session = &quiet{rules: g.rules.Load(), n: &count}
		}
		question := pack(t, query("www.x", dns.TypeA))
		denied := pack(t, query("www.y", dns.TypeA))
		answer := pack(t, replyTo(t, query("www.x", dns.TypeA), "www.x. 60 CNAME www.y.", "www.y. 60 A 192.0.2.1"))
		slot := func(b []byte) []byte { return r.in.slots[:copy(r.in.slots, b):slotSize] }
		round := func() {
			r.question(session, [2]byte{0xff, 0xfe}, slot(question))
			r.question(session, [2]byte{0xff, 0xfe}, slot(denied))
			m := slot(answer)
			setMessageID(m, r.pendings.all.oldest().id)
			r.answer(session.up, m)
			r.flush()
			session.up.asked = 0
		}
		round()
		if n := testing.AllocsPerRun(1000, round); n != 0 {
			t.Errorf("%v allocations", n)
		}
		if r.pendings.n != 0 {
			t.Errorf("%d wait", r.pendings.n)
		}
	})
	if count.Load() < 2000 {
		t.Errorf("%d records", count.Load())
	}
}

// quiet is a Session that only counts.
type quiet struct {
	rules *Rules
	n     *atomic.Int64
}

func (q *quiet) Owner() uint32        { return 1 }
func (q *quiet) Rules() (Rules, bool) { return *q.rules, true }
func (q *quiet) Observe(*Record)      { q.n.Add(1) }
func (q *quiet) Close()               {}
