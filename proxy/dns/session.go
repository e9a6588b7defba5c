package dns

import (
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
	turn    node[session] // of its pod's, by last question
}

// pod counts what one has.
type pod struct {
	owner    uint32
	sessions ring[session]
	n        int
	pending  int
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
	retired bool // it waits for answers only
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
	return up, nil
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
	fd, err := openAs(netip.AddrPortFrom(s.client, up.port))
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

func (r *relay) closeUpstream(up *upstream) {
	up.turn.remove()
	up.mate.remove()
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
	fd, err := openAs(s.server)
	if err != nil {
		return nil, err
	}
	rp = &replier{sock: sock{fd: fd}, server: s.server, used: r.now}
	r.repliers[s.server], s.replier = rp, rp
	r.answering.push(&rp.turn, rp)
	return rp, nil
}
