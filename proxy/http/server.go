// Package http judges HTTP/1.x requests against policy and relays what may
// pass, between one client connection and one server connection.
package http

import (
	"context"
	"net"
	"net/netip"
	"time"

	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/policy/httprules"
)

var _ netip.Addr

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
	Done func()
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
)

// Record is one request and what became of it, told when it is over (or, if
// that takes long, while it runs: Open).
type Record struct {
	Method, Host, Path []byte // Path as it was judged and sent
	Protocol           string // "HTTP/1.1"
	Verdict            Verdict
	Reason             Reason
	// Direction is the side that denied. EgressRule and IngressRule are the
	// numbers of the rules that decided (policy.Engine.Rule); 0: none.
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
	// Open: the exchange still runs (long response, upgraded connection); no
	// second Record follows.
	Open bool
}

// Reason tells why a Record's verdict is what it is. String is its label in
// flows and metrics.
type Reason uint8

// Options of a Server.
type Options struct {
	// Loops is how many threads serve connections; 0: GOMAXPROCS.
	Loops int
	// DialTimeout limits Conn.Dial; 0: 30 s.
	DialTimeout time.Duration
}

// Server serves connections in a few event loops.
type Server struct{ opts Options }

// New makes a Server; Run makes it serve.
func New(opts Options) (*Server, error) { return &Server{opts: opts}, nil }

// Run serves until ctx ends, then resets every connection that is left and
// returns once all Done were called.
func (s *Server) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// Pair is a connection being served.
type Pair struct{}

// Start takes the connection over and returns at once. It may be called
// concurrently, before Run as well; after Run ended it resets the connection.
func (s *Server) Start(c Conn) *Pair {
	_ = c.Client.SetLinger(0)
	_ = c.Client.Close()
	if c.Done != nil {
		c.Done()
	}
	return &Pair{}
}

// Abort resets both sides and returns once both sockets are closed. It must
// not be called from Conn's functions.
func (p *Pair) Abort() {}
