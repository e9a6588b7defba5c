package redirect

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/weirnet/weir/proxy/control"
)

// watchEvery is how often Run looks at what nobody tells it of: new launchers,
// and interfaces that go.
const watchEvery = time.Second

// Run finds the running proxies or starts one, joins them to the node, and does
// so anew whenever one dies or another comes. It returns when ctx ends, and
// leaves the proxies running and wired. It runs once.
func (m *Manager) Run(ctx context.Context) error {
	defer m.attending.Wait()
	m.endSevered(ctx)
	for said := ""; ctx.Err() == nil; {
		err := m.settle(ctx)
		switch {
		case err == nil:
			said = ""
		case ctx.Err() == nil && err.Error() != said:
			said = err.Error()
			m.log.Error("not all is well with the proxies", "error", err)
		}
		delay := watchEvery
		if m.launch != nil {
			delay = firstRetry // flows wait for it
		}
		select {
		case <-ctx.Done():
		case <-m.wake:
		case <-time.After(delay):
		}
	}
	return nil
}

// settle looks at what there is and goes as far as can be gone now towards what
// shall be: of all proxies the one that was started last takes the new flows,
// and the others are on their way out. Nothing counts that a successor of this
// agent could not see for itself.
func (m *Manager) settle(ctx context.Context) error {
	views, err := m.look(ctx)
	if err != nil {
		return err
	}
	failed := errors.Join(m.retireDead(views), m.keepOne(views), m.checkPrograms(views))
	heir := -1 // the one that takes the new flows, or is to
	for i, v := range slices.Backward(views) {
		if v.session != nil && !v.session.isLeaving() {
			heir = i
			break
		}
	}
	if heir < 0 {
		return failed
	}
	s := views[heir].session
	all := tried(views)
	if all && heir == len(views)-1 {
		m.upgrade(s)
	}
	ready := m.prepare(ctx, s, true)
	old, err := m.prepareOld(ctx, views, heir)
	failed = errors.Join(failed, ready, err)
	if s.isLeaving() { // as it has said just now: there may be another one
		m.rouse()
		return failed
	}
	if ready == nil && s.joined && m.complete(s) && all {
		if err := m.succeed(ctx, s, old); err != nil {
			return errors.Join(failed, err)
		}
		failed = errors.Join(failed, m.dismiss(ctx, views[:heir]))
	}
	return errors.Join(failed, m.clean(ctx, views))
}

// prepareOld prepares those that have flows, besides the heir, and returns them.
// One that nobody ever came to is not needed any more.
func (m *Manager) prepareOld(ctx context.Context, views []view, heir int) (old []*session, failed error) {
	for i, v := range views {
		s := v.session
		switch {
		case s == nil || i == heir:
		case !s.joined && s.welcome.Generation == 0:
			m.log.Info("a proxy is not needed", "place", v.place.n)
			if err := s.request(&control.Wiring{Stop: true}); err != nil && !hungUp(err) {
				failed = errors.Join(failed, err)
			}
			s.close()
		default:
			if err := m.prepare(ctx, s, false); err != nil {
				failed = errors.Join(failed, err)
			} else if s.joined {
				old = append(old, s)
			}
		}
	}
	return old, failed
}

// tried tells whether each was connected, or could not be.
func tried(views []view) bool {
	return !slices.ContainsFunc(views, func(v view) bool { return !v.tried })
}

// isLeaving tells whether a proxy is to take no new flows any more.
func (s *session) isLeaving() bool {
	status := s.status.Load()
	return s.leaving || status != nil && status.Draining
}

// complete tells whether a proxy may get new flows: all rule sets must be known,
// or flows would be denied for want of them where they could have waited. One
// that has new flows anyway keeps them.
func (m *Manager) complete(s *session) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return s.adopted || m.synced
}

// prepare joins a proxy and gives it the rule sets, where that was not done
// before. A proxy that has just ended is passed over.
func (m *Manager) prepare(ctx context.Context, s *session, heir bool) error {
	if s.ended() {
		return nil
	}
	if s.joined {
		return m.holds(s)
	}
	if err := m.introduce(ctx, s, heir); err != nil {
		if s.ended() {
			return nil
		}
		s.close()
		if hangs(err) {
			m.endHanging(s.place)
		}
		return fmt.Errorf("proxy at place %d: %w", s.place.n, err)
	}
	return nil
}

func (m *Manager) introduce(ctx context.Context, s *session, heir bool) error {
	if err := m.join(ctx, s, heir); err != nil {
		return err
	}
	// It may have been told to leave by another agent.
	if _, err := s.ask(ctx, callTimeout); err != nil {
		return err
	}
	if err := m.feed(ctx, s); err != nil {
		return err
	}
	s.joined = true
	m.attending.Go(func() {
		if err := m.receive(ctx, s); ctx.Err() == nil {
			m.log.Info("a proxy is gone", "generation", s.generation, "error", err)
		}
	})
	m.attending.Go(func() {
		err := m.watchNames(ctx, s)
		if err != nil && ctx.Err() == nil && !s.ended() && status.Code(err) != codes.Unavailable {
			m.log.Error("nobody hears which names a proxy wants", "generation", s.generation, "error", err)
		}
	})
	m.attending.Go(func() { m.guard(ctx, s) })
	return nil
}

// holds makes sure that what joins a proxy to the node is there.
func (m *Manager) holds(s *session) error {
	v, err := findVeth(m.opts.State, s.generation)
	if err == nil && v.index != int(s.entry.Ifindex) {
		err = fmt.Errorf("interface %d is now %d", s.entry.Ifindex, v.index)
	}
	if err != nil {
		s.close() // the next session finds it unfit
		return fmt.Errorf("proxy %d is cut off: %w", s.generation, err)
	}
	return nil
}

// keepOne starts a proxy where none runs that may take new flows.
func (m *Manager) keepOne(views []view) error {
	if l := m.launch; l != nil {
		gone, err := l.gone()
		switch {
		case slices.ContainsFunc(views, func(v view) bool { return v.place.launcher() == l.pid }):
			m.launch, m.delay = nil, 0
		case gone || time.Since(l.began) > connectTimeout:
			m.launch = nil
			m.delay = min(max(2*m.delay, firstDelay), longestWait)
			m.launchAt = time.Now().Add(m.delay)
			return fmt.Errorf("a proxy did not start (see %s): %w", logName, ended(err))
		}
	}
	if m.launch != nil || time.Now().Before(m.launchAt) || slices.ContainsFunc(views, func(v view) bool {
		return v.foreign == nil && (v.session == nil || !v.session.isLeaving())
	}) {
		return nil
	}
	if m.opts.External {
		return nil
	}
	l, err := m.launchOne("none runs")
	m.launch = l
	return err
}

// upgrade starts a proxy of this binary beside one of another, once: where it
// does not come up the other one stays.
func (m *Manager) upgrade(s *session) {
	w := s.welcome
	if m.upgraded || m.opts.External || m.opts.Build == "" || w.Build == m.opts.Build || !w.Managed {
		return
	}
	m.upgraded = true
	if _, err := m.launchOne("one of another binary runs: " + w.Version + " " + w.Build); err != nil {
		m.log.Error("the proxy stays one of another binary", "error", err)
	}
}
