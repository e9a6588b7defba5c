package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weirnet/weir/fqdn"
	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/policy/dnsrules"
	"github.com/weirnet/weir/proxy/control"
)

// names is what names stand for, and what the agent said of them.
type names struct {
	*fqdn.Cache
	answers atomic.Uint64

	mu         sync.Mutex // held while the agent's word is carried out
	identities map[identity.ID][]dnsrules.Selector
	resolvers  []policy.Server
}

// newNames begins with what predecessors left in the checkpoints and the table.
func newNames(log *slog.Logger, maps *tables, s fqdn.Settings) *names {
	return &names{Cache: fqdn.New(fqdn.Options{
		Settings: s, Table: fqdn.NewTable(maps.fqdn), Flows: fqdn.NewFlows(maps.conntrack),
		Checkpoints: [2]fqdn.File{maps.checkpoint[0], maps.checkpoint[1]}, Log: log,
	})}
}

// Learn is fqdn.Cache's, and counts.
func (n *names) Learn(ctx context.Context, a fqdn.Answer) error {
	err := n.Cache.Learn(ctx, a)
	n.answers.Add(1)
	return err
}

// Answers implements nameKeeper.
func (n *names) Answers() uint64 { return n.answers.Load() }

func settingsOf(s *control.DNSSettings) (fqdn.Settings, error) {
	out := fqdn.Settings{
		MinTTL: time.Duration(s.GetMinTtl()), MaxTTL: time.Duration(s.GetMaxTtl()),
		PerName: int(s.GetPerName()), Addresses: int(s.GetAddresses()),
	}
	for _, text := range s.GetDeny() {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return out, fmt.Errorf("addresses that no name may stand for: %w", err)
		}
		out.Deny = append(out.Deny, p.Masked())
	}
	return out, nil
}

// set carries out a SetNames.
func (n *names) set(r *control.SetNamesRequest) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	identities := make(map[identity.ID][]dnsrules.Selector, len(r.Identities))
	var resolvers []policy.Server
	if r.Partial {
		maps.Copy(identities, n.identities)
		resolvers = slices.Clone(n.resolvers)
	}
	for _, i := range r.Identities {
		if i.Id == 0 {
			return errors.New("a set of names without an identity")
		}
		identities[identity.ID(i.Id)] = selectorsFrom(i.Set)
	}
	for _, m := range r.Resolvers {
		server, err := control.ServerFrom(m)
		if err != nil {
			return fmt.Errorf("a resolver: %w", err)
		}
		resolvers = append(resolvers, server)
	}
	n.identities, n.resolvers = identities, resolvers
	return n.SetNames(identities, resolvers)
}

func selectorsFrom(m *control.NameSet) []dnsrules.Selector {
	out := make([]dnsrules.Selector, len(m.GetSelectors()))
	for i, s := range m.GetSelectors() {
		out[i] = control.NameSelectorFrom(s)
	}
	return out
}

func selectorsOf(list []dnsrules.Selector) []*control.NameSelector {
	out := make([]*control.NameSelector, len(list))
	for i, s := range list {
		out[i] = control.NameSelectorOf(s)
	}
	return out
}

// known returns what is known of names, once the proxy is wired.
func (s *service) known() (*names, error) {
	w := s.process.wired.Load()
	if w == nil {
		return nil, errors.New("the proxy is not wired")
	}
	return w.names, nil
}

// SetNames implements control.ProxyServer.
func (s *service) SetNames(_ context.Context, r *control.SetNamesRequest) (*control.SetNamesResponse, error) {
	n, err := s.known()
	if err != nil {
		return nil, err
	}
	if err := n.set(r); err != nil {
		return nil, fmt.Errorf("set names: %w", err)
	}
	return &control.SetNamesResponse{}, nil
}

// WatchNameSets implements control.ProxyServer.
func (s *service) WatchNameSets(_ *control.WatchNameSetsRequest, stream control.Proxy_WatchNameSetsServer) error {
	n, err := s.known()
	if err != nil {
		return err
	}
	return n.Watch(stream.Context(), func(sets [][]dnsrules.Selector) error {
		m := &control.NameSets{}
		for _, set := range sets {
			m.Sets = append(m.Sets, &control.NameSet{Selectors: selectorsOf(set)})
		}
		return stream.Send(m)
	})
}

// listBatch is how many names go in one message.
const listBatch = 128

// ListNames implements control.ProxyServer.
func (s *service) ListNames(r *control.ListNamesRequest, stream control.Proxy_ListNamesServer) error {
	n, err := s.known()
	if err != nil {
		return err
	}
	batch := &control.NameBatch{}
	err = n.List(stream.Context(), r.Match, func(name fqdn.Name) error {
		if batch.Names = append(batch.Names, nameOf(&name)); len(batch.Names) < listBatch {
			return nil
		}
		full := batch
		batch = &control.NameBatch{}
		return stream.Send(full)
	})
	if err != nil || len(batch.Names) == 0 {
		return err
	}
	return stream.Send(batch)
}

func nameOf(n *fqdn.Name) *control.Name {
	m := &control.Name{Name: n.Name, Namespace: n.Namespace, Selectors: selectorsOf(n.Selectors)}
	for _, p := range n.Pods {
		m.Pods = append(m.Pods, p.AsSlice())
	}
	for _, a := range n.Addresses {
		m.Addresses = append(m.Addresses, &control.NameAddress{
			Address: a.Addr.AsSlice(), Expires: a.Expires.UnixNano(), Alive: a.Alive, Identity: uint32(a.Identity),
		})
	}
	return m
}

// status tells how much is known.
func (n *names) status(r *control.StatusResponse) {
	known, addresses := n.Len()
	r.Names, r.Addresses = uint64(known), uint64(addresses)
	c := n.Counts()
	r.NamesCounts = map[string]uint64{
		"refused": c.Refused, "full": c.Full, "evicted": c.Evicted, "waited": c.Waited, "narrowed": c.Narrowed,
	}
}
