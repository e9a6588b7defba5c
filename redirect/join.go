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
// listeners stand and it answers calls; flows are not sent to it yet. heir: it
// is to get flows, and not only to end those it has.
func (m *Manager) join(ctx context.Context, s *session, heir bool) error {
	err := m.wire(s)
	if err != nil && s.ended() {
		return errEnded // and with it the hold on the namespace: that says nothing of the proxy
	}
	if errors.Is(err, errUnfit) {
		// It was wired by someone with other tables, or what it was wired with
		// has gone. Its flows are lost already; where it is needed, a fresh one
		// starts.
		m.log.Error("ending a proxy", "generation", s.welcome.Generation, "error", err)
		_ = s.conn.Close() // its preface may have gone any way
		stopped := s.place.request(ctx, greetTimeout, &control.Wiring{Stop: true, Restart: heir})
		if stopped != nil && !hungUp(stopped) {
			err = errors.Join(err, stopped)
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
	if err := untilCarrying(v.index, s.netns); err != nil {
		return err
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
			return uint8(g), v, nil
		}
		// Wired, but its agent died before it was made current.
		if v.peerMAC, err = peerMAC(s.netns); err != nil {
			return 0, nil, fmt.Errorf("%w: %w", errUnfit, err)
		}
		return uint8(g), v, nil
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
