package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"slices"
	"time"
	"unsafe"

	"github.com/weirnet/weir/fqdn"
)

// streamed is a question of a connection that waits for its answer, or for more
// of it.
type streamed struct {
	asked   asked
	verdict judgement
	start   time.Time
	due     time.Time // when it is given up
	// transfer: its answer is of many messages; told: the first has come.
	transfer    bool
	told        bool
	kind, class uint16
	size        uint16
	wire        [maxQuestion]byte
}

func (w *streamed) question() []byte { return w.wire[:w.size] }

// questions deals with the client's messages. Those that may pass one after
// another go on in one piece, as they came.
func (p *stream) questions(sc *scratch, b []byte) (int, error) {
	if p.moved() {
		return len(b), nil
	}
	at, from := 0, 0
	flush := func() error {
		run := b[from:at]
		from = at
		return p.write(p.server, run)
	}
	for {
		m, size := frame(b[at:])
		if size == 0 {
			return at, flush()
		}
		pass, err := p.question(sc, m, flush)
		if err != nil {
			return at, err
		}
		if !pass {
			if err := flush(); err != nil {
				return at, err
			}
			from = at + size
		}
		at += size
	}
}

// moved notes that something came, and tells whether it is to be thrown away.
func (p *stream) moved() (ending bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.active = time.Now()
	return p.ending
}

func (p *stream) rules() Rules {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.conn.Rules()
}

func (p *stream) observe(r *Record) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conn.Observe(r)
}

// question judges one message: it may pass, or was answered in its place.
// flush is called before what may take long.
func (p *stream) question(sc *scratch, m []byte, flush func() error) (pass bool, err error) {
	q, rec, now := &sc.q, &sc.record, time.Now()
	if !q.read(m) || isResponse(m) {
		p.malformed(now)
		*rec = Record{Verdict: Refused, Reason: ReasonMalformed, Start: now}
		p.observe(rec)
		return false, nil
	}
	rules := p.rules()
	verdict, a := rules.judge(m, q), askedOf(m, q)
	if verdict.allowed() {
		return p.await(q, a, verdict, now, flush)
	}
	code := p.relay.denial()
	out := appendReply(sc.out[:lengthSize], a, q.wire, code)
	binary.BigEndian.PutUint16(out, uint16(len(out)-lengthSize))
	*rec = Record{
		Verdict: verdict.reason.verdict(), Reason: verdict.reason, Direction: verdict.direction,
		EgressRule: verdict.egressRule, IngressRule: verdict.ingressRule,
		Question: q.wire, Kind: q.kind, Class: q.class, Start: now, RCode: code, Answered: true,
	}
	p.observe(rec)
	return false, p.write(p.client, out)
}

// malformed tells of a message that can't be read, once per connection.
func (p *stream) malformed(now time.Time) {
	last := p.pod.told.Load()
	if p.told || now.UnixNano()-last < int64(tellEvery) || !p.pod.told.CompareAndSwap(last, now.UnixNano()) {
		return
	}
	p.told = true
	p.relay.Log.Warn(messageMalformed, "client", p.conn.Pod, "server", p.client.LocalAddr(), "protocol", "TCP")
}

// await enters a question among those that wait, once there is room.
func (p *stream) await(q *question, a asked, verdict judgement, now time.Time, flush func() error) (pass bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.full() {
		p.mu.Unlock()
		err := flush()
		p.mu.Lock()
		if err != nil {
			return false, err
		}
		if p.full() {
			p.room.Wait()
		}
	}
	if p.ending {
		return false, nil
	}
	w := p.take()
	w.asked, w.verdict, w.start, w.due = a, verdict, now, now.Add(p.relay.limits.stream)
	w.kind, w.class = q.kind, q.class
	w.transfer, w.told = q.kind == typeAXFR || q.kind == typeIXFR, false
	w.size = uint16(copy(w.wire[:], q.wire))
	p.pending, p.declined = append(p.pending, w), false
	if len(p.pending) == 1 {
		return true, p.server.SetReadDeadline(p.answerTime())
	}
	return true, nil
}

// full tells whether the next question has to wait for an answer to another.
func (p *stream) full() bool {
	n := len(p.pending)
	return !p.ending && (n >= maxPipelined ||
		n > 0 && (p.relay.streamed.Load() >= maxStreamed || p.pod.streamed.Load() >= maxStreamedPod))
}

func (p *stream) take() *streamed {
	p.relay.streamed.Add(1)
	p.pod.streamed.Add(1)
	return p.relay.spare.take()
}

