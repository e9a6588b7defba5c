package proxy

import (
	"bytes"
	"context"
	"os"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/proxy/control"
)

// agentConn is the one agent that is listened to.
type agentConn struct {
	mu     sync.Mutex
	server *grpc.Server
}

// replace makes s the agent's server, and hangs up on the one before.
func (a *agentConn) replace(s *grpc.Server) {
	a.mu.Lock()
	old := a.server
	a.server = s
	a.mu.Unlock()
	if old != nil {
		old.Stop()
	}
}

// gone forgets s if it is still the agent's.
func (a *agentConn) gone(s *grpc.Server) {
	a.mu.Lock()
	if a.server == s {
		a.server = nil
	}
	a.mu.Unlock()
	s.Stop()
}

// left tells whether there is no agent any more, within that time.
func (a *agentConn) left(limit time.Duration) bool {
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(time.Millisecond) {
		a.mu.Lock()
		none := a.server == nil
		a.mu.Unlock()
		if none {
			return true
		}
	}
	return false
}

func (p *process) newServer() *grpc.Server {
	s := grpc.NewServer(grpc.MaxRecvMsgSize(control.MaxMessage), grpc.MaxSendMsgSize(control.MaxMessage))
	control.RegisterProxyServer(s, &service{process: p})
	return s
}

// service is what an agent may ask for.
type service struct {
	control.UnimplementedProxyServer
	process *process
}

// SetRuleSets implements control.ProxyServer.
func (s *service) SetRuleSets(_ context.Context, r *control.SetRuleSetsRequest) (*control.SetRuleSetsResponse, error) {
	upsert := make([]policy.RuleSet, len(r.Upsert))
	for i, set := range r.Upsert {
		upsert[i] = control.RuleSetFrom(set)
	}
	answer := &control.SetRuleSetsResponse{}
	for id, err := range s.process.sets.set(upsert, r.Delete, r.Replace) {
		s.process.log.Error("rule set does not compile: it lets nothing pass", "id", id, "error", err)
		answer.Rejected = append(answer.Rejected, &control.RejectedSet{Id: id, Error: err.Error()})
	}
	return answer, nil
}

// batchSize bounds how many records go in one message; batchDelay is how long
// they are collected, so that a busy proxy sends few messages.
const (
	batchSize  = 1024
	batchDelay = 20 * time.Millisecond
)

// Records implements control.ProxyServer.
func (s *service) Records(_ *control.RecordsRequest, stream control.Proxy_RecordsServer) error {
	b := s.process.records
	defer b.read()()
	for over := false; ; {
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-b.ready:
		case <-b.over:
			over = true
		}
		for {
			batch := b.take(batchSize)
			if len(batch.Records) == 0 && batch.Cut == 0 {
				break
			}
			if err := stream.Send(batch); err != nil {
				return err
			}
		}
		if over {
			return nil
		}
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-time.After(batchDelay):
		}
	}
}

// Status implements control.ProxyServer. That it answers says that connections
// are being served.
func (s *service) Status(ctx context.Context, _ *control.StatusRequest) (*control.StatusResponse, error) {
	p := s.process
	if err := p.server.Ping(ctx); err != nil {
		return nil, err
	}
	if w := p.wired.Load(); w != nil {
		if err := w.data.questions.Ping(ctx); err != nil {
			return nil, err
		}
	}
	r := &control.StatusResponse{
		Boot: p.boot, Version: p.opts.Version, Uptime: uint64(time.Since(p.started)),
		ConnectionsTotal: p.counters.connections.Load(),
		Requests:         p.counters.requests.Load(),
		Questions:        p.counters.questions.Load(),
		Denied:           p.counters.denials(),
		RecordsDropped:   p.records.lost(),
		Rss:              residentSize(p.opts.Statm),
		RuleSets:         uint64(p.sets.len()),
		Swept:            p.counters.swept.Load(),
		Notes:            p.opts.Notes,
	}
	r.UpstreamTimeout = r.Denied[denyDead]
	r.UpstreamFailed = r.Denied[denyDead] + r.Denied[denyRefused] + r.Denied[denyLocal]
	if w := p.wired.Load(); w != nil {
		r.Generation = uint32(w.generation)
		w.names.status(r)
		r.Connections, r.ConnectionsMax = uint64(w.data.pairs.len()), uint64(w.data.max)
		r.Held, r.HandedOver = w.data.held(), p.counters.handed.Load()
	}
	if until, _, _ := p.departure.plan(); !until.IsZero() {
		r.Draining, r.DrainUntil = true, until.UnixNano()
	}
	return r, nil
}

// Drain implements control.ProxyServer.
func (s *service) Drain(_ context.Context, r *control.DrainRequest) (*control.DrainResponse, error) {
	s.process.departure.ask(leave{timeout: time.Duration(r.Timeout), restart: r.Restart, successor: r.Successor})
	return &control.DrainResponse{}, nil
}

// EndGeneration implements control.ProxyServer.
func (s *service) EndGeneration(_ context.Context, r *control.EndGenerationRequest) (*control.EndGenerationResponse, error) {
	if w := s.process.wired.Load(); w != nil && r.Generation < 256 {
		w.data.endGeneration(uint8(r.Generation))
	}
	return &control.EndGenerationResponse{}, nil
}

// residentSize reads /proc/self/statm; 0: unknown.
func residentSize(statm *os.File) uint64 {
	if statm == nil {
		return 0
	}
	var b [128]byte
	n, _ := statm.ReadAt(b[:], 0)
	fields := bytes.Fields(b[:n])
	if len(fields) < 2 {
		return 0
	}
	pages, err := strconv.ParseUint(string(fields[1]), 10, 64)
	if err != nil {
		return 0
	}
	return pages * uint64(os.Getpagesize())
}
