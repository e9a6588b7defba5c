package redirect

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/policy/dnsrules"
	"github.com/weirnet/weir/proxy/control"
)

// names are what the addresses of names are known as.
type names struct {
	turn sync.Mutex // held while they go to the proxies, so that none overtakes another

	mu    sync.Mutex
	given *control.SetNamesRequest // nil: nobody has said anything
	wants map[*session][]*policy.NameSet
}

// SetNames makes these what the addresses of names are known as, and believes
// the answers of these servers for all policies, besides those of rule sets that teach. Unless
// whole is set, the proxies keep what a predecessor gave them besides. It
// returns when the running proxies have it in force, or at once when none runs:
// one gets it before it is made current.
func (m *Manager) SetNames(ctx context.Context, sets map[identity.ID]*policy.NameSet, resolvers []policy.Server, whole bool) error {
	m.names.turn.Lock()
	defer m.names.turn.Unlock()
	request := &control.SetNamesRequest{Partial: !whole}
	for _, id := range slices.Sorted(maps.Keys(sets)) {
		request.Identities = append(request.Identities, &control.NameIdentity{Id: uint32(id), Set: nameSetOf(sets[id])})
	}
	for _, r := range resolvers {
		request.Resolvers = append(request.Resolvers, control.ServerOf(r))
	}
	m.names.mu.Lock()
	m.names.given = request
	m.names.mu.Unlock()
	return m.sendAll(func(s *session) error { return sendNames(ctx, s, request) })
}

// namesTimeout is how long a proxy may take: it answers when hundreds of
// thousands of addresses are known as what they are now.
const namesTimeout = 30 * time.Second

func sendNames(ctx context.Context, s *session, request *control.SetNamesRequest) error {
	ctx, cancel := context.WithTimeout(ctx, namesTimeout)
	defer cancel()
	if _, err := s.client.SetNames(ctx, request); err != nil {
		return fmt.Errorf("send names: %w", err)
	}
	return nil
}

// feedNames gives a proxy what is known of names.
func (m *Manager) feedNames(ctx context.Context, s *session) error {
	m.names.mu.Lock()
	request := m.names.given
	m.names.mu.Unlock()
	if request == nil {
		return nil
	}
	return sendNames(ctx, s, request)
}

func nameSetOf(set *policy.NameSet) *control.NameSet {
	out := &control.NameSet{}
	for _, s := range set.Selectors {
		out.Selectors = append(out.Selectors, control.NameSelectorOf(s))
	}
	return out
}

func nameSetFrom(m *control.NameSet) *policy.NameSet {
	out := &policy.NameSet{}
	for _, s := range m.GetSelectors() {
		out.Selectors = append(out.Selectors, control.NameSelectorFrom(s))
	}
	return out
}

// Bounds of what a proxy may want. One of ours wants no more sets (package fqdn);
// one that somebody has taken over must not have the agent fill the kernel's tables
// with identities and their entries, or its own memory. A set is as large as
// there are selectors for names of one address, such as that of an ingress that
// thousands of hosts share; without one for all of them the address is known by
// some.
const (
	maxNameSets     = 1024
	maxSetSelectors = 4096
	maxNamesMessage = 4 << 20
)

// bounded is what counts of what a proxy wants.
func bounded(sets []*control.NameSet) []*control.NameSet {
	out := make([]*control.NameSet, 0, min(len(sets), maxNameSets))
	for _, s := range sets {
		if len(out) < maxNameSets && len(s.GetSelectors()) <= maxSetSelectors {
			out = append(out, s)
		}
	}
	return out
}

// watchNames passes on which combinations of selectors a proxy wants, until the
// connection ends.
func (m *Manager) watchNames(ctx context.Context, s *session) error {
	stream, err := s.client.WatchNameSets(ctx, &control.WatchNameSetsRequest{}, grpc.MaxCallRecvMsgSize(maxNamesMessage))
	if err != nil {
		return err
	}
	said := false
	for {
		told, err := stream.Recv()
		if status.Code(err) == codes.Unimplemented {
			told, err = &control.NameSets{}, io.EOF
		}
		if told != nil {
			list := bounded(told.Sets)
			if ignored := len(told.Sets) - len(list); ignored > 0 && !said {
				said = true
				m.log.Error("a proxy wants more combinations of names than there may be: the rest is ignored",
					"generation", s.generation, "wants", len(told.Sets), "ignored", ignored)
			}
			sets := make([]*policy.NameSet, len(list))
			for i, set := range list {
				sets[i] = nameSetFrom(set)
			}
			m.want(s, sets)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// want tells which combinations the proxies want. Those of a proxy that has
// ended count until another has spoken: its addresses are the other's then.
func (m *Manager) want(s *session, sets []*policy.NameSet) {
	m.names.mu.Lock()
	defer m.names.mu.Unlock()
	maps.DeleteFunc(m.names.wants, func(other *session, _ []*policy.NameSet) bool { return other.ended() })
	m.names.wants[s] = sets
	if m.opts.NameSets == nil {
		return
	}
	all := map[string]*policy.NameSet{}
	for _, list := range m.names.wants {
		for _, set := range list {
			all[keyOf(set)] = set
		}
	}
	m.opts.NameSets(all)
}

// keyOf is a text that stands for a set.
func keyOf(set *policy.NameSet) string {
	list := slices.SortedFunc(slices.Values(set.Selectors), dnsrules.Selector.Compare)
	var text strings.Builder
	for _, s := range list {
		text.WriteString(s.String() + " ")
	}
	return text.String()
}

// ListNames calls each for every name that contains match, and that the proxy
// which takes the new flows learned, until each returns an error. ErrNoProxy:
// none is wired.
func (m *Manager) ListNames(ctx context.Context, match string, each func(*control.Name) error) error {
	s, _ := m.proxies()
	if s == nil {
		return ErrNoProxy
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := s.client.ListNames(ctx, &control.ListNamesRequest{Match: match})
	if err != nil {
		return fmt.Errorf("ask the proxy: %w", err)
	}
	for {
		batch, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("ask the proxy: %w", err)
		}
		for _, n := range batch.Names {
			if err := each(n); err != nil {
				return err
			}
		}
	}
}
