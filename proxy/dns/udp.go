package dns

import (
	"context"
	"errors"
	"strings"
	"unsafe"

	"github.com/weirnet/weir/fqdn"
	"golang.org/x/sys/unix"
)

// takeQuestions deals with what pods have sent.
func (r *relay) takeQuestions(l *sock) {
	n, errno := r.in.receive(l.fd, true)
	if errno != 0 {
		return // nothing there after all
	}
	for i := range n {
		client := &r.in.names[i]
		server, ok := r.in.destination(i)
		if !ok || client.family != server.family {
			r.Dropped(ReasonNoSession)
			continue
		}
		s := r.sessionOf(client, &server)
		if s == nil || r.question(s, client.port, r.in.message(i)) {
			continue
		}
		// What brought it was judged: the address may be another pod's by now.
		if s = r.sessionOf(client, &server); s != nil && !r.question(s, client.port, r.in.message(i)) {
			r.Dropped(ReasonRevoked)
		}
	}
	r.flush()
}

// question judges a datagram of a pod, and sends it on or answers it; not where
// the session is over: then it is ended.
func (r *relay) question(s *session, port [2]byte, m []byte) bool {
	rules, ok := s.Rules()
	if !ok {
		r.end(s)
		return false
	}
	s.seen = r.now
	s.turn.remove()
	s.pod.sessions.push(&s.turn, s)
	if !r.q.read(m) || isResponse(m) {
		r.record = Record{Verdict: Refused, Reason: ReasonMalformed, ClientPort: portOf(port), Start: r.now}
		s.Observe(&r.record)
		return true
	}
	verdict, a := rules.judge(m, &r.q), askedOf(m, &r.q)
	switch {
	case !verdict.allowed():
		r.refuse(s, port, m, a, verdict, r.denial())
	case r.pendings.n+r.waiting >= maxPending || s.pod.pending >= maxPendingPod || s.pending >= maxPendingSession:
		verdict.reason = ReasonFlood
		r.refuse(s, port, m, a, verdict, rcodeFailed)
	default:
		up, err := r.upstreamOf(s)
		if err != nil {
			r.Log.Debug("no socket for questions", "client", s.client, "server", s.server, "error", err)
			verdict.reason = ReasonMemory
			if errors.Is(err, errNoRoom) {
				verdict.reason = ReasonFlood
			}
			r.refuse(s, port, m, a, verdict, rcodeFailed)
			return true
		}
		r.ask(up, port, m, a, verdict)
	}
	return true
}

// ask sends a question on, under an id of our own.
func (r *relay) ask(up *upstream, port [2]byte, m []byte, a asked, verdict judgement) {
	s, p := up.session, r.pendings.take()
	p.session, p.up, p.asked, p.port, p.verdict, p.start = s, up, a, port, verdict, r.now
	p.kind, p.class = r.q.kind, r.q.class
	p.size = uint16(copy(p.wire[:], r.q.wire))
	for {
		if p.id = uint16(r.random.Uint32()); r.pendings.find(up, p.id) == nil {
			break
		}
	}
	r.pendings.add(p)
	s.pending++
	s.pod.pending++
	up.asked++
	up.used = r.now
	up.turn.remove()
	r.upstreams.push(&up.turn, up)
	setMessageID(m, p.id)
	r.room()
	r.out.queue(&up.sock).message = m
}

// refuse answers a question in its own place.
func (r *relay) refuse(s *session, port [2]byte, m []byte, a asked, verdict judgement, code uint8) {
	r.record = Record{
		Verdict: verdict.reason.verdict(), Reason: verdict.reason, Direction: verdict.direction,
		EgressRule: verdict.egressRule, IngressRule: verdict.ingressRule, ClientPort: portOf(port),
		Question: r.q.wire, Kind: r.q.kind, Class: r.q.class, Start: r.now,
	}
	size := len(r.q.wire)
	m = appendReply(m[:0], a, r.q.wire, code)
	r.record.Question = m[headerSize : headerSize+size]
	if r.reply(s, port, m) {
		r.record.RCode, r.record.Answered = code, true
	}
	s.Observe(&r.record)
}

// takeAnswers deals with what a server has sent to one of our sockets.
func (r *relay) takeAnswers(up *upstream) {
	n, errno := r.in.receive(up.fd, false)
	switch errno {
	case 0:
		for i := range n {
			r.answer(up, r.in.message(i))
		}
	case unix.EAGAIN:
		return
	default:
		r.fail(up, errorReason(errno), true)
	}
	r.flush()
}

// answer finds out what a datagram answers, and passes it on once what it says
// is known.
func (r *relay) answer(up *upstream, m []byte) {
	if len(m) < headerSize || !isResponse(m) {
		r.Dropped(ReasonAnswerForeign)
		return
	}
	p := r.pendings.find(up, messageID(m))
	if p == nil || !answers(m, &r.q, p.asked, p.question()) {
		r.Dropped(ReasonAnswerForeign)
		return
	}
	s := p.session
	rules, ok := s.Rules()
	switch {
	case !ok:
		r.end(s)
	case !r.a.read(m, &r.q):
		r.giveUp(p, ReasonAnswerMalformed, true)
	case rules.Believed && len(r.a.records) > 0 && rcode(m) == rcodeSuccess && r.learn(p, m):
	default:
		r.takeOut(p)
		r.release(p, m, r.a.chain, r.a.records)
	}
}

