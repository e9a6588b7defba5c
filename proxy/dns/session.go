package dns

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Session is what one pod asks one port of one server by UDP. Its methods are
// called by the goroutine that serves all sessions: they must not block.
type Session interface {
	// Owner tells whose questions these are: each has a bound of its own.
	Owner() uint32
	// Rules yields what holds now; false: the pod may not ask any more.
	Rules() (Rules, bool)
	// Observe is told of every question. The Record and all it refers to are
	// valid during the call only.
	Observe(*Record)
	// Close is called last: the session was not used for long, may not be used,
	// or another one needs its room.
	Close()
}

// sessionKey tells sessions apart.
type sessionKey struct {
	family      uint16
	port        [2]byte
	pod, server [16]byte
}

func keyOf(client, server *sockaddr) sessionKey {
	k := sessionKey{family: server.family, port: server.port, pod: client.addr, server: server.addr}
	if server.family == unix.AF_INET {
		k.pod, k.server = [16]byte{}, [16]byte{}
		copy(k.pod[:], client.flow[:])
		copy(k.server[:], server.flow[:])
	}
	return k
}

// session is a Session with its sockets.
type session struct {
	Session
	key     sessionKey
	serial  uint32
	pod     *pod
	client  netip.Addr
	to      sockaddr // the client's, without a port
	server  netip.AddrPort
	up      *upstream // for new questions; nil: none yet
	sockets ring[upstream]
	replier *replier
	pending int
	seen    time.Time // the last question
	closed  bool
	told    bool          // of what can't be read
	turn    node[session] // of its pod's, by last question
}

// pod counts what one has.
type pod struct {
	owner    uint32
	sessions ring[session]
	n        int
	pending  int
	waiting  int       // answers to be learned
	sockets  int       // to servers
	told     time.Time // of what can't be read
}

// upstream is a socket from a pod's address to a server.
type upstream struct {
	sock
	session *session
	serial  uint32
	port    uint16
	opened  time.Time
	used    time.Time
	asked   int
	good    int  // answers
	foreign int  // and what is none
	retired bool // it waits for answers only
	suspect bool // somebody seems to guess
	pending ring[pending]
	turn    node[upstream] // of all, by last question
	mate    node[upstream] // of its session's
}

// replier is a socket that answers pods in a server's name. It is no listener:
// datagrams to that address are steered elsewhere.
type replier struct {
	sock
	server netip.AddrPort
	used   time.Time
	turn   node[replier] // of all, by last answer
}

// upstreamOf returns the socket for the session's next question.
func (r *relay) upstreamOf(s *session) (*upstream, error) {
	if up := s.up; up != nil {
		if up.asked < socketQuestions && r.now.Sub(up.opened) < r.limits.socketAge {
			return up, nil
		}
		s.up = nil
		r.retire(up)
	}
	if !r.makeRoom(s.pod) {
		return nil, errNoRoom
	}
	up := &upstream{session: s, opened: r.now}
	up.up = up
	up.pending.init()
	if err := r.dial(up); err != nil {
		return nil, err
	}
	r.serial++
	up.serial = r.serial
	up.ready = func(uint32) { r.takeAnswers(up) }
	if err := r.watch(&up.sock); err != nil {
		r.close(&up.sock)
		return nil, err
	}
	r.upstreams.push(&up.turn, up)
	s.sockets.push(&up.mate, up)
	s.up = up
	s.pod.sockets++
	r.opened++
	return up, nil
}

// errNoRoom: all sockets of a pod, or all there may be, wait for answers.
var errNoRoom = errors.New("too many sockets wait for answers")

// makeRoom closes a socket to a server that nothing is expected of, if there are
// too many for another one of this pod; false: it found none.
func (r *relay) makeRoom(p *pod) bool {
	looks := 0
	switch {
	case p.sockets >= max(r.maxUpstreams/podUpstreams, 1):
		for n := p.sessions.root.newer; n.of != nil && looks < maxLooks; n, looks = n.newer, looks+1 {
			if up := n.of.up; up != nil && up.pending.oldest() == nil {
				r.closeUpstream(up)
				return true
			}
		}
		return false
	case r.opened >= r.maxUpstreams:
		for n := r.upstreams.root.newer; n.of != nil && looks < maxLooks; n, looks = n.newer, looks+1 {
			if n.of.pending.oldest() == nil {
				r.closeUpstream(n.of)
				return true
			}
		}
		return false
	}
	return true
}

// dial binds to the pod's address and a random port, and connects. Other
// sockets may have the port, to other servers; those of this session must not.
func (r *relay) dial(up *upstream) error {
	s := up.session
	for {
		up.port = firstPort + uint16(r.random.Uint32N(1<<16-firstPort))
		if !s.hasPort(up.port) {
			break
		}
	}
	fd, err := openAs(netip.AddrPortFrom(s.client, up.port), upstreamBuffer)
	if err != nil {
		return err
	}
	up.fd = fd
	if err := connect(fd, s.server); err != nil {
		r.close(&up.sock)
		return fmt.Errorf("connect to %v: %w", s.server, err)
	}
	return nil
}

// firstPort is the first that is not of a service.
const firstPort = 1024

// hasPort tells whether another socket of the session has a port. There are few:
// those that still wait for answers.
func (s *session) hasPort(port uint16) bool {
	for n := s.sockets.root.newer; n.of != nil; n = n.newer {
		if n.of.port == port {
			return true
		}
	}
	return false
}

// retire closes a socket once nothing is expected of it.
func (r *relay) retire(up *upstream) {
	up.retired = true
	if up.pending.oldest() == nil {
		r.closeUpstream(up)
	}
}

// closeUpstream may be repeated: giving its last question up closes a retired
// socket, too.
func (r *relay) closeUpstream(up *upstream) {
	if up.fd < 0 {
		return
	}
	up.turn.remove()
	up.mate.remove()
	up.session.pod.sockets--
	r.opened--
	r.close(&up.sock)
	if up.session.up == up {
		up.session.up = nil
	}
}

// replierOf returns the socket that answers in the name of the session's server.
func (r *relay) replierOf(s *session) (*replier, error) {
	rp := s.replier
	if rp == nil || rp.fd < 0 {
		rp = r.repliers[s.server]
	}
	if rp != nil {
		s.replier, rp.used = rp, r.now
		rp.turn.remove()
		r.answering.push(&rp.turn, rp)
		return rp, nil
	}
	if len(r.repliers) >= r.maxRepliers {
		r.out.flush(r.unsent) // by any of them
		r.closeReplier(r.answering.oldest())
	}
	fd, err := openAs(s.server, 0)
	if err != nil {
		return nil, err
	}
	rp = &replier{sock: sock{fd: fd}, server: s.server, used: r.now}
	r.repliers[s.server], s.replier = rp, rp
	r.answering.push(&rp.turn, rp)
	return rp, nil
}

// closeReplier closes a socket by which nothing is to be sent any more. Sessions
// that know it open another one.
func (r *relay) closeReplier(rp *replier) {
	rp.turn.remove()
	delete(r.repliers, rp.server)
	r.close(&rp.sock)
}
