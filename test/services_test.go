package test

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/flow"
	"github.com/weirnet/weir/test/node"
	"github.com/weirnet/weir/test/sockets"
)

func (s *story) podsNamed(names []string) (out []*node.Pod) {
	for _, name := range names {
		out = append(out, s.places[name].pod)
	}
	return out
}

func two(v4, v6 string) []netip.Addr {
	return []netip.Addr{netip.MustParseAddr(v4), netip.MustParseAddr(v6)}
}

// The services of these stories.
func webService() clusterService {
	return clusterService{name: "web", cluster: two("10.96.0.10", "fd96::10"), external: two("198.18.7.10", "2001:db8:2::710"),
		nodePort: 30080, backends: []string{"shop/web-a", "shop/web-b"}}
}

func secretService() clusterService {
	return clusterService{name: "secret", cluster: two("10.96.0.20", "fd96::20"), external: two("198.18.7.20", "2001:db8:2::720"),
		nodePort: 30081, backends: []string{"shop/secret"}}
}

// servicesStory begins one: the services, the agents, and that they translate.
func servicesStory(t *testing.T, services ...clusterService) *story {
	t.Parallel()
	s := tell(t, "setups/services.txtar")
	if s.nodes[0].Cgroup == "" {
		s.contained("shop/client", true) // skips or fails
	}
	for _, c := range services {
		s.putService(c)
	}
	s.must("start")
	eventually(t, 10*time.Second, "services are translated", func() bool { return s.servicesStatus(0).Why == "" })
	return s
}

// frontendsOf lists where a service is reached from node a.
func (s *story) frontendsOf(c clusterService, i int) map[string]netip.AddrPort {
	return map[string]netip.AddrPort{
		"cluster IP":                netip.AddrPortFrom(c.cluster[i], servicePort),
		"external IP":               netip.AddrPortFrom(c.external[i], servicePort),
		"node port":                 netip.AddrPortFrom(s.nodes[0].Addrs()[i], c.nodePort),
		"node port of another node": netip.AddrPortFrom(s.nodes[1].Addrs()[i], c.nodePort),
	}
}

func (s *story) backendsOf(c clusterService, i int) (out []netip.AddrPort) {
	for _, p := range s.podsNamed(c.backends) {
		out = append(out, netip.AddrPortFrom(p.Addrs[i], backendPort))
	}
	return out
}

// TestServices: pods reach services by all their addresses, policy sees the
// backends, and a deny of a backend holds by whatever address it is named; also
// when the agent is killed, by when kube-proxy does it all, and after that.
func TestServices(t *testing.T) {
	web, secret := webService(), secretService()
	s := servicesStory(t, web, secret)
	p := s.contained("shop/client", true)
	both := func(what string, translated bool) {
		t.Helper()
		for i := range 2 {
			for _, typ := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
				for name, to := range s.frontendsOf(web, i) {
					if !translated && name == "node port of another node" {
						continue // that one's kube-proxy is not played
					}
					at, err := reach(p, typ, to)
					if err != nil {
						t.Errorf("%s: %s %v: %v", what, name, to, err)
					} else if got := slices.Contains(s.backendsOf(web, i), at); got != translated {
						t.Errorf("%s: %s %v: the socket goes to %v", what, name, to, at)
					}
				}
				for name, to := range s.frontendsOf(secret, i) {
					if at, err := reach(p, typ, to); err == nil {
						t.Errorf("%s: what is denied was reached by %s %v (%v)", what, name, to, at)
					} else if !timedOut(err) {
						t.Errorf("%s: %s %v: %v, want a timeout", what, name, to, err)
					}
				}
			}
		}
	}
	began := time.Now()
	both("with an agent", true)
	if _, err := s.awaitRecord(func(r flow.Record) bool {
		return r.Time.After(began) && r.Verdict == flow.Dropped && r.Source.Pod == "client" && r.Dest.Pod == "secret" &&
			r.Dest.Port == backendPort && r.Rule != nil && strings.Contains(r.Rule.Policy, "client")
	}); err != nil {
		t.Error(err)
	}
	st := s.servicesStatus(0)
	if st.Services != 2 || st.Pods == 0 || len(st.Outside) != 0 || st.Translated == 0 || st.Error != "" {
		t.Errorf("status: %+v", st)
	}

	// The agent dies: its tables count for ten seconds more.
	w := s.nodes[0].Weir()
	to := netip.AddrPortFrom(web.cluster[0], servicePort)
	w.Agent().Kill()
	died := time.Now()
	if at, err := reach(p, unix.SOCK_STREAM, to); err != nil || !slices.Contains(s.backendsOf(web, 0), at) {
		t.Errorf("just after the agent died: %v, %v", at, err)
	}
	for time.Since(died) < 15*time.Second {
		at, err := reach(p, unix.SOCK_STREAM, to)
		if err != nil {
			t.Fatalf("%v after the agent died: %v", time.Since(died), err)
		}
		if at == to {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	aside := time.Since(died)
	t.Logf("stepped aside %v after the agent was killed", aside.Round(10*time.Millisecond))
	if aside < 8*time.Second || aside > 11500*time.Millisecond {
		t.Errorf("stepped aside after %v, want 9 to 11 s", aside)
	}
	both("without an agent", false)
	if err := w.Start(s.args...); err != nil {
		t.Fatal(err)
	}
	s.must("wait")
	took := eventually(t, 10*time.Second, "translated again", func() bool {
		at, err := reach(p, unix.SOCK_STREAM, to)
		return err == nil && at != to
	})
	t.Logf("translated again %v after the next agent was ready", took.Round(time.Millisecond))
	both("with the next agent", true)
}

func timedOut(err error) bool {
	return errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINPROGRESS) || errors.Is(err, unix.ETIMEDOUT)
}

