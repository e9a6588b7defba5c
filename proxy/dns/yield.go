package dns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Idle is a connection on which no question waits for an answer: all that
// another Server needs to go on with it.
type Idle struct {
	// Client and Server are the sockets; whoever has the Idle closes them.
	Client, Server int
	// Input was read from the client and not dealt with: the beginning of a
	// message.
	Input []byte
}

// maxInput bounds Idle.Input. A connection with more is not let go of before that
// question is answered.
const maxInput = 16 << 10

// Yield offers every connection on which no question waits to whom Conn.Offer
// asks, and from now on each where the last one is answered. It takes back what
// Drain said. It may be repeated, for the sake of those that nobody took then. It
// returns at once; Start goes on to work.
func (s *Server) Yield() { s.pairs.yield() }

// Adopt goes on with a connection that another Server has let go of, and owns
// its sockets. Client and Dial of c are not used.
func (s *Server) Adopt(c Conn, i Idle) *Pair {
	client, clientErr := connOf(i.Client)
	server, serverErr := connOf(i.Server)
	p := s.newStream(c)
	p.client, p.server = client, server
	if err := errors.Join(clientErr, serverErr); err != nil || len(i.Input) > maxInput {
		s.relay.Log.Error("go on with a connection for questions", "error", err, "input", len(i.Input))
		p.reset()
		p.finish()
		return &Pair{p}
	}
	if len(i.Input) > 0 {
		p.input.rest, p.input.began = bytes.Clone(i.Input), time.Now()
	}
	return s.start(context.Background(), p)
}

// connOf makes a connection of a descriptor, which it owns.
func connOf(fd int) (*net.TCPConn, error) {
	f := os.NewFile(uintptr(fd), "connection")
	if f == nil {
		return nil, unix.EBADF
	}
	defer f.Close()
	c, err := net.FileConn(f) // has a copy
	if err != nil {
		return nil, err
	}
	t, ok := c.(*net.TCPConn)
	if !ok {
		_ = c.Close()
		return nil, fmt.Errorf("it is %T", c)
	}
	return t, nil
}

// descriptorOf is another descriptor of a connection.
func descriptorOf(c *net.TCPConn) (fd int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	var dupErr error
	err = raw.Control(func(own uintptr) { fd, dupErr = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0) })
	return fd, errors.Join(err, dupErr)
}

// errYield ends serving one side of a connection that is to be let go of.
var errYield = errors.New("the connection is offered to somebody else")

// past is a deadline that is over: whoever reads looks what is to be done.
var past = time.Unix(1, 0)

func (p *pairs) yield() {
	p.mu.Lock()
	p.yielding, p.draining = true, false
	all := p.list()
	p.mu.Unlock()
	for _, s := range all {
		s.yield()
	}
}

// yield lets go of the connection when no question waits on it and somebody
// takes it.
func (p *stream) yield() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.yielding, p.declined, p.draining = true, false, false
	p.rouse()
}

// rouse has the client's side look whether the connection can be let go of. p.mu
// is held.
func (p *stream) rouse() {
	if p.idle() {
		_ = p.client.SetReadDeadline(past)
	}
}

// idle tells whether the connection is to be offered. p.mu is held.
func (p *stream) idle() bool {
	return p.yielding && !p.declined && !p.ending && len(p.pending) == 0
}

// pause has the server's side stop, where the client's has.
func (p *stream) pause() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pausing = true
	if !p.ending {
		_ = p.server.SetReadDeadline(past)
	}
}

// offer lets go of the connection, on which nobody reads, if somebody takes it.
func (p *stream) offer() (taken bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pausing = false
	// Somebody will ask again, or the next question makes it idle anew.
	p.declined = true
	if p.ending || p.conn.Offer == nil || len(p.output.rest) > 0 || len(p.input.rest) > maxInput {
		return false
	}
	client, err := descriptorOf(p.client)
	if err != nil {
		return false
	}
	server, err := descriptorOf(p.server)
	if err != nil {
		_ = unix.Close(client)
		return false
	}
	take := p.conn.Offer()
	if take == nil {
		_ = unix.Close(client)
		_ = unix.Close(server)
		return false
	}
	p.ending, p.aborted = true, true // nobody touches its sockets here any more
	_ = p.client.Close()
	_ = p.server.Close()
	take(Idle{Client: client, Server: server, Input: p.input.rest})
	return true
}

// Busy tells whether questions by UDP wait for an answer, or to be read. It
// returns when the goroutine that serves them has come round, or with ctx; then
// it says yes.
func (s *Server) Busy(ctx context.Context) bool {
	answer := make(chan bool, 1)
	if !s.relay.post(func() { answer <- s.relay.pendings.n+s.relay.waiting > 0 || s.relay.unread() }) {
		return false // it has ended
	}
	select {
	case busy := <-answer:
		return busy
	case <-ctx.Done():
		return true
	}
}

// unread tells whether a datagram of a pod is still to be read.
func (r *relay) unread() bool {
	var b [1]byte
	for _, l := range r.listeners {
		if _, _, err := unix.Recvfrom(l.fd, b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT); !errors.Is(err, unix.EAGAIN) {
			return true
		}
	}
	return false
}
