package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// frontendsText spells what is told of services, a line each.
func frontendsText(tb *tables) string {
	var lines []string
	for f, b := range tb.services {
		line := fmt.Sprintf("%v/%d %s", netip.AddrPortFrom(f.Addr, f.Port), f.Protocol, b.Key.Service.Name)
		for _, a := range b.Ready {
			line += " " + a.String()
		}
		for _, a := range b.Draining {
			line += " -" + a.String()
		}
		if b.Affinity != 0 {
			line += " " + b.Affinity.String()
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func service1(change func(*Service)) Change {
	s := &Service{Namespace: "shop", Name: "web", ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")},
		Ports: []ServicePort{{Name: "http", Protocol: protoTCP, Port: 80}}}
	if change != nil {
		change(s)
	}
	return Change{Object{KindService, s.Namespace, s.Name}, s}
}

// sliceOf: "10.0.0.1@n1" is an endpoint on a node, "-" before it one that
// terminates.
func sliceOf(name string, ports []SlicePort, endpoints ...string) Change {
	sl := &EndpointSlice{Namespace: "shop", Name: name, Service: "web", Ports: ports}
	for _, text := range endpoints {
		b := SliceBackend{}
		text, b.Terminating = strings.CutPrefix(text, "-")
		addr, node, _ := strings.Cut(text, "@")
		b.Addr, b.Node = netip.MustParseAddr(addr), node
		sl.Backends, sl.Addresses = append(sl.Backends, b), append(sl.Addresses, b.Addr)
	}
	return Change{Object{KindEndpointSlice, "shop", name}, sl}
}

func TestFrontends(t *testing.T) {
	http := []SlicePort{{"http", protoTCP, 8080}}
	addr := netip.MustParseAddr
	for _, c := range []struct {
		name    string
		changes []Change
		want    string
	}{
		{"no endpoints", []Change{service1(nil)}, "10.96.0.1:80/6 web"},
		{"slice before service", []Change{sliceOf("a", http, "10.0.0.2", "10.0.0.1"), service1(nil)}, "10.96.0.1:80/6 web 10.0.0.1:8080 10.0.0.2:8080"},
		{"several slices, an endpoint in both", []Change{service1(nil), sliceOf("a", http, "10.0.0.1", "-10.0.0.2"), sliceOf("b", http, "10.0.0.2")},
			"10.96.0.1:80/6 web 10.0.0.1:8080 10.0.0.2:8080"},
		{"terminating", []Change{service1(nil), sliceOf("a", http, "10.0.0.1", "-10.0.0.2")}, "10.96.0.1:80/6 web 10.0.0.1:8080 -10.0.0.2:8080"},
		{"all terminating", []Change{service1(nil), sliceOf("a", http, "-10.0.0.1", "-10.0.0.2")}, "10.96.0.1:80/6 web 10.0.0.1:8080 10.0.0.2:8080"},
		{"local", []Change{service1(func(s *Service) {
			s.InternalLocal = true
			s.ExternalIPs = []netip.Addr{addr("198.51.100.1")}
			s.Ports[0].NodePort = 30080
		}), sliceOf("a", http, "10.0.0.1@n1", "10.0.0.2@n2", "10.0.0.3")},
			"0.0.0.0:30080/6 web 10.0.0.1:8080 10.0.0.2:8080 10.0.0.3:8080\n10.96.0.1:80/6 web 10.0.0.1:8080\n" +
				"198.51.100.1:80/6 web 10.0.0.1:8080 10.0.0.2:8080 10.0.0.3:8080"},
		{"local, none here", []Change{service1(func(s *Service) { s.InternalLocal = true }), sliceOf("a", http, "10.0.0.2@n2")}, "10.96.0.1:80/6 web"},
		{"local, all here terminate", []Change{service1(func(s *Service) { s.InternalLocal = true }), sliceOf("a", http, "-10.0.0.1@n1", "10.0.0.2@n2")}, "10.96.0.1:80/6 web 10.0.0.1:8080"},
		{"affinity", []Change{service1(func(s *Service) { s.Affinity = time.Minute }), sliceOf("a", http, "10.0.0.1")}, "10.96.0.1:80/6 web 10.0.0.1:8080 1m0s"},
		{"headless", []Change{service1(func(s *Service) { s.ClusterIPs = nil; s.ExternalIPs = []netip.Addr{addr("198.51.100.1")} }), sliceOf("a", http, "10.0.0.1")}, ""},
		{"of another proxy", []Change{service1(func(s *Service) { s.OtherProxy = true }), sliceOf("a", http, "10.0.0.1")}, ""},
		{"an address that the load balancer answers", []Change{service1(func(s *Service) {
			s.ExternalIPs = []netip.Addr{addr("198.51.100.1"), addr("198.51.100.2")}
			s.ProxiedIPs = s.ExternalIPs[1:]
		})}, "10.96.0.1:80/6 web\n198.51.100.1:80/6 web"},
		{"both families, several ports and protocols", []Change{
			service1(func(s *Service) {
				s.ClusterIPs = append(s.ClusterIPs, addr("fd00::1"))
				s.Ports = append(s.Ports, ServicePort{Name: "dns", Protocol: protoUDP, Port: 53, NodePort: 30053}, ServicePort{Name: "sctp", Protocol: protoSCTP, Port: 7})
			}),
			sliceOf("a", []SlicePort{{"dns", protoUDP, 5353}, {"http", protoTCP, 8080}, {"other", protoTCP, 1}}, "10.0.0.1"),
			sliceOf("b", []SlicePort{{"dns", protoUDP, 5353}, {"http", protoTCP, 0}}, "fd00::2")},
			"0.0.0.0:30053/17 web 10.0.0.1:5353\n10.96.0.1:53/17 web 10.0.0.1:5353\n10.96.0.1:80/6 web 10.0.0.1:8080\n" +
				"[::]:30053/17 web [fd00::2]:5353\n[fd00::1]:53/17 web [fd00::2]:5353\n[fd00::1]:80/6 web"},
		{"gone", []Change{service1(nil), sliceOf("a", http, "10.0.0.1"), {Object{KindService, "shop", "web"}, nil}}, ""},
		{"slice gone", []Change{service1(nil), sliceOf("a", http, "10.0.0.1"), {Object{KindEndpointSlice, "shop", "a"}, nil}}, "10.96.0.1:80/6 web"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, atOnce := range []bool{true, false} {
				e, err := NewEngine(Options{NodeName: "n1"})
				if err != nil {
					t.Fatal(err)
				}
				tb := newTables()
				for _, ch := range c.changes {
					if !atOnce {
						step(t, e, tb, ch)
					}
				}
				if atOnce {
					step(t, e, tb, c.changes...)
				}
				if got := frontendsText(tb); got != c.want {
					t.Errorf("at once %v:\n%s\nwant\n%s", atOnce, got, c.want)
				}
				if d := step(t, e, tb, c.changes[len(c.changes)-1]); len(d.Services) > 0 {
					t.Errorf("told again: %v", d.Services)
				}
			}
		})
	}
}

// TestFrontendsInDispute: of two services with one address the first by name
// has it; when that goes it is the other's.
func TestFrontendsInDispute(t *testing.T) {
	e, tb := applied(t, Options{NodeName: "n1"})
	other := func(s *Service) { s.Name = "a" }
	step(t, e, tb, service1(nil))
	step(t, e, tb, service1(other))
	if got := frontendsText(tb); got != "10.96.0.1:80/6 a" {
		t.Error(got)
	}
	step(t, e, tb, Change{Object{KindService, "shop", "a"}, nil})
	if got := frontendsText(tb); got != "10.96.0.1:80/6 web" {
		t.Error(got)
	}
	step(t, e, tb, Change{Object{KindService, "shop", "web"}, nil})
	if len(tb.services) != 0 || len(e.frontends.claims) != 0 {
		t.Error(frontendsText(tb), e.frontends.claims)
	}
}

func TestNodeAddresses(t *testing.T) {
	e, tb := applied(t, Options{NodeName: "n1"})
	node := func(name string, addrs ...string) Change {
		n := &Node{Name: name}
		for _, a := range addrs {
			n.Addresses = append(n.Addresses, netip.MustParseAddr(a))
		}
		return Change{Object{KindNode, "", name}, n}
	}
	check := func(want ...string) {
		t.Helper()
		var got []string
		for _, a := range slices.SortedFunc(maps.Keys(tb.nodeAddrs), netip.Addr.Compare) {
			got = append(got, a.String())
		}
		if !slices.Equal(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
	}
	step(t, e, tb, node("n1", "192.0.2.1", "127.0.0.1", "fe80::1"), node("n2", "192.0.2.2", "2001:db8::2"))
	check("192.0.2.1", "192.0.2.2", "2001:db8::2")
	step(t, e, tb, node("n2", "192.0.2.3"))
	check("192.0.2.1", "192.0.2.3")
	step(t, e, tb, Change{Object{KindNode, "", "n1"}, nil})
	check("192.0.2.3")
}
