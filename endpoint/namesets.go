package endpoint

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy"
)

// Names takes to the proxy what the addresses of names are known as, and the
// servers that are believed. It returns when a running proxy has that in force,
// or at once when none runs. Unless whole is set, the proxy keeps what it has
// besides.
type Names interface {
	SetNames(ctx context.Context, sets map[identity.ID]*policy.NameSet, resolvers []policy.Server, whole bool) error
}

// hearing is how long the first pass leaves alone what a predecessor wrote, for
// the proxy to say which combinations of names its addresses have: they would
// lose them for a moment. A proxy that has to be started takes half a second.
const hearing = 5 * time.Second

// nameSets brings to the proxy what addresses of names are known as.
type nameSets struct {
	proxy Names
	want  map[identity.ID]*policy.NameSet
	// cluster are the cluster's own resolvers, others the rest, asked for at each
	// pass.
	cluster []policy.Server
	others  func() []policy.Server
	sent    sentNames // and taken
	caller
}

// sentNames is what was sent.
type sentNames struct {
	sets      map[identity.ID]*policy.NameSet
	resolvers []policy.Server
	whole     bool
	any       bool // something was
}

func (s *sentNames) equal(o *sentNames) bool {
	return s.any == o.any && s.whole == o.whole && maps.Equal(s.sets, o.sets) && slices.Equal(s.resolvers, o.resolvers)
}

// newNameSets begins without anybody to tell.
func newNameSets() *nameSets {
	return &nameSets{want: map[identity.ID]*policy.NameSet{}, others: func() []policy.Server { return nil }}
}

// set says what identity id is to stand for; nil: it is gone.
func (s *nameSets) set(id identity.ID, set *policy.NameSet) {
	if set == nil {
		delete(s.want, id)
	} else {
		s.want[id] = set
	}
}

// resolvers are all servers that are believed, in order.
func (s *nameSets) resolvers() []policy.Server {
	all := slices.Concat(s.cluster, s.others())
	for i, s := range all {
		all[i].Addr = netip.AddrPortFrom(s.Addr.Addr().Unmap(), s.Addr.Port())
	}
	slices.SortFunc(all, policy.Server.Compare)
	return slices.Compact(all)
}

// update sends what is wanted, with what is not wanted any more: that goes by
// prune, and so does what a predecessor sent.
func (s *nameSets) update(ctx context.Context) error {
	sets := maps.Clone(s.want)
	for id, set := range s.sent.sets {
		if sets[id] == nil {
			sets[id] = set
		}
	}
	return s.send(ctx, sentNames{sets: sets, resolvers: s.resolvers(), whole: s.sent.whole, any: true})
}

// prune takes back what is not wanted.
func (s *nameSets) prune(ctx context.Context) error {
	return s.send(ctx, sentNames{sets: maps.Clone(s.want), resolvers: s.resolvers(), whole: true, any: true})
}

// send sends names, if the proxy was not told the same the last time.
func (s *nameSets) send(ctx context.Context, names sentNames) error {
	if s.proxy == nil {
		return nil
	}
	if err := s.finish(ctx); err != nil || names.equal(&s.sent) {
		return err
	}
	before := s.sent
	s.sent = names
	s.start(ctx, fmt.Sprintf("send %d sets of names to the proxy", len(names.sets)), func(ctx context.Context) error {
		return s.proxy.SetNames(ctx, names.sets, names.resolvers, names.whole)
	}, func() {
		// Nobody knows what it has: what it had is not forgotten, and sent again.
		for id, set := range before.sets {
			if s.sent.sets[id] == nil {
				s.sent.sets[id] = set
			}
		}
		s.sent.any = false
	})
	return s.finish(ctx)
}

// settled tells whether the proxy has what is wanted, and nothing else.
func (s *nameSets) settled() bool {
	return s.proxy == nil || s.call == nil && s.sent.any && s.sent.whole && maps.Equal(s.sent.sets, s.want)
}

// wants are the combinations of names that the proxies need, as told last.
type wants struct {
	mu      sync.Mutex
	told    map[string]*policy.NameSet
	changed chan struct{} // 1 buffered
}

func newWants() wants { return wants{changed: make(chan struct{}, 1)} }

func (w *wants) take() map[string]*policy.NameSet {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.told
}

// NameSets says which combinations of toFQDNs selectors need an identity, by a
// text that stands for each: all there are. It does not block, and may be called
// by anybody.
func (m *Manager) NameSets(sets map[string]*policy.NameSet) {
	m.wants.mu.Lock()
	m.wants.told = sets
	m.wants.mu.Unlock()
	select {
	case m.wants.changed <- struct{}{}:
	default:
	}
}

// need asks the engine for identities of these combinations, and no others.
func (m *Manager) need(sets map[string]*policy.NameSet) {
	var changes []policy.Change
	object := func(key string) policy.Object { return policy.Object{Kind: "NameSet", Name: key} }
	for key, set := range sets {
		if m.needs[key] == nil {
			changes = append(changes, policy.Change{Object: object(key), Value: set})
		}
	}
	for key := range m.needs {
		if sets[key] == nil {
			changes = append(changes, policy.Change{Object: object(key)})
		}
	}
	first := !m.heard
	m.needs, m.heard = sets, true
	if !first && len(changes) == 0 {
		return
	}
	if err := m.compute(changes); err != nil {
		m.applyErr = errors.Join(m.applyErr, err)
	}
}
