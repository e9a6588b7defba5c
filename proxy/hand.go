package proxy

import (
	"errors"
	"sync"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/proxy/control"
	"github.com/weirnet/weir/proxy/dns"
	"github.com/weirnet/weir/proxy/http"
)

// handed is a connection that went to a successor: who has its entry in conns
// swept.
type handed struct {
	id   uint64
	heir *heir
}

// hand takes p out of the table, on its way to h, if it still is the pair of its
// tuple.
func (t *pairTable) hand(p *pair, h *heir) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.pairs[p.tuple] != p {
		return false
	}
	delete(t.pairs, p.tuple)
	t.uncount(p)
	t.handed[p.tuple] = handed{p.entry.Id, h}
	return true
}

// forgetHanded forgets what went to h, which has died with it.
func (t *pairTable) forgetHanded(h *heir) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for tuple, to := range t.handed {
		if to.heir == h {
			delete(t.handed, tuple)
		}
	}
}

// accounts tells whether an entry of conns belongs to a connection, here or at
// a successor.
func (t *pairTable) accounts(tuple bpf.Tuple, id uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.pairs[tuple]; ok {
		return true
	}
	to, ok := t.handed[tuple]
	return ok && to.id == id
}

// byGeneration counts the pairs of each generation.
func (t *pairTable) byGeneration() [256]int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.generations
}

// estate is what a proxy has from predecessors.
type estate struct {
	mu    sync.Mutex
	open  map[*receiver]*[256]bool // generations that those may have connections of that still hand over
	swept [256]bool                // those whose entries in conns nobody else accounts for
}

// expect notes what a predecessor may hand over, besides what it said before.
func (e *estate) expect(r *receiver, generations []uint8) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.open == nil {
		e.open = make(map[*receiver]*[256]bool)
	}
	if e.open[r] == nil {
		e.open[r] = new([256]bool)
	}
	for _, g := range generations {
		e.open[r][g] = true
	}
}

func (e *estate) expects(r *receiver, generation uint32) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return generation < 256 && e.open[r] != nil && e.open[r][generation]
}

// leave forgets a predecessor that has another successor now.
func (e *estate) leave(r *receiver) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.open, r)
}

// inherit notes that a predecessor has handed over all it had.
func (e *estate) inherit(r *receiver) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if generations := e.open[r]; generations != nil {
		for g, its := range generations {
			e.swept[g] = e.swept[g] || its
		}
		delete(e.open, r)
	}
}

// sweeps tells whether nobody else accounts for a generation's entries.
func (e *estate) sweeps(generation uint8) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, generations := range e.open {
		if generations[generation] {
			return false
		}
	}
	return e.swept[generation]
}

// receiving are the generations that connections may still come of.
func (e *estate) receiving() (of [256]bool, some bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, generations := range e.open {
		for g, its := range generations {
			of[g] = of[g] || its
		}
	}
	return of, len(e.open) > 0
}

// held are the connections of other generations, and those that may come, by
// generation.
func (d *dataSide) held() []*control.Held {
	counts := d.pairs.byGeneration()
	receiving, _ := d.receiving()
	var out []*control.Held
	for g := range counts {
		if g != int(d.generation) && (counts[g] > 0 || receiving[g]) {
			out = append(out, &control.Held{Generation: uint32(g), Connections: uint64(counts[g]), Receiving: receiving[g]})
		}
	}
	return out
}

// endGeneration ends the connections of another generation, each when it next
// stands between two messages.
func (d *dataSide) endGeneration(g uint8) {
	if g == d.generation {
		return
	}
	for _, p := range d.pairs.all() {
		if p.generation == g {
			go func() {
				<-p.served
				p.serving.End()
			}()
		}
	}
}

// goOn serves a connection that was let go of, for questions or not. The sockets
// are closed if that can't be.
func (d *dataSide) goOn(tuple bpf.Tuple, entry bpf.Conn, idle http.Idle, asks bool) error {
	p := d.newPair(tuple, entry)
	p.asks = asks
	// It had its room where it comes from.
	old, ok := d.pairs.put(p, d.max, d.max)
	if !ok {
		closeReset(idle.Client)
		closeReset(idle.Server)
		d.counters.deny(denyFull)
		d.forget(p)
		return errors.New("no room for another connection")
	}
	start := func() {
		if asks {
			p.serving = d.questions.Adopt(d.askingConn(p), dns.Idle{Client: idle.Client, Server: idle.Server, Input: idle.Input})
		} else {
			p.serving = d.server.Adopt(d.conn(p), idle)
		}
		close(p.served)
	}
	if old == nil {
		start()
		return nil
	}
	go func() {
		old.abort()
		start()
	}()
	return nil
}
