package dns

import (
	"errors"
	"time"
)

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
		r.malformed(s)
		r.record = Record{Verdict: Refused, Reason: ReasonMalformed, ClientPort: portOf(port), Start: r.now}
		s.Observe(&r.record)
		return true
	}
	verdict := rules.judge(m, &r.q)
	if !verdict.allowed() {
		r.refuse(s, port, m, verdict, r.denial())
		return true
	}
	if reason := r.pass(s, port, m, verdict); reason != ReasonNone {
		verdict.reason = reason
		r.refuse(s, port, m, verdict, rcodeFailed)
	}
	return true
}

// tellEvery bounds what is logged of a pod that sends what can't be read.
const tellEvery = time.Second

// malformed tells of a message that can't be read, once per session.
func (r *relay) malformed(s *session) {
	if s.told || r.now.Sub(s.pod.told) < tellEvery {
		return
	}
	s.told, s.pod.told = true, r.now
	r.Log.Warn(messageMalformed, "client", s.client, "server", s.server, "protocol", "UDP")
}

const messageMalformed = "what a pod asks can't be read, and is dropped"

// pass has a question answered that may pass: by the answer to an equal one, or
// by sending it on. A reason tells why it can't be.
func (r *relay) pass(s *session, port [2]byte, m []byte, verdict judgement) Reason {
	e := r.pendings.equalityOf(s, m, &r.q)
	a := asker{asked: askedOf(m, &r.q), port: port, verdict: verdict, start: r.now}
	if p := r.pendings.repeated(s, e, port, a.asked.id); p != nil {
		r.again(p, m)
		return ReasonNone
	}
	if r.pendings.asking >= maxPending || s.pod.pending >= maxPendingPod || s.pending >= maxPendingSession {
		return ReasonFlood
	}
	p, variants := r.pendings.equals(s, e, &r.q)
	if p != nil {
		r.join(p, a)
		r.again(p, m)
		return ReasonNone
	}
	if variants >= maxVariants {
		return ReasonFlood
	}
	up, err := r.upstreamOf(s)
	if errors.Is(err, errNoRoom) {
		return ReasonFlood
	}
	if err != nil {
		r.Log.Debug("no socket for questions", "client", s.client, "server", s.server, "error", err)
		return ReasonMemory
	}
	p = r.pendings.take()
	p.session, p.up, p.equal, p.start, p.repeats = s, up, e, r.now, 0
	p.kind, p.class = r.q.kind, r.q.class
	p.size = uint16(copy(p.wire[:], r.q.wire))
	p.id = r.freeID(up)
	r.pendings.add(p)
	r.join(p, a)
	up.asked++
	r.send(p, m)
	return ReasonNone
}

// join makes one more wait for a question's answer.
func (r *relay) join(p *pending, a asker) {
	r.pendings.join(p, a)
	p.session.pending++
	p.session.pod.pending++
}

// freeID is an id by which nothing is asked through a socket.
func (r *relay) freeID(up *upstream) uint16 {
	for {
		if id := uint16(r.random.Uint32()); r.pendings.find(up, id) == nil {
			return id
		}
	}
}

// send sends a question to the server, under an id of our own.
func (r *relay) send(p *pending, m []byte) {
	up := p.up
	p.sent, up.used = r.now, r.now
	up.turn.remove()
	r.upstreams.push(&up.turn, up)
	setMessageID(m, p.id)
	r.room()
	r.out.queue(&up.sock).message = m
}

// again sends a question once more that somebody asks again, unless it was sent
// just now: the server may never have got it. It goes by the same socket, with
// the same id: another would be one more to be guessed; only where somebody
// guesses it gets others.
func (r *relay) again(p *pending, m []byte) {
	if r.now.Sub(p.sent) < firstRepeat<<min(p.repeats, 10) {
		return
	}
	if p.up.suspect {
		up, err := r.upstreamOf(p.session)
		if err != nil {
			return // it may be answered all the same
		}
		old := p.up
		r.pendings.leave(p)
		p.up, p.id = up, r.freeID(up)
		r.pendings.enter(p)
		up.asked++
		if old.retired && old.pending.oldest() == nil {
			r.closeUpstream(old)
		}
	}
	p.repeats++
	r.send(p, m)
}

// refuse answers a question in its own place.
func (r *relay) refuse(s *session, port [2]byte, m []byte, verdict judgement, code uint8) {
	r.record = Record{
		Verdict: verdict.reason.verdict(), Reason: verdict.reason, Direction: verdict.direction,
		EgressRule: verdict.egressRule, IngressRule: verdict.ingressRule, ClientPort: portOf(port),
		Question: r.q.wire, Kind: r.q.kind, Class: r.q.class, Start: r.now,
	}
	size := len(r.q.wire)
	m = appendReply(m[:0], askedOf(m, &r.q), r.q.wire, code)
	r.record.Question = m[headerSize : headerSize+size]
	if e := r.replyTo(s, port); e != nil {
		e.message = m
		r.record.RCode, r.record.Answered = code, true
	}
	s.Observe(&r.record)
}
