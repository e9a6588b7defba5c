package proxy

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/proxy/http"
)

func request(i int, v http.Verdict, at time.Time) *http.Record {
	return &http.Record{
		Method: []byte("GET"), Host: []byte("h"), Path: fmt.Appendf(nil, "/%d", i), Protocol: "HTTP/1.1",
		Verdict: v, Status: 200, Start: at, EgressRule: 7, IngressRule: 8, Direction: policy.Egress,
	}
}

// TestRecordsAtTheEnd: who takes gets what was cut, once, and is waited for.
func TestRecordsAtTheEnd(t *testing.T) {
	b := newRecordBuffer()
	done := b.read()
	go func() {
		<-b.over
		if batch := b.take(10); batch.Cut != 3 || len(batch.Records) != 1 {
			t.Errorf("%v", batch)
		}
		if batch := b.take(10); batch.Cut != 0 {
			t.Errorf("told again: %v", batch)
		}
		done()
	}()
	b.add(&pair{tuple: testTuple}, request(1, http.Failed, time.Unix(1000, 5)))
	b.addCut(2)
	b.addCut(1)
	if !b.finish(10 * time.Second) {
		t.Error("was not waited for")
	}
	if b = newRecordBuffer(); b.finish(time.Hour) {
		t.Error("taken by nobody")
	}
	if b = newRecordBuffer(); b.read() == nil || b.finish(time.Millisecond) {
		t.Error("taken by one that hangs")
	}
}

func TestRecords(t *testing.T) {
	b := newRecordBuffer()
	p := &pair{tuple: testTuple, entry: bpf.Conn{SrcIdentity: 1, DstIdentity: 2, L7: both, Ifindex: 9}}
	at := time.Unix(1000, 5)
	b.add(p, request(1, http.Allowed, at))
	b.add(p, request(2, http.Denied, at))
	batch := b.take(10)
	if len(batch.Records) != 2 || batch.Dropped != 0 {
		t.Fatalf("%v", batch)
	}
	r := batch.Records[0]
	if string(r.Method) != "GET" || string(r.Host) != "h" || string(r.Path) != "/1" || r.Protocol != "HTTP/1.1" ||
		!r.Allowed || r.Status != 200 || r.Time != at.UnixNano() || r.Ifindex != 9 || r.Directions != both ||
		r.SourceIdentity != 1 || r.DestinationIdentity != 2 || r.SourcePort != 40000 || r.DestinationPort != 80 ||
		len(r.Source) != 4 || r.Rules[policy.Ingress] != 8 || r.Rules[policy.Egress] != 7 || r.Judge != 2 {
		t.Errorf("allowed: %v", r)
	}
	if r := batch.Records[1]; string(r.Path) != "/2" || r.Allowed || r.Judge != uint32(policy.Egress) {
		t.Errorf("denied: %v", r)
	}
	// What was taken is not what is written next.
	b.add(p, request(3, http.Allowed, at))
	if string(r.Path) != "/1" {
		t.Error("a record that was taken changes")
	}
}

func TestRecordsAreBounded(t *testing.T) {
	b := newRecordBuffer()
	p := &pair{tuple: testTuple}
	at := time.Unix(1000, 0)
	long := request(0, http.Allowed, at)
	long.Path = []byte(strings.Repeat("x", 100_000))
	b.add(p, long)
	if r := b.take(1).Records[0]; len(r.Path) != recordText {
		t.Errorf("a path of %d bytes is kept", len(r.Path))
	}
	// A flood of one kind leaves room for the other, and the next window for
	// both.
	for i := range 3 * recordsPassed {
		b.add(p, request(i, http.Allowed, at))
	}
	b.add(p, request(0, http.Denied, at))
	if got := b.n; got != recordsPassed {
		t.Errorf("%d records in a window, want %d with the first one taken", got, recordsPassed)
	}
	if lost := b.lost(); lost != 2*recordsPassed+1 {
		t.Errorf("%d lost", lost)
	}
	// Nobody reads: the queue fills, and no more.
	for i := range 10 * recordSlots {
		b.add(p, request(i, http.Allowed, at.Add(time.Duration(i)*recordWindow)))
	}
	if b.n != recordSlots {
		t.Errorf("%d records are kept", b.n)
	}
	// The oldest first, and in order.
	total := 0
	for {
		batch := b.take(1000)
		if len(batch.Records) == 0 {
			break
		}
		total += len(batch.Records)
	}
	if total != recordSlots {
		t.Errorf("%d records taken", total)
	}
}

func TestRecordingAllocatesNothing(t *testing.T) {
	b := newRecordBuffer()
	p := &pair{tuple: testTuple}
	at := time.Now()
	r := request(1, http.Allowed, at)
	for range 2 * recordSlots { // all slots have grown
		b.add(p, r)
		b.first, b.n = (b.first+1)%recordSlots, 0
		b.passed = 0
	}
	if n := testing.AllocsPerRun(recordsPassed/2, func() { b.add(p, r) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