// answers tells whether m, which has the right id, answers a question, and reads
// into q what it repeats of it. A server that could not read the question, or
// did not want to, may leave it out, where it says nothing else either.
func answers(m []byte, q *question, a asked, wire []byte) bool {
	if (m[2]^a.flags[0])&flagsOpcode != 0 {
		return false
	}
	if count(m, sectionQuestion) == 0 {
		q.wire, q.name, q.kind, q.class = nil, nil, 0, 0
		return count(m, sectionAnswer) == 0 && (rcode(m) != rcodeSuccess || opcode(m) != opcodeQuery)
	}
	return q.read(m) && sameQuestion(q.wire, wire)
}

// learn makes an answer known. later: that takes waiting; the question is taken
// out, and the answer is passed on when it is done.
func (r *relay) learn(p *pending, m []byte) (later bool) {
	a := fqdn.Answer{
		Name: unsafe.String(unsafe.SliceData(r.q.name), len(r.q.name)), Chain: r.a.chain, Records: r.a.records,
		Pod: p.session.client,
	}
	err := r.Learner.Learn(r.atOnce, a)
	if err == nil {
		return false
	}
	pod := p.session.pod
	if !errors.Is(err, context.Canceled) || r.waiting >= maxWaiting || pod.waiting >= maxWaitingPod {
		r.notLearned(err)
		return false
	}
	// Nothing of it lies in memory that is used again.
	m = append([]byte(nil), m...)
	a.Name = strings.Clone(a.Name)
	chain, records := make([]string, len(a.Chain)), append([]fqdn.Record(nil), a.Records...)
	for i, name := range a.Chain {
		chain[i] = strings.Clone(name)
	}
	a.Chain, a.Records = chain, records
	r.takeOut(p)
	r.waiting++
	pod.waiting++
	r.learning.Add(1)
	go func() {
		defer r.learning.Done()
		ctx, cancel := context.WithTimeout(r.ctx, r.limits.learn)
		defer cancel()
		err := r.Learner.Learn(ctx, a)
		r.post(func() {
			r.waiting--
			pod.waiting--
			if err != nil {
				r.notLearned(err)
			}
			r.release(p, m, chain, records)
			r.flush()
		})
	}()
	return true
}

// notLearned: the answer is released all the same. Whoever asked may need no
// name's identity, and who does is denied, not let through.
func (r *relay) notLearned(err error) {
	r.Dropped(ReasonLearn)
	r.Log.Debug("an answer was not learned", "error", err)
}

// release passes an answer on to the client; p was taken out before.
func (r *relay) release(p *pending, m []byte, chain []string, records []fqdn.Record) {
	s := p.session
	setMessageID(m, p.asked.id)
	r.recordOf(p)
	r.record.RCode, r.record.Chain, r.record.Records = rcode(m), chain, records
	switch {
	case s.closed:
		r.record.Failure = ReasonRevoked
	case !r.reply(s, p.port, m):
		r.record.Failure = ReasonMemory
	default:
		r.record.Answered = true
	}
	r.finish(p)
}

// giveUp forgets a question; tell: the client is told.
func (r *relay) giveUp(p *pending, reason Reason, tell bool) {
	s := p.session
	r.takeOut(p)
	r.recordOf(p)
	r.record.Failure = reason
	if tell {
		if rp, err := r.replierOf(s); err == nil {
			r.room()
			e := r.out.queue(&rp.sock)
			e.message = appendReply(e.scratch[:0], p.asked, p.question(), rcodeFailed)
			e.to, e.named = s.to, true
			e.to.port = p.port
			r.record.RCode, r.record.Answered = rcodeFailed, true
		}
	}
	r.finish(p)
}

// fail gives all questions up that a socket has asked.
func (r *relay) fail(up *upstream, reason Reason, tell bool) {
	for p := up.pending.oldest(); p != nil; p = up.pending.oldest() {
		r.giveUp(p, reason, tell)
	}
}

// reply queues a message to a pod, in the server's name.
func (r *relay) reply(s *session, port [2]byte, m []byte) bool {
	rp, err := r.replierOf(s)
	if err != nil {
		r.Log.Debug("no socket for answers", "server", s.server, "error", err)
		return false
	}
	r.room()
	e := r.out.queue(&rp.sock)
	e.message, e.to, e.named = m, s.to, true
	e.to.port = port
	return true
}

// room makes sure that something can be queued.
func (r *relay) room() {
	if r.out.full() {
		r.out.flush(r.unsent)
	}
}

// takeOut takes a question out of those that wait for an answer.
func (r *relay) takeOut(p *pending) {
	r.pendings.remove(p)
	if p.up.retired && p.up.pending.oldest() == nil {
		r.closeUpstream(p.up)
	}
}

// recordOf begins the record of a question that was sent.
func (r *relay) recordOf(p *pending) {
	r.record = Record{
		Verdict: Allowed, Reason: p.verdict.reason, Direction: p.verdict.direction,
		EgressRule: p.verdict.egressRule, IngressRule: p.verdict.ingressRule, ClientPort: portOf(p.port),
		Question: p.question(), Kind: p.kind, Class: p.class, Start: p.start, Latency: r.now.Sub(p.start),
	}
}

// finish tells of a question and forgets it.
func (r *relay) finish(p *pending) {
	s := p.session
	s.pending--
	s.pod.pending--
	s.Observe(&r.record)
	r.pendings.release(p)
}

// denial is how denied questions are answered.
func (r *relay) denial() uint8 {
	if r.nxdomain.Load() {
		return rcodeNoName
	}
	return rcodeRefused
}

func portOf(p [2]byte) uint16 { return uint16(p[0])<<8 | uint16(p[1]) }
