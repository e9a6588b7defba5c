package dns

import (
	"net/netip"
	"sync"
	"sync/atomic"
)

// pairs are the connections a Server has.
type pairs struct {
	relay *relay
	mu    sync.Mutex
	all   map[*stream]struct{}
	pods  map[netip.Addr]*streamPod
	over  sync.WaitGroup

	draining, yielding, stopping bool
}

func (p *pairs) init(r *relay) {
	p.relay, p.all, p.pods = r, make(map[*stream]struct{}), make(map[netip.Addr]*streamPod)
}

// streamPod counts what the connections of one pod's address have.
type streamPod struct {
	streams  int          // of whoever holds pairs.mu
	streamed atomic.Int64 // questions that wait
	told     atomic.Int64 // when it was told of what can't be read; nanoseconds
}

// enter adds a connection, if there may be another one.
func (p *pairs) enter(s *stream) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.draining, s.yielding = p.draining, p.yielding
	if s.pod = p.pods[s.conn.Pod]; s.pod == nil {
		s.pod = &streamPod{}
	}
	if p.stopping {
		return false
	}
	if s.pod.streams >= maxStreamsPod {
		p.relay.Dropped(ReasonFlood)
		return false
	}
	s.pod.streams++
	p.pods[s.conn.Pod], p.all[s] = s.pod, struct{}{}
	p.over.Add(1)
	return true
}

func (p *pairs) leave(s *stream) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.all, s)
	if s.pod.streams--; s.pod.streams == 0 {
		delete(p.pods, s.conn.Pod)
	}
}

func (p *pairs) list() []*stream {
	out := make([]*stream, 0, len(p.all))
	for s := range p.all {
		out = append(out, s)
	}
	return out
}

func (p *pairs) drain() {
	p.mu.Lock()
	p.draining = true
	all := p.list()
	p.mu.Unlock()
	for _, s := range all {
		s.drain()
	}
}

// stop resets all connections and returns when they are closed.
func (p *pairs) stop() {
	p.mu.Lock()
	p.stopping = true
	all := p.list()
	p.mu.Unlock()
	for _, s := range all {
		s.reset()
	}
	p.over.Wait()
}
