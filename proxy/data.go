package proxy

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/proxy/dns"
	"github.com/weirnet/weir/proxy/http"
)

// Why a connection was ended before or between requests. Denied requests are
// counted under package http's reasons.
const (
	denyNoFlow  = "no-flow"         // nothing in conns: it was never redirected, or has been revoked
	denyRevoked = "revoked"         // its entry went while it was open
	denyFull    = "too-many"        // no room for another connection, or one of this pod
	denyLookup  = "lookup-failed"   // the table could not be read
	denyDrain   = "draining"        // accepted when the process was about to end
	denyLate    = "drain-ended"     // it was open when the process ended
	denyOld     = "superseded"      // the client began anew with the same port
	denyDead    = "server-dead"     // the server did not answer in time
	denyRefused = "server-refused"  // the server could not be reached
	denyLocal   = "dial-impossible" // no connection could be made here
)

// dataSide accepts redirected connections and has them served.
type dataSide struct {
	log        *slog.Logger
	generation uint8
	flows      flowTable
	shares     shareTable
	revisions  revisions
	sets       *ruleSets
	closed     *http.RuleSet
	server     *http.Server
	// questions serves DNS: connections, and datagrams of sessions.
	questions       *dns.Server
	closedQuestions *dns.RuleSet
	sessions        sessionTable
	believed        believer
	records         *recordBuffer
	counters        *counters
	max             int // connections at a time
	share           int // of them, those of one pod: the others must get some
	// congestion is the host's congestion control, for clients that are not
	// pods of this node; "": they keep localCongestion.
	congestion string
	// dial connects to a server in the client's name: dialAs.
	dial func(ctx context.Context, client, server netip.AddrPort, local bool) (*net.TCPConn, error)
	// checkSocket tells whether a predecessor's socket is what it says.
	checkSocket func(fd int, local, remote netip.AddrPort) error

	pairs    pairTable
	draining atomic.Bool

	// superseded: new flows go to a successor, which is to get what is here.
	superseded atomic.Bool
	heir       atomic.Pointer[heir] // nil: there is no connection to one
	estate
	standing
}

// accept serves what comes to l until l is closed.
func (d *dataSide) accept(l *net.TCPListener) error {
	for {
		c, err := l.AcceptTCP()
		switch {
		case err == nil:
			d.admit(c)
		case errors.Is(err, net.ErrClosed):
			return nil
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ENOMEM):
			// The client waits in the queue: connections end all the time.
			d.counters.deny(denyFull)
			time.Sleep(5 * time.Millisecond)
		case errors.Is(err, unix.ECONNABORTED):
		default:
			return err
		}
	}
}

// admit finds out what was decided about an accepted connection, and starts
// serving it.
func (d *dataSide) admit(c *net.TCPConn) {
	client, server := ends(c)
	tuple := bpf.TupleOf(client, server, unix.IPPROTO_TCP)
	entry, ok, err := d.flows.get(tuple)
	reason := ""
	switch {
	case err != nil:
		d.log.Error("look up a redirected flow", "error", err)
		reason = denyLookup
	case !ok || entry.Generation != d.generation:
		reason = denyNoFlow
	case d.draining.Load():
		reason = denyDrain
	}
	if reason != "" {
		d.reset(c, reason)
		return
	}
	p := d.newPair(tuple, entry)
	old, ok := d.pairs.put(p, d.max, d.share)
	if !ok {
		d.reset(c, denyFull)
		d.forget(p)
		return
	}
	d.counters.connections.Add(1)
	if old == nil {
		d.start(p, c, client, server)
		return
	}
	// The client's kernel has given the port out anew: the old connection is
	// over, and its socket to the server has the port the new one needs.
	d.counters.deny(denyOld)
	go func() {
		old.abort()
		d.start(p, c, client, server)
	}()
}

func (d *dataSide) newPair(tuple bpf.Tuple, entry bpf.Conn) *pair {
	p := &pair{
		proxy: d, tuple: tuple, veth: entry.Ifindex, generation: entry.Generation, entry: entry,
		served: make(chan struct{}), done: make(chan struct{}),
	}
	p.resolve(d.sets.now.Load())
	return p
}

func (d *dataSide) start(p *pair, c *net.TCPConn, client, server netip.AddrPort) {
	if d.congestion != "" && !local(&p.entry, policy.Egress) {
		if err := setRemote(c, d.congestion); err != nil {
			d.log.Debug("client's connection stays as it is", "client", client, "error", err)
		}
	}
	toPod := local(&p.entry, policy.Ingress)
	conn := d.conn(p)
	conn.Client = c
	conn.Dial = func(ctx context.Context) (*net.TCPConn, error) {
		up, err := d.dial(ctx, client, server, toPod)
		if err != nil {
			d.counters.deny(dialReason(err))
			d.log.Debug("server not reached", "client", client, "server", server, "error", err)
		}
		return up, err
	}
	if p.asks = isQuestions(p.sets, &p.entry); p.asks {
		asks := d.askingConn(p)
		asks.Client, asks.Dial = c, conn.Dial
		p.serving = d.questions.Start(asks)
	} else {
		p.serving = d.server.Start(conn)
	}
	close(p.served)
}

