package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weirnet/weir/identity"
)

type naiveHostPort struct {
	pod *Pod
	to  netip.AddrPort
}

// naiveHostPorts finds who has them from nothing but the objects.
func naiveHostPorts(e *Engine) map[Frontend][]naiveHostPort {
	owners, service, at := map[netip.Addr]*Pod{}, map[netip.Addr]bool{}, map[netip.Addr]map[string]bool{}
	isAt := func(a netip.Addr, node string) {
		if at[a] == nil {
			at[a] = map[string]bool{}
		}
		at[a][node] = true
	}
	for _, p := range e.pods {
		for _, a := range p.src.Addresses {
			if old := owners[a]; p.src.HostNetwork {
				isAt(a, p.src.Node)
			} else if old == nil || naivelyNewer(p.src, old) {
				owners[a] = p.src
			}
		}
	}
	for _, n := range e.nodes {
		for _, a := range n.Addresses {
			isAt(a, n.Name)
		}
	}
	for _, s := range e.services {
		if s.src != nil {
			for _, a := range s.src.ClusterIPs {
				service[a] = true
			}
		}
	}
	for a := range e.claims.host {
		if (owners[a] == nil || owners[a].Node != "n1") && (!service[a] || len(at[a]) > 0) {
			at[a] = map[string]bool{"n1": true}
		}
	}
	out := map[Frontend][]naiveHostPort{}
	for _, p := range e.pods {
		found := map[Frontend]bool{}
		for _, a := range p.src.Addresses {
			if owners[a] != p.src || p.src.Node == "" {
				continue
			}
			for _, hp := range p.src.HostPorts {
				put := func(where netip.Addr) {
					if f := (Frontend{where, hp.HostPort, hp.Protocol}); !found[f] {
						found[f] = true
						out[f] = append(out[f], naiveHostPort{p.src, netip.AddrPortFrom(a, hp.Port)})
					}
				}
				all := !hp.HostIP.IsValid() || hp.HostIP.IsUnspecified()
				if hp.HostIP.IsValid() && hp.HostIP.Is4() != a.Is4() {
					continue
				}
				for where, nodes := range at {
					here := nodes[p.src.Node] && (p.src.Node == "n1" || !nodes["n1"])
					if here && where.Is4() == a.Is4() && (all || where == hp.HostIP) && !where.IsLoopback() && !where.IsLinkLocalUnicast() {
						put(where)
					}
				}
				if all && a.Is6() && p.src.Node == "n1" {
					put(netip.MustParseAddr("fe80::"))
				}
			}
		}
	}
	return out
}

func naivelyNewer(p, q *Pod) bool {
	if p.Deleting != q.Deleting {
		return q.Deleting
	}
	return p.Created > q.Created || p.Created == q.Created && p.Namespace+"/"+p.Name < q.Namespace+"/"+q.Name
}

