package dns

import (
	"slices"
	"time"
)

// lane is a socket that questions of some pods come to. Each has a queue of its
// own, and is read a batch at a time in turn with all others: a pod that floods
// one costs pods in others nothing.
type lane struct {
	sock
	// lost counts what found no room in the queue, as of the last datagram that
	// did, since the beginning; at is when it last rose.
	lost uint32
	at   time.Time
	// from is whose datagram came last, and mixed when another one's did.
	from  sockaddr
	mixed time.Time
	// Whose datagrams a crowded round has, and how many.
	sources []source
	sieve   sieve
}

type source struct {
	of sockaddr
	n  int
}

// How pods in one lane are kept apart while it overflows: for crowdTime after
// datagrams were lost, if several send, crowdBatches are read in a row, of which
// each has crowdShare dealt with; the rest is dropped, which is quick, so that
// there is room for others.
const (
	crowdTime    = time.Second
	crowdBatches = 8
	crowdShare   = 16
)

// crowded notes what of a full batch tells that the lane is too small.
func (l *lane) crowded(r *relay, n int) bool {
	if lost := r.in.lost(n - 1); lost != l.lost {
		r.Drop(ReasonOverrun, uint64(lost-l.lost))
		l.lost, l.at = lost, r.now
	}
	// With a sieve what was lost is no sign: it is looked again when that is off.
	if n < batchSize || r.now.Sub(l.at) >= crowdTime || !l.sieve.until.IsZero() {
		return false
	}
	for i := range n {
		if from := &r.in.names[i]; !from.sameHost(&l.from) {
			if l.from.family != 0 {
				l.mixed = r.now
			}
			l.from = *from
		}
	}
	return r.now.Sub(l.mixed) < crowdTime
}

// admit tells whether a datagram is among those that its source may have dealt
// with.
func (l *lane) admit(from *sockaddr) bool {
	i := slices.IndexFunc(l.sources, func(s source) bool { return s.of.sameHost(from) })
	if i < 0 {
		l.sources = append(l.sources, source{of: *from, n: 1})
		return true
	}
	l.sources[i].n++
	return l.sources[i].n <= crowdShare
}

// takeQuestions deals with what pods have sent.
func (r *relay) takeQuestions(l *lane) {
	l.sources = l.sources[:0]
	crowded := 0
	for crowded < crowdBatches && r.takeBatch(l) {
		crowded++
	}
	if crowded > 0 {
		r.sift(l, crowded)
	}
}

// takeBatch reads a batch, and tells whether the lane is crowded.
func (r *relay) takeBatch(l *lane) (crowded bool) {
	n, errno := r.in.receive(l.fd, true)
	if errno != 0 {
		return false // nothing there after all
	}
	crowded, dropped := l.crowded(r, n), 0
	for i := range n {
		client := &r.in.names[i]
		if crowded && !l.admit(client) {
			dropped++
			continue
		}
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
	if dropped > 0 {
		r.Drop(ReasonOverrun, uint64(dropped))
	}
	r.flush()
	return crowded
}