// conn is what p is for the server, less its sockets.
func (d *dataSide) conn(p *pair) http.Conn {
	return http.Conn{
		Rules:   p.current,
		Observe: func(r *http.Record) { d.observe(p, r) },
		Done:    func() { d.gone(p) },
		Offer:   func() func(http.Idle) { return d.offer(p) },
	}
}

// askingConn is conn of one for questions.
func (d *dataSide) askingConn(p *pair) dns.Conn {
	return dns.Conn{
		Pod: p.tuple.Source().Addr(), Rules: p.currentQuestions,
		Observe: func(r *dns.Record) { d.observeQuestion(p.tuple, &p.entry, "TCP", r) },
		Done:    func() { d.gone(p) },
		Offer: func() func(dns.Idle) {
			take := d.offer(p)
			if take == nil {
				return nil
			}
			return func(i dns.Idle) { take(http.Idle{Client: i.Client, Server: i.Server, Input: i.Input}) }
		},
	}
}

// gone forgets a pair whose sockets are closed.
func (d *dataSide) gone(p *pair) {
	d.pairs.drop(p)
	d.forget(p)
	close(p.done)
}

// forget removes the pair's entry in conns.
func (d *dataSide) forget(p *pair) {
	if err := d.flows.remove(p.tuple, p.entry.Id); err != nil {
		d.log.Error("forget a redirected flow", "error", err)
	}
}

// reset refuses a connection in the way no client can mistake.
func (d *dataSide) reset(c *net.TCPConn, reason string) {
	d.counters.deny(reason)
	_ = c.SetLinger(0)
	_ = c.Close()
}

func (d *dataSide) deny(reason string) { d.counters.deny(reason) }

// observe counts and records a request.
func (d *dataSide) observe(p *pair, r *http.Record) {
	switch {
	case r.Again:
		d.counters.deny(r.Reason.String())
	case r.Verdict == http.Allowed:
		d.counters.requests.Add(1)
	case r.Verdict != http.Failed:
		d.counters.requests.Add(1)
		d.counters.deny(r.Reason.String())
	case r.Reason != http.ReasonUnreachable: // dialing has counted that
		d.counters.deny(r.Reason.String())
	}
	d.records.add(p, r)
}

// wane accepts nothing new and ends connections where a message ends, those
// that are idle at once. It may be repeated.
func (d *dataSide) wane() {
	if !d.draining.Swap(true) {
		d.server.Drain()
		d.questions.Drain()
	}
}

// handOver hands connections to the successor where a message ends, those that
// are idle at once; what still comes is accepted. It may be repeated, and follow
// wane.
func (d *dataSide) handOver() {
	if d.superseded.Swap(true) {
		return
	}
	d.draining.Store(false)
	d.supersededAt.Store(d.walks.Load())
	d.yield()
}

// yield offers to the successor what it may have.
func (d *dataSide) yield() {
	d.server.Yield()
	d.questions.Yield()
}

// busyPatience is how long the questions' loop may not come round before it is
// taken to be busy.
const busyPatience = 500 * time.Millisecond

// over tells whether there is nothing left to end or to hand over. Where there
// is a successor, clients may be connecting yet.
func (d *dataSide) over() bool {
	if d.pairs.len() > 0 {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), busyPatience)
	defer cancel()
	if d.questions.Busy(ctx) {
		return false
	}
	if d.superseded.Load() {
		// The first walk may have begun before.
		if d.walks.Load() < d.supersededAt.Load()+2 || d.halfOpen.Load() > 0 {
			return false
		}
		_, receiving := d.receiving()
		if h := d.heir.Load(); receiving || h != nil && h.waiting() > 0 {
			return false
		}
	}
	// Again, and last: what was connecting, on its way here or on its way to the
	// successor a moment ago may be served here by now.
	return d.pairs.len() == 0
}

// end aborts what is left, and has what is on its way to the successor sent.
func (d *dataSide) end() {
	left := d.pairs.all()
	if len(left) > 0 {
		d.log.Warn("connections are cut: they have no more time", "connections", len(left))
		d.records.addCut(len(left))
	}
	var all sync.WaitGroup
	for _, p := range left {
		d.deny(denyLate)
		all.Go(p.abort)
	}
	all.Wait()
	if h := d.heir.Load(); h != nil {
		h.close(false)
		select {
		case <-h.done:
		case <-time.After(heirFlush):
		}
	}
}

// ends are the client and the original destination of an accepted connection.
func ends(c *net.TCPConn) (client, server netip.AddrPort) {
	return plain(c.RemoteAddr()), plain(c.LocalAddr())
}

func plain(a net.Addr) netip.AddrPort {
	ap := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}

func dialReason(err error) string {
	var timeout net.Error
	switch {
	case errors.As(err, &timeout) && timeout.Timeout():
		return denyDead
	case errors.Is(err, unix.EADDRNOTAVAIL), errors.Is(err, unix.EADDRINUSE), errors.Is(err, unix.EMFILE), errors.Is(err, unix.EPERM):
		return denyLocal
	}
	return denyRefused
}
