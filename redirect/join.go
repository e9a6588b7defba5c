package redirect

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/proxy/control"
)

// join wires a proxy, or takes over one that is wired. Afterwards its
// listeners stand and it answers calls; flows are not sent to it yet.
func (m *Manager) join(ctx context.Context, s *session) error {
	err := m.wire(s)
	if errors.Is(err, errUnfit) {
		// It was wired by someone with other tables, or what it was wired with
		// has gone. Its flows are lost already; a fresh one starts.
		m.log.Error("replacing the proxy", "error", err)
		if stopErr := m.replace(ctx, s); stopErr != nil {
			return errors.Join(err, stopErr)
		}
	}
	if err != nil {
		return err
	}
	return s.talk()
}

// errUnfit: the running proxy can't serve this node as it is now.
var errUnfit = errors.New("the running proxy does not fit")

func (m *Manager) wire(s *session) error {
	g, v, err := m.interfaceOf(s)
	if err != nil {
		return err
	}
	dp := m.opts.Datapath
	if err := dp.AttachProxy(g, v.index, s.netns); err != nil {
		return m.unfit(s, err)
	}
	maps, err := dp.ProxyMaps(g)
	if err != nil {
		return err
	}
	wiring := &control.Wiring{Generation: uint32(g), Gateway: v.mac, Mtu: uint32(v.mtu), Dns: m.opts.DNS}
	var files []*os.File
	defer func() { control.Close(files) }()
	for name, f := range maps {
		wiring.Maps = append(wiring.Maps, name)
		files = append(files, f)
	}
	for _, name := range []string{control.MapCheckpoint0, control.MapCheckpoint1} {
		f, err := m.opts.openCheckpoint(name)
		if err != nil {
			return err
		}
		wiring.Maps = append(wiring.Maps, name)
		files = append(files, f)
	}
	if err := s.conn.SetDeadline(time.Now().Add(connectTimeout)); err != nil {
		return err
	}
	if err := control.Send(s.conn, wiring, files...); err != nil {
		return err
	}
	answer := &control.Wired{}
	none, err := control.Receive(s.conn, answer)
	control.Close(none)
	if err != nil {
		return err
	}
	if answer.Stale {
		return fmt.Errorf("%w: %s", errUnfit, answer.Error)
	}
	if answer.Error != "" {
		return fmt.Errorf("wire the proxy: %s", answer.Error)
	}
	s.generation = g
	s.entry = bpf.Proxy{Ifindex: uint32(v.index), Alive: 1}
	copy(s.entry.Mac[:], v.peerMAC)
	return nil
}

// unfit marks an error as one that only a new proxy can cure, if this one was
// wired before.
func (m *Manager) unfit(s *session, err error) error {
	if s.welcome.Generation != 0 {
		return fmt.Errorf("%w: %w", errUnfit, err)
	}
	return err
}

// interfaceOf makes sure that a veth pair joins the proxy's namespace to the
// node, and returns its generation and the pair.
func (m *Manager) interfaceOf(s *session) (uint8, *veth, error) {
	if g := s.welcome.Generation; g != 0 {
		v, err := findVeth(m.opts.State, uint8(g))
		if err != nil {
			return 0, nil, fmt.Errorf("%w: %w", errUnfit, err)
		}
		entry, ok, err := m.opts.Datapath.Proxies.Lookup(g)
		if err != nil {
			return 0, nil, err
		}
		if ok && entry.Alive != 0 && int(entry.Ifindex) == v.index {
			v.peerMAC = slices.Clone(entry.Mac[:])
			s.adopted = m.opts.Datapath.Generation() == uint8(g)
			return uint8(g), v, m.retireAll(uint8(g))
		}
		// Wired, but its agent died before it was made current.
		if v.peerMAC, err = peerMAC(s.netns); err != nil {
			return 0, nil, fmt.Errorf("%w: %w", errUnfit, err)
		}
		return uint8(g), v, m.retireAll(uint8(g))
	}
	// A new process: there is one proxy per run directory, so the others died.
	if err := m.retireAll(0); err != nil {
		return 0, nil, err
	}
	g, err := m.nextGeneration()
	if err != nil {
		return 0, nil, err
	}
	m.mu.Lock()
	mtu := m.mtu
	m.mu.Unlock()
	v, err := makeVeth(m.opts.State, g, mtu, s.netns)
	return g, v, err
}

// nextGeneration is a number that no flow remembers, as far as that can be
// had from 255: the one after the latest.
func (m *Manager) nextGeneration() (uint8, error) {
	used, err := m.opts.Datapath.AttachedProxies()
	if err != nil {
		return 0, err
	}
	g := m.opts.Datapath.Generation()
	for range 255 {
		if g++; g == 0 {
			g = 1
		}
		if !slices.Contains(used, g) {
			return g, nil
		}
	}
	return 0, errors.New("255 generations of the proxy are attached")
}

// retireAll tells the kernel that every generation but keep is gone, so that
// nothing more is sent to it.
func (m *Manager) retireAll(keep uint8) error {
	dp := m.opts.Datapath
	var failed error
	for g, entry := range dp.Proxies.All(&failed) {
		if g == uint32(keep) || entry.Alive == 0 {
			continue
		}
		entry.Alive = 0
		if err := dp.Proxies.Update(g, entry); err != nil {
			return err
		}
		m.log.Info("proxy is gone", "generation", g)
	}
	return failed
}

// removeOthers takes away what is left of every generation but keep. They are
// retired; it takes its time, and flows wait for a new proxy: that one first.
func (m *Manager) removeOthers(keep uint8) error {
	dp := m.opts.Datapath
	attached, err := dp.AttachedProxies()
	if err != nil {
		return err
	}
	var failed error
	for _, g := range attached {
		if g == keep {
			continue
		}
		entry, _, err := dp.Proxies.Lookup(uint32(g))
		if err != nil {
			return err
		}
		failed = errors.Join(failed,
			removeVeth(m.opts.State, g),
			dp.DetachProxy(g, int(entry.Ifindex)))
	}
	return failed
}

// forgetOthers deletes the entries in conns of generations that are gone, so
// that they don't take up room. (Their proxies would have.)
func (m *Manager) forgetOthers(keep uint8) {
	var err error
	var gone []bpf.Tuple
	for tuple, c := range m.opts.Datapath.Conns.All(&err) {
		if c.Generation != keep {
			gone = append(gone, tuple)
		}
	}
	for _, tuple := range gone {
		// The tuple may be a new flow's by now.
		if c, ok, lookupErr := m.opts.Datapath.Conns.Lookup(tuple); lookupErr != nil || !ok || c.Generation == keep {
			err = errors.Join(err, lookupErr)
			continue
		}
		err = errors.Join(err, m.opts.Datapath.Conns.Delete(tuple))
	}
	if err != nil {
		m.log.Error("forget the flows of dead proxies", "error", err)
	}
}

// replace ends the proxy, so that its launcher starts another.
func (m *Manager) replace(ctx context.Context, s *session) error {
	_ = s.conn.Close() // its preface may have gone any way
	fresh, err := dial(ctx, m.opts.RunDir, greetTimeout)
	if err != nil {
		return err
	}
	defer fresh.close()
	return fresh.stop(&control.Wiring{Stop: true, Restart: true})
}
