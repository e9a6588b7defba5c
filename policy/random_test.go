package policy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weirnet/weir/policy/api"
)

// random makes objects of a small cluster, in which things meet often.
type random struct{ *rand.Rand }

func pick[T any](r random, of ...T) T { return of[r.IntN(len(of))] }

func (r random) some(percent int) bool { return r.IntN(100) < percent }

func (r random) labels() map[string]string {
	l := map[string]string{}
	if r.some(80) {
		l["app"] = pick(r, "a", "b", "c")
	}
	if r.some(40) {
		l["tier"] = pick(r, "x", "y")
	}
	return l
}

func (r random) pod(i int) Change {
	p := &Pod{Namespace: pick(r, "red", "blue"), Node: pick(r, "n1", "n1", "n2"), Labels: r.labels(), Created: int64(r.IntN(5)),
		ServiceAccount: pick(r, "", "sa"), HostNetwork: r.some(5)}
	p.Name = fmt.Sprintf("p%d", i)
	p.Namespace = []string{"red", "blue"}[i%2]
	// Now and then two pods claim one address.
	p.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(10 + i%7)}), netip.MustParseAddr(fmt.Sprintf("fd00::%x", 10+i))}
	if p.HostNetwork {
		p.Addresses = []netip.Addr{netip.MustParseAddr(map[string]string{"n1": "192.168.0.1", "n2": "192.168.0.2"}[p.Node])}
	}
	if r.some(15) {
		p.Addresses = nil
	}
	if r.some(60) {
		p.Ports = append(p.Ports, NamedPort{"web", protoTCP, pick[uint16](r, 80, 8080, 81)})
	}
	if r.some(20) {
		p.Ports = append(p.Ports, NamedPort{"dns", protoUDP, 53})
	}
	for r.some(40) && len(p.HostPorts) < 3 {
		hp := HostPort{HostPort: pick[uint16](r, 80, 53, 30080), Port: pick[uint16](r, 80, 5353), Protocol: pick[uint8](r, protoTCP, protoUDP, protoSCTP)}
		if r.some(50) {
			hp.HostIP = netip.MustParseAddr(pick(r, "0.0.0.0", "192.168.0.1", "192.168.0.2", "1.2.3.4", "::", "fd00::10", "127.0.0.1", "9.9.9.9"))
		}
		p.HostPorts = append(p.HostPorts, hp)
	}
	return Change{Object{KindPod, p.Namespace, p.Name}, p}
}

func (r random) selector() *api.EndpointSelector {
	s := &api.EndpointSelector{}
	if r.some(70) {
		s.MatchLabels = map[string]string{pick(r, "app", "k8s:app", "any:app"): pick(r, "a", "b", "c")}
	}
	if r.some(25) {
		s.MatchExpressions = append(s.MatchExpressions, api.LabelRequirement{Key: "tier",
			Operator: pick(r, api.Exists, api.DoesNotExist)})
	}
	if r.some(15) {
		s.MatchExpressions = append(s.MatchExpressions, api.LabelRequirement{Key: "app",
			Operator: pick(r, api.In, api.NotIn), Values: []string{pick(r, "a", "b")}})
	}
	return s
}

func (r random) peerSelector() api.EndpointSelector {
	s := r.selector()
	if r.some(40) {
		if s.MatchLabels == nil {
			s.MatchLabels = map[string]string{}
		}
		switch r.IntN(5) {
		case 0:
			s.MatchLabels["io.kubernetes.pod.namespace"] = pick(r, "red", "blue")
		case 1:
			s.MatchLabels["k8s:io.cilium.k8s.namespace.labels.team"] = pick(r, "one", "two")
		case 2:
			s.MatchLabels = map[string]string{"reserved:" + pick(r, "host", "remote-node", "world-ipv4", "kube-apiserver"): ""}
		case 3:
			s.MatchLabels["io.cilium.k8s.policy.serviceaccount"] = pick(r, "sa", "default")
		case 4:
			s.MatchExpressions = append(s.MatchExpressions, api.LabelRequirement{Key: "io.kubernetes.pod.namespace", Operator: api.Exists})
		}
	}
	return *s
}

