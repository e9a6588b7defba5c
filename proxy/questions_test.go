package proxy

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/fqdn"
	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/policy/dnsrules"
	"github.com/weirnet/weir/proxy/dns"
)

var (
	testPod      = netip.MustParseAddr("10.0.0.1")
	testResolver = netip.MustParseAddrPort("10.0.0.2:53")
	testSession  = bpf.TupleOf(netip.AddrPortFrom(testPod, 0), testResolver, unix.IPPROTO_UDP)
)

func dnsSet(id uint32, teaches bool, names ...string) policy.RuleSet {
	rs := policy.RuleSet{ID: id, Protocol: policy.ProtocolDNS, Teaches: teaches}
	for i, n := range names {
		rs.DNS = append(rs.DNS, dnsrules.Rule{Selector: dnsrules.NewSelector(n, ""), Rule: uint32(i + 1)})
	}
	return rs
}

// believes is a believer in one server.
type believes policy.Server

func (b believes) Believed(s policy.Server) bool { return s == policy.Server(b) }

func TestSessionsFollowPolicy(t *testing.T) {
	d, flows, revision := newData(t)
	teaches := dnsSet(6, true)
	teaches.TeachesFor = "shop"
	d.sets.set([]policy.RuleSet{dnsSet(5, false), teaches, {ID: 7}}, nil, false)
	five, six := d.sets.now.Load().dns[5], d.sets.now.Load().dns[6]
	if d.openAsks(testPod, testResolver) != nil {
		t.Fatal("a session of which nothing is known")
	}
	*revision = 10
	entry := bpf.Conn{Id: 1, Revision: 10, Generation: 3, Ifindex: 9, L7: 1 << policy.Egress, RuleSet: [2]uint32{0, 5}}
	flows.set(testSession, entry)
	s := d.openAsks(testPod, testResolver)
	if s == nil || s.Owner() != 9 || !d.sessions.has(testSession) {
		t.Fatalf("session %v", s)
	}
	gets := flows.gets
	want := func(when string, rules dns.Rules, read int) {
		t.Helper()
		if got, ok := s.Rules(); !ok || got != rules {
			t.Errorf("%s: %+v, %v; want %+v", when, got, ok, rules)
		}
		if flows.gets-gets != read {
			t.Errorf("%s: the table was read %d times, want %d", when, flows.gets-gets, read)
		}
		gets = flows.gets
	}
	want("at first", dns.Rules{Egress: five}, 0)
	*revision = 11
	want("moved", dns.Rules{Egress: five}, 1)
	// The kernel has judged a datagram since, and made the entry anew.
	entry.Revision, entry.Id, entry.RuleSet[policy.Egress] = 11, 2, 6
	flows.set(testSession, entry)
	want("judged anew", dns.Rules{Egress: six, Believed: true, BelievedFor: "shop"}, 1)
	want("again", dns.Rules{Egress: six, Believed: true, BelievedFor: "shop"}, 0)
	d.believed = believes{Addr: netip.AddrPortFrom(testResolver.Addr(), 5300), Protocol: unix.IPPROTO_UDP}
	want("a resolver on another port", dns.Rules{Egress: six, Believed: true, BelievedFor: "shop"}, 0)
	d.believed = believes{Addr: testResolver, Protocol: unix.IPPROTO_UDP}
	want("a resolver of the cluster, of which a rule speaks", dns.Rules{Egress: six, Believed: true}, 0)
	d.believed = nobody{}
	entry.Revision, entry.RuleSet[policy.Egress] = 12, 7
	*revision = 12
	flows.set(testSession, entry)
	want("rules of another protocol", dns.Rules{Egress: d.closedQuestions}, 1)
	d.sets.set([]policy.RuleSet{dnsSet(8, false)}, nil, false)
	want("another set", dns.Rules{Egress: d.closedQuestions}, 0)
	d.believed = believes{Addr: testResolver, Protocol: unix.IPPROTO_UDP}
	want("a resolver of the cluster", dns.Rules{Egress: d.closedQuestions, Believed: true}, 0)
	entry.Revision, entry.L7 = 13, 0
	*revision = 13
	flows.set(testSession, entry)
	want("no rules", dns.Rules{Believed: true}, 1)
	// Its address has changed hands.
	*revision = 14
	moved := entry
	moved.Ifindex = 10
	flows.set(testSession, moved)
	if rules, ok := s.Rules(); ok || rules.Egress != nil {
		t.Errorf("of another pod: %+v", rules)
	}
	flows.set(testSession, entry)
	if _, ok := s.Rules(); !ok {
		t.Error("its own again")
	}
	s.Close()
	if _, ok, _ := flows.get(testSession); ok || d.sessions.has(testSession) {
		t.Error("its entry stays")
	}
	if _, ok := s.Rules(); ok {
		t.Error("without an entry")
	}
	// A successor's entry is left alone.
	entry.Generation = 4
	flows.set(testSession, entry)
	d.openAsks(testPod, testResolver).Close()
	if _, ok, _ := flows.get(testSession); !ok {
		t.Error("a successor's entry is gone")
	}
}

