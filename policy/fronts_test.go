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

// frontsText spells fronts, a line each.
func frontsText(e *Engine, fronts map[Frontend]*Front) string {
	var lines []string
	for f, to := range fronts {
		who := "nobody's"
		if to.Identity != 0 {
			who = fmt.Sprintf("%s:%d", strings.Join(e.IdentityLabels(to.Identity), ","), to.Port)
		}
		lines = append(lines, fmt.Sprintf("%v/%d %s", netip.AddrPortFrom(f.Addr, f.Port), f.Protocol, who))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// naiveFronts finds them from nothing but the objects.
func naiveFronts(e *Engine) string {
	type claim struct {
		text     string
		external bool
	}
	claims := map[Frontend]map[Object]claim{}
	for o, s := range e.services {
		if s.src == nil || len(s.src.ClusterIPs) == 0 {
			continue
		}
		for _, sp := range s.src.Ports {
			put := func(a netip.Addr, port uint16, external bool) {
				f := Frontend{a, port, sp.Protocol}
				if claims[f] == nil {
					claims[f] = map[Object]claim{}
				}
				if _, ok := claims[f][o]; !ok {
					claims[f][o] = claim{fmt.Sprintf("service:%s:%d", s.name(), sp.Port), external}
				}
			}
			for _, a := range s.src.ExternalIPs {
				if !slices.Contains(s.src.ProxiedIPs, a) {
					put(a, sp.Port, true)
				}
			}
			for _, a := range s.src.ClusterIPs {
				if sp.NodePort != 0 && a.Is4() {
					put(netip.IPv4Unspecified(), sp.NodePort, true)
				}
				if sp.NodePort != 0 && a.Is6() {
					put(netip.IPv6Unspecified(), sp.NodePort, true)
				}
				put(a, sp.Port, false)
			}
		}
	}
	var lines []string
	for f, pods := range naiveHostPorts(e) {
		text := ""
		for _, c := range pods {
			who, _ := e.prefixes.lookup(c.to.Addr())
			now := fmt.Sprintf("%s:%d", strings.Join(e.IdentityLabels(who.id), ","), c.to.Port())
			if text != "" && text != now {
				now = "nobody's"
			}
			text = now
		}
		if len(claims[f])+len(claims[f.nodePort()]) > 0 {
			text = "nobody's"
		}
		delete(claims, f)
		lines = append(lines, fmt.Sprintf("%v/%d %s", netip.AddrPortFrom(f.Addr, f.Port), f.Protocol, text))
	}
	for f, by := range claims {
		all := slices.Collect(maps.Values(by))
		if !slices.ContainsFunc(all, func(c claim) bool { return c.external }) {
			continue
		}
		text := "nobody's"
		if len(all) == 1 {
			text = all[0].text
		}
		lines = append(lines, fmt.Sprintf("%v/%d %s", netip.AddrPortFrom(f.Addr, f.Port), f.Protocol, text))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func frontService(name string, more ...func(*Service)) Change {
	c := service1(func(s *Service) {
		s.Name, s.Selector = name, map[string]string{"app": name}
		s.Ports = []ServicePort{{Protocol: protoTCP, Port: 80, TargetPort: 8080, NodePort: 30080}, {Name: "q", Protocol: protoSCTP, Port: 81, NodePort: 30081}}
		s.ExternalIPs = []netip.Addr{netip.MustParseAddr("198.51.100.1")}
		for _, f := range more {
			f(s)
		}
	})
	return c
}

func TestFronts(t *testing.T) {
	addr := netip.MustParseAddr
	web := frontService("web")
	other := frontService("other", func(s *Service) {
		s.ClusterIPs = []netip.Addr{addr("10.96.0.2")}
		s.Ports = s.Ports[:1]
		s.Ports[0].NodePort = 30090
	})
	const both = "0.0.0.0:30080/6 service:shop/web:80\n0.0.0.0:30081/132 service:shop/web:81\n"
	for _, c := range []struct {
		name    string
		changes []Change
		want    string
	}{
		{"one", []Change{web}, both + "198.51.100.1:80/6 service:shop/web:80\n198.51.100.1:81/132 service:shop/web:81"},
		{"dual stack", []Change{frontService("web", func(s *Service) {
			s.ClusterIPs, s.ExternalIPs, s.Ports = append(s.ClusterIPs, addr("fd96::1")), nil, s.Ports[:1]
		})}, "0.0.0.0:30080/6 service:shop/web:80\n[::]:30080/6 service:shop/web:80"},
		{"an address with two", []Change{web, other},
			"0.0.0.0:30080/6 service:shop/web:80\n0.0.0.0:30081/132 service:shop/web:81\n0.0.0.0:30090/6 service:shop/other:80\n198.51.100.1:80/6 nobody's\n198.51.100.1:81/132 service:shop/web:81"},
		{"one of the two goes", []Change{other, web, {Object: other.Object}}, both + "198.51.100.1:80/6 service:shop/web:80\n198.51.100.1:81/132 service:shop/web:81"},
		{"another's cluster IP", []Change{web, frontService("other", func(s *Service) {
			s.ClusterIPs, s.ExternalIPs, s.Ports = []netip.Addr{addr("10.96.0.2")}, []netip.Addr{addr("10.96.0.1")}, s.Ports[:1]
			s.Ports[0].NodePort = 0
		})}, both + "10.96.0.1:80/6 nobody's\n198.51.100.1:80/6 service:shop/web:80\n198.51.100.1:81/132 service:shop/web:81"},
		{"answered by the load balancer", []Change{frontService("web", func(s *Service) { s.ProxiedIPs = s.ExternalIPs })}, strings.TrimSpace(both)},
		{"served by somebody else", []Change{frontService("web", func(s *Service) { s.OtherProxy = true })}, both + "198.51.100.1:80/6 service:shop/web:80\n198.51.100.1:81/132 service:shop/web:81"},
		{"headless", []Change{frontService("web", func(s *Service) { s.ClusterIPs = nil })}, ""},
		{"gone", []Change{web, {Object: web.Object}}, ""},
	} {
		e, err := NewEngine(Options{NodeName: "n1"})
		if err != nil {
			t.Fatal(err)
		}
		tb := newTables()
		for _, change := range c.changes {
			step(t, e, tb, change)
		}
		if got := frontsText(e, tb.fronts); got != c.want {
			t.Errorf("%s:\n%s\nwant\n%s", c.name, got, c.want)
		}
		if naive := naiveFronts(e); naive != c.want {
			t.Errorf("%s, naively:\n%s\nwant\n%s", c.name, naive, c.want)
		}
	}
}

// TestFrontsExplained: what is explained of an address of a service is what the
// tables say of it, and that is what they say of its cluster IP.
func TestFrontsExplained(t *testing.T) {
	const services = `---
apiVersion: v1
kind: Service
metadata: {name: two, namespace: shop}
spec: {clusterIP: 10.96.0.20, externalIPs: [198.51.100.1], ports: [{name: http, port: 80, targetPort: 8081, nodePort: 30080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: two-1, namespace: shop, labels: {kubernetes.io/service-name: two}}
addressType: IPv4
ports: [{name: http, port: 8081}]
endpoints: [{addresses: [10.0.0.12]}, {addresses: [10.1.0.12]}]
---
apiVersion: v1
kind: Service
metadata: {name: claims, namespace: shop}
spec: {clusterIP: 10.96.0.21, externalIPs: [198.51.100.2, 10.0.0.12], ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: claims-too, namespace: shop}
spec: {clusterIP: 10.96.0.22, externalIPs: [198.51.100.2], ports: [{port: 80}]}
---
`
	const here, there = "{matchLabels: {app: api}}", "{matchLabels: {app: api, 'k8s:io.kubernetes.pod.namespace': shop}}"
	const get = "toPorts: [{ports: [{port: '8081', protocol: TCP}], rules: {http: [{method: GET}]}}]"
	for _, c := range []struct {
		policy, table string
		want          Verdict
		says          string
	}{
		{"cnp: egress: [{toEntities: [host, remote-node, world]}]", "none", Denied, "default deny"},
		{"cnp: egress: [{toCIDR: [198.51.100.1/32]}, {toPorts: [{ports: [{port: '30080'}]}]}]", "none", Denied, "default deny"},
		{"np: policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.1.0.0/16]}}]}]", "refuse", Denied, "not translated by Weir is denied"},
		{"cnp: egress: [{toEndpoints: [" + here + ", " + there + "]}], egressDeny: [{toEntities: [host, remote-node, world]}]", "allow", Allowed, "a rule allows it"},
		{"cnp: egress: [{toEndpoints: [" + here + "]}]", "refuse", Denied, "default deny"},
		{"cnp: egress: [{toEntities: [all]}], egressDeny: [{toEndpoints: [" + there + "]}]", "refuse", Denied, "a deny rule covers it"},
		{"cnp: egress: [{toEntities: [all]}], egressDeny: [{toEndpoints: [" + here + ", " + there + "]}]", "deny", Denied, "a deny rule covers it"},
		{"cnp: egress: [{toServices: [{k8sService: {serviceName: two, namespace: shop}}]}]", "none", Denied, "default deny"},
		{"cnp: egress: [{toEndpoints: [" + here + ", " + there + "], " + get + "}]", "HTTP", NeedsRequest, "each request is judged"},
		{"cnp: egress: [{toEndpoints: [" + here + "]}, {toEndpoints: [" + there + "], " + get + "}]", "refuse", NeedsRequest, "not translated by Weir is denied"},
		{"cnp: ingress: [{}]", "", Allowed, "not enforced"},
	} {
		e, tb := applied(t, Options{NodeName: "n1"}, world+services+policyYAML(c.policy))
		table := func(who Peer, at netip.AddrPort, node bool) string {
			f := Frontend{at.Addr(), at.Port(), protoTCP}
			if node {
				f.Addr = netip.IPv4Unspecified()
			}
			if r := tb.policies[tb.endpoints[netip.MustParseAddr("10.0.0.11")].Policy]; !r.Enforced[Egress] {
				return ""
			}
			if to := tb.fronts[f]; to != nil && (!node || who.Node) {
				return tb.entryText([]identity.ID{to.Identity}, protoTCP, to.Port)
			}
			return tb.entryText([]identity.ID{who.Identity}, protoTCP, at.Port())
		}
		for _, to := range []struct {
			name string
			at   string // as the table has it
			node bool
		}{
			{"10.96.0.20", "10.96.0.20:80", false}, {"198.51.100.1", "198.51.100.1:80", false},
			{"192.168.5.1", "192.168.5.1:30080", true}, {"192.168.5.2", "192.168.5.2:30080", true},
			{"node:n1", "192.168.5.1:30080", true}, {"node:n2", "192.168.5.2:30080", true},
			{"shop/agent", "192.168.5.2:30080", true}, {"entity:host", "192.168.5.1:30080", true}, {"entity:remote-node", "192.168.5.2:30080", true},
		} {
			at := netip.MustParseAddrPort(to.at)
			if got := table(tb.who(at.Addr()), at, to.node); got != c.table {
				t.Errorf("%s: %s: the table says %s, want %s", c.policy, to.at, got, c.table)
			}
			a := e.Explain(Question{From: "default/web", To: to.name, Port: fmt.Sprint(at.Port())})
			if a.Verdict != c.want || !strings.Contains(a.Egress.Reason, c.says) {
				t.Errorf("%s: %s: %+v, %+v, want %s: ... %s", c.policy, to.name, a, a.Egress, c.want, c.says)
			}
			if named := strings.Contains(a.Egress.Reason, "at that port is service shop/two"); named == (to.name == "10.96.0.20") {
				t.Errorf("%s: %s", to.name, a.Egress.Reason)
			}
		}
		for _, to := range []string{"198.51.100.2", "10.0.0.12"} {
			a := e.Explain(Question{From: "default/web", To: to, Port: "80"})
			if denied := c.table != ""; (a.Egress.Verdict == Denied) != denied || denied && !strings.Contains(a.Egress.Reason, "nobody can tell") {
				t.Errorf("%s: %s: %+v", c.policy, to, a.Egress)
			}
		}
		// To whom it does not come by kube-proxy of the pod's node it is what it is.
		a := e.Explain(Question{From: "node:n1", To: "192.168.5.2", Port: "30080"})
		if strings.Contains(a.Egress.Reason, "service") {
			t.Errorf("of the node: %+v", a.Egress)
		}
	}
}
