package redirect

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/proxy/control"
)

// A generation outlives its proxy: connections that were handed over go on in
// its namespace, which the kernel keeps for them, and with it the interface.
const (
	// lingerLimit is how long the namespace of a generation may stay that no
	// proxy has connections of: sockets that were closed deliver what was
	// written, or give up.
	lingerLimit = 2 * time.Minute
	// maxGenerations is how many there may be before the oldest is asked to end
	// its connections; twice as many there never are.
	maxGenerations = 16
)

// nextGeneration is a number that no flow remembers, as far as that can be
// had from 255: the one after the latest.
func (m *Manager) nextGeneration() (uint8, error) {
	used, err := m.opts.Datapath.AttachedProxies()
	if err != nil {
		return 0, err
	}
	if len(used) >= 2*maxGenerations {
		return 0, fmt.Errorf("%d generations of the proxy have connections", len(used))
	}
	g := m.opts.Datapath.Generation()
	for g = after(g); slices.Contains(used, g); g = after(g) {
	}
	return g, nil
}

// after is the number behind g: 1 to 255, and 1 again.
func after(g uint8) uint8 {
	if g++; g == 0 {
		return 1
	}
	return g
}

// owned tells whether a proxy runs that is this generation; unsure: one runs
// that can't be asked.
func owned(views []view, g uint8) (yes, unsure bool) {
	for i := range views {
		v := &views[i]
		yes = yes || v.owns(uint32(g))
		unsure = unsure || v.session == nil && v.foreign == nil
	}
	return yes, unsure && !yes
}

// retireDead tells the kernel that the current generation is gone, if it is, so
// that its flows end and new ones wait. Others may have left connections behind.
func (m *Manager) retireDead(views []view) error {
	g := m.opts.Datapath.Generation()
	if yes, unsure := owned(views, g); yes || unsure {
		return nil
	}
	return m.retire(g)
}

func (m *Manager) retire(g uint8) error {
	entry, ok, err := m.opts.Datapath.Proxies.Lookup(uint32(g))
	if err != nil || !ok || entry.Alive == 0 {
		return err
	}
	entry.Alive = 0
	if err := m.opts.Datapath.Proxies.Update(uint32(g), entry); err != nil {
		return err
	}
	m.log.Info("proxy is gone", "generation", g)
	return nil
}

// clean takes away what is left of generations that neither are a proxy's nor
// have connections.
func (m *Manager) clean(ctx context.Context, views []view) error {
	dp := m.opts.Datapath
	attached, err := dp.AttachedProxies()
	if err != nil {
		return err
	}
	held, known := heldBy(views)
	var gone []uint8
	var failed error
	if len(attached) > maxGenerations {
		failed = m.endOldest(ctx, views, held)
	}
	for _, g := range attached {
		yes, unsure := owned(views, g)
		if yes || unsure || !known || held[uint32(g)] || g == dp.Generation() {
			delete(m.unheld, g)
			continue
		}
		entry, _, err := dp.Proxies.Lookup(uint32(g))
		if err != nil {
			return err
		}
		if entry.Alive != 0 && m.lingers(g) {
			continue
		}
		// Its flows, if there are any, have no socket any more.
		failed = errors.Join(failed, m.retire(g), removeVeth(m.opts.State, g), dp.DetachProxy(g, int(entry.Ifindex)))
		delete(m.unheld, g)
		gone = append(gone, g)
	}
	if len(gone) > 0 {
		m.forget(gone)
		m.log.Info("nothing is left of proxies", "generations", gone)
	}
	return failed
}

// endOldest has the connections of the oldest generation ended that is not a
// proxy's own.
func (m *Manager) endOldest(ctx context.Context, views []view, held map[uint32]bool) (failed error) {
	oldest := after(m.opts.Datapath.Generation())
	for range 255 {
		if yes, _ := owned(views, oldest); held[uint32(oldest)] && !yes {
			break
		}
		oldest = after(oldest)
	}
	if !held[uint32(oldest)] {
		return nil
	}
	m.log.Warn("too many generations: ending the connections of the oldest", "generation", oldest)
	for _, v := range views {
		if v.session == nil || !v.session.joined {
			continue
		}
		limited, cancel := context.WithTimeout(ctx, callTimeout)
		_, err := v.session.client.EndGeneration(limited, &control.EndGenerationRequest{Generation: uint32(oldest)})
		cancel()
		failed = errors.Join(failed, err)
	}
	return failed
}

// lingers tells whether the kernel still has use for a generation's namespace,
// and may.
func (m *Manager) lingers(g uint8) bool {
	_, err := findVeth(m.opts.State, g)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return false
	}
	since, ok := m.unheld[g]
	if !ok {
		since = time.Now()
		m.unheld[g] = since
	}
	return time.Since(since) < lingerLimit
}

// heldBy are the generations that running proxies have connections of, or may
// come to have. known: all of them have said so.
func heldBy(views []view) (held map[uint32]bool, known bool) {
	held = map[uint32]bool{}
	for _, v := range views {
		if v.session == nil {
			continue
		}
		status := v.session.status.Load()
		if status == nil {
			return nil, false
		}
		for _, h := range status.Held {
			held[h.Generation] = true
		}
	}
	return held, true
}

// forget deletes the entries in conns of generations that are gone, so that they
// don't take up room. (Their proxies would have.)
func (m *Manager) forget(generations []uint8) {
	var err error
	var gone []bpf.Tuple
	for tuple, c := range m.opts.Datapath.Conns.All(&err) {
		if slices.Contains(generations, c.Generation) {
			gone = append(gone, tuple)
		}
	}
	for _, tuple := range gone {
		// The tuple may be a new flow's by now.
		c, ok, lookupErr := m.opts.Datapath.Conns.Lookup(tuple)
		if lookupErr == nil && ok && slices.Contains(generations, c.Generation) {
			lookupErr = m.opts.Datapath.Conns.Delete(tuple)
		}
		err = errors.Join(err, lookupErr)
	}
	if err != nil {
		m.log.Error("forget the flows of dead proxies", "error", err)
	}
}