func (p *stream) release(w *streamed) {
	p.relay.streamed.Add(-1)
	p.pod.streamed.Add(-1)
	p.relay.spare.release(w)
}

// answers deals with the server's messages. Each that may pass is learned
// before any of them goes on.
func (p *stream) answers(sc *scratch, b []byte) (int, error) {
	if p.moved() {
		return len(b), nil
	}
	at, from := 0, 0
	for {
		m, size := frame(b[at:])
		if size == 0 || !p.answer(sc, m) {
			if err := p.write(p.client, b[from:at]); err != nil || size == 0 {
				return at, err
			}
			from = at + size
		}
		at += size
	}
}

// answer tells whether a message answers a question, and makes it known.
func (p *stream) answer(sc *scratch, m []byte) (pass bool) {
	var w *streamed
	if len(m) >= headerSize && isResponse(m) {
		w = p.match(sc, m)
	}
	if w == nil {
		p.relay.Dropped(ReasonAnswerForeign)
		return false
	}
	a := &sc.a
	switch {
	case w.transfer:
		if a.chain, a.records = a.chain[:0], a.records[:0]; w.told {
			return true
		}
		w.told = true
	case !a.read(m, &sc.q):
		out := appendReply(sc.out[:lengthSize], w.asked, w.question(), rcodeFailed)
		binary.BigEndian.PutUint16(out, uint16(len(out)-lengthSize))
		p.tell(w, ReasonAnswerMalformed)
		if err := p.write(p.client, out); err != nil {
			p.reset()
		}
		return false
	default:
		p.learn(sc, m)
	}
	sc.record = w.record()
	sc.record.Answered, sc.record.RCode = true, rcode(m)
	sc.record.Chain, sc.record.Records = a.chain, a.records
	p.observe(&sc.record)
	if !w.transfer {
		p.release(w)
	}
	return true
}

// match finds the question that a message answers, and takes it out where it is
// answered by that alone.
func (p *stream) match(sc *scratch, m []byte) *streamed {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, w := range p.pending {
		switch {
		case w.asked.id != messageID(m):
		case w.transfer && w.told && count(m, sectionQuestion) == 0,
			w.transfer && answers(m, &sc.q, w.asked, w.question()):
			w.due = time.Now().Add(p.relay.limits.stream)
			return w
		case answers(m, &sc.q, w.asked, w.question()):
			p.pending = slices.Delete(p.pending, i, i+1)
			p.room.Signal()
			p.rouse()
			return w
		}
	}
	return nil
}

// learn makes an answer known, if need be by waiting.
func (p *stream) learn(sc *scratch, m []byte) {
	rules := p.rules()
	if !rules.Believed || len(sc.a.records) == 0 || rcode(m) != rcodeSuccess {
		return
	}
	a := fqdn.Answer{
		Name: unsafe.String(unsafe.SliceData(sc.q.name), len(sc.q.name)), Chain: sc.a.chain, Records: sc.a.records,
		Pod: p.conn.Pod, Namespace: rules.BelievedFor,
	}
	err := p.relay.Learner.Learn(p.relay.atOnce, a)
	if errors.Is(err, context.Canceled) {
		ctx, cancel := context.WithTimeout(p.relay.ctx, p.relay.limits.learn)
		err = p.relay.Learner.Learn(ctx, a)
		cancel()
	}
	if err != nil {
		p.relay.notLearned(err)
	}
}

// tell tells of a question that was not answered.
func (p *stream) tell(w *streamed, reason Reason) {
	if !w.told {
		rec := w.record()
		rec.Failure = reason
		p.observe(&rec)
	}
	p.release(w)
}

// record begins the record of a question that was sent.
func (w *streamed) record() Record {
	return Record{
		Verdict: Allowed, Reason: w.verdict.reason, Direction: w.verdict.direction,
		EgressRule: w.verdict.egressRule, IngressRule: w.verdict.ingressRule,
		Question: w.question(), Kind: w.kind, Class: w.class, Start: w.start, Latency: time.Since(w.start),
	}
}

// write writes all of b, or fails when the reader takes nothing for long.
func (p *stream) write(c *net.TCPConn, b []byte) error {
	if len(b) == 0 {
		return nil
	}
	p.mu.Lock()
	ending := p.ending
	p.mu.Unlock()
	if ending {
		return nil // nobody waits for it any more
	}
	if err := c.SetWriteDeadline(time.Now().Add(p.relay.limits.idle)); err != nil {
		return err
	}
	_, err := c.Write(b)
	return err
}
