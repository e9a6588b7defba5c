package proxy

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weirnet/weir/proxy/http"
)

// Options of a proxy.
type Options struct {
	// Listener is the control socket; Run closes it.
	Listener *net.UnixListener
	// Netns is the network namespace the process is in.
	Netns *os.File
	// Statm is /proc/self/statm, if it could be opened.
	Statm *os.File
	// Version of the binary, and notes on what could not be set up: shown by
	// the agent's status.
	Version string
	Notes   []string
	// Build tells the binary from others, Managed that an agent started it: by
	// both the agent knows whether to replace it.
	Build   string
	Managed bool
	// Drain is how long connections get when ctx ends.
	Drain time.Duration
	Log   *slog.Logger
}

// ErrRestart is what Run ends with when a successor is wanted.
var ErrRestart = errors.New("the agent asked for a new proxy")

// prefaceTimeout is how long an agent may take to wire the proxy.
const prefaceTimeout = 10 * time.Second

// lastWords is how long the agent may take for what is told at the end.
const lastWords = 500 * time.Millisecond

// process is a running proxy.
type process struct {
	opts    Options
	log     *slog.Logger
	boot    string
	started time.Time

	sets     *ruleSets
	counters *counters
	records  *recordBuffer
	server   *http.Server
	group    *errgroup.Group
	ctx      context.Context // of the data side: ends after the drain

	wiring    sync.Mutex            // held while an agent wires the proxy
	wired     atomic.Pointer[wired] // nil: not yet
	agent     agentConn             // the agent that is listened to
	departure departure
}

// Run serves agents on the control socket and, once one has wired it,
// redirected connections. It returns when ctx ends or an agent said so, after
// the drain: nil, or ErrRestart, or what made it impossible to go on.
func Run(ctx context.Context, o Options) error {
	var id [8]byte
	if _, err := rand.Read(id[:]); err != nil {
		return fmt.Errorf("name this run: %w", err)
	}
	server, err := http.New(http.Options{DialTimeout: connectTimeout + time.Second})
	if err != nil {
		return fmt.Errorf("make HTTP server: %w", err)
	}
	data, stop := context.WithCancel(context.Background())
	defer stop()
	group, data := errgroup.WithContext(data)
	p := &process{
		opts: o, log: o.Log, boot: hex.EncodeToString(id[:]), started: time.Now(),
		sets: newRuleSets(), counters: newCounters(), records: newRecordBuffer(),
		server: server, group: group, ctx: data,
		departure: newDeparture(),
	}
	group.Go(func() error { return server.Run(data) })
	group.Go(func() error { return p.acceptAgents() })

	select {
	case <-ctx.Done():
		p.departure.ask(leave{timeout: o.Drain})
	case <-p.departure.begun:
	case <-data.Done(): // something failed
	}
	if w := p.wired.Load(); w != nil && data.Err() == nil {
		p.depart(ctx, w)
	}
	_ = o.Listener.Close()
	// What was cut just now is to be told; the agent hangs up when it has that.
	if p.records.finish(lastWords) {
		p.agent.left(lastWords)
	}
	p.agent.replace(nil)
	stop()
	if err := group.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	if _, _, restart := p.departure.plan(); restart {
		return ErrRestart
	}
	return nil
}

// acceptAgents takes agents as they come. Each is heard out alone, so that
// one that says nothing keeps nobody waiting.
func (p *process) acceptAgents() error {
	for {
		c, err := p.opts.Listener.AcceptUnix()
		switch {
		case err == nil:
			go p.meet(c)
		case errors.Is(err, net.ErrClosed):
			return nil
		default:
			p.log.Error("accept an agent", "error", err)
			time.Sleep(50 * time.Millisecond)
		}
	}
}
