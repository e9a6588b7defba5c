package http

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/policy/httprules"
	"golang.org/x/sync/errgroup"
)

// Conn is a redirected connection with what is needed to judge and relay it.
//
// Rules and Observe are called by the goroutine that also serves other
// connections: they must not block, and Rules is asked before every request.
type Conn struct {
	// Client is the accepted connection. Start takes it over and closes it.
	Client *net.TCPConn
	// Dial connects to where the client wanted to go. It is called once, at
	// once, in a goroutine of its own. An error resets the client.
	Dial func(ctx context.Context) (*net.TCPConn, error)
	// Rules yields what is in force now.
	Rules func() Rules
	// Observe is told of every request, and of input that is none. The Record
	// and all it refers to are valid during the call only: copy what you keep.
	Observe func(*Record)
	// Done, if not nil, is called once, last of all: both sockets are closed.
	// That may be before Start returns.
	Done func()
	// Offer, if not nil, is asked while the Server yields whether somebody else
	// goes on with the connection, which stands between two messages. nil: not
	// now. Else what it returns is called at once, with what is valid during the
	// call but for the sockets; none of the others is called any more then, and
	// Abort returns. It must not block either.
	Offer func() (take func(Idle))
}

// Rules are the rule sets that a connection's requests must pass, both. A nil
// set lets everything pass.
type Rules struct {
	Egress, Ingress *RuleSet
}

// RuleSet is a policy.RuleSet made ready. It is immutable, and safe for
// concurrent use.
type RuleSet struct {
	set       *httprules.Set
	allowAll  bool
	allowRule uint32
}

// NewRuleSet makes a rule set ready. Where it fails, use Closed.
func NewRuleSet(rs *policy.RuleSet) (*RuleSet, error) {
	set, err := httprules.Compile(rs.HTTP)
	if err != nil {
		return nil, err
	}
	return &RuleSet{set: set, allowAll: rs.AllowAll, allowRule: rs.AllowRule}, nil
}

// Closed is a rule set that lets nothing pass: for numbers that stand for no
// known rule set, and for sets that can't be made ready.
func Closed() *RuleSet { return &RuleSet{set: nil} }

// Verdict on a request.
type Verdict uint8

const (
	// Denied: no rule lets it pass; the client got 403.
	Denied Verdict = iota
	// Allowed: it went to the server.
	Allowed
	// Refused: the request (or the server's response) can't be read in one
	// way only, or breaks a limit; Reason tells which. The connection ends.
	Refused
	// Failed: there was no request to judge, and nothing was wrong with what
	// came; the connection could not be served. Reason tells why.
	Failed
)

// Record is one request and what became of it, told when it is over (or, if
// that takes long, while it runs: Open).
type Record struct {
	// Path as it was judged and sent; of a refused request, what was there of
	// it: any bytes.
	Method, Host, Path []byte
	Protocol           string // "HTTP/1.1"
	Verdict            Verdict
	// Reason of the verdict. That an allowed exchange then failed is told by
	// Failure, ReasonNone if it did not.
	Reason, Failure Reason
	// Response: it is the server's response that was refused.
	Response bool
	// Direction is the side that denied. EgressRule and IngressRule are the
	// numbers of the rules that let it pass (policy.Engine.Rule); 0: none.
	Direction               policy.Direction
	EgressRule, IngressRule uint32
	// Changes that headerMatches made, with the rules that asked for them.
	Changes []httprules.Change
	// Status is the server's, or the proxy's own; 0: none was sent.
	Status int
	Start  time.Time
	// Latency from the request's head to the response's.
	Latency time.Duration
	// Bytes that went to the server and came back for it, heads included.
	RequestBytes, ResponseBytes int64
	// Open: the exchange still runs (long response, upgraded connection). No
	// second Record follows but one that is Again.
	Open bool
	// Again: the request was told of before, as allowed, and led to an upgraded
	// connection; that one was reset now, since the rules changed. Start is the
	// time of that, the bytes are all that passed.
	Again bool
}

// Options of a Server.
type Options struct {
	// Loops is how many threads serve connections; 0: GOMAXPROCS.
	Loops int
	// DialTimeout limits Conn.Dial; 0: 30 s.
	DialTimeout time.Duration
}

