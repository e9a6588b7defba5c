package dns

import (
	"context"
	"crypto/rand"
	"fmt"
	mathrand "math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// relay serves UDP: all of it in one goroutine, so nothing here is locked.
//
//	pod:p ──▶ listener ─▶ session ─▶ judge ─▶ upstream ──▶ server
//	pod:p ◀── replier ◀─ learn ◀─ pending ◀── upstream ◀── server
//	          (as server)        (id, question)  (as pod, random port)
//
// What one system call has read is dealt with and sent before the next is made:
// messages go out of the memory they were read into.
type relay struct {
	*loop
	*Options
	limits limits
	// Bounds of sockets.
	maxUpstreams, maxRepliers int

	nxdomain atomic.Bool
	busy     atomic.Int64 // questions that wait, as of the last turn
	random   *mathrand.Rand

	in     *receiver
	out    *sender
	q      question
	a      answer
	record Record

	listeners []*lane
	sieves    int // that lanes have
	sessions  map[sessionKey]*session
	pods      map[uint32]*pod
	pendings  pendings
	upstreams ring[upstream]
	opened    int // upstreams
	repliers  map[netip.AddrPort]*replier
	answering ring[replier]
	broken    []broken
	waiting   int
	serial    uint32 // of the last upstream
	begun     uint32 // sessions
	swept     time.Time

	// Of connections:
	scratches pool[scratch]
	streamed  atomic.Int64 // questions that wait
	spare     pool[streamed]

	// atOnce is a context that has ended, for learning without waiting.
	atOnce context.Context
	// ctx ends with run; learning is those who wait in it.
	ctx      context.Context
	cancel   context.CancelFunc
	learning sync.WaitGroup
}

// broken is a socket to a server that told of an error.
type broken struct {
	up     *upstream
	reason Reason
}

// Dropped tells of one thing that no Record tells of.
func (r *relay) Dropped(reason Reason) { r.Drop(reason, 1) }

func newRelay(opts *Options) (*relay, error) {
	var seed [32]byte
	if _, err := rand.Read(seed[:]); err != nil {
		return nil, fmt.Errorf("seed ids and ports: %w", err)
	}
	l, err := newLoop()
	if err != nil {
		return nil, err
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	ctx, cancel := context.WithCancel(context.Background())
	r := &relay{
		loop: l, Options: opts, limits: defaultLimits(), random: mathrand.New(mathrand.NewChaCha8(seed)),
		in: newReceiver(), out: &sender{},
		sessions: make(map[sessionKey]*session), pods: make(map[uint32]*pod),
		repliers: make(map[netip.AddrPort]*replier), atOnce: ended, ctx: ctx, cancel: cancel,
	}
	r.scratches.kept, r.spare.kept = keptScratches, keptPendings
	room := socketRoom()
	r.maxUpstreams = max(min(room*upstreamsInRoom/4, maxUpstreams), 1)
	r.maxRepliers = max(min(room-room*upstreamsInRoom/4, maxRepliers), 1)
	r.pendings.init()
	r.upstreams.init()
	r.answering.init()
	return r, nil
}

// listen takes over a socket that datagrams of pods are steered to.
func (r *relay) listen(fd int) error {
	l := &lane{sock: sock{fd: fd}}
	l.ready = func(uint32) { r.takeQuestions(l) }
	if err := r.watch(&l.sock); err != nil {
		return err
	}
	r.listeners = append(r.listeners, l)
	return nil
}

// run serves until stop, then closes all sockets. Entries in conns stay: they
// are a successor's as well.
func (r *relay) run() error {
	err := r.loop.run(r.turn)
	r.cancel()
	r.learning.Wait()
	for _, l := range r.listeners {
		r.close(&l.sock)
	}
	for _, s := range r.sessions {
		for up := s.sockets.oldest(); up != nil; up = s.sockets.oldest() {
			r.fail(up, ReasonAborted, false)
			r.closeUpstream(up)
		}
	}
	r.flush()
	for _, rp := range r.repliers {
		r.close(&rp.sock)
	}
	r.free()
	return err
}

// turn does what time brings, and tells how long to wait for the next turn.
func (r *relay) turn() int {
	for p := r.pendings.all.oldest(); p != nil && r.now.Sub(p.start) >= r.limits.answer; p = r.pendings.all.oldest() {
		r.giveUp(p, ReasonServerTimeout, false)
	}
	if r.now.Sub(r.swept) >= r.limits.sweep {
		r.sweep()
	}
	r.busy.Store(int64(r.pendings.asking))
	patience := r.limits.sweep
	if r.sieves > 0 {
		r.unsift()
		patience = min(patience, sieveEvery)
	} else if r.pendings.n == 0 && len(r.sessions) == 0 && len(r.repliers) == 0 {
		return -1
	}
	return max(int(patience/time.Millisecond), 1)
}

// sweep closes what was not used for long.
func (r *relay) sweep() {
	r.swept = r.now
	for up := r.upstreams.oldest(); up != nil && r.now.Sub(up.used) >= r.limits.socket; up = r.upstreams.oldest() {
		r.closeUpstream(up) // its questions have been given up by now
	}
	for rp := r.answering.oldest(); rp != nil && r.now.Sub(rp.used) >= r.limits.replier; rp = r.answering.oldest() {
		r.closeReplier(rp)
	}
	for _, p := range r.pods {
		for s := p.sessions.oldest(); s != nil && r.now.Sub(s.seen) >= r.limits.session; s = p.sessions.oldest() {
			r.end(s)
		}
	}
}

// sessionOf finds the session of a datagram, or begins it.
func (r *relay) sessionOf(client, server *sockaddr) *session {
	key := keyOf(client, server)
	if s := r.sessions[key]; s != nil {
		return s
	}
	known := r.Open(client.ip(), server.addrPort())
	if known == nil {
		r.Dropped(ReasonNoSession)
		return nil
	}
	p := r.pods[known.Owner()]
	if p == nil {
		p = &pod{owner: known.Owner()}
		p.sessions.init()
		r.pods[p.owner] = p
	}
	if len(r.sessions) >= maxSessions || p.n >= maxSessionsPod {
		oldest := p.sessions.oldest()
		if oldest == nil || oldest.pending > 0 {
			r.Dropped(ReasonFlood)
			if p.n == 0 {
				delete(r.pods, p.owner)
			}
			known.Close() // nobody else ever would
			return nil
		}
		p.n++ // or it goes with its last one
		r.end(oldest)
		p.n--
	}
	r.begun++
	s := &session{Session: known, key: key, serial: r.begun, pod: p, client: client.ip(), server: server.addrPort()}
	s.to = sockaddrOf(netip.AddrPortFrom(s.client, 0))
	s.sockets.init()
	p.n++
	r.sessions[key] = s
	return s
}

// end forgets a session and what it has asked.
func (r *relay) end(s *session) {
	s.closed = true
	for up := s.sockets.oldest(); up != nil; up = s.sockets.oldest() {
		r.fail(up, ReasonRevoked, false)
		r.closeUpstream(up)
	}
	delete(r.sessions, s.key)
	s.turn.remove()
	s.pod.n--
	if s.pod.n == 0 {
		delete(r.pods, s.pod.owner)
	}
	s.Close()
}

// flush sends what is queued, and tells pods of servers that can't be reached.
func (r *relay) flush() {
	r.out.flush(r.unsent)
	for len(r.broken) > 0 {
		b := r.broken[0]
		r.broken = r.broken[:copy(r.broken, r.broken[1:])]
		r.fail(b.up, b.reason, true)
		r.out.flush(r.unsent)
	}
}

// unsent is told of a datagram that could not be sent.
func (r *relay) unsent(s *sock, errno syscall.Errno) {
	up := s.up
	switch {
	case up == nil || errno == unix.EAGAIN || errno == unix.ENOBUFS || errno == unix.ENOMEM || errno == unix.EMSGSIZE:
		r.Dropped(ReasonUnsendable)
	default:
		r.broken = append(r.broken, broken{up, errorReason(errno)})
	}
}

func errorReason(errno syscall.Errno) Reason {
	if errno == unix.ECONNREFUSED {
		return ReasonServerRefused
	}
	return ReasonUnsendable
}