// TestServicesOverlap: an agent that follows another within seconds takes the
// tables over without a connection that is not translated.
func TestServicesOverlap(t *testing.T) {
	web := webService()
	s := servicesStory(t, web)
	p := s.contained("shop/client", true)
	to := netip.AddrPortFrom(web.cluster[0], servicePort)
	w := s.nodes[0].Weir()
	w.Agent().Stop()
	if err := w.Start(s.args...); err != nil {
		t.Fatal(err)
	}
	end := time.Now().Add(4 * time.Second)
	for n := 0; time.Now().Before(end); n++ {
		if at, err := reach(p, unix.SOCK_DGRAM, to); err != nil || at == to {
			t.Fatalf("connection %d: %v, %v", n, at, err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// TestServicesFollow: backends come and go, sockets of those that went end, a
// service without any refuses, one with local ones only keeps to them.
func TestServicesFollow(t *testing.T) {
	web := webService()
	s := servicesStory(t, web)
	p := s.contained("shop/client", true)
	to := netip.AddrPortFrom(web.cluster[0], servicePort)
	kept := map[netip.AddrPort]*sockets.Socket{}
	for len(kept) < 2 {
		sock, at, err := reachAndKeep(s.contained("shop/client", true), unix.SOCK_DGRAM, to)
		if err != nil {
			t.Fatal(err)
		}
		if kept[at] != nil {
			_ = sock.Close()
			continue
		}
		// The only one in this namespace that reach may look at.
		kept[at] = sock
		break
	}
	var first netip.AddrPort
	for at := range kept {
		first = at
	}
	left := slices.DeleteFunc(slices.Clone(web.backends), func(name string) bool { return s.places[name].addrs[0] == first.Addr() })
	one := web
	one.backends = left
	s.putServiceObjects(one)
	s.must("wait")
	eventually(t, 5*time.Second, "the socket to the backend that went is told", func() bool {
		err := kept[first].Send("still there?")
		return errors.Is(err, unix.ECONNABORTED) || errors.Is(err, unix.EDESTADDRREQ)
	})
	_ = kept[first].Close()
	eventually(t, 5*time.Second, "it is counted", func() bool { return s.servicesStatus(0).Destroyed == 1 })
	for range 10 {
		if at, err := reach(p, unix.SOCK_DGRAM, to); err != nil || at == first {
			t.Fatalf("%v, %v", at, err)
		}
	}

	none := web
	none.backends = nil
	s.putServiceObjects(none)
	s.must("wait")
	eventually(t, 5*time.Second, "refused", func() bool {
		_, err := reach(p, unix.SOCK_STREAM, to)
		return errors.Is(err, unix.ECONNREFUSED)
	})

	local := web
	local.more = "  internalTrafficPolicy: Local\n  sessionAffinity: ClientIP"
	s.putServiceObjects(local)
	s.must("wait")
	here := netip.AddrPortFrom(s.places["shop/web-a"].addrs[0], backendPort)
	eventually(t, 5*time.Second, "local", func() bool { at, err := reach(p, unix.SOCK_STREAM, to); return err == nil && at == here })
	for range 10 {
		if at, err := reach(p, unix.SOCK_STREAM, to); err != nil || at != here {
			t.Fatalf("a local service leads to %v, %v", at, err)
		}
	}
}

// TestServicesNamedByPolicy: toServices with translated connections, by name and
// by selector, of services with and without a selector of pods.
func TestServicesNamedByPolicy(t *testing.T) {
	web, secret := webService(), secretService()
	beyond := clusterService{name: "beyond", beyond: true, cluster: two("10.96.0.30", "fd96::30")}
	s := servicesStory(t, web, secret, beyond)
	p := s.contained("shop/named", true)
	for i := range 2 {
		to := netip.AddrPortFrom(beyond.cluster[i], servicePort)
		want := netip.AddrPortFrom(s.places["outside"].addrs[i], backendPort)
		if at, err := reach(p, unix.SOCK_DGRAM, to); err != nil || at != want {
			t.Errorf("a service without pods %v: %v, %v", to, at, err)
		}
		for name, to := range s.frontendsOf(web, i) {
			if at, err := reach(p, unix.SOCK_STREAM, to); err != nil || !slices.Contains(s.backendsOf(web, i), at) {
				t.Errorf("%s %v: %v, %v", name, to, at, err)
			}
		}
		for name, to := range s.frontendsOf(secret, i) {
			if _, err := reach(p, unix.SOCK_STREAM, to); !timedOut(err) {
				t.Errorf("%s %v: %v, want a timeout", name, to, err)
			}
		}
	}
}

// TestServicesShown: who is not seen is told, none can be asked for, and nothing
// of either is left.
func TestServicesShown(t *testing.T) {
	web := webService()
	s := servicesStory(t, web)
	w := s.nodes[0].Weir()
	outside := s.contained("shop/client", false)
	inside := s.contained("shop/named", true)
	w.Agent().Stop()
	if err := w.Start(s.args...); err != nil {
		t.Fatal(err)
	}
	s.must("wait")
	eventually(t, 10*time.Second, "the pod outside is named", func() bool {
		return slices.Equal(s.servicesStatus(0).Outside, []string{"shop/client"})
	})
	says := func(want string) {
		t.Helper()
		if out, err := w.Command(t.Context(), "status"); err != nil || !strings.Contains(out, want) {
			t.Errorf("status does not say %q: %v\n%s", want, err, out)
		}
	}
	says("SERVICES ARE NOT TRANSLATED for processes outside of that cgroup, in pods shop/client\n")
	to := netip.AddrPortFrom(web.cluster[0], servicePort)
	if at, err := reach(outside, unix.SOCK_STREAM, to); err != nil || at != to {
		t.Errorf("outside: %v, %v", at, err)
	}
	w.Agent().Stop()
	if err := w.Start(append(slices.Clone(s.args), "--cgroup", "none")...); err != nil {
		t.Fatal(err)
	}
	s.must("wait")
	says("services NOT translated: --cgroup none; left to kube-proxy\n")
	outside.Stop()
	if at, err := reach(inside, unix.SOCK_STREAM, netip.AddrPortFrom(web.backendsAt(s, 0), backendPort)); err != nil {
		t.Errorf("a backend by its own address: %v, %v", at, err)
	}
	w.Agent().Stop()
	if err := w.Start(append(slices.Clone(s.args), "--cgroup", "/proc")...); err != nil {
		t.Fatal(err)
	}
	s.must("wait")
	eventually(t, 5*time.Second, "why not", func() bool { return strings.Contains(s.servicesStatus(0).Why, "/proc is no cgroup") })
}

func (c clusterService) backendsAt(s *story, i int) netip.Addr {
	return s.places[c.backends[0]].addrs[i]
}
