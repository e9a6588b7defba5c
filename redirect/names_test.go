package redirect

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/policy/dnsrules"
	"github.com/weirnet/weir/proxy/control"
)

// namesProxy is a proxy that knows names, and nothing else.
type namesProxy struct {
	control.UnimplementedProxyServer
	mu    sync.Mutex
	got   []*control.SetNamesRequest
	fail  error
	wants chan *control.NameSets
	names []string
}

func (p *namesProxy) SetRuleSets(context.Context, *control.SetRuleSetsRequest) (*control.SetRuleSetsResponse, error) {
	return &control.SetRuleSetsResponse{}, nil
}

func (p *namesProxy) SetNames(_ context.Context, r *control.SetNamesRequest) (*control.SetNamesResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.got = append(p.got, proto.CloneOf(r))
	return &control.SetNamesResponse{}, p.fail
}

func (p *namesProxy) WatchNameSets(_ *control.WatchNameSetsRequest, stream control.Proxy_WatchNameSetsServer) error {
	for {
		select {
		case w := <-p.wants:
			if err := stream.Send(w); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func (p *namesProxy) ListNames(r *control.ListNamesRequest, stream control.Proxy_ListNamesServer) error {
	for _, n := range p.names {
		if strings.Contains(n, r.Match) {
			if err := stream.Send(&control.NameBatch{Names: []*control.Name{{Name: n}}}); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *namesProxy) last() *control.SetNamesRequest {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.got) == 0 {
		return nil
	}
	return p.got[len(p.got)-1]
}

// newNamesSession is a connection to such a proxy.
func newNamesSession(t *testing.T, n int) (*namesProxy, *session) {
	t.Helper()
	p := &namesProxy{wants: make(chan *control.NameSets, 10)}
	server := grpc.NewServer()
	control.RegisterProxyServer(server, p)
	ours, theirs := net.Pipe()
	go func() { _ = control.Serve(server, theirs) }()
	rpc, err := control.NewClient(ours)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = rpc.Close(); server.Stop() })
	return p, &session{place: place{n: n}, rpc: rpc, client: control.NewProxyClient(rpc), done: make(chan struct{})}
}

func nameSet(names ...string) *policy.NameSet {
	set := &policy.NameSet{}
	for _, n := range names {
		set.Selectors = append(set.Selectors, dnsrules.NewSelector(n, ""))
	}
	return set
}

// Every proxy has the latest names, whenever it came.
func TestSetNames(t *testing.T) {
	m := NewManager(Options{})
	ctx := t.Context()
	old, oldSession := newNamesSession(t, 1)
	if err := m.feed(ctx, oldSession); err != nil {
		t.Fatal(err)
	}
	if old.last() != nil {
		t.Error("a proxy was told of names that nobody gave")
	}
	resolver := policy.Server{Addr: netip.MustParseAddrPort("10.96.0.10:53"), Protocol: unix.IPPROTO_UDP}
	sets := map[identity.ID]*policy.NameSet{300: nameSet("a.test"), 301: nameSet("a.test", "b.test")}
	if err := m.SetNames(ctx, sets, []policy.Server{resolver}, false); err != nil {
		t.Fatal(err)
	}
	late, lateSession := newNamesSession(t, 2)
	if err := m.feed(ctx, lateSession); err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string]*namesProxy{"the one that was there": old, "the one that came": late} {
		r := p.last()
		if r == nil || !r.Partial || len(r.Identities) != 2 || r.Identities[1].Id != 301 ||
			!slices.EqualFunc(r.Identities[1].Set.Selectors, []string{"a.test", "b.test"}, func(s *control.NameSelector, n string) bool { return s.Name == n }) ||
			len(r.Resolvers) != 1 || !proto.Equal(r.Resolvers[0], control.ServerOf(resolver)) {
			t.Errorf("%s was told %v", name, r)
		}
	}
	if err := m.SetNames(ctx, nil, nil, true); err != nil {
		t.Fatal(err)
	}
	for _, p := range []*namesProxy{old, late} {
		if r := p.last(); r.Partial || len(r.Identities)+len(r.Resolvers) != 0 {
			t.Errorf("told %v", r)
		}
	}
	// One that was replaced holds nobody up, the others do, and dead ones don't
	// count.
	old.fail = errors.New("no")
	if err := m.SetNames(ctx, sets, nil, true); err != nil {
		t.Errorf("the replaced one: %v", err)
	}
	old.fail, late.fail = nil, errors.New("no")
	if err := m.SetNames(ctx, sets, nil, true); err == nil {
		t.Error("what the current one refuses is no error")
	}
	close(lateSession.done)
	if err := m.SetNames(ctx, sets, nil, true); err != nil {
		t.Errorf("a dead one: %v", err)
	}
}

// What any proxy wants is wanted; what a dead one wanted is, until another has
// spoken.
func TestWantedNames(t *testing.T) {
	told := make(chan []string, 10)
	m := NewManager(Options{NameSets: func(sets map[string]*policy.NameSet) {
		var all []string
		for _, set := range sets {
			var names []string
			for _, s := range set.Selectors {
				names = append(names, s.Name)
			}
			all = append(all, strings.Join(names, "+"))
		}
		slices.Sort(all)
		told <- all
	}})
	want := func(sets ...string) {
		t.Helper()
		select {
		case got := <-told:
			if !slices.Equal(got, sets) {
				t.Fatalf("told %q, want %q", got, sets)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("nobody told of %q", sets)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	tell := func(p *namesProxy, sets ...*policy.NameSet) {
		m := &control.NameSets{}
		for _, s := range sets {
			m.Sets = append(m.Sets, nameSetOf(s))
		}
		p.wants <- m
	}
	one, first := newNamesSession(t, 1)
	two, second := newNamesSession(t, 2)
	watching.Go(func() { _ = m.watchNames(ctx, first) })
	watching.Go(func() { _ = m.watchNames(ctx, second) })
	tell(one)
	want()
	tell(one, nameSet("a.test", "b.test"))
	want("a.test+b.test")
	tell(two, nameSet("a.test", "b.test"), nameSet("c.test", "d.test"))
	want("a.test+b.test", "c.test+d.test")
	tell(two, nameSet("c.test", "d.test"))
	want("a.test+b.test", "c.test+d.test")
	close(first.done)
	tell(two, nameSet("e.test", "f.test"))
	want("e.test+f.test")
}

// A proxy can't want as much as it likes.
func TestWantedNamesAreBounded(t *testing.T) {
	told := make(chan int, 10)
	var log bytes.Buffer // written to by one goroutine, read when it has ended
	m := NewManager(Options{
		NameSets: func(sets map[string]*policy.NameSet) { told <- len(sets) },
		Log:      slog.New(slog.NewTextHandler(&log, nil)),
	})
	ctx, cancel := context.WithCancel(t.Context())
	p, s := newNamesSession(t, 1)
	ended := make(chan error, 1)
	go func() { ended <- m.watchNames(ctx, s) }()
	defer cancel()
	many := &control.NameSets{}
	for i := range maxNameSets + 5 {
		many.Sets = append(many.Sets, nameSetOf(nameSet("a.test", fmt.Sprintf("n%d.test", i))))
	}
	wide := &control.NameSet{}
	for i := range maxSetSelectors {
		wide.Selectors = append(wide.Selectors, &control.NameSelector{Name: fmt.Sprintf("n%d.test", i)})
	}
	wider := proto.CloneOf(wide)
	wider.Selectors = append(wider.Selectors, &control.NameSelector{Name: "one-more.test"})
	for _, c := range []struct {
		tell *control.NameSets
		want int
	}{
		{many, maxNameSets},
		{&control.NameSets{Sets: []*control.NameSet{wide, wider, nameSetOf(nameSet("a.test", "b.test"))}}, 2},
		{&control.NameSets{Sets: []*control.NameSet{nil, wider}}, 1},
	} {
		p.wants <- c.tell
		select {
		case n := <-told:
			if n != c.want {
				t.Errorf("%d are wanted, want %d", n, c.want)
			}
		case <-time.After(5 * time.Second):
			t.Fatal("nobody was told")
		}
	}
	p.wants <- &control.NameSets{Sets: []*control.NameSet{nameSetOf(nameSet(strings.Repeat("x", maxNamesMessage)))}}
	select {
	case err := <-ended:
		if status.Code(err) != codes.ResourceExhausted {
			t.Errorf("ended with %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("it listens on")
	}
	if n := strings.Count(log.String(), "ignored="); n != 1 {
		t.Errorf("logged %d times, want 1", n)
	}
}

func TestListNames(t *testing.T) {
	m := NewManager(Options{})
	if err := m.ListNames(t.Context(), "", func(*control.Name) error { return nil }); !errors.Is(err, ErrNoProxy) {
		t.Fatalf("without a proxy: %v", err)
	}
	p, s := newNamesSession(t, 1)
	p.names = []string{"a.test", "b.test", "b.org"}
	if err := m.feed(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	if err := m.ListNames(t.Context(), "test", func(n *control.Name) error { got[n.Name] = true; return nil }); err != nil {
		t.Fatal(err)
	}
	if want := (map[string]bool{"a.test": true, "b.test": true}); !maps.Equal(got, want) {
		t.Errorf("got %v", got)
	}
	enough := errors.New("enough")
	if err := m.ListNames(t.Context(), "", func(*control.Name) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("got %v", err)
	}
}
