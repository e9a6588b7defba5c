package proxy

import (
	"sync"
	"time"

	"github.com/weirnet/weir/bpf"
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

	cut     uint64        // connections, since the last batch
	readers int           // streams that take
	unread  chan struct{} // closed when the last of them has gone; nil: nobody waits for that

	ready chan struct{} // 1 buffered: there is something
	over  chan struct{} // closed: nothing more will come
}

// record is one request, self-contained.
type record struct {
	tuple    bpf.Tuple
	start    time.Time
	latency  time.Duration
	text     []byte // method, host, path
	method   int    // length in text
	host     int
	protocol string
	reason   string
	allowed  bool
	judge    policy.Direction
	rules    [2]uint32
	l7       uint8
	src, dst uint32 // identities
	ifindex  uint32
	status   int
	question asked
}

func newRecordBuffer() *recordBuffer {
	return &recordBuffer{slots: make([]record, recordSlots), ready: make(chan struct{}, 1), over: make(chan struct{})}
}

// addCut notes connections that were reset as their time was up.
func (b *recordBuffer) addCut(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cut += uint64(n)
}

// read says that somebody takes, until it calls done.
func (b *recordBuffer) read() (done func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.readers++
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.readers--; b.readers == 0 && b.unread != nil {
			close(b.unread)
			b.unread = nil
		}
	}
}

// finish says that nothing more will come, and returns once whoever takes has
// all: true, or false if nobody does or it takes longer than limit. To be called
// once.
func (b *recordBuffer) finish(limit time.Duration) bool {
	close(b.over)
	b.mu.Lock()
	if b.readers == 0 {
		b.mu.Unlock()
		return false
	}
	unread := make(chan struct{})
	b.unread = unread
	b.mu.Unlock()
	select {
	case <-unread:
		return true
	case <-time.After(limit):
		return false
	}
}

// add notes a request of a connection.
func (b *recordBuffer) add(p *pair, r *http.Record) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.slot(p.tuple, &p.entry, r.Start, r.Latency, r.Verdict == http.Allowed)
	if s == nil {
		return
	}
	s.text = append(s.text[:0], clip(r.Method)...)
	s.method = len(s.text)
	s.text = append(s.text, clip(r.Host)...)
	s.host = len(s.text) - s.method
	s.text = append(s.text, clip(r.Path)...)
	s.protocol, s.reason, s.judge = r.Protocol, r.Reason.String(), r.Direction
	s.rules = [2]uint32{policy.Ingress: r.IngressRule, policy.Egress: r.EgressRule}
	s.status = r.Status
}

// slot returns the next free record with what is known of its flow; nil: there
// is none, or not for this one.
func (b *recordBuffer) slot(t bpf.Tuple, e *bpf.Conn, start time.Time, latency time.Duration, allowed bool) *record {
	if !b.spend(start.Add(latency), allowed) {
		b.dropped++
		return nil
	}
	s := &b.slots[(b.first+b.n)%len(b.slots)]
	b.n++
	s.tuple, s.start, s.latency, s.allowed = t, start, latency, allowed
	s.l7, s.src, s.dst, s.ifindex = e.L7, e.SrcIdentity, e.DstIdentity, e.Ifindex
	s.status, s.question.asked = 0, false
	select {
	case b.ready <- struct{}{}:
	default:
	}
	return s
}

// spend tells whether there is room in the window's budget and in the queue, for
// what ended then.
func (b *recordBuffer) spend(end time.Time, allowed bool) bool {
	if b.n == len(b.slots) {
		return false
	}
	if end.Sub(b.window) >= recordWindow {
		b.window, b.passed, b.other = end, 0, 0
	}
	left, of := &b.other, recordsOther
	if allowed {
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
	batch := &control.RecordBatch{Records: make([]*control.Record, 0, n), Dropped: b.dropped, Cut: b.cut}
	b.cut = 0
	for range n {
		s := &b.slots[b.first]
		batch.Records = append(batch.Records, s.message())
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
	src, dst := s.tuple.Source(), s.tuple.Destination()
	judge := uint32(2)
	if !s.allowed {
		judge = uint32(s.judge)
	}
	m := &control.Record{
		Time: s.start.UnixNano(), Latency: int64(s.latency),
		Source: src.Addr().AsSlice(), SourcePort: uint32(src.Port()), SourceIdentity: s.src,
		Destination: dst.Addr().AsSlice(), DestinationPort: uint32(dst.Port()), DestinationIdentity: s.dst,
		Allowed: s.allowed, Reason: s.reason, Judge: judge,
		Directions: uint32(s.l7 & l7Bits), Rules: []uint32{s.rules[0], s.rules[1]}, Ifindex: s.ifindex,
		Protocol: s.protocol,
	}
	if s.question.asked {
		s.question.message(m, s.text)
		return m
	}
	text := append([]byte(nil), s.text...)
	m.Method, m.Host, m.Path = text[:s.method], text[s.method:s.method+s.host], text[s.method+s.host:]
	m.Status = uint32(s.status)
	return m
}

func clip(b []byte) []byte { return b[:min(len(b), recordText)] }
