package redirect

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/weirnet/weir/proxy/control"
)

// severedDrain is how long proxies that this agent can't take over may go on with
// what they are in the middle of. Nobody gets a new connection meanwhile.
const severedDrain = 2 * time.Second

// BeforeActivate returns when no proxy needs a predecessor's programs any more,
// so that they may be replaced (bpf.Datapath.Activate). A proxy whose tables are
// not this agent's can do nothing once ours have taken over, and not even reset
// what it has: clients would wait for answers. Run ends it before that.
func (m *Manager) BeforeActivate(ctx context.Context) {
	select {
	case <-m.severed:
	case <-ctx.Done():
	}
}

// endSevered ends all proxies that were wired, if it was with other tables. They
// close what is idle, finish what they can, and reset the rest.
func (m *Manager) endSevered(ctx context.Context) {
	defer close(m.severed)
	if !m.opts.Datapath.Severed() {
		return
	}
	places, err := livePlaces(m.opts.RunDir)
	if err != nil {
		m.log.Error("ending the proxies of other tables", "error", err)
	}
	var all sync.WaitGroup
	for i, p := range places {
		all.Go(func() {
			// The last one's launcher starts the one that is needed.
			if err := p.endSevered(ctx, i == len(places)-1); err != nil {
				m.log.Error("ending a proxy of other tables", "place", p.n, "error", err)
			}
		})
	}
	all.Wait()
	m.log.Info("proxies of other tables have ended", "proxies", len(places))
}

func (p place) endSevered(ctx context.Context, restart bool) error {
	s, err := dial(ctx, p, askTimeout)
	if nobodyListens(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer s.close()
	if s.welcome.Generation == 0 {
		return nil // of no tables yet
	}
	err = p.request(ctx, askTimeout, &control.Wiring{Stop: true, Restart: restart, Drain: int64(severedDrain)})
	if err != nil && !hungUp(err) {
		return err
	}
	// This connection ends with the process: it says nothing more on it.
	if err := s.conn.SetDeadline(time.Now().Add(severedDrain + time.Second)); err != nil {
		return err
	}
	n, err := s.conn.Read(make([]byte, 1))
	if n > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("proxy %d does not end", s.welcome.Generation)
	}
	return nil
}
