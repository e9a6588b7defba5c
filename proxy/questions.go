package proxy

import (
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/proxy/control"
	"github.com/weirnet/weir/proxy/dns"
)

// Bounds of what is recorded of an answer.
const (
	recordedNames     = 16
	recordedAddresses = 16
)

// asked is what a record has of a question.
type asked struct {
	asked       bool
	kind, class uint16
	rcode       uint8
	answered    bool
	// In the record's text come first the name, then those of the chain, each as
	// long as said here.
	name      int
	chain     [recordedNames]int
	names     int
	addresses [recordedAddresses]netip.Addr
	n         int
}

// question notes a question. port: the client's.
func (b *recordBuffer) question(t bpf.Tuple, e *bpf.Conn, protocol string, r *dns.Record) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.slot(t, e, r.Start, r.Latency, r.Verdict == dns.Allowed)
	if s == nil {
		return
	}
	s.protocol, s.reason, s.judge = protocol, r.Reason.String(), r.Direction
	if r.Failure != dns.ReasonNone {
		s.reason = r.Failure.String()
	}
	s.rules = [2]uint32{policy.Ingress: r.IngressRule, policy.Egress: r.EgressRule}
	q := &s.question
	q.asked, q.kind, q.class, q.rcode, q.answered = true, r.Kind, r.Class, r.RCode, r.Answered
	s.text = s.text[:0]
	if len(r.Question) > 0 {
		s.text = dns.AppendName(s.text, r.Question)
	}
	q.name, q.names, q.n = len(s.text), 0, 0
	for _, name := range r.Chain[:min(len(r.Chain), recordedNames)] {
		s.text = append(s.text, name...)
		q.chain[q.names] = len(name)
		q.names++
	}
	for _, a := range r.Records[:min(len(r.Records), recordedAddresses)] {
		q.addresses[q.n] = a.Addr
		q.n++
	}
}

// message adds the question to m.
func (q *asked) message(m *control.Record, text []byte) {
	d := &control.DNS{
		Name: string(text[:q.name]), Type: uint32(q.kind), Class: uint32(q.class), Rcode: uint32(q.rcode), Answered: q.answered,
	}
	text = text[q.name:]
	for _, n := range q.chain[:q.names] {
		d.Chain = append(d.Chain, string(text[:n]))
		text = text[n:]
	}
	for _, a := range q.addresses[:q.n] {
		d.Addresses = append(d.Addresses, a.AsSlice())
	}
	m.Dns = d
}

// believer tells whose answers are believed for all policies, whatever the rule
// sets say: a fqdn.Cache.
type believer interface{ Believed(policy.Server) bool }

// asks is what a pod asks a server by UDP: a dns.Session.
type asks struct {
	proxy  *dataSide
	tuple  bpf.Tuple
	pod    netip.Addr
	server netip.AddrPort
	entry  bpf.Conn
	sets   *setTable
	rules  dns.Rules
}

// openAsks finds out what was decided about a pod's questions to a server; nil:
// nothing.
func (d *dataSide) openAsks(pod netip.Addr, server netip.AddrPort) dns.Session {
	a := &asks{proxy: d, tuple: bpf.TupleOf(netip.AddrPortFrom(pod, 0), server, unix.IPPROTO_UDP), pod: pod, server: server}
	entry, ok, err := d.flows.get(a.tuple)
	if err != nil {
		d.log.Error("look up a session", "error", err)
		d.counters.deny(denyLookup)
		return nil
	}
	if !ok {
		return nil
	}
	a.entry = entry
	a.resolve(d.sets.now.Load())
	d.sessions.put(a.tuple)
	return a
}

// Owner implements dns.Session: a pod is known by its veth.
func (a *asks) Owner() uint32 { return a.entry.Ifindex }

