package api

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/validate/content"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
)

// networkPolicy checks a NetworkPolicy's spec as the API server does, and
// fills in the defaults it fills in: policyTypes, and TCP as protocol.
func (d *decoder) networkPolicy(s *networkingv1.NetworkPolicySpec, path string) {
	d.k8sSelector(&s.PodSelector, path+".podSelector")
	for i := range s.Ingress {
		p := index(path+".ingress", i)
		d.netpolPorts(s.Ingress[i].Ports, p+".ports")
		d.netpolPeers(s.Ingress[i].From, p+".from")
	}
	for i := range s.Egress {
		p := index(path+".egress", i)
		d.netpolPorts(s.Egress[i].Ports, p+".ports")
		d.netpolPeers(s.Egress[i].To, p+".to")
	}
	types := path + ".policyTypes"
	if len(s.PolicyTypes) == 0 && !d.failed(types) {
		s.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
		if len(s.Egress) > 0 || d.failed(path+".egress") {
			s.PolicyTypes = append(s.PolicyTypes, networkingv1.PolicyTypeEgress)
		}
	}
	if len(s.PolicyTypes) > 2 {
		d.errorf(types, "has %d items, more than 2", len(s.PolicyTypes))
	}
	for i, t := range s.PolicyTypes {
		if p := index(types, i); t != networkingv1.PolicyTypeIngress && t != networkingv1.PolicyTypeEgress && !d.failed(p) {
			d.errorf(p, "%q is neither Ingress nor Egress", t)
		}
	}
}

func (d *decoder) netpolPorts(ports []networkingv1.NetworkPolicyPort, path string) {
	for i := range ports {
		port, p := &ports[i], index(path, i)
		switch {
		case d.failed(p + ".protocol"):
		case port.Protocol == nil:
			tcp := corev1.ProtocolTCP
			port.Protocol = &tcp
		case !slices.Contains([]corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}, *port.Protocol):
			d.errorf(p+".protocol", "%q is none of TCP, UDP, SCTP", *port.Protocol)
		}
		if d.failed(p+".port") || d.failed(p+".endPort") {
			continue
		}
		d.netpolPort(port, p)
	}
}

func (d *decoder) netpolPort(port *networkingv1.NetworkPolicyPort, path string) {
	switch {
	case port.Port == nil:
		if port.EndPort != nil {
			d.errorf(path+".endPort", "needs port beside it")
		}
	case port.Port.Type == intstr.String:
		d.name(port.Port.StrVal, path+".port", validation.IsValidPortName)
		if port.EndPort != nil {
			d.errorf(path+".endPort", "can't stand beside a named port")
		}
	default:
		d.portNumber(port.Port.IntVal, path+".port")
		if port.EndPort == nil {
			return
		}
		d.portNumber(*port.EndPort, path+".endPort")
		if *port.EndPort < port.Port.IntVal {
			d.errorf(path+".endPort", "%d is below port %d", *port.EndPort, port.Port.IntVal)
		}
	}
}

func (d *decoder) portNumber(n int32, path string) {
	if n < 1 || n > 65535 {
		d.errorf(path, "%d is not a port: 1 to 65535", n)
	}
}

func (d *decoder) netpolPeers(peers []networkingv1.NetworkPolicyPeer, path string) {
	for i := range peers {
		peer, p := &peers[i], index(path, i)
		if peer.PodSelector == nil && peer.NamespaceSelector == nil && peer.IPBlock == nil && !d.failed(p) {
			d.errorf(p, "needs podSelector, namespaceSelector or ipBlock")
		}
		if peer.PodSelector != nil {
			d.k8sSelector(peer.PodSelector, p+".podSelector")
		}
		if peer.NamespaceSelector != nil {
			d.k8sSelector(peer.NamespaceSelector, p+".namespaceSelector")
		}
		if peer.IPBlock == nil {
			continue
		}
		if peer.PodSelector != nil || peer.NamespaceSelector != nil {
			d.errorf(p, "ipBlock can't stand beside podSelector or namespaceSelector")
		}
		d.ipBlock(peer.IPBlock, p+".ipBlock")
	}
}

func (d *decoder) ipBlock(b *networkingv1.IPBlock, path string) {
	if !d.has(path + ".cidr") {
		d.errorf(path+".cidr", "is missing")
		return
	}
	outer, known := d.ipBlockCIDR(b.CIDR, path+".cidr")
	for i, e := range b.Except {
		p := index(path+".except", i)
		inner, ok := d.ipBlockCIDR(e, p)
		if ok && known && (inner.Bits() <= outer.Bits() || !outer.Contains(inner.Addr())) {
			d.errorf(p, "%s must be smaller than %s and lie inside it", e, b.CIDR)
		}
	}
}

// ipBlockCIDR is as strict as new objects are to be: IPv4 addresses in IPv6
// form are refused, since it is not clear which family is meant.
func (d *decoder) ipBlockCIDR(s, path string) (netip.Prefix, bool) {
	p, ok := d.cidr(CIDR(s), path)
	if ok && p.Addr().Is4In6() {
		d.errorf(path, "%q is an IPv4 address in IPv6 form: write it as IPv4", s)
		return p, false
	}
	return p, ok
}

func (d *decoder) k8sSelector(s *metav1.LabelSelector, path string) {
	for _, k := range sortedKeys(s.MatchLabels) {
		p := entry(path+".matchLabels", k)
		d.name(k, p, content.IsLabelKey)
		d.name(s.MatchLabels[k], p, content.IsLabelValue)
	}
	for i := range s.MatchExpressions {
		e, p := &s.MatchExpressions[i], index(path+".matchExpressions", i)
		d.expression(Operator(e.Operator), len(e.Values), p)
		d.name(e.Key, p+".key", content.IsLabelKey)
		for j, v := range e.Values {
			d.name(v, index(p+".values", j), content.IsLabelValue)
		}
	}
}