func TestRulesAllocateNothing(t *testing.T) {
	d, flows, _ := newData(t)
	d.sets.set([]policy.RuleSet{dnsSet(5, false, "a.x")}, nil, false)
	flows.set(testSession, bpf.Conn{Id: 1, Generation: 3, L7: 1 << policy.Egress, RuleSet: [2]uint32{0, 5}})
	s := d.openAsks(testPod, testResolver)
	r := &dns.Record{Verdict: dns.Allowed, Reason: dns.ReasonRule, Question: []byte("\x01a\x01x\x00\x00\x01\x00\x01"), Chain: []string{"b.x"},
		Records: []fqdn.Record{{Addr: testPod}}, Start: time.Now()}
	for range 2 * recordSlots {
		s.Observe(r)
		d.records.first, d.records.n, d.records.passed = (d.records.first+1)%recordSlots, 0, 0
	}
	if n := testing.AllocsPerRun(recordsPassed/2, func() { s.Rules(); s.Observe(r) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestQuestionRecords(t *testing.T) {
	d, flows, _ := newData(t)
	flows.set(testSession, bpf.Conn{Id: 1, Generation: 3, Ifindex: 9, L7: 1 << policy.Egress, SrcIdentity: 11, DstIdentity: 12})
	s := d.openAsks(testPod, testResolver)
	at := time.Unix(1000, 5)
	answered := dns.Record{
		Verdict: dns.Allowed, Reason: dns.ReasonRule, EgressRule: 7, ClientPort: 4711,
		Question: []byte("\x03wWw\x01x\x00\x00\x1c\x00\x01"), Kind: 28, Class: 1, Answered: true,
		Chain:   []string{"a.x", "b.x"},
		Records: []fqdn.Record{{Addr: netip.MustParseAddr("2001:db8::1")}, {Addr: netip.MustParseAddr("192.0.2.1")}},
		Start:   at, Latency: time.Millisecond,
	}
	late := answered
	late.Failure, late.Answered, late.Chain, late.Records = dns.ReasonServerTimeout, false, nil, nil
	denied := answered
	denied.Verdict, denied.Reason, denied.Direction, denied.EgressRule, denied.RCode = dns.Denied, dns.ReasonNoRule, policy.Egress, 0, 5
	denied.Chain, denied.Records = nil, nil
	for _, r := range []dns.Record{answered, late, denied, {Verdict: dns.Refused, Reason: dns.ReasonMalformed, ClientPort: 4712, Start: at}} {
		s.Observe(&r)
	}
	got := d.records.take(10).Records
	if len(got) != 4 {
		t.Fatalf("%d records", len(got))
	}
	r := got[0]
	if !r.Allowed || r.Reason != "dns-rule" || r.Protocol != "UDP" || r.SourcePort != 4711 || r.DestinationPort != 53 || r.Ifindex != 9 ||
		r.SourceIdentity != 11 || r.DestinationIdentity != 12 || r.Rules[policy.Egress] != 7 || r.Judge != 2 || r.Latency != int64(time.Millisecond) ||
		r.Dns.Name != "wWw.x" || r.Dns.Type != 28 || r.Dns.Class != 1 || !r.Dns.Answered || r.Dns.Rcode != 0 ||
		!slices.Equal(r.Dns.Chain, []string{"a.x", "b.x"}) || len(r.Dns.Addresses) != 2 || len(r.Dns.Addresses[0]) != 16 || len(r.Dns.Addresses[1]) != 4 {
		t.Errorf("answered: %v", r)
	}
	if r := got[1]; !r.Allowed || r.Reason != "dns-server-timeout" || r.Dns.Answered || len(r.Dns.Chain)+len(r.Dns.Addresses) != 0 {
		t.Errorf("not answered: %v", r)
	}
	if r := got[2]; r.Allowed || r.Reason != "dns-denied" || r.Judge != uint32(policy.Egress) || r.Dns.Rcode != 5 {
		t.Errorf("denied: %v", r)
	}
	if r := got[3]; r.Allowed || r.Reason != "dns-malformed" || r.Dns.Name != "" || r.SourcePort != 4712 {
		t.Errorf("refused: %v", r)
	}
	if n, denials := d.counters.requests.Load(), d.counters.denials(); n != 4 || denials["dns-denied"] != 1 || denials["dns-malformed"] != 1 ||
		denials["dns-server-timeout"] != 1 || len(denials) != 3 {
		t.Errorf("counted %d, %v", n, denials)
	}
	// What was a question's is not a request's.
	d.records.add(&pair{tuple: testTuple}, request(1, 1, at.Add(time.Hour)))
	if r := d.records.take(1).Records[0]; r.Dns != nil || string(r.Path) != "/1" {
		t.Errorf("a request: %v", r)
	}
}

// TestConnectionForQuestions: one whose rules are about questions is served as
// such, and stays one.
func TestConnectionForQuestions(t *testing.T) {
	d, flows, revision := newData(t)
	d.sets.set([]policy.RuleSet{dnsSet(5, false, "a.x"), {ID: 6, AllowAll: true}}, nil, false)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.questions.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	up, server := tcpPair(t)
	d.dial = func(context.Context, netip.AddrPort, netip.AddrPort, bool) (*net.TCPConn, error) { return up, nil }
	accepted, client := tcpPair(t)
	source, destination := ends(accepted)
	tuple := bpf.TupleOf(source, destination, unix.IPPROTO_TCP)
	entry := bpf.Conn{Id: 1, Generation: 3, L7: 1 << policy.Egress, RuleSet: [2]uint32{0, 5}}
	flows.set(tuple, entry)
	d.admit(accepted)
	ask := func(name string) int {
		t.Helper()
		m := new(mdns.Msg)
		m.SetQuestion(name, mdns.TypeA)
		b, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)); err != nil {
			t.Fatal(err)
		}
		var size [2]byte
		if _, err := io.ReadFull(client, size[:]); err != nil {
			t.Fatal(err)
		}
		b = make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(client, b); err != nil || m.Unpack(b) != nil {
			t.Fatal(err)
		}
		return m.Rcode
	}
	go func() { // the server answers whatever it is asked
		var size [2]byte
		for {
			if _, err := io.ReadFull(server, size[:]); err != nil {
				return
			}
			b := make([]byte, binary.BigEndian.Uint16(size[:]))
			if _, err := io.ReadFull(server, b); err != nil {
				return
			}
			b[2] |= 0x80
			_, _ = server.Write(append(size[:], b...))
		}
	}()
	if got := ask("a.x."); got != mdns.RcodeSuccess {
		t.Errorf("allowed: %d", got)
	}
	if got := ask("b.x."); got != mdns.RcodeRefused {
		t.Errorf("denied: %d", got)
	}
	// Its rules become ones of another protocol: it can't become that.
	atomic.StoreUint32(revision, 1)
	entry.Revision, entry.RuleSet[policy.Egress] = 1, 6
	flows.set(tuple, entry)
	if got := ask("a.x."); got != mdns.RcodeRefused {
		t.Errorf("with HTTP rules: %d", got)
	}
	atomic.StoreUint32(revision, 2)
	entry.Revision, entry.RuleSet[policy.Egress] = 2, 5
	flows.set(tuple, entry)
	if got := ask("a.x."); got != mdns.RcodeSuccess {
		t.Errorf("allowed again: %d", got)
	}
	// It is revoked.
	atomic.StoreUint32(revision, 3)
	if err := flows.remove(tuple, 1); err != nil {
		t.Fatal(err)
	}
	m := new(mdns.Msg)
	m.SetQuestion("a.x.", mdns.TypeA)
	b, _ := m.Pack()
	_, _ = client.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
	if !isReset(client) {
		t.Error("revoked, the client was not reset")
	}
	for end := time.Now().Add(5 * time.Second); d.pairs.len() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("its pair stays")
		}
	}
	if n := d.counters.denials()[denyRevoked]; n == 0 {
		t.Error("not counted")
	}
}