func naiveHostPortsText(e *Engine) string {
	var lines []string
	for f, pods := range naiveHostPorts(e) {
		taken := f.Protocol == protoSCTP || f.Addr == netip.MustParseAddr("fe80::")
		for _, s := range e.services {
			if s.src == nil || len(s.src.ClusterIPs) == 0 {
				continue
			}
			for _, sp := range s.src.Ports {
				one := slices.Contains(s.src.ClusterIPs, f.Addr) || slices.Contains(s.src.ExternalIPs, f.Addr) && !slices.Contains(s.src.ProxiedIPs, f.Addr)
				node := slices.ContainsFunc(s.src.ClusterIPs, func(a netip.Addr) bool { return a.Is4() == f.Addr.Is4() })
				taken = taken || sp.Protocol == f.Protocol && (one && sp.Port == f.Port || node && sp.NodePort == f.Port)
			}
		}
		if taken {
			continue
		}
		first := pods[0]
		for _, c := range pods {
			if naivelyNewer(c.pod, first.pod) {
				first = c
			}
		}
		lines = append(lines, fmt.Sprintf("%v/%d %s %v", netip.AddrPortFrom(f.Addr, f.Port), f.Protocol, first.pod.Name, first.to))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// hostPortsText spells what is told of host ports to pods' sockets, a line each.
func hostPortsText(tb *tables) string {
	var lines []string
	for f, b := range tb.services {
		if b.Key.Service.Kind == KindPod {
			lines = append(lines, fmt.Sprintf("%v/%d %s %v", netip.AddrPortFrom(f.Addr, f.Port), f.Protocol, b.Key.Service.Name, b.Ready[0]))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func hostPortPod1(name, node string, more ...func(*Pod)) Change {
	p := &Pod{Namespace: "shop", Name: name, Node: node, Labels: map[string]string{"app": name}, Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.9")},
		HostPorts: []HostPort{{HostPort: 8088, Port: 8080, Protocol: protoTCP}}}
	for _, f := range more {
		f(p)
	}
	return Change{Object{KindPod, p.Namespace, p.Name}, p}
}

func TestHostPorts(t *testing.T) {
	addr := netip.MustParseAddr
	hostIP := func(a string) func(*Pod) { return func(p *Pod) { p.HostPorts[0].HostIP = addr(a) } }
	dual := func(p *Pod) { p.Addresses = append(p.Addresses, addr("fd00::9")) }
	at := func(a string) func(*Pod) { return func(p *Pod) { p.Addresses = []netip.Addr{addr(a)} } }
	nodes := []Change{
		{Object{KindNode, "", "n1"}, &Node{Name: "n1", Addresses: []netip.Addr{addr("192.0.2.1"), addr("2001:db8::1")}}},
		{Object{KindNode, "", "n2"}, &Node{Name: "n2", Addresses: []netip.Addr{addr("192.0.2.2")}}},
		{Object{Kind: KindHostAddresses}, &HostAddresses{Addresses: []netip.Addr{addr("192.0.2.1"), addr("2001:db8::1"), addr("10.77.1.1"), addr("fe80::1")}}},
	}
	const here = "10.77.1.1:8088/6 hp 10.0.0.9:8080\n192.0.2.1:8088/6 hp 10.0.0.9:8080"
	for _, c := range []struct {
		name    string
		changes []Change
		want    string // told to sockets
		fronts  string // only where that is not the same
	}{
		{"all addresses", []Change{hostPortPod1("hp", "n1")}, here, ""},
		{"of another node those of its object", []Change{hostPortPod1("hp", "n2")}, "192.0.2.2:8088/6 hp 10.0.0.9:8080", ""},
		{"of no node", []Change{hostPortPod1("hp", "")}, "", ""},
		{"both families", []Change{hostPortPod1("hp", "n1", dual)}, here + "\n[2001:db8::1]:8088/6 hp [fd00::9]:8080", "10.77.1.1:8088/6 hp\n192.0.2.1:8088/6 hp\n[2001:db8::1]:8088/6 hp\n[fe80::]:8088/6 hp"},
		{"at one address", []Change{hostPortPod1("hp", "n1", hostIP("10.77.1.1"), dual)}, "10.77.1.1:8088/6 hp 10.0.0.9:8080", ""},
		{"at all of a family", []Change{hostPortPod1("hp", "n1", hostIP("0.0.0.0"), dual)}, here, ""},
		{"at loopback", []Change{hostPortPod1("hp", "n1", hostIP("127.0.0.1"))}, "", ""},
		{"at somebody else's address", []Change{hostPortPod1("hp", "n1", hostIP("192.0.2.2"))}, "", ""},
		{"at an address outside", []Change{hostPortPod1("hp", "n2", hostIP("203.0.113.1"))}, "", ""},
		{"UDP and SCTP", []Change{hostPortPod1("hp", "n2", func(p *Pod) {
			p.HostPorts[0].Protocol = protoUDP
			p.HostPorts = append(p.HostPorts, HostPort{HostPort: 8089, Port: 8080, Protocol: protoSCTP})
		})}, "192.0.2.2:8088/17 hp 10.0.0.9:8080", "192.0.2.2:8088/17 hp\n192.0.2.2:8089/132 hp"},
		{"host network", []Change{hostPortPod1("hp", "n1", func(p *Pod) { p.HostNetwork = true; p.Addresses = []netip.Addr{addr("192.0.2.1")} })}, "", ""},
		{"no address yet", []Change{hostPortPod1("hp", "n1", func(p *Pod) { p.Addresses = nil })}, "", ""},
		{"its address is another's", []Change{hostPortPod1("hp", "n1"), hostPortPod1("b", "n1", func(p *Pod) { p.Created, p.HostPorts = 5, nil })}, "", ""},
		{"gone", []Change{hostPortPod1("hp", "n1"), {Object{KindPod, "shop", "hp"}, nil}}, "", ""},
		{"it moves", []Change{hostPortPod1("hp", "n1"), hostPortPod1("hp", "n2", at("10.0.0.10"))}, "192.0.2.2:8088/6 hp 10.0.0.10:8080", ""},
		{"two pods: the newer one", []Change{hostPortPod1("hp", "n2"), hostPortPod1("new", "n2", at("10.0.0.10"), func(p *Pod) { p.Created = 5 })},
			"192.0.2.2:8088/6 new 10.0.0.10:8080", "192.0.2.2:8088/6 nobody's"},
		{"two pods that are alike", []Change{hostPortPod1("hp", "n2"), hostPortPod1("new", "n2", at("10.0.0.10"), func(p *Pod) { p.Created, p.Labels["app"] = 5, "hp" })},
			"192.0.2.2:8088/6 new 10.0.0.10:8080", "192.0.2.2:8088/6 hp"},
		{"one of two pods goes", []Change{hostPortPod1("hp", "n2"), hostPortPod1("b", "n2", at("10.0.0.10")), {Object{KindPod, "shop", "b"}, nil}},
			"192.0.2.2:8088/6 hp 10.0.0.9:8080", ""},
		{"a node port", []Change{hostPortPod1("hp", "n2"), service1(func(s *Service) { s.Ports[0].NodePort = 8088 })}, "", "0.0.0.0:8088/6 service:shop/web:80\n192.0.2.2:8088/6 nobody's"},
		{"a node port that goes", []Change{service1(func(s *Service) { s.Ports[0].NodePort = 8088 }), hostPortPod1("hp", "n2"), service1(nil)}, "192.0.2.2:8088/6 hp 10.0.0.9:8080", ""},
		{"a node port of the other family", []Change{hostPortPod1("hp", "n2"), service1(func(s *Service) { s.ClusterIPs, s.Ports[0].NodePort = []netip.Addr{addr("fd96::1")}, 8088 })},
			"192.0.2.2:8088/6 hp 10.0.0.9:8080", "192.0.2.2:8088/6 hp\n[::]:8088/6 service:shop/web:80"},
		{"a service's external address", []Change{service1(func(s *Service) { s.ExternalIPs, s.Ports[0].Port = []netip.Addr{addr("192.0.2.2")}, 8088 }), hostPortPod1("hp", "n2")}, "", "192.0.2.2:8088/6 nobody's"},
		{"the node goes", []Change{hostPortPod1("hp", "n2"), {Object{KindNode, "", "n2"}, nil}}, "", ""},
		{"the node moves", []Change{hostPortPod1("hp", "n2"), {Object{KindNode, "", "n2"}, &Node{Name: "n2", Addresses: []netip.Addr{addr("192.0.2.3")}}}}, "192.0.2.3:8088/6 hp 10.0.0.9:8080", ""},
	} {
		for _, atOnce := range []bool{true, false} {
			e, err := NewEngine(Options{NodeName: "n1"})
			if err != nil {
				t.Fatal(err)
			}
			tb := newTables()
			all := slices.Concat(nodes, c.changes)
			if atOnce {
				step(t, e, tb, all...)
			} else {
				for _, change := range all {
					step(t, e, tb, change)
				}
			}
			if got := hostPortsText(tb); got != c.want {
				t.Errorf("%s, at once %v:\n%s\nwant\n%s", c.name, atOnce, got, c.want)
			}
			if got := naiveHostPortsText(e); got != c.want {
				t.Errorf("%s, naively:\n%s\nwant\n%s", c.name, got, c.want)
			}
			want := c.fronts
			if want == "" {
				for line := range strings.Lines(c.want) {
					at, _, _ := strings.Cut(line, " ")
					want += at + " hp\n"
				}
			}
			var short []string // labels of pods: the name alone
			for line := range strings.Lines(frontsText(e, tb.fronts)) {
				at, who, _ := strings.Cut(strings.TrimSpace(line), " ")
				if _, app, ok := strings.Cut(who, "k8s:app="); ok {
					who, _, _ = strings.Cut(app, ",")
					if !strings.HasSuffix(line, ":8080\n") && !strings.HasSuffix(line, ":8080") {
						who = "another port: " + line
					}
				}
				short = append(short, at+" "+who)
			}
			if got := strings.Join(short, "\n"); got != strings.TrimSpace(want) {
				t.Errorf("%s, at once %v: fronts\n%s\nwant\n%s", c.name, atOnce, got, want)
			}
			if got, naive := frontsText(e, tb.fronts), naiveFronts(e); got != naive {
				t.Errorf("%s: fronts\n%s\nnaively\n%s", c.name, got, naive)
			}
			if d := step(t, e, tb, c.changes[len(c.changes)-1]); len(d.Services)+len(d.Fronts) > 0 {
				t.Errorf("%s: told again: %v, %v", c.name, d.Services, d.Fronts)
			}
			for name := range maps.Clone(e.pods) {
				step(t, e, tb, Change{name, nil})
			}
			if h := e.hostPorts; len(h.pods)+len(h.byNode)+len(h.claims)+len(h.under)+len(h.touched) > 0 {
				t.Errorf("%s: pods have gone and %+v is left", c.name, h)
			}
		}
	}
}

// TestHostPortsExplained: what is explained of a host port is what the tables say of
// it, and that is what they say of the pod at its own port.
func TestHostPortsExplained(t *testing.T) {
	addr := netip.MustParseAddr
	const hp, all = "{matchLabels: {app: hp}}", "egress: [{toEntities: [all]}]"
	for _, c := range []struct {
		policy          string
		table           string // what the pod's egress policy says
		egress, ingress Verdict
	}{
		{"cnp: " + all + ", egressDeny: [{toEndpoints: [" + hp + "]}]", "deny", Denied, Allowed},
		{"cnp: " + all + ", egressDeny: [{toEndpoints: [" + hp + "], toPorts: [{ports: [{port: '8080'}]}]}]", "deny", Denied, Allowed},
		{"cnp: " + all + ", egressDeny: [{toPorts: [{ports: [{port: '8088'}]}]}]", "allow", Allowed, Allowed},
		{"cnp: egress: [{toEntities: [host, remote-node, world]}]", "none", Denied, Allowed},
		{"cnp: egress: [{toEndpoints: [" + hp + "], toPorts: [{ports: [{port: '8080'}]}]}]", "allow", Allowed, Allowed},
		{"cnp: egress: [{toEndpoints: [" + hp + "], toPorts: [{ports: [{port: '8080', protocol: TCP}], rules: {http: [{method: GET}]}}]}]", "HTTP", NeedsRequest, Allowed},
		{"cnp: endpointSelector: " + hp + ", ingress: [{fromEntities: [all]}], ingressDeny: [{fromEndpoints: [{matchLabels: {app: web}}]}]", "", Allowed, Denied},
	} {
		for _, node := range []string{"n1", "n2"} {
			e, tb := applied(t, Options{NodeName: "n1"}, world+"---\n"+policyYAML(c.policy))
			own, far := map[string]string{"n1": "192.168.5.1", "n2": "192.168.5.2"}[node], map[string]string{"n2": "192.168.5.1", "n1": "192.168.5.2"}[node]
			step(t, e, tb, Change{Object{Kind: KindHostAddresses}, &HostAddresses{Addresses: []netip.Addr{addr("192.168.5.1"), addr("10.0.0.1"), addr("fe80::1")}}},
				hostPortPod1("hp", node, func(p *Pod) {
					p.Namespace, p.Addresses = "default", []netip.Addr{addr("10.0.0.9"), addr("fd00::9")}
				}))
			at := []string{own, "node:" + node, "10.0.0.9"}
			if node == "n1" {
				at = append(at, "10.0.0.1", "entity:host", "fe80::1")
			} else {
				at = append(at, "shop/agent")
			}
			for _, to := range at {
				port := "8088"
				if to == "10.0.0.9" {
					port = "8080"
				}
				a := e.Explain(Question{From: "default/web", To: to, Port: port})
				if a.Egress == nil || a.Egress.Verdict != c.egress || a.Ingress.Verdict != c.ingress {
					t.Errorf("%s: on %s, %s: %+v, %+v, %+v", c.policy, node, to, a, a.Egress, a.Ingress)
				} else if named := strings.Contains(a.Egress.Reason, "port 8080 of pod default/hp, a host port"); named != (to != "10.0.0.9") {
					t.Errorf("%s: %s: %s", c.policy, to, a.Egress.Reason)
				}
				if to == far || c.table == "" || !strings.ContainsAny(to, "0123456789") || strings.HasPrefix(to, "node:") {
					continue
				}
				f := Frontend{addr(to), 8088, protoTCP}
				if to == "fe80::1" {
					f.Addr = addr("fe80::")
				}
				who := tb.fronts[f]
				if to == "10.0.0.9" {
					who = &Front{tb.who(addr(to)).Identity, 8080}
				}
				if who == nil {
					t.Errorf("%s: %s is no front", c.policy, to)
				} else if got := tb.entryText([]identity.ID{who.Identity}, protoTCP, who.Port); got != c.table {
					t.Errorf("%s: %s: the table says %s, want %s", c.policy, to, got, c.table)
				}
			}
			// Elsewhere that port is a port, and to the node itself the host port is one.
			others := []Question{{From: "default/web", To: far, Port: "8088"}, {From: "default/web", To: own, Port: "8089"}, {From: "node:n1", To: own, Port: "8088"}}
			if node == "n1" {
				// Another node's pods don't know what only interfaces here have.
				others = append(others, Question{From: "shop/api", To: "10.0.0.1", Port: "8088"}, Question{From: "default/web", To: "entity:remote-node", Port: "8088"})
			}
			for _, q := range others {
				if a := e.Explain(q); a.Egress == nil || strings.Contains(a.Egress.Reason, "host port") {
					t.Errorf("%s: %+v: %+v", c.policy, q, a.Egress)
				}
			}
			step(t, e, tb, service1(func(s *Service) { s.Ports[0].NodePort = 8088 }))
			a := e.Explain(Question{From: "default/web", To: own, Port: "8088"})
			const says = "service shop/web and pod default/hp have that address and port"
			if denied := c.table != ""; denied != (a.Egress.Verdict == Denied) || denied && !strings.Contains(a.Egress.Reason, says) {
				t.Errorf("%s: in dispute: %+v", c.policy, a.Egress)
			}
		}
	}
}

// TestHostPortDNS: DNS is seen where a pod answers that is asked at its host port.
func TestHostPortDNS(t *testing.T) {
	e, tb := applied(t, Options{NodeName: "n1"}, world+"---\n"+policyYAML("cnp: egress: [{toEntities: [all]}, {toFQDNs: [{matchName: a.example}]}]"))
	hp := hostPortPod1("hp", "n2", func(p *Pod) { p.HostPorts[0] = HostPort{HostPort: 53, Port: 5353, Protocol: protoUDP} })
	says := func(want string) {
		t.Helper()
		if got := tb.entryText([]identity.ID{tb.who(hp.Value.(*Pod).Addresses[0]).Identity}, protoUDP, 5353); !strings.HasPrefix(got, want) {
			t.Errorf("the table says %s, want %s", got, want)
		}
	}
	step(t, e, tb, hp)
	says("DNS all")
	hp = hostPortPod1("hp", "n2")
	step(t, e, tb, hp)
	says("allow")
}
