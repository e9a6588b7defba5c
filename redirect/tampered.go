package redirect

import (
	"errors"
	"fmt"
	"time"

	"github.com/weirnet/weir/bpf"
)

// Tampered tells what others did to the programs on the proxies' interfaces.
// While one was lost, or overtaken, what a proxy sent was not checked.
type Tampered struct {
	Lost      int       `json:"lost"`               // times programs were taken off; they were attached again
	Overtaken int       `json:"overtaken"`          // times another's was found to run first
	At        time.Time `json:"at,omitzero"`        // noticed last
	Interface string    `json:"interface,omitzero"` // where
	By        string    `json:"by,omitzero"`        // what ran first
	// Now is what runs first still, since it can't be overtaken.
	Now string `json:"now,omitempty"`
}

// Tampered tells what was noticed since this Manager began.
func (m *Manager) Tampered() Tampered {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.tampered
}

// checkPrograms looks whether the programs of all generations that have flows are
// where they were put, and puts them there again.
func (m *Manager) checkPrograms(views []view) error {
	if time.Since(m.checked) < watchEvery {
		return nil
	}
	m.checked = time.Now()
	attached, err := m.opts.Datapath.AttachedProxies()
	if err != nil {
		return err
	}
	var failed error
	now := ""
	for _, g := range attached {
		v, err := findVeth(m.opts.State, g)
		if err != nil {
			continue // gone, or just being made: what notices that is elsewhere
		}
		s := joinedTo(views, g)
		entry, _, err := m.opts.Datapath.Proxies.Lookup(uint32(g))
		if err != nil {
			return errors.Join(failed, err)
		}
		if s == nil && int(entry.Ifindex) != v.index {
			continue // it never had flows: nothing is promised of its programs
		}
		before, err := m.checkGeneration(g, v.index, s)
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("programs of proxy %d: %w", g, err))
		} else if before != "" {
			now = interfaceName(m.opts.State, g) + ": " + before
		}
	}
	m.mu.Lock()
	m.tampered.Now = now
	m.mu.Unlock()
	return failed
}

// joinedTo is the session with the proxy of a generation; nil: there is none.
func joinedTo(views []view, g uint8) *session {
	for _, v := range views {
		if v.session != nil && v.session.joined && v.session.generation == g && !v.session.ended() {
			return v.session
		}
	}
	return nil
}

// checkGeneration puts right what is not, and returns what then still runs before
// from_proxy.
func (m *Manager) checkGeneration(g uint8, index int, s *session) (before string, err error) {
	dp, name := m.opts.Datapath, interfaceName(m.opts.State, g)
	p, err := dp.CheckProxy(g, index)
	if err != nil {
		return "", err
	}
	if s != nil && !p.Listeners {
		m.log.Error("somebody took the table of the proxy's listeners away", "generation", g)
		m.noteTampering(name, "")
		s.close() // the next session finds it unfit, and ends it
		return "", nil
	}
	lost := !p.FromProxy || s != nil && !p.Steer
	if !lost && p.Before == "" {
		return "", nil
	}
	if lost {
		m.log.Error("somebody took Weir's programs off a proxy's interface or namespace: what it sent was not checked; attaching them again",
			"interface", name, "ifindex", index)
		m.noteTampering(name, "")
	} else if !m.knows(name, p.Before) {
		m.log.Error("another program runs before Weir's on a proxy's interface: what that lets pass is not checked",
			"interface", name, "ifindex", index, "program", p.Before)
		m.noteTampering(name, p.Before)
	}
	if s != nil && !p.Steer {
		err = dp.AttachProxy(g, index, s.netns)
	} else {
		err = dp.RepairProxy(g, index)
	}
	if err != nil {
		return "", err
	}
	var after bpf.ProxyPrograms
	after, err = dp.CheckProxy(g, index)
	return after.Before, err
}

// knows tells whether that runs first there since the last time.
func (m *Manager) knows(name, by string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.tampered.Now == name+": "+by
}

// noteTampering counts what was found. by: a program that runs first; "": one of
// ours is not there.
func (m *Manager) noteTampering(name, by string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := &m.tampered
	if by == "" {
		t.Lost++
	} else {
		t.Overtaken++
		t.By = by
	}
	t.At, t.Interface = time.Now(), name
}
