package redirect

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/proxy/control"
)

// succeed gives the new flows to the proxy of s, if it does not have them, and
// what the old ones have, as it becomes free.
func (m *Manager) succeed(ctx context.Context, s *session, old []*session) error {
	var failed error
	for _, o := range old {
		if o.heir == s || o.ended() {
			continue
		}
		// What was learned goes over now: before it is needed.
		if err := m.bridge(ctx, o, s); err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		o.heir = s
	}
	if err := m.makeCurrent(s); err != nil {
		return err
	}
	for _, o := range old {
		if o.leaving || o.ended() {
			continue
		}
		limited, cancel := context.WithTimeout(ctx, callTimeout)
		_, err := o.client.Drain(limited, &control.DrainRequest{Timeout: int64(m.opts.Drain), Successor: true})
		cancel()
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("tell proxy %d that it is replaced: %w", o.generation, err))
			continue
		}
		o.leaving = true
		m.log.Info("proxy is replaced", "generation", o.generation, "by", s.generation)
	}
	return failed
}

// makeCurrent sends the new flows to the proxy of s.
func (m *Manager) makeCurrent(s *session) error {
	m.mu.Lock()
	was := m.current
	m.mu.Unlock()
	if was == s {
		return nil
	}
	if err := m.opts.Datapath.Proxies.Update(uint32(s.generation), s.entry); err != nil {
		return err
	}
	m.opts.Datapath.SetGeneration(s.generation)
	m.mu.Lock()
	if !s.ended() { // or it would never be forgotten: starve has been
		m.current = s
	}
	m.mu.Unlock()
	m.log.Info("proxy is current", "generation", s.generation, "adopted", s.adopted)
	return nil
}

// bridge connects two proxies: what one learned and has goes to the other.
func (m *Manager) bridge(ctx context.Context, from, to *session) error {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("connect two proxies: %w", err)
	}
	ends := [2]*os.File{os.NewFile(uintptr(fds[0]), "successor"), os.NewFile(uintptr(fds[1]), "predecessor")}
	defer control.Close(ends[:])
	if err := from.place.request(ctx, askTimeout, &control.Wiring{HandOver: true}, ends[0]); err != nil {
		return fmt.Errorf("ask proxy %d to hand over: %w", from.generation, err)
	}
	if err := to.place.request(ctx, connectTimeout, &control.Wiring{TakeOver: true}, ends[1]); err != nil {
		return fmt.Errorf("ask proxy %d to take over: %w", to.generation, err)
	}
	return nil
}

// dismiss ends the proxies of another protocol, of which nothing else can be
// asked, once there is one behind them that can take the new flows. (One that is
// before them is their agent's to end: that of another version, which waits.)
func (m *Manager) dismiss(ctx context.Context, views []view) (failed error) {
	for _, v := range views {
		if v.foreign == nil || v.watch.dismissed {
			continue
		}
		err := v.place.request(ctx, askTimeout, &control.Wiring{Stop: true, Drain: int64(m.opts.Drain)})
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("end a proxy of another protocol: %w", err))
			continue
		}
		v.watch.dismissed = true
		m.log.Info("a proxy of another protocol is to end", "place", v.place.n, "generation", v.foreign.Generation)
	}
	return failed
}
