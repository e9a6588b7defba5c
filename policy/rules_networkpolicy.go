package policy

import (
	"fmt"
	"net/netip"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy/api"
)

// networkPolicy makes the rules of a NetworkPolicy. Rules of a direction that
// policyTypes does not name are ignored, as its API says.
func (t *translator) networkPolicy(spec *networkingv1.NetworkPolicySpec) {
	ns := t.policy.object.Namespace
	subject := labelSelectorOf(&spec.PodSelector, "")
	base := func(path string, d Direction) *rule {
		return &rule{path: path, direction: d, subject: subject, namespace: ns, defaultDeny: true}
	}
	if len(spec.PolicyTypes) == 0 || slices.Contains(spec.PolicyTypes, networkingv1.PolicyTypeIngress) {
		if len(spec.Ingress) == 0 {
			t.add(base("spec", Ingress))
		}
		for i := range spec.Ingress {
			r := base(fmt.Sprintf("spec.ingress[%d]", i), Ingress)
			t.networkPeers(r, ns, spec.Ingress[i].From)
			r.grants = networkPorts(r.path, spec.Ingress[i].Ports)
			t.add(r)
		}
	}
	if len(spec.PolicyTypes) == 0 && len(spec.Egress) > 0 || slices.Contains(spec.PolicyTypes, networkingv1.PolicyTypeEgress) {
		if len(spec.Egress) == 0 {
			t.add(base("spec", Egress))
		}
		for i := range spec.Egress {
			r := base(fmt.Sprintf("spec.egress[%d]", i), Egress)
			t.networkPeers(r, ns, spec.Egress[i].To)
			r.grants = networkPorts(r.path, spec.Egress[i].Ports)
			t.add(r)
		}
	}
}

// networkPeers: no peers, or an empty list of them, is everybody.
func (t *translator) networkPeers(r *rule, namespace string, peers []networkingv1.NetworkPolicyPeer) {
	r.any = len(peers) == 0
	for i := range peers {
		p := &peers[i]
		if p.IPBlock != nil {
			if prefix, ok := parsePrefix(p.IPBlock.CIDR); ok {
				except := make([]api.CIDR, len(p.IPBlock.Except))
				for i, e := range p.IPBlock.Except {
					except[i] = api.CIDR(e)
				}
				b := newIPBlock(prefix, t.tellApart(prefixes(except)))
				t.tellApart([]netip.Prefix{prefix})
				t.policy.blocks = append(t.policy.blocks, b)
				r.peers = append(r.peers, blockSelector(b, cidrText("IP block "+prefix.String(), except)))
			}
			continue
		}
		var sel identity.Selector
		text := "pods"
		if p.PodSelector != nil {
			sel = labelSelectorOf(p.PodSelector, "")
			text += " " + describeLabels(p.PodSelector)
		}
		if p.NamespaceSelector != nil {
			sel = append(sel, labelSelectorOf(p.NamespaceSelector, identity.KeyNamespaceLabels+".")...)
			text += " in namespaces " + describeLabels(p.NamespaceSelector)
		} else {
			sel = append(sel, identity.Requirement{Source: identity.SourceK8s, Key: identity.KeyNamespace, Operator: identity.In, Values: []string{namespace}})
			text += " in namespace " + namespace
		}
		r.peers = append(r.peers, labelSelector(sel, podScope, text))
	}
}

// networkPorts: no ports, or an empty list of them, is everything.
func networkPorts(path string, in []networkingv1.NetworkPolicyPort) []*portGrant {
	if len(in) == 0 {
		return []*portGrant{{path: path, all: true}}
	}
	var out []*portGrant
	for i := range in {
		p := &in[i]
		pp := api.PortProtocol{Protocol: api.ProtocolTCP}
		if p.Protocol != nil {
			pp.Protocol = api.Protocol(*p.Protocol)
		}
		if p.EndPort != nil {
			pp.EndPort = *p.EndPort
		}
		g := &portGrant{path: fmt.Sprintf("%s.ports[%d]", path, i)}
		switch {
		case p.Port == nil:
			g.ports = append(g.ports, ports{proto: pp.Protocol.Numbers()[0]})
		case p.Port.Type == intstr.Int:
			if n := p.Port.IntVal; n > 0 && n <= 65535 {
				s := span{proto: pp.Protocol.Numbers()[0], first: uint16(n), last: uint16(min(max(n, pp.EndPort), 65535))}
				g.spans = append(g.spans, s)
				g.ports = appendRange(g.ports, s.proto, s.first, s.last)
			}
		default:
			pp.Port = p.Port.StrVal
			g.addPort(pp)
		}
		out = append(out, g.done())
	}
	return out
}

// labelSelectorOf translates a selector of the Kubernetes API, with a prefix
// to its keys.
func labelSelectorOf(s *metav1.LabelSelector, prefix string) identity.Selector {
	es := endpointSelector(s)
	out := selectorOf(es, api.SourceK8s)
	for i := range out {
		out[i].Source = identity.SourceK8s
		out[i].Key = prefix + out[i].Key
	}
	return out
}

func endpointSelector(s *metav1.LabelSelector) *api.EndpointSelector {
	es := &api.EndpointSelector{MatchLabels: s.MatchLabels}
	for _, e := range s.MatchExpressions {
		es.MatchExpressions = append(es.MatchExpressions, api.LabelRequirement{Key: e.Key, Operator: api.Operator(e.Operator), Values: e.Values})
	}
	return es
}
