package test

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/flow"
	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/test/node"
	"github.com/weirnet/weir/test/sockets"
)

// TestServicesLeftToKubeProxy: where kube-proxy alone translates, behind the
// programs that judge, no address of a service leads past policy: neither is one
// allowed since the node or the world is, nor denied since they are not. What is
// explained is what happens.
func TestServicesLeftToKubeProxy(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/services.txtar", "--cgroup", "none")
	web, secret := webService(), secretService()
	mixed := clusterService{name: "mixed", cluster: two("10.96.0.40", "fd96::40"), external: two("198.18.7.40", "2001:db8:2::740"),
		nodePort: 30082, backends: []string{"shop/web-a", "shop/secret"}}
	for _, c := range []clusterService{web, secret, mixed} {
		s.putService(c)
	}
	if err := s.objects.Write("placed", placed); err != nil {
		t.Fatal(err)
	}
	s.must("start")
	var all sync.WaitGroup
	for _, pod := range []string{"shop/client", "shop/named"} {
		for i := range 2 {
			for typ, protocol := range map[int]string{unix.SOCK_STREAM: "TCP", unix.SOCK_DGRAM: "UDP"} {
				p := s.contained(pod, false)
				all.Go(func() {
					for name, to := range s.frontendsOf(web, i) {
						s.explained(pod, to, protocol, policy.Allowed, "")
						if name == "node port of another node" {
							continue // its kube-proxy is not played
						}
						if at, err := reach(p, typ, to); err != nil || at != to {
							t.Errorf("%s: %s %s %v: %v, %v", pod, protocol, name, to, at, err)
						}
					}
					for _, other := range []clusterService{secret, mixed} {
						for name, to := range s.frontendsOf(other, i) {
							says := ""
							if name != "cluster IP" {
								says = "service shop/" + other.name
							}
							s.explained(pod, to, protocol, policy.Denied, says)
							if at, err := reach(p, typ, to); !timedOut(err) {
								t.Errorf("%s: %s %s %v of %s: %v, %v, want a timeout", pod, protocol, name, to, other.name, at, err)
							}
						}
					}
				})
			}
		}
	}
	all.Wait()
	// Who is denied what is told.
	for name, reason := range map[string]string{"secret": "policy-deny-rule", "mixed": "service-backends"} {
		if r, err := s.awaitRecord(func(r flow.Record) bool {
			return r.Verdict == flow.Dropped && r.Source.Pod == "client" && r.Reason == reason &&
				slices.Contains(r.Dest.Labels, "service:shop/"+name) && r.Dest.Port > 30000
		}); err != nil {
			t.Errorf("%s: %v, %+v", name, err, r)
		}
	}
}

// placed allows a pod the places that addresses of services are at, and denies
// the node to another.
const placed = `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: placed, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: named}}
  egress:
    - toEntities: [host, remote-node, world]
    - toPorts: [{ports: [{port: "30081", protocol: ANY}, {port: "30082", protocol: ANY}]}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: not-placed, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: client}}
  egressDeny:
    - toEntities: [host, remote-node, world]
`

// explained asks what would become of a flow.
func (s *story) explained(from string, to netip.AddrPort, protocol string, want policy.Verdict, says string) {
	s.t.Helper()
	q, err := json.Marshal(map[string]any{"from": from, "to": to.Addr().String(), "port": to.Port(), "protocol": protocol})
	if err != nil {
		s.t.Error(err)
		return
	}
	cmd := exec.Command(program, "policy", "explain", "--objects", s.objects.Dir, "--batch", "-")
	cmd.Stdin = strings.NewReader(string(q) + "\n")
	out, err := cmd.Output()
	var a policy.Answer
	if err == nil {
		err = json.Unmarshal(out, &a)
	}
	if err != nil || a.Verdict != want || a.Egress == nil || !strings.Contains(a.Egress.Reason, says) {
		s.t.Errorf("%s to %v: %v, explained by %s, want %s: ... %s", from, to, err, out, want, says)
	}
}

// TestServicesStandby: an agent that stands by has nothing of services in the
// kernel, neither programs nor tables, before the state is its own.
func TestServicesStandby(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/services.txtar")
	n := s.nodes[0]
	if n.Cgroup == "" {
		s.contained("shop/client", true) // skips or fails
	}
	s.putService(webService())
	if err := s.start("--cgroup", "none"); err != nil {
		t.Fatal(err)
	}
	w := n.Weir()
	first := w.Agent()
	socket := filepath.Join(t.TempDir(), "own")
	if err := w.Start("--standby", "--own-socket", socket); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "it stands by", func() bool {
		out, _ := w.Command(t.Context(), "status", "--socket", socket, "-o", "json") // not ready is an error
		return strings.Contains(out, "standing by for")
	})
	time.Sleep(time.Second) // many times what it takes to look for the lock
	if found := servicePins(n); len(found) > 0 {
		t.Errorf("pinned by an agent that stands by: %v", found)
	}
	if why := s.servicesStatus(0).Why; why != "--cgroup none" {
		t.Errorf("status of the first: %q", why)
	}
	first.Stop()
	eventually(t, 10*time.Second, "services are translated", func() bool {
		out, err := w.Command(t.Context(), "status", "-o", "json")
		return err == nil && strings.Contains(out, `"cgroup"`) && s.servicesStatus(0).Why == ""
	})
	if found := servicePins(n); len(found) < 8 {
		t.Errorf("pinned by the successor: %v", found)
	}
}

// servicePins are the pins of services on a node.
func servicePins(n *node.Node) (out []string) {
	_ = filepath.WalkDir(n.Weir().RunDir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() && strings.Contains(path, "/services/") {
			out = append(out, path)
		}
		return nil
	})
	return out
}

// TestServicesWentMeanwhile: sockets are told that are connected to backends which
// went while no agent was there to see it; others are not.
func TestServicesWentMeanwhile(t *testing.T) {
	web := webService()
	s := servicesStory(t, web)
	to := netip.AddrPortFrom(web.cluster[0], servicePort)
	kept := map[netip.AddrPort]*sockets.Socket{}
	places := []string{"shop/client", "shop/named"} // one socket in each, as realPeer wants it
	for _, pod := range places {
		p := s.contained(pod, true)
		for range 64 {
			sock, at, err := reachAndKeep(p, unix.SOCK_DGRAM, to)
			if err != nil {
				t.Fatal(err)
			}
			if kept[at] == nil {
				kept[at] = sock
				break
			}
			_ = sock.Close()
		}
	}
	if len(kept) != 2 {
		t.Fatalf("sockets to %v", kept)
	}
	stays, goes := netip.AddrPortFrom(s.places["shop/web-a"].addrs[0], backendPort), netip.AddrPortFrom(s.places["shop/web-b"].addrs[0], backendPort)
	w := s.nodes[0].Weir()
	w.Agent().Kill()
	one := web
	one.backends = []string{"shop/web-a"}
	s.putServiceObjects(one)
	if err := kept[goes].Send("still there?"); err != nil {
		t.Errorf("without an agent: %v", err)
	}
	if err := w.Start(s.args...); err != nil {
		t.Fatal(err)
	}
	s.must("wait")
	eventually(t, 10*time.Second, "the socket to the backend that went is told", func() bool {
		err := kept[goes].Send("still there?")
		return errors.Is(err, unix.ECONNABORTED) || errors.Is(err, unix.EDESTADDRREQ)
	})
	eventually(t, 5*time.Second, "it is counted", func() bool { return s.servicesStatus(0).Destroyed == 1 })
	if err := kept[stays].Send("hello"); err != nil {
		t.Errorf("the socket to the backend that stays: %v", err)
	}
}
