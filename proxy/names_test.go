package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/weirnet/weir/fqdn"
	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/policy/dnsrules"
	"github.com/weirnet/weir/proxy/control"
)

// newNamesClient is an agent of a process that knows names but has nothing else.
func newNamesClient(t *testing.T, n *names) control.ProxyClient {
	t.Helper()
	p := &process{}
	if n != nil {
		p.wired.Store(&wired{names: n})
	}
	server := grpc.NewServer()
	control.RegisterProxyServer(server, &service{process: p})
	ours, theirs := net.Pipe()
	go func() { _ = control.Serve(server, theirs) }()
	conn, err := control.NewClient(ours)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(); server.Stop() })
	return control.NewProxyClient(conn)
}

func nameIdentity(id uint32, names ...string) *control.NameIdentity {
	set := &control.NameSet{}
	for _, n := range names {
		s := dnsrules.NewSelector(n, "")
		if strings.Contains(n, "*") {
			s = dnsrules.NewSelector("", n)
		}
		set.Selectors = append(set.Selectors, control.NameSelectorOf(s))
	}
	return &control.NameIdentity{Id: id, Set: set}
}

func learnName(t *testing.T, n *names, name, addr string) {
	t.Helper()
	if err := n.Learn(t.Context(), fqdn.Answer{
		Name: name, Records: []fqdn.Record{{Addr: netip.MustParseAddr(addr), TTL: time.Hour}}, Pod: netip.MustParseAddr("10.0.0.1"),
	}); err != nil {
		t.Fatal(err)
	}
}

// listNames is what an agent is shown, one line a name.
func listNames(t *testing.T, c control.ProxyClient, match string) (out []string) {
	t.Helper()
	stream, err := c.ListNames(t.Context(), &control.ListNamesRequest{Match: match})
	if err != nil {
		t.Fatal(err)
	}
	for {
		b, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			slices.Sort(out)
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range b.Names {
			for _, a := range n.Addresses {
				addr, _ := netip.AddrFromSlice(a.Address)
				line := fmt.Sprintf("%s %s %d", n.Name, addr, a.Identity)
				for _, s := range n.Selectors {
					line += " " + control.NameSelectorFrom(s).String()
				}
				for _, p := range n.Pods {
					pod, _ := netip.AddrFromSlice(p)
					line += " " + pod.String()
				}
				out = append(out, line)
			}
		}
	}
}

func serverAt(addr string) policy.Server {
	return policy.Server{Addr: netip.AddrPortFrom(netip.MustParseAddr(addr), 53), Protocol: unix.IPPROTO_UDP}
}