func (r random) cidr() api.CIDR {
	return pick[api.CIDR](r, "0.0.0.0/0", "1.0.0.0/8", "1.2.0.0/16", "1.2.3.0/24", "1.2.3.4/32", "10.0.0.0/8", "10.0.0.12/32", "192.168.0.0/24", "::/0", "2001:db8::/32")
}

func (r random) cidrSet() api.CIDRRule {
	c := api.CIDRRule{CIDR: r.cidr()}
	switch r.IntN(4) {
	case 0:
		c.CIDR, c.CIDRGroupRef = "", pick(r, "g1", "g2", "none")
	case 1:
		c.CIDR, c.CIDRGroupSelector = "", &api.EndpointSelector{}
		if r.some(70) {
			c.CIDRGroupSelector.MatchExpressions = []api.LabelRequirement{{Key: "kind", Operator: pick(r, api.In, api.NotIn), Values: []string{pick(r, "x", "y")}}}
		}
	}
	if r.some(30) {
		c.Except = []api.CIDR{pick[api.CIDR](r, "1.2.3.0/24", "1.2.3.4/32", "1.2.0.0/17")}
	}
	return c
}

func many[T any](r random, make func() T) []T {
	n := pick(r, 1, 1, 2, 0)
	out := []T{}
	for range n {
		out = append(out, make())
	}
	return out
}

func (r random) entity() api.Entity {
	return pick(r, append(api.Entities(), api.EntityAll, api.EntityCluster)...)
}

func (r random) ingress() (p api.IngressPeers) {
	switch r.IntN(8) {
	case 0, 1:
		p.FromEndpoints = many(r, r.peerSelector)
	case 2:
		p.FromCIDR = many(r, r.cidr)
	case 3:
		p.FromCIDRSet = many(r, r.cidrSet)
	case 4:
		p.FromEntities = many(r, r.entity)
	case 5:
		p.FromNodes = many(r, func() api.EndpointSelector {
			return api.EndpointSelector{MatchLabels: map[string]string{pick(r, "zone", "node:zone"): pick(r, "east", "west")}}
		})
	}
	return p
}

func (r random) egress() (p api.EgressPeers) {
	in := r.ingress()
	p = api.EgressPeers{ToEndpoints: in.FromEndpoints, ToCIDR: in.FromCIDR, ToCIDRSet: in.FromCIDRSet, ToEntities: in.FromEntities, ToNodes: in.FromNodes}
	if r.some(10) {
		p = api.EgressPeers{ToServices: []api.Service{{K8sService: &api.K8sServiceNamespace{ServiceName: pick(r, "s1", "s2", "s3"), Namespace: pick(r, "", "red")}}}}
	}
	return p
}

func (r random) ports(l7 bool) []api.PortRule {
	out := []api.PortRule{}
	for range pick(r, 1, 1, 2, 0) {
		var pr api.PortRule
		for range pick(r, 1, 1, 2, 0) {
			pp := api.PortProtocol{Port: pick(r, "80", "80", "8080", "81", "0", "web", "dns", "53", "53"), Protocol: pick(r, api.ProtocolTCP, api.ProtocolTCP, api.ProtocolAny, api.ProtocolUDP, "")}
			if r.some(25) {
				pp = api.PortProtocol{Port: pick(r, "1", "79", "80", "8000"), EndPort: int32(pick(r, 80, 90, 8080, 65535)), Protocol: api.ProtocolTCP}
			}
			pr.Ports = append(pr.Ports, pp)
		}
		if l7 && r.some(45) {
			switch r.IntN(8) {
			default:
				if slices.ContainsFunc(pr.Ports, func(p api.PortProtocol) bool { return p.Port == "53" || p.Port == "dns" }) {
					pr.Rules = &api.L7Rules{DNS: r.dnsRules()}
					break
				}
				pr.Rules = &api.L7Rules{HTTP: []api.HTTPRule{{Path: pick(r, "/a", "/b", "/c", "")}}}
			case 0:
				pr.Rules = &api.L7Rules{DNS: r.dnsRules()}
			case 1:
				pr.ServerNames = []string{"a.example"}
			}
		}
		out = append(out, pr)
	}
	return out
}

