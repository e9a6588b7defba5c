package test

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/endpoint"
	"github.com/weirnet/weir/test/sockets"
)

// Ports of the services of a story: what is behind them echoes.
const (
	servicePort = 80
	backendPort = 7000
)

// clusterService is a service of the story: TCP and UDP, at all its addresses.
type clusterService struct {
	name     string
	cluster  []netip.Addr // one per family
	external []netip.Addr
	nodePort uint16
	backends []string // pods
	beyond   bool     // without selector, its endpoints are the outside's
	more     string   // of spec
}

// putService writes the objects of a service, and has kube-proxy's rules for it
// on node a.
func (s *story) putService(c clusterService) {
	s.t.Helper()
	s.putServiceObjects(c)
	n := s.nodes[0]
	var pods = s.podsNamed(c.backends)
	if len(pods) == 0 {
		return
	}
	both := []string{"TCP", "UDP"}
	for _, e := range []struct {
		addrs []netip.Addr
		port  uint16
	}{{c.cluster, servicePort}, {c.external, servicePort}, {n.Addrs(), c.nodePort}} {
		if e.port == 0 {
			continue
		}
		if err := n.Service(context.Background(), e.addrs, both, e.port, pods, backendPort); err != nil {
			s.t.Fatal(err)
		}
	}
}

// putServiceObjects writes only the objects.
func (s *story) putServiceObjects(c clusterService) {
	s.t.Helper()
	ports := func() string {
		var out []string
		for _, p := range []string{"TCP", "UDP"} {
			text := fmt.Sprintf("{name: %s, protocol: %s, port: %d, targetPort: %d", strings.ToLower(p), p, servicePort, backendPort)
			if c.nodePort != 0 {
				text += fmt.Sprintf(", nodePort: %d", c.nodePort)
			}
			out = append(out, text+"}")
		}
		return "[" + strings.Join(out, ", ") + "]"
	}
	list := func(addrs []netip.Addr) string {
		var out []string
		for _, a := range addrs {
			out = append(out, strconv.Quote(a.String()))
		}
		return "[" + strings.Join(out, ", ") + "]"
	}
	if !c.beyond {
		c.more = fmt.Sprintf("  selector: {app: %s}\n%s", c.name, c.more)
	}
	text := fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {namespace: shop, name: %[1]s, labels: {kind: %[1]s}}\nspec:\n  clusterIP: %[2]q\n  clusterIPs: %[3]s\n  externalIPs: %[4]s\n  ports: %[5]s\n%[6]s\n",
		c.name, c.cluster[0], list(c.cluster), list(c.external), ports(), c.more)
	if err := s.objects.Write("service-"+c.name, text); err != nil {
		s.t.Fatal(err)
	}
	for i, kind := range []string{"IPv4", "IPv6"} {
		text := fmt.Sprintf("apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {namespace: shop, name: %s-%d, labels: {kubernetes.io/service-name: %s}}\naddressType: %s\n", c.name, i, c.name, kind)
		text += "ports: [{name: tcp, protocol: TCP, port: 7000}, {name: udp, protocol: UDP, port: 7000}]\nendpoints:\n"
		for _, p := range s.podsNamed(c.backends) {
			text += fmt.Sprintf("- {addresses: [%q], nodeName: %s, conditions: {ready: true}}\n", p.Addrs[i], p.Node().Name)
		}
		if c.beyond {
			text += fmt.Sprintf("- {addresses: [%q]}\n", s.places["outside"].addrs[i])
		}
		if err := s.objects.Write(fmt.Sprintf("slice-%s-%d", c.name, i), text); err != nil {
			s.t.Fatal(err)
		}
	}
}

// contained starts a process in a pod where services are translated, or beside.
func (s *story) contained(pod string, inside bool) *sockets.Process {
	s.t.Helper()
	p := s.places[pod].pod
	started := func() {}
	cmd := sockets.Command()
	if inside {
		var err error
		if started, err = p.Contain(cmd); err != nil {
			if os.Getenv("CI") != "" {
				s.t.Fatal(err)
			}
			s.t.Skip(err)
		}
	}
	out, err := sockets.Start(cmd, func(cmd *exec.Cmd) error {
		_, err := p.StartProcess(cmd)
		return err
	})
	started()
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(out.Stop)
	return out
}

// reach opens a socket to a service and asks. It returns where the socket is
// really connected to; what it is told must be what it named.
func reach(p *sockets.Process, typ int, to netip.AddrPort) (netip.AddrPort, error) {
	s, at, err := reachAndKeep(p, typ, to)
	if s != nil {
		_ = s.Close() // it was asked
	}
	return at, err
}

func reachAndKeep(p *sockets.Process, typ int, to netip.AddrPort) (*sockets.Socket, netip.AddrPort, error) {
	family := sockets.IPv4
	if to.Addr().Is6() {
		family = sockets.IPv6
	}
	s, err := p.Open(family, typ)
	if err != nil {
		return nil, netip.AddrPort{}, err
	}
	if err := s.Connect(to); err != nil {
		return s, netip.AddrPort{}, fmt.Errorf("connect: %w", err)
	}
	if peer, err := s.Peer(); err != nil || peer != to {
		return s, netip.AddrPort{}, fmt.Errorf("connected to %v, told %v: %w", to, peer, err)
	}
	if err := s.Send("hello"); err != nil {
		return s, netip.AddrPort{}, fmt.Errorf("send: %w", err)
	}
	if data, _, err := s.Receive(); err != nil {
		return s, netip.AddrPort{}, fmt.Errorf("receive: %w", err)
	} else if data == "" {
		return s, netip.AddrPort{}, unix.ECONNRESET
	}
	at, err := realPeer(p.Pid(), typ, to.Addr().Is6())
	return s, at, err
}

// realPeer reads whom the only connected socket of a kind in a process's network
// namespace sends to.
func realPeer(pid, typ int, six bool) (netip.AddrPort, error) {
	file := map[int]string{unix.SOCK_STREAM: "tcp", unix.SOCK_DGRAM: "udp"}[typ]
	if six {
		file += "6"
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, file))
	if err != nil {
		return netip.AddrPort{}, err
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 4 || f[3] != "01" {
			continue
		}
		addr, port, _ := strings.Cut(f[2], ":")
		b, err := hex.DecodeString(addr)
		if err != nil {
			return netip.AddrPort{}, err
		}
		for i := 0; i+4 <= len(b); i += 4 { // words of the machine's
			b[i], b[i+1], b[i+2], b[i+3] = b[i+3], b[i+2], b[i+1], b[i]
		}
		a, _ := netip.AddrFromSlice(b)
		n, err := strconv.ParseUint(port, 16, 16)
		return netip.AddrPortFrom(a.Unmap(), uint16(n)), err
	}
	return netip.AddrPort{}, fmt.Errorf("no connected socket in %s", file)
}

// servicesStatus is what the agent of a node says of services.
func (s *story) servicesStatus(n int) (st endpoint.ServicesStatus) {
	s.t.Helper()
	out, err := s.nodes[n].Weir().Command(s.t.Context(), "status", "-o", "json")
	var all struct{ Services endpoint.ServicesStatus }
	if e := json.Unmarshal([]byte(out), &all); e != nil {
		s.t.Fatalf("%v, %v: %s", e, err, out)
	}
	return all.Services
}

// eventually asks until something is so.
func eventually(t *testing.T, within time.Duration, what string, so func() bool) time.Duration {
	t.Helper()
	start := time.Now()
	for time.Since(start) < within {
		if so() {
			return time.Since(start)
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("not within %v: %s", within, what)
	return 0
}