// Rules implements dns.Session. It allocates nothing.
func (a *asks) Rules() (dns.Rules, bool) {
	now, sets := a.proxy.revisions.now(), a.proxy.sets.now.Load()
	if now != a.entry.Revision {
		// As with a pair's requests: what brought the question was judged before it
		// came here. The entry may have been made anew; it is the pod's as long as
		// the veth is the same.
		entry, ok, err := a.proxy.flows.get(a.tuple)
		if err != nil || !ok || entry.Ifindex != a.entry.Ifindex {
			return dns.Rules{}, false
		}
		a.entry = entry
		a.resolve(sets)
	} else if sets != a.sets {
		a.resolve(sets)
	}
	rules := a.rules
	a.proxy.believe(&rules, policy.Server{Addr: a.server, Protocol: unix.IPPROTO_UDP})
	return rules, true
}

func (a *asks) resolve(sets *setTable) {
	a.rules, a.sets = a.proxy.questionRules(sets, &a.entry), sets
}

// Observe implements dns.Session.
func (a *asks) Observe(r *dns.Record) {
	tuple := bpf.TupleOf(netip.AddrPortFrom(a.pod, r.ClientPort), a.server, unix.IPPROTO_UDP)
	a.proxy.observeQuestion(tuple, &a.entry, "UDP", r)
}

// Close implements dns.Session. Where a successor has the entry it is left alone.
func (a *asks) Close() {
	a.proxy.sessions.drop(a.tuple)
	if a.entry.Generation != a.proxy.generation {
		return
	}
	if err := a.proxy.flows.remove(a.tuple, a.entry.Id); err != nil {
		a.proxy.log.Error("forget a session", "error", err)
	}
}

// believe finds out whether what a server answers is learned, and for whom.
func (d *dataSide) believe(rules *dns.Rules, server policy.Server) {
	if d.believed.Believed(server) {
		rules.Believed = true
		return
	}
	rules.BelievedFor, rules.Believed = rules.Egress.Teaches()
}

// questionRules are what questions of a flow must pass.
func (d *dataSide) questionRules(sets *setTable, e *bpf.Conn) dns.Rules {
	return dns.Rules{Egress: d.questionSet(sets, e, policy.Egress), Ingress: d.questionSet(sets, e, policy.Ingress)}
}

// questionSet is what questions must pass in one direction: nil everything does.
func (d *dataSide) questionSet(sets *setTable, e *bpf.Conn, dir policy.Direction) *dns.RuleSet {
	if !judged(e, dir) {
		return nil
	}
	if set, ok := sets.dns[e.RuleSet[dir]]; ok {
		return set
	}
	return d.closedQuestions
}

// isQuestions tells whether a connection is one for questions: some rules of it
// are about them.
func isQuestions(sets *setTable, e *bpf.Conn) bool {
	for _, dir := range []policy.Direction{policy.Ingress, policy.Egress} {
		if _, ok := sets.dns[e.RuleSet[dir]]; ok && judged(e, dir) {
			return true
		}
	}
	return false
}

// sessionTable knows whose questions by UDP are being served.
type sessionTable struct {
	mu  sync.Mutex
	all map[bpf.Tuple]struct{}
}

func (t *sessionTable) put(tuple bpf.Tuple) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.all == nil {
		t.all = make(map[bpf.Tuple]struct{})
	}
	t.all[tuple] = struct{}{}
}

func (t *sessionTable) drop(tuple bpf.Tuple) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.all, tuple)
}

func (t *sessionTable) has(tuple bpf.Tuple) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, ok := t.all[tuple]
	return ok
}

// observeQuestion counts and records a question.
func (d *dataSide) observeQuestion(t bpf.Tuple, e *bpf.Conn, protocol string, r *dns.Record) {
	if r.Verdict != dns.Failed {
		d.counters.requests.Add(1)
		d.counters.questions.Add(1)
	}
	if r.Failure != dns.ReasonNone {
		d.counters.deny(r.Failure.String())
	} else if r.Verdict != dns.Allowed {
		d.counters.deny(r.Reason.String())
	}
	d.records.question(t, e, protocol, r)
}