func (r random) fqdn() api.FQDNSelector {
	if r.some(50) {
		return api.FQDNSelector{MatchName: pick(r, "a.example.com", "b.example.com", "A.example.com.", "other.net")}
	}
	return api.FQDNSelector{MatchPattern: pick(r, "*", "*.example.com", "**.com", "a*.example.com")}
}

func (r random) dnsRules() []api.DNSRule {
	return []api.DNSRule{api.DNSRule(r.fqdn()), api.DNSRule(r.fqdn())}
}

func (r random) icmps() []api.ICMPRule {
	return []api.ICMPRule{{Fields: []api.ICMPField{{Type: intstr.FromInt32(int32(pick(r, 0, 8))), Family: pick(r, "", "IPv6")}}}}
}

func (r random) rule() *api.Rule {
	out := &api.Rule{EndpointSelector: r.selector()}
	for range r.IntN(3) {
		in := api.IngressRule{IngressPeers: r.ingress()}
		if r.some(60) {
			in.ToPorts = r.ports(true)
		} else if r.some(20) {
			in.ICMPs = r.icmps()
		}
		out.Ingress = append(out.Ingress, in)
	}
	for range r.IntN(3) {
		e := api.EgressRule{EgressPeers: r.egress()}
		if r.some(20) {
			e = api.EgressRule{ToFQDNs: many(r, r.fqdn)}
		}
		if r.some(60) {
			e.ToPorts = r.ports(true)
		} else if r.some(20) {
			e.ICMPs = r.icmps()
		}
		out.Egress = append(out.Egress, e)
	}
	denyPorts := func() (out []api.PortDenyRule) {
		for _, p := range r.ports(false) {
			out = append(out, api.PortDenyRule{Ports: p.Ports})
		}
		return out
	}
	if r.some(20) {
		d := api.IngressDenyRule{IngressPeers: r.ingress()}
		if r.some(60) {
			d.ToPorts = denyPorts()
		}
		out.IngressDeny = append(out.IngressDeny, d)
	}
	if r.some(20) {
		d := api.EgressDenyRule{EgressPeers: r.egress()}
		if r.some(60) {
			d.ToPorts = denyPorts()
		}
		out.EgressDeny = append(out.EgressDeny, d)
	}
	if r.some(25) {
		no := false
		out.EnableDefaultDeny = &api.DefaultDenyConfig{}
		if r.some(60) {
			out.EnableDefaultDeny.Ingress = &no
		}
		if r.some(60) {
			out.EnableDefaultDeny.Egress = &no
		}
	}
	return out
}

func (r random) ipBlock() *networkingv1.IPBlock {
	return pick(r,
		&networkingv1.IPBlock{CIDR: "1.2.0.0/16", Except: []string{"1.2.3.0/24"}},
		&networkingv1.IPBlock{CIDR: "0.0.0.0/0", Except: pick(r, nil, []string{"10.0.0.0/8"}, []string{"10.0.0.12/32"}, []string{"10.0.0.96/29"})},
		&networkingv1.IPBlock{CIDR: "10.0.0.0/25", Except: pick(r, nil, []string{"10.0.0.11/32"}, []string{"10.0.0.99/32", "10.0.0.8/30"})},
		&networkingv1.IPBlock{CIDR: pick(r, "10.0.0.11/32", "10.0.0.12/32", "10.0.0.20/32", "10.0.0.99/32", "fd00::a/128", "192.168.0.2/32", "192.168.0.3/32", "10.96.0.1/32", "9.9.9.9/32")},
		&networkingv1.IPBlock{CIDR: "192.168.0.0/30", Except: pick(r, nil, []string{"192.168.0.2/31"})},
		&networkingv1.IPBlock{CIDR: "fd00::/123", Except: pick(r, nil, []string{"fd00::c/126"})},
		&networkingv1.IPBlock{CIDR: "::/0"})
}

