package proxy

import (
	"sync"
	"time"

	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/proxy/control"
	"github.com/weirnet/weir/proxy/http"
)

// Bounds of what is recorded and not yet read.
const (
	recordSlots = 8192
	// Longest method, host and path that is kept.
	recordText = 1024
	// In one window at most so many requests are recorded, of those that
	// passed and of the others: the rest is only counted, so that a flood
	// costs nothing for a log that nobody could read.
	recordWindow  = 100 * time.Millisecond
	recordsPassed = 200
	recordsOther  = 500
)

// recordBuffer is a bounded queue of what was decided. Adding copies into
// slots that are used again and again: it allocates nothing once they have
// grown. Safe for concurrent use, with one reader.
type recordBuffer struct {
	mu      sync.Mutex
	slots   []record
	first   int // oldest
	n       int
	dropped uint64

	window        time.Time
	passed, other int

	ready chan struct{} // 1 buffered: there is something
}

// record is one request, self-contained.
type record struct {
	pair     *pair
	start    time.Time
	latency  time.Duration
	text     []byte // method, host, path
	method   int    // length in text
	host     int
	protocol string
	reason   string
	verdict  http.Verdict
	judge    policy.Direction
	rules    [2]uint32
	l7       uint8
	src, dst uint32 // identities
	ifindex  uint32
	status   int
}

func newRecordBuffer() *recordBuffer {
	return &recordBuffer{slots: make([]record, recordSlots), ready: make(chan struct{}, 1)}
}

func (b *recordBuffer) add(p *pair, r *http.Record) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.spend(r) {
		b.dropped++
		return
	}
	s := &b.slots[(b.first+b.n)%len(b.slots)]
	b.n++
	s.text = append(s.text[:0], clip(r.Method)...)
	s.method = len(s.text)
	s.text = append(s.text, clip(r.Host)...)
	s.host = len(s.text) - s.method
	s.text = append(s.text, clip(r.Path)...)
	s.pair, s.start, s.latency = p, r.Start, r.Latency
	s.protocol, s.reason, s.verdict, s.judge = r.Protocol, r.Reason.String(), r.Verdict, r.Direction
	s.rules = [2]uint32{policy.Ingress: r.IngressRule, policy.Egress: r.EgressRule}
	s.l7, s.src, s.dst = p.entry.L7, p.entry.SrcIdentity, p.entry.DstIdentity
	s.ifindex = p.entry.Ifindex
	s.status = r.Status
	select {
	case b.ready <- struct{}{}:
	default:
	}
}

// spend tells whether there is room in the window's budget and in the queue.
func (b *recordBuffer) spend(r *http.Record) bool {
	if b.n == len(b.slots) {
		return false
	}
	end := r.Start.Add(r.Latency)
	if end.Sub(b.window) >= recordWindow {
		b.window, b.passed, b.other = end, 0, 0
	}
	left, of := &b.other, recordsOther
	if r.Verdict == http.Allowed {
		left, of = &b.passed, recordsPassed
	}
	*left++
	return *left <= of
}

// take moves up to n records, as messages, into batch.
func (b *recordBuffer) take(n int) *control.RecordBatch {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n > b.n {
		n = b.n
	}
	batch := &control.RecordBatch{Records: make([]*control.Record, 0, n), Dropped: b.dropped}
	for range n {
		s := &b.slots[b.first]
		batch.Records = append(batch.Records, s.message())
		s.pair = nil
		b.first = (b.first + 1) % len(b.slots)
		b.n--
	}
	return batch
}

func (b *recordBuffer) lost() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.dropped
}

func (s *record) message() *control.Record {
	src, dst := s.pair.tuple.Source(), s.pair.tuple.Destination()
	text := append([]byte(nil), s.text...)
	judge := uint32(2)
	if s.verdict != http.Allowed {
		judge = uint32(s.judge)
	}
	return &control.Record{
		Time: s.start.UnixNano(), Latency: int64(s.latency),
		Source: src.Addr().AsSlice(), SourcePort: uint32(src.Port()), SourceIdentity: s.src,
		Destination: dst.Addr().AsSlice(), DestinationPort: uint32(dst.Port()), DestinationIdentity: s.dst,
		Allowed: s.verdict == http.Allowed, Reason: s.reason, Judge: judge,
		Directions: uint32(s.l7 & l7Bits), Rules: []uint32{s.rules[0], s.rules[1]}, Ifindex: s.ifindex,
		Method: text[:s.method], Host: text[s.method : s.method+s.host], Path: text[s.method+s.host:],
		Protocol: s.protocol, Status: uint32(s.status),
	}
}

func clip(b []byte) []byte { return b[:min(len(b), recordText)] }