// Server serves connections in a few event loops. Each connection belongs to
// one loop, which alone touches it.
type Server struct {
	opts  Options
	times timeouts
	loops []*loop
	next  atomic.Uint32
	dials sync.WaitGroup
}

// New makes a Server; Run makes it serve.
func New(opts Options) (*Server, error) {
	if opts.Loops <= 0 {
		opts.Loops = runtime.GOMAXPROCS(0)
	}
	if opts.DialTimeout <= 0 {
		opts.DialTimeout = dialTimeout
	}
	s := &Server{opts: opts, times: defaultTimeouts}
	for range opts.Loops {
		l, err := newLoop(s)
		if err != nil {
			for _, l := range s.loops {
				l.free()
			}
			return nil, fmt.Errorf("make an event loop: %w", err)
		}
		s.loops = append(s.loops, l)
	}
	return s, nil
}

// Run serves until ctx ends, then resets every connection that is left and
// returns once all Done were called. It may be called once.
func (s *Server) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, l := range s.loops {
		g.Go(l.run)
	}
	g.Go(func() error {
		<-ctx.Done()
		for _, l := range s.loops {
			l.post(posted{kind: postStop})
		}
		return nil
	})
	err := g.Wait()
	s.dials.Wait()
	for _, l := range s.loops {
		l.free()
	}
	return err
}

// Start takes the connection over and returns at once. It may be called
// concurrently, before Run as well; after Run ended it resets the connection.
func (s *Server) Start(c Conn) *Pair {
	l := s.loops[int(s.next.Add(1))%len(s.loops)]
	ctx, cancel := context.WithTimeout(context.Background(), s.opts.DialTimeout)
	p := &Pair{done: make(chan struct{}), cancel: cancel}
	p.pair = newPair(l, p, c)
	fd, err := detach(c.Client)
	if err != nil {
		cancel()
		p.pair.finished()
		return p
	}
	if !l.post(posted{kind: postAdd, pair: p.pair, fd: fd}) {
		cancel()
		closeReset(fd)
		p.pair.finished()
		return p
	}
	s.dials.Add(1)
	go func() {
		defer s.dials.Done()
		defer cancel()
		fd, err := -1, error(nil)
		upstream, err := c.Dial(ctx)
		if err == nil {
			fd, err = detach(upstream)
		}
		if !l.post(posted{kind: postDialed, pair: p.pair, fd: fd, err: err}) && fd >= 0 {
			closeReset(fd)
		}
	}()
	return p
}

// Drain ends connections where a message ends and the next has not begun: at
// once those that nobody has used for a while, the others behind the response
// that comes next, which tells the client so. Upgraded connections go on. It
// returns at once; Start goes on to work.
func (s *Server) Drain() {
	for _, l := range s.loops {
		l.post(posted{kind: postDrain})
	}
}

// Ping returns when every loop has come round once, or with ctx: then one of
// them is stuck, and its connections with it.
func (s *Server) Ping(ctx context.Context) error {
	pong := make(chan struct{}, len(s.loops))
	for _, l := range s.loops {
		if !l.post(posted{kind: postPing, pong: pong}) {
			pong <- struct{}{} // it has ended
		}
	}
	for range s.loops {
		select {
		case <-pong:
		case <-ctx.Done():
			return fmt.Errorf("an event loop does not come round: %w", ctx.Err())
		}
	}
	return nil
}

// Pair is a connection being served.
type Pair struct {
	pair   *pair
	cancel context.CancelFunc
	done   chan struct{}
}

// Abort resets both sides and returns once both sockets are closed. It must
// not be called from Conn's functions.
func (p *Pair) Abort() {
	p.cancel()
	p.pair.loop.post(posted{kind: postAbort, pair: p.pair})
	<-p.done
}

// detach takes the descriptor out of c, for a loop of ours to wait on.
func detach(c *net.TCPConn) (fd int, err error) {
	raw, err := c.SyscallConn()
	if err == nil {
		controlErr := raw.Control(func(old uintptr) { fd, err = dup(int(old)) })
		err = errors.Join(controlErr, err)
	}
	if err != nil {
		_ = c.SetLinger(0)
		_ = c.Close()
		return -1, fmt.Errorf("take over the connection: %w", err)
	}
	_ = c.Close()
	return fd, nil
}