func TestNamesOfAnAgent(t *testing.T) {
	n := &names{Cache: fqdn.New(fqdn.Options{})}
	c := newNamesClient(t, n)
	set := func(partial bool, resolver string, list ...*control.NameIdentity) {
		t.Helper()
		r := &control.SetNamesRequest{Identities: list, Partial: partial}
		if resolver != "" {
			r.Resolvers = []*control.Server{control.ServerOf(serverAt(resolver))}
		}
		if _, err := c.SetNames(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	set(false, "10.96.0.10", nameIdentity(300, "a.test"), nameIdentity(301, "*.test"), nameIdentity(302, "*.test", "a.test"))
	learnName(t, n, "a.test", "192.0.2.1")
	learnName(t, n, "b.test", "2001:db8::1")
	learnName(t, n, "c.org", "192.0.2.3")
	want := func(match string, lines ...string) {
		t.Helper()
		if got := listNames(t, c, match); !slices.Equal(got, lines) {
			t.Errorf("got %q, want %q", got, lines)
		}
	}
	want("", "a.test 192.0.2.1 302 *.test a.test 10.0.0.1", "b.test 2001:db8::1 301 *.test 10.0.0.1", "c.org 192.0.2.3 0 10.0.0.1")
	want(".test", "a.test 192.0.2.1 302 *.test a.test 10.0.0.1", "b.test 2001:db8::1 301 *.test 10.0.0.1")

	// A new agent that does not know all yet takes nothing away.
	set(true, "10.96.0.11", nameIdentity(303, "c.org"))
	want("", "a.test 192.0.2.1 302 *.test a.test 10.0.0.1", "b.test 2001:db8::1 301 *.test 10.0.0.1", "c.org 192.0.2.3 303 c.org 10.0.0.1")
	for _, a := range []string{"10.96.0.10", "10.96.0.11"} {
		if !n.Believed(serverAt(a)) {
			t.Errorf("%s is not believed", a)
		}
	}
	set(false, "10.96.0.11", nameIdentity(303, "c.org"))
	want("", "a.test 192.0.2.1 0 10.0.0.1", "b.test 2001:db8::1 0 10.0.0.1", "c.org 192.0.2.3 303 c.org 10.0.0.1")
	if n.Believed(serverAt("10.96.0.10")) {
		t.Error("what is gone is believed")
	}

	for name, r := range map[string]*control.SetNamesRequest{
		"no identity":    {Identities: []*control.NameIdentity{nameIdentity(0, "a.test")}},
		"a bad resolver": {Resolvers: []*control.Server{{Address: []byte{1, 2, 3}}}},
		"a bad port":     {Resolvers: []*control.Server{{Address: []byte{1, 2, 3, 4}, Port: 1 << 16}}},
		"a bad protocol": {Resolvers: []*control.Server{{Address: []byte{1, 2, 3, 4}, Protocol: 256}}},
		"no resolver":    {Resolvers: []*control.Server{nil}},
	} {
		if _, err := c.SetNames(t.Context(), r); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	want("c.org", "c.org 192.0.2.3 303 c.org 10.0.0.1")

	var r control.StatusResponse
	if n.status(&r); r.Names != 3 || r.Addresses != 3 || r.NamesCounts["narrowed"] != 0 || len(r.NamesCounts) != 5 {
		t.Errorf("status %v", &r)
	}
	for i := range 1000 {
		learnName(t, n, fmt.Sprintf("n%d.many.test", i), "192.0.2.9")
	}
	if got := len(listNames(t, c, "many")); got != 1000 {
		t.Errorf("%d of 1000 are listed", got)
	}
}

// The agent hears which combinations are wanted, and what it makes of them lets
// the answer go.
func TestNameSetsOfAnAgent(t *testing.T) {
	n := &names{Cache: fqdn.New(fqdn.Options{})}
	c := newNamesClient(t, n)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := c.WatchNameSets(ctx, &control.WatchNameSetsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	have := []*control.NameIdentity{nameIdentity(300, "a.test"), nameIdentity(301, "b.test")}
	if _, err := c.SetNames(ctx, &control.SetNamesRequest{Identities: have}); err != nil {
		t.Fatal(err)
	}
	if m, err := stream.Recv(); err != nil || len(m.Sets) != 0 {
		t.Fatalf("at first: %v, %v", m, err)
	}
	learnName(t, n, "a.test", "192.0.2.1")
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		m, err := stream.Recv()
		if err != nil || len(m.Sets) != 1 {
			t.Errorf("got %v, %v", m, err)
			return
		}
		have = append(have, &control.NameIdentity{Id: 302, Set: m.Sets[0]})
		if _, err := c.SetNames(ctx, &control.SetNamesRequest{Identities: have}); err != nil {
			t.Error(err)
		}
	}()
	learnName(t, n, "b.test", "192.0.2.1")
	want := []string{"a.test 192.0.2.1 302 a.test 10.0.0.1", "b.test 192.0.2.1 302 b.test 10.0.0.1"}
	if got := listNames(t, c, ""); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	<-answered
}

// However many combinations there are, and of however long selectors: what is told
// of them is no more than the agent takes.
func TestNameSetsAreSmall(t *testing.T) {
	n := &names{Cache: fqdn.New(fqdn.Options{})}
	label := strings.Repeat("x", 60)
	identities := map[identity.ID][]dnsrules.Selector{}
	name := func(i int) string { return fmt.Sprintf("n%d.%s.%s.%s.test", i, label, label, label) }
	for i := range 64 {
		identities[identity.ID(300+i)] = []dnsrules.Selector{dnsrules.NewSelector(name(i), "").In("shop")}
	}
	if err := n.SetNames(identities, nil); err != nil {
		t.Fatal(err)
	}
	a := fqdn.Answer{Pod: netip.MustParseAddr("10.0.0.1"), Name: "x.test", Namespace: "shop"}
	for i := range 2000 {
		a.Chain = nil
		for j := range 64 {
			if j < 24 || (i*2654435761)>>(j%32)&1 != 0 {
				a.Chain = append(a.Chain, name(j))
			}
		}
		a.Records = []fqdn.Record{{Addr: netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), TTL: time.Hour}}
		if err := n.Learn(t.Context(), a); err != nil {
			t.Fatal(err)
		}
	}
	stream, err := newNamesClient(t, n).WatchNameSets(t.Context(), &control.WatchNameSetsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	m, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if size := proto.Size(m); size > 4<<20 || size < 3<<19 {
		t.Errorf("%d combinations are told in %d bytes", len(m.Sets), size)
	}
	if s := m.Sets[0].Selectors[0]; s.Namespace != "shop" {
		t.Errorf("selector %v", s)
	}
}

func TestNamesBeforeWiring(t *testing.T) {
	c := newNamesClient(t, nil)
	if _, err := c.SetNames(t.Context(), &control.SetNamesRequest{}); err == nil {
		t.Error("names are taken by a proxy that is not wired")
	}
	for what, recv := range map[string]func() error{
		"list": func() error {
			s, err := c.ListNames(t.Context(), &control.ListNamesRequest{})
			if err == nil {
				_, err = s.Recv()
			}
			return err
		},
		"watch": func() error {
			s, err := c.WatchNameSets(t.Context(), &control.WatchNameSetsRequest{})
			if err == nil {
				_, err = s.Recv()
			}
			return err
		},
	} {
		if err := recv(); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("%s: got %v", what, err)
		}
	}
}

// What the agent denies arrives, and what can't be read is not passed over.
func TestDeniedAddresses(t *testing.T) {
	s, err := settingsOf(&control.DNSSettings{Deny: []string{"192.0.2.0/24", "2001:db8::1/128"}})
	if err != nil || len(s.Deny) != 2 || s.Deny[0] != netip.MustParsePrefix("192.0.2.0/24") {
		t.Errorf("%v, %v", s.Deny, err)
	}
	for _, text := range []string{"", "192.0.2.1", "192.0.2.0/33"} {
		if _, err := settingsOf(&control.DNSSettings{Deny: []string{text}}); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
	if s, err := settingsOf(nil); err != nil || len(s.Deny) > 0 {
		t.Errorf("without settings: %v, %v", s, err)
	}
}