func (r random) networkPolicy() *networkingv1.NetworkPolicySpec {
	s := &networkingv1.NetworkPolicySpec{PodSelector: metav1.LabelSelector{MatchLabels: r.labels()}}
	if r.some(40) {
		s.PolicyTypes = []networkingv1.PolicyType{pick(r, networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress)}
	}
	var peers []networkingv1.NetworkPolicyPeer
	if r.some(60) {
		p := networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{MatchLabels: r.labels()}}
		if r.some(40) {
			p.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"team": pick(r, "one", "two")}}
		}
		peers = append(peers, p)
	}
	for range pick(r, 0, 1, 2) {
		peers = append(peers, networkingv1.NetworkPolicyPeer{IPBlock: r.ipBlock()})
	}
	var ports []networkingv1.NetworkPolicyPort
	if r.some(60) {
		ports = append(ports, networkingv1.NetworkPolicyPort{Port: pick(r, new(intstr.FromInt32(80)), new(intstr.FromString("web")), nil)})
	}
	s.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: peers, Ports: ports}}
	if r.some(40) {
		s.Egress = []networkingv1.NetworkPolicyEgressRule{{To: peers, Ports: ports}}
	}
	return s
}

func (r random) policy(i int) Change {
	p := &api.Policy{Kind: api.KindCiliumPolicy, Namespace: pick(r, "red", "blue"), Name: fmt.Sprintf("pol%d", i)}
	p.Namespace = []string{"red", "blue"}[i%2]
	switch i % 4 {
	case 0:
		p.Kind, p.Namespace = api.KindClusterwide, ""
	case 1:
		p.Kind, p.NetworkPolicy = api.KindNetworkPolicy, r.networkPolicy()
	}
	if p.NetworkPolicy == nil {
		p.Rules, p.Paths = []*api.Rule{r.rule(), r.rule()}, []string{"specs[0]", "specs[1]"}
	}
	if r.some(4) {
		p.Refused = []*api.Error{{Field: "spec.x", Message: "is wrong"}}
		p.Closed = []api.Closure{{Subjects: r.selector(), Ingress: r.some(50), Egress: true}}
		p.Rules, p.NetworkPolicy = nil, nil
	}
	return Change{Object{p.Kind, p.Namespace, p.Name}, p}
}

// vary changes one rule of a policy.
func (r random) vary(c Change) Change {
	p := *c.Value.(*api.Policy)
	if len(p.Rules) == 0 {
		return r.policy(r.IntN(12))
	}
	p.Rules = slices.Clone(p.Rules)
	i := r.IntN(len(p.Rules))
	changed, other := *p.Rules[i], r.rule()
	if r.some(50) && len(changed.Ingress) > 0 {
		changed.Ingress = slices.Clone(changed.Ingress)
		changed.Ingress[r.IntN(len(changed.Ingress))].ToPorts = r.ports(true)
		changed.Ingress[0].ICMPs = nil
	} else {
		changed.Egress = other.Egress
	}
	p.Rules[i] = &changed
	return Change{c.Object, &p}
}

// other makes one of the objects that are neither pod nor policy.
func (r random) stranger() Change {
	s := &Stranger{New: r.some(70), Fresh: r.some(70)}
	for range r.IntN(3) {
		s.Addresses = append(s.Addresses, netip.MustParseAddr(pick(r, "10.0.0.20", "10.0.0.21", "10.0.0.10", "10.9.9.9", "fd00::99")))
	}
	c := Change{Object{Kind: KindStranger, Name: fmt.Sprint(r.IntN(4))}, s}
	if r.some(20) {
		c.Value = nil
	}
	return c
}

