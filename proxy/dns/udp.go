package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"strings"
	"unsafe"

	"github.com/weirnet/weir/fqdn"
	"golang.org/x/sys/unix"
)

// takeAnswers deals with what a server has sent to one of our sockets.
func (r *relay) takeAnswers(up *upstream) {
	n, errno := r.in.receive(up.fd, false)
	switch errno {
	case 0:
		for i := 0; i < n && up.fd >= 0; i++ {
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
		r.foreign(up)
		return
	}
	p := r.pendings.find(up, messageID(m))
	if p == nil || !answers(m, &r.q, p.first.asked, p.question()) {
		r.foreign(up)
		return
	}
	up.good++
	s := p.session
	rules, ok := s.Rules()
	switch {
	case !ok:
		r.end(s)
	case !r.a.read(m, &r.q):
		r.giveUp(p, ReasonAnswerMalformed, true)
	case rules.Believed && len(r.a.records) > 0 && rcode(m) == rcodeSuccess && r.learn(p, m, rules.BelievedFor):
	default:
		r.takeOut(p)
		r.release(p, m, r.a.chain, r.a.records)
	}
}

// foreign counts what came to a socket and answers nothing. Repeated and late
// answers are no more than good ones; many more come of somebody who guesses ids:
// that one has found out the port, and must begin anew.
func (r *relay) foreign(up *upstream) {
	r.Dropped(ReasonAnswerForeign)
	up.foreign++
	switch {
	case up.foreign-up.good >= 2*maxForeign:
		r.fail(up, ReasonRenewed, false) // pods ask again, by the other socket
		r.closeUpstream(up)
	case up.foreign-up.good >= maxForeign && !up.suspect:
		up.suspect = true
		r.Dropped(ReasonRenewed)
		r.Log.Info("many answers to nothing that was asked: the port is given up", "client", up.session.client, "server", up.session.server, "port", up.port)
		if s := up.session; s.up == up {
			s.up = nil
			r.retire(up)
		}
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
func (r *relay) learn(p *pending, m []byte, namespace string) (later bool) {
	a := fqdn.Answer{
		Name: unsafe.String(unsafe.SliceData(r.q.name), len(r.q.name)), Chain: r.a.chain, Records: r.a.records,
		Pod: p.session.client, Namespace: namespace,
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

// release passes an answer on to all who asked; p was taken out before. m stays
// as it is where they are several: each has another id.
func (r *relay) release(p *pending, m []byte, chain []string, records []fqdn.Record) {
	s, several := p.session, p.n > 1
	for a := &p.first; a != nil; a = a.next {
		r.recordOf(p, a)
		r.record.RCode, r.record.Chain, r.record.Records = rcode(m), chain, records
		e := (*outgoing)(nil)
		if !s.closed {
			e = r.replyTo(s, a.port)
		}
		switch {
		case s.closed:
			r.record.Failure = ReasonRevoked
		case e == nil:
			r.record.Failure = ReasonMemory
		case several:
			r.record.Answered = true
			binary.BigEndian.PutUint16(e.id[:], a.asked.id)
			e.message, e.split = m[idSize:], true
		default:
			r.record.Answered = true
			setMessageID(m, a.asked.id)
			e.message = m
		}
		r.finish(p)
	}
	r.pendings.release(p)
}

// giveUp forgets a question; tell: who asked it is told.
func (r *relay) giveUp(p *pending, reason Reason, tell bool) {
	r.takeOut(p)
	for a := &p.first; a != nil; a = a.next {
		r.recordOf(p, a)
		r.record.Failure = reason
		if tell {
			if e := r.replyTo(p.session, a.port); e != nil {
				e.message = appendReply(e.scratch[:0], a.asked, p.question(), rcodeFailed)
				r.record.RCode, r.record.Answered = rcodeFailed, true
			}
		}
		r.finish(p)
	}
	r.pendings.release(p)
}

// fail gives all questions up that a socket has asked.
func (r *relay) fail(up *upstream, reason Reason, tell bool) {
	for p := up.pending.oldest(); p != nil; p = up.pending.oldest() {
		r.giveUp(p, reason, tell)
	}
}

// replyTo returns room for a message to a pod, in the server's name; nil: there
// is none. Its message has to be set.
func (r *relay) replyTo(s *session, port [2]byte) *outgoing {
	rp, err := r.replierOf(s)
	if err != nil {
		r.Log.Debug("no socket for answers", "server", s.server, "error", err)
		return nil
	}
	r.room()
	e := r.out.queue(&rp.sock)
	e.to, e.named = s.to, true
	e.to.port = port
	return e
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

// recordOf begins the record of a question that was sent, for one who asked it.
func (r *relay) recordOf(p *pending, a *asker) {
	r.record = Record{
		Verdict: Allowed, Reason: a.verdict.reason, Direction: a.verdict.direction,
		EgressRule: a.verdict.egressRule, IngressRule: a.verdict.ingressRule, ClientPort: portOf(a.port),
		Question: p.question(), Kind: p.kind, Class: p.class, Start: a.start, Latency: r.now.Sub(a.start),
	}
}

// finish tells of one who asked a question that is over.
func (r *relay) finish(p *pending) {
	s := p.session
	s.pending--
	s.pod.pending--
	s.Observe(&r.record)
}

// denial is how denied questions are answered.
func (r *relay) denial() uint8 {
	if r.nxdomain.Load() {
		return rcodeNoName
	}
	return rcodeRefused
}

func portOf(p [2]byte) uint16 { return uint16(p[0])<<8 | uint16(p[1]) }
