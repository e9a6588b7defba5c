package proxy

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/policy/httprules"
	"github.com/weirnet/weir/proxy/http"
)

var (
	testClient = netip.MustParseAddrPort("10.0.0.1:40000")
	testServer = netip.MustParseAddrPort("10.0.0.2:80")
	testTuple  = bpf.TupleOf(testClient, testServer, unix.IPPROTO_TCP)
)

const both = 1<<policy.Ingress | 1<<policy.Egress

func testPair(d *dataSide, e bpf.Conn) *pair {
	p := &pair{proxy: d, tuple: testTuple, entry: e, served: make(chan struct{}), done: make(chan struct{})}
	p.resolve(d.sets.now.Load())
	return p
}

func TestRulesOfAFlow(t *testing.T) {
	d, _, _ := newData(t)
	if r := d.sets.set([]policy.RuleSet{{ID: 5}, {ID: 6}}, nil, false); len(r) != 0 {
		t.Fatal(r)
	}
	five, six := d.sets.now.Load().http[5], d.sets.now.Load().http[6]
	for name, tt := range map[string]struct {
		l7   uint8
		sets [2]uint32 // ingress, egress
		want http.Rules
	}{
		"no L7 at all":            {0, [2]uint32{5, 6}, http.Rules{}},
		"ingress":                 {1 << policy.Ingress, [2]uint32{5, 6}, http.Rules{Ingress: five}},
		"egress":                  {1 << policy.Egress, [2]uint32{5, 6}, http.Rules{Egress: six}},
		"both":                    {both, [2]uint32{5, 6}, http.Rules{Ingress: five, Egress: six}},
		"set 0 lets all pass":     {both, [2]uint32{0, 6}, http.Rules{Egress: six}},
		"unknown lets none pass":  {both, [2]uint32{5, 7}, http.Rules{Ingress: five, Egress: d.closed}},
		"unknown where no L7 is":  {1 << policy.Ingress, [2]uint32{5, 7}, http.Rules{Ingress: five}},
		"bits that mean nothing":  {1 << 7, [2]uint32{5, 7}, http.Rules{}},
		"unknown in both of them": {both, [2]uint32{8, 9}, http.Rules{Ingress: d.closed, Egress: d.closed}},
	} {
		p := testPair(d, bpf.Conn{L7: tt.l7, RuleSet: tt.sets})
		if got := p.current(); got != tt.want {
			t.Errorf("%s: %+v, want %+v", name, got, tt.want)
		}
	}
}

func TestRulesFollowPolicy(t *testing.T) {
	d, flows, revision := newData(t)
	d.sets.set([]policy.RuleSet{{ID: 5}, {ID: 6}}, nil, false)
	five, six := d.sets.now.Load().http[5], d.sets.now.Load().http[6]
	*revision = 10
	entry := bpf.Conn{Id: 1, Revision: 10, L7: 1 << policy.Egress, RuleSet: [2]uint32{0, 5}}
	flows.set(testTuple, entry)
	p := testPair(d, entry)
	want := func(when string, rules http.Rules, gets int) {
		t.Helper()
		if got := p.current(); got != rules {
			t.Errorf("%s: %+v, want %+v", when, got, rules)
		}
		if flows.gets != gets {
			t.Errorf("%s: the table was read %d times, want %d", when, flows.gets, gets)
		}
	}
	want("at first", http.Rules{Egress: five}, 0)
	want("again", http.Rules{Egress: five}, 0)
	// The policy moved, the kernel has not seen a packet since.
	*revision = 11
	want("moved", http.Rules{Egress: five}, 1)
	want("moved, next request", http.Rules{Egress: five}, 2)
	// It has judged the packet with the request.
	entry.Revision, entry.RuleSet[policy.Egress] = 11, 6
	flows.set(testTuple, entry)
	want("judged anew", http.Rules{Egress: six}, 3)
	want("judged anew, next request", http.Rules{Egress: six}, 3)
	// A set that was not known arrives.
	entry.Revision, entry.RuleSet[policy.Egress] = 12, 7
	*revision = 12
	flows.set(testTuple, entry)
	want("unknown set", http.Rules{Egress: d.closed}, 4)
	d.sets.set([]policy.RuleSet{{ID: 7}}, nil, false)
	want("now known", http.Rules{Egress: d.sets.now.Load().http[7]}, 4)
	// No more L7 rules: everything passes.
	entry.Revision, entry.L7 = 13, 0
	*revision = 13
	flows.set(testTuple, entry)
	want("no L7", http.Rules{}, 5)
}

// abortable makes p a pair that can be aborted, and tells when it was.
func abortable(t *testing.T, d *dataSide, p *pair) {
	t.Helper()
	client, _ := tcpPair(t)
	p.serving = d.server.Start(http.Conn{
		Client: client,
		Dial:   func(ctx context.Context) (*net.TCPConn, error) { return d.dial(ctx, testClient, testServer, false) },
		Rules:  p.current, Observe: func(*http.Record) {},
		Done: func() { close(p.done) },
	})
	close(p.served)
}

