package proxy

import (
	"sync"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/proxy/dns"
	"github.com/weirnet/weir/proxy/http"
)

// l7Bits are those of Conn.L7 that say whose rules are applied.
const l7Bits = 1<<policy.Ingress | 1<<policy.Egress

// serving is a connection that is served: an http.Pair or a dns.Pair.
type serving interface {
	// Abort resets both sides and returns once both sockets are closed.
	Abort()
	// End ends the connection when it next stands between two messages.
	End()
}

// pair is a redirected connection: the client's, and ours to the server.
type pair struct {
	proxy      *dataSide
	tuple      bpf.Tuple
	veth       uint32 // of the pod it speaks for
	generation uint8  // whose namespace its sockets are in
	asks       bool   // it is one for questions

	// What rules yields, and what it was made of. Only the goroutine that
	// serves the connection touches these once it is started.
	entry     bpf.Conn
	sets      *setTable
	rules     http.Rules
	questions dns.Rules // where it is a connection for questions

	// served is closed when serving is set: connections are started outside
	// of the table's lock.
	served  chan struct{}
	serving serving
	// done is closed when both sockets are and the entry in conns is gone, or
	// somebody else has them.
	done chan struct{}
}

// current yields the rule sets that hold for the next request. It allocates
// nothing, and while policy stands still it reads two words.
func (p *pair) current() http.Rules {
	now, sets := p.proxy.revisions.now(), p.proxy.sets.now.Load()
	if now == p.entry.Revision && sets == p.sets {
		return p.rules
	}
	if now != p.entry.Revision {
		// The packet that brought this request was judged by the kernel before
		// it came here: where that changed anything the entry tells.
		entry, ok, err := p.proxy.flows.get(p.tuple)
		if err != nil || !ok || entry.Id != p.entry.Id {
			p.proxy.deny(denyRevoked)
			p.rules = http.Rules{Egress: p.proxy.closed, Ingress: p.proxy.closed}
			p.questions = dns.Rules{Egress: p.proxy.closedQuestions, Ingress: p.proxy.closedQuestions}
			p.sets = nil
			go p.abort()
			return p.rules
		}
		p.entry = entry
	}
	p.resolve(sets)
	return p.rules
}

// currentQuestions is current for a connection for questions.
func (p *pair) currentQuestions() dns.Rules {
	p.current()
	rules := p.questions
	p.proxy.believe(&rules, policy.Server{Addr: p.tuple.Destination(), Protocol: unix.IPPROTO_TCP})
	return rules
}

// resolve looks up the rule sets that entry names.
func (p *pair) resolve(sets *setTable) {
	p.rules = http.Rules{
		Egress:  p.proxy.ruleSet(sets, &p.entry, policy.Egress),
		Ingress: p.proxy.ruleSet(sets, &p.entry, policy.Ingress),
	}
	p.questions = p.proxy.questionRules(sets, &p.entry)
	p.sets = sets
}

// ruleSet is what one direction of a flow must pass: nil everything does.
func (d *dataSide) ruleSet(sets *setTable, e *bpf.Conn, dir policy.Direction) *http.RuleSet {
	if !judged(e, dir) {
		return nil
	}
	if set, ok := sets.http[e.RuleSet[dir]]; ok {
		return set
	}
	return d.closed // the agent sends sets before anything names them
}

// judged tells whether a direction of a flow has rules to be applied here.
func judged(e *bpf.Conn, dir policy.Direction) bool {
	return e.L7&(1<<dir) != 0 && e.RuleSet[dir] != 0
}

// abort resets both sides and returns when they are closed.
func (p *pair) abort() {
	<-p.served
	p.serving.Abort()
	<-p.done
}

// pairTable holds the live pairs by tuple, and counts those of each veth and of
// each generation.
type pairTable struct {
	mu          sync.Mutex
	pairs       map[bpf.Tuple]*pair
	of          map[uint32]int
	generations [256]int
	handed      map[bpf.Tuple]handed
}

func newPairTable() pairTable {
	return pairTable{pairs: make(map[bpf.Tuple]*pair), of: make(map[uint32]int), handed: make(map[bpf.Tuple]handed)}
}

// put makes p the pair of its tuple and returns the one that was, if any. It
// fails when there are max already, or share of p's veth.
func (t *pairTable) put(p *pair, max, share int) (old *pair, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	old = t.pairs[p.tuple]
	if old != nil {
		t.uncount(old)
	} else if len(t.pairs) >= max || t.of[p.veth] >= share {
		return nil, false
	}
	t.pairs[p.tuple] = p
	t.of[p.veth]++
	t.generations[p.generation]++
	return old, true
}

func (t *pairTable) uncount(p *pair) {
	t.generations[p.generation]--
	if t.of[p.veth]--; t.of[p.veth] == 0 {
		delete(t.of, p.veth)
	}
}

// drop forgets p, if it still is the pair of its tuple.
func (t *pairTable) drop(p *pair) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.pairs[p.tuple] == p {
		delete(t.pairs, p.tuple)
		t.uncount(p)
	}
}

func (t *pairTable) has(tuple bpf.Tuple) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, ok := t.pairs[tuple]
	return ok
}

func (t *pairTable) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.pairs)
}

func (t *pairTable) all() []*pair {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]*pair, 0, len(t.pairs))
	for _, p := range t.pairs {
		out = append(out, p)
	}
	return out
}
