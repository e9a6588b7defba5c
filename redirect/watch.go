package redirect

import (
	"context"
	"slices"
	"time"

	"github.com/weirnet/weir/proxy/control"
)

// watch is an eye on one place: it connects to the proxy there, again whenever
// that has ended, until nobody has the place any more.
type watch struct {
	place place

	// Guarded by Manager.mu:
	session *session         // nil: not connected
	tried   bool             // it was connected, or could not be
	foreign *control.Welcome // of a proxy of another protocol

	dismissed bool // of Run alone: that was told to end
}

// Delays between two tries to connect.
const (
	firstRetry  = 5 * time.Millisecond
	longRetry   = time.Second
	impatient   = 2 * time.Second // it may be just starting
	foreignLook = 5 * time.Second
)

// attend keeps w's session.
func (m *Manager) attend(ctx context.Context, w *watch) {
	defer m.rouse()
	delay, said, alone := firstRetry, "", time.Now()
	for ctx.Err() == nil {
		if live, err := w.place.live(); err == nil && !live || !m.watching(w) {
			return
		}
		began := time.Now()
		err := m.connect(ctx, w)
		switch {
		case ctx.Err() != nil:
			return
		case hangs(err):
			m.log.Error("the proxy does not say who it is", "place", w.place.n, "error", err)
			m.endHanging(w.place)
		case err != nil && !nobodyListens(err) && err.Error() != said:
			said = err.Error()
			m.log.Error("no connection to a proxy", "place", w.place.n, "error", err)
		}
		switch {
		case w.foreign != nil:
			delay = foreignLook
		case err == nil && time.Since(began) > longRetry:
			delay, alone = firstRetry, time.Now()
		case time.Since(alone) < impatient:
			delay = firstRetry // flows wait
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(delay):
		}
		delay = min(2*delay, longRetry)
	}
}

// watching tells whether w still is the watch of its place.
func (m *Manager) watching(w *watch) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.watches[w.place.n] == w
}

// connect has a session from its beginning to its end.
func (m *Manager) connect(ctx context.Context, w *watch) error {
	s, err := dial(ctx, w.place, greetTimeout)
	var foreign *control.Welcome
	if err == nil {
		defer s.close()
		if err = s.speaks(); err != nil {
			foreign = s.welcome
		}
	}
	m.mu.Lock()
	w.tried, w.foreign = true, foreign
	if err == nil {
		w.session = s
	}
	m.mu.Unlock()
	m.rouse()
	if err != nil {
		return err
	}
	select {
	case <-s.done:
	case <-ctx.Done():
		s.close()
	}
	m.mu.Lock()
	w.session = nil
	m.mu.Unlock()
	m.starve(s)
	m.rouse()
	return nil
}

// rouse makes Run look at the proxies.
func (m *Manager) rouse() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// view is what is known of a place at one moment.
type view struct {
	place   place
	watch   *watch
	session *session
	tried   bool
	foreign *control.Welcome
}

// owns tells whether the proxy there is that generation's.
func (v *view) owns(generation uint32) bool {
	switch {
	case v.foreign != nil:
		return v.foreign.Generation == generation
	case v.session == nil:
		return false
	case v.session.joined:
		return uint32(v.session.generation) == generation
	}
	return v.session.welcome.Generation == generation
}

// look watches every place that somebody has, until ctx ends, and returns what
// is known of each, in order.
func (m *Manager) look(ctx context.Context) ([]view, error) {
	places, err := livePlaces(m.opts.RunDir)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var views []view
	for _, p := range places {
		w := m.watches[p.n]
		if w == nil {
			w = &watch{place: p}
			m.watches[p.n] = w
			m.attending.Go(func() { m.attend(ctx, w) })
		}
		views = append(views, view{p, w, w.session, w.tried, w.foreign})
	}
	for n := range m.watches {
		if !slices.ContainsFunc(places, func(p place) bool { return p.n == n }) {
			delete(m.watches, n)
		}
	}
	return views, nil
}