func TestRevokedFlowIsAborted(t *testing.T) {
	for name, change := range map[string]func(*memoryFlows){
		"entry gone":      func(f *memoryFlows) { delete(f.entries, testTuple) },
		"another's entry": func(f *memoryFlows) { f.entries[testTuple] = bpf.Conn{Id: 2, Revision: 11} },
	} {
		t.Run(name, func(t *testing.T) {
			d, flows, revision := newData(t)
			serve(t, d)
			entry := bpf.Conn{Id: 1, Revision: 10}
			flows.set(testTuple, entry)
			*revision = 10
			p := testPair(d, entry)
			abortable(t, d, p)
			change(flows)
			*revision = 11
			if got := p.current(); got != (http.Rules{Egress: d.closed, Ingress: d.closed}) {
				t.Errorf("rules of a revoked flow: %+v", got)
			}
			select {
			case <-p.done:
			case <-time.After(5 * time.Second):
				t.Error("it was not aborted")
			}
			if d.counters.denials()[denyRevoked] == 0 {
				t.Error("it was not counted")
			}
		})
	}
}

func TestRulesCostNothing(t *testing.T) {
	d, flows, revision := newData(t)
	d.sets.set([]policy.RuleSet{{ID: 5, HTTP: []httprules.Rule{{Path: "/a"}}}}, nil, false)
	*revision = 10
	entry := bpf.Conn{Id: 1, Revision: 10, L7: both, RuleSet: [2]uint32{5, 5}}
	flows.set(testTuple, entry)
	p := testPair(d, entry)
	if n := testing.AllocsPerRun(1000, func() { p.current() }); n != 0 {
		t.Errorf("%v allocations while policy stands still", n)
	}
}

func TestPairTable(t *testing.T) {
	table := newPairTable()
	a, b := &pair{tuple: testTuple}, &pair{tuple: testTuple}
	other := &pair{tuple: testTuple.Reverse()}
	if old, ok := table.put(a, 1, 1); old != nil || !ok {
		t.Fatalf("first: %v, %v", old, ok)
	}
	if old, ok := table.put(b, 1, 1); old != a || !ok {
		t.Fatalf("successor in a full table: %v, %v", old, ok)
	}
	if _, ok := table.put(other, 1, 1); ok || table.has(other.tuple) {
		t.Fatal("more than the limit")
	}
	table.drop(a) // not the pair of its tuple any more
	if !table.has(testTuple) || table.len() != 1 {
		t.Fatal("an old pair took its successor along")
	}
	table.drop(b)
	if table.has(testTuple) || len(table.all()) != 0 {
		t.Fatal("a pair is left")
	}
}

// TestShareOfAVeth: one pod's connections leave room for others', and what has
// ended counts no more.
func TestShareOfAVeth(t *testing.T) {
	table := newPairTable()
	of := func(veth uint32, i int) *pair { return &pair{tuple: numbered(i), veth: veth} }
	a, b := of(7, 1), of(7, 2)
	for _, p := range []*pair{a, b} {
		if _, ok := table.put(p, 4, 2); !ok {
			t.Fatal("no room in an empty table")
		}
	}
	if _, ok := table.put(of(7, 3), 4, 2); ok {
		t.Error("more than its share")
	}
	if _, ok := table.put(of(8, 4), 4, 2); !ok {
		t.Error("no room for another pod")
	}
	// The same port again is no more than before, whosever it is now.
	again := of(7, 1)
	if old, ok := table.put(again, 4, 2); !ok || old != a {
		t.Errorf("used anew: %v, %v", old, ok)
	}
	moved := of(8, 2)
	if old, ok := table.put(moved, 4, 2); !ok || old != b {
		t.Errorf("at another veth: %v, %v", old, ok)
	}
	table.drop(a)
	table.drop(b)
	if _, ok := table.put(of(8, 5), 4, 2); ok {
		t.Error("the other pod has more than its share")
	}
	if _, ok := table.put(of(7, 6), 4, 2); !ok {
		t.Error("what moved away still counts")
	}
	table.drop(again)
	table.drop(moved)
	for _, p := range table.all() {
		table.drop(p)
	}
	if len(table.of) != 0 {
		t.Errorf("counts are left: %v", table.of)
	}
}

func TestRuleSets(t *testing.T) {
	s := newRuleSets()
	rejected := s.set([]policy.RuleSet{{ID: 1}, {ID: 2, HTTP: []httprules.Rule{{Path: "("}}}}, nil, false)
	if len(rejected) != 1 || rejected[2] == nil {
		t.Fatalf("rejected: %v", rejected)
	}
	before := s.now.Load().http
	if before[2] == nil || s.len() != 2 {
		t.Fatal("a set that does not compile must be there, and closed")
	}
	s.set([]policy.RuleSet{{ID: 3}}, []uint32{2, 9}, false)
	now := s.now.Load().http
	if len(before) != 2 {
		t.Error("a table in use was changed")
	}
	if now[1] != before[1] || now[2] != nil || now[3] == nil {
		t.Errorf("after an update: %v", now)
	}
	s.set([]policy.RuleSet{{ID: 3}, {ID: 4}}, nil, true)
	if replaced := s.now.Load().http; len(replaced) != 2 || replaced[3] != now[3] || replaced[4] == nil {
		t.Errorf("after a replacement: %v", replaced)
	}
}