func (r random) other(i int) Change {
	switch i % 8 {
	case 0:
		return Change{Object{KindNamespace, "", "red"}, &Namespace{"red", map[string]string{"team": pick(r, "one", "two")}}}
	case 1:
		return Change{Object{KindNode, "", "n1"}, &Node{Name: "n1", Labels: map[string]string{"zone": "east"},
			Addresses: []netip.Addr{netip.MustParseAddr("192.168.0.1")}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/25")}}}
	case 2:
		return Change{Object{KindNode, "", "n2"}, &Node{Name: "n2", Labels: map[string]string{"zone": pick(r, "east", "west")},
			Addresses: []netip.Addr{netip.MustParseAddr("192.168.0.2")}}}
	case 3:
		g := &api.CIDRGroup{Name: pick(r, "g1", "g2"), Labels: map[string]string{"kind": pick(r, "x", "y")}, ExternalCIDRs: []api.CIDR{r.cidr(), r.cidr()}}
		return Change{Object{api.KindCiliumCIDRGroup, "", g.Name}, g}
	case 4:
		return Change{Object{KindEndpointSlice, "default", "kubernetes"}, &EndpointSlice{Namespace: "default", Name: "kubernetes",
			Service: "kubernetes", Ports: []SlicePort{{"https", protoTCP, 6443}}, Addresses: []netip.Addr{netip.MustParseAddr(pick(r, "192.168.0.1", "192.168.0.2", "192.168.0.3", "1.2.3.9"))}}}
	case 5:
		s := &Service{Namespace: "red", Name: pick(r, "s1", "s2"), ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, 0, byte(1 + r.IntN(2))})},
			Ports: []ServicePort{{Name: "http", Protocol: protoTCP, Port: 80}, {Name: "alt", Protocol: protoTCP, Port: 8080}, {Name: "dns", Protocol: protoUDP, Port: 53}}}
		if r.some(40) {
			s.ExternalIPs = []netip.Addr{netip.MustParseAddr(pick(r, "1.2.3.4", "192.168.0.1", "10.96.0.1", "10.96.0.2", "10.0.0.10"))}
		}
		if r.some(40) {
			s.Ports[0].NodePort = pick[uint16](r, 80, 81, 30080)
		}
		if r.some(20) {
			s.ProxiedIPs, s.OtherProxy = s.ExternalIPs, r.some(50)
		}
		if r.some(40) {
			s.Selector = map[string]string{"app": pick(r, "a", "b")}
		}
		return Change{Object{KindService, "red", s.Name}, s}
	case 6:
		h := &HostAddresses{}
		for _, a := range []string{"1.2.3.4", "192.168.0.1", "192.168.0.2", "192.168.0.3", "10.0.0.12", "10.0.0.99", "10.96.0.1", "fd00::a", "fd00::10"} {
			if r.some(25) {
				h.Addresses = append(h.Addresses, netip.MustParseAddr(a))
			}
		}
		return Change{Object{Kind: KindHostAddresses}, h}
	}
	s := &EndpointSlice{Namespace: "red", Name: pick(r, "e1", "e2"), Service: pick(r, "s1", "s2"),
		Ports: []SlicePort{{"http", protoTCP, pick[uint16](r, 80, 8080)}, {"alt", protoTCP, 81}, {"dns", protoUDP, pick[uint16](r, 53, 5353)}}}
	for range r.IntN(3) {
		s.Addresses = append(s.Addresses, pick(r, netip.MustParseAddr("10.0.0.10"), netip.MustParseAddr("10.0.0.11"), netip.MustParseAddr("1.2.3.4"), netip.MustParseAddr("10.0.0.99")))
	}
	return Change{Object{KindEndpointSlice, "red", s.Name}, s}
}
