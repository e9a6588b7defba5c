package dns

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/fqdn"
)

// Learner makes known what names stand for.
type Learner interface {
	// Learn returns when the kernel knows, or with an error that says what it
	// does not know; the answer may be released then. Only as long as ctx lasts
	// it may wait: where that would be needed and ctx has ended, it fails with
	// ctx's error. It keeps nothing of the answer. Anybody may call it.
	Learn(ctx context.Context, a fqdn.Answer) error
}

// Options of a Server.
type Options struct {
	// Open finds out what was decided about a pod's questions to a server by
	// UDP, at the first one; nil: nothing, so they are dropped.
	Open    func(pod netip.Addr, server netip.AddrPort) Session
	Learner Learner
	// Drop is told of what no Record tells of, so many at a time. Like Open, it
	// must not block.
	Drop func(Reason, uint64)
	Log  *slog.Logger
}

// Server judges questions and passes on answers: those that come by UDP to the
// sockets it listens on, and those of connections it was given.
type Server struct {
	relay *relay
	pairs pairs
}

// New makes a Server; Run makes it serve.
func New(o Options) (*Server, error) {
	r, err := newRelay(&o)
	if err != nil {
		return nil, fmt.Errorf("make DNS server: %w", err)
	}
	s := &Server{relay: r}
	s.pairs.init(r)
	return s, nil
}

// SetNXDomain has denied questions answered by NXDOMAIN instead of REFUSED.
func (s *Server) SetNXDomain(on bool) { s.relay.nxdomain.Store(on) }

// Listen makes a socket for the questions of pods by UDP, of one family, and has
// it put where datagrams are steered from. Each has a queue, which is served in
// turn with the others', so there should be several, and what one address sends
// should come to one of them. It is to be called before Run.
func (s *Server) Listen(ipv6 bool, put func(fd uintptr) error) error {
	family := unix.AF_INET
	if ipv6 {
		family = unix.AF_INET6
	}
	fd, err := openListener(family)
	if err != nil {
		return err
	}
	if err := put(uintptr(fd)); err != nil {
		_ = unix.Close(fd)
		return fmt.Errorf("steer datagrams to the listener: %w", err)
	}
	if err := s.relay.listen(fd); err != nil {
		_ = unix.Close(fd)
		return err
	}
	return nil
}

// Run serves until ctx ends, then resets the connections that are left and
// returns once all sockets are closed. It may be called once.
func (s *Server) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(s.relay.run)
	g.Go(func() error {
		<-ctx.Done()
		s.relay.stop()
		s.pairs.stop()
		return nil
	})
	return g.Wait()
}

// Close frees what New made, of a server that is not run.
func (s *Server) Close() {
	for _, l := range s.relay.listeners {
		s.relay.close(&l.sock)
	}
	s.relay.free()
}

// Pending is how many questions by UDP wait for an answer.
func (s *Server) Pending() int { return int(s.relay.busy.Load()) }

// Drain ends connections as soon as nothing on them waits for an answer. It
// returns at once.
func (s *Server) Drain() { s.pairs.drain() }

// Ping returns when the goroutine that serves UDP has come round, or with ctx:
// then it is stuck.
func (s *Server) Ping(ctx context.Context) error {
	pong := make(chan struct{})
	if !s.relay.post(func() { close(pong) }) {
		return nil // it has ended
	}
	select {
	case <-pong:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the DNS loop does not come round: %w", ctx.Err())
	}
}
