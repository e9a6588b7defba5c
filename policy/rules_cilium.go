package policy

import (
	"fmt"
	"maps"

	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy/api"
	"github.com/weirnet/weir/policy/dnsrules"
	"github.com/weirnet/weir/policy/httprules"
)

// cilium makes the rules of one `spec` or one item of `specs`.
func (t *translator) cilium(r *api.Rule, path string) {
	nodes, selects := r.EndpointSelector == nil, r.EndpointSelector
	if nodes {
		selects = r.NodeSelector
	}
	subject := t.subject(selects)
	ingress, egress := r.DefaultDeny()
	add := func(direction Direction, deny bool, field string, i int, fill func(*rule)) {
		out := &rule{path: fmt.Sprintf("%s.%s[%d]", path, field, i), direction: direction, deny: deny,
			subject: subject, namespace: t.policy.object.Namespace, nodes: nodes, defaultDeny: ingress}
		if direction == Egress {
			out.defaultDeny = egress
		}
		fill(out)
		if t.doubtful {
			// A group it needs was refused, so what it denies is not known.
			out.closed, out.any, out.peers, out.grants, t.doubtful = true, false, nil, nil, false
			out.defaultDeny = true
		}
		if !out.any && len(out.peers) == 0 {
			out.grants = nil // it allows and denies nothing, but selects
		}
		t.add(out)
	}
	for i := range r.Ingress {
		in := &r.Ingress[i]
		add(Ingress, false, "ingress", i, func(out *rule) {
			out.grants = t.portRules(out.path, in.ToPorts, in.ICMPs)
			t.ingressPeers(out, &in.IngressPeers, len(in.ToPorts) > 0 || len(in.ICMPs) > 0)
		})
	}
	for i := range r.IngressDeny {
		in := &r.IngressDeny[i]
		add(Ingress, true, "ingressDeny", i, func(out *rule) {
			out.grants = t.portRules(out.path, denyPorts(in.ToPorts), in.ICMPs)
			t.ingressPeers(out, &in.IngressPeers, len(in.ToPorts) > 0 || len(in.ICMPs) > 0)
		})
	}
	for i := range r.Egress {
		e := &r.Egress[i]
		add(Egress, false, "egress", i, func(out *rule) {
			out.grants = t.portRules(out.path, e.ToPorts, e.ICMPs)
			t.egressPeers(out, &e.EgressPeers, e.ToFQDNs, len(e.ToPorts) > 0 || len(e.ICMPs) > 0)
		})
	}
	for i := range r.EgressDeny {
		e := &r.EgressDeny[i]
		add(Egress, true, "egressDeny", i, func(out *rule) {
			out.grants = t.portRules(out.path, denyPorts(e.ToPorts), e.ICMPs)
			t.egressPeers(out, &e.EgressPeers, nil, len(e.ToPorts) > 0 || len(e.ICMPs) > 0)
		})
	}
}

// subject translates an endpointSelector. A namespaced policy selects in its
// own namespace only, whatever its matchLabels say about it.
func (t *translator) subject(s *api.EndpointSelector) identity.Selector {
	const own = identity.SourceK8s + ":" + identity.KeyNamespace
	if _, ok := s.MatchLabels[own]; ok && t.policy.object.Namespace != "" {
		s = &api.EndpointSelector{MatchLabels: maps.Clone(s.MatchLabels), MatchExpressions: s.MatchExpressions}
		delete(s.MatchLabels, own)
	}
	return selectorOf(s, api.SourceAny)
}

func selectorOf(s *api.EndpointSelector, defaultSource string) identity.Selector {
	reqs := s.Requirements(defaultSource)
	out := make(identity.Selector, len(reqs))
	for i, r := range reqs {
		out[i] = identity.Requirement{Source: r.Source, Key: r.Key, Values: r.Values}
		switch r.Operator {
		case api.In:
			out[i].Operator = identity.In
		case api.NotIn:
			out[i].Operator = identity.NotIn
		case api.Exists:
			out[i].Operator = identity.Exists
		case api.DoesNotExist:
			out[i].Operator = identity.Absent
		default: // the decoder lets no other pass; nothing matches it
			out[i].Operator, out[i].Values = identity.In, nil
		}
	}
	return out
}

func denyPorts(in []api.PortDenyRule) []api.PortRule {
	if in == nil {
		return nil
	}
	out := make([]api.PortRule, len(in))
	for i, p := range in {
		out[i].Ports = p.Ports
	}
	return out
}

// portRules translates toPorts and icmps. Neither written, or empty: all.
func (t *translator) portRules(path string, toPorts []api.PortRule, icmps []api.ICMPRule) []*portGrant {
	if len(toPorts) == 0 && len(icmps) == 0 {
		return []*portGrant{{path: path, all: true}}
	}
	var out []*portGrant
	for i := range toPorts {
		p := &toPorts[i]
		g := &portGrant{path: fmt.Sprintf("%s.toPorts[%d]", path, i), l7: l7Of(p, fmt.Sprintf("%s.toPorts[%d].rules", path, i))}
		for _, pp := range p.Ports {
			g.addPort(pp)
		}
		out = append(out, g.done())
	}
	for i := range icmps {
		g := &portGrant{path: fmt.Sprintf("%s.icmps[%d]", path, i)}
		for j := range icmps[i].Fields {
			f := &icmps[i].Fields[j]
			if n, ok := f.Number(); ok {
				proto := uint8(protoICMP)
				if f.Family == api.FamilyIPv6 {
					proto = protoICMPv6
				}
				g.ports = append(g.ports, onePort(proto, uint16(n)))
			}
		}
		out = append(out, g.done())
	}
	return out
}

func (g *portGrant) addPort(pp api.PortProtocol) {
	protos := pp.Protocol.Numbers()
	if name := pp.Name(); name != "" {
		for _, proto := range protos {
			g.spans = append(g.spans, span{proto: proto, name: name})
		}
		g.names = append(g.names, portName{name: name, protos: protos, end: uint16(max(0, min(pp.EndPort, 65535)))})
		return
	}
	first, last, ok := pp.Range()
	if !ok {
		return
	}
	for _, proto := range protos {
		g.spans = append(g.spans, span{proto: proto, first: first, last: last})
		if first == 0 && last == 0 || !pp.Protocol.HasPorts() {
			g.ports = append(g.ports, ports{proto: proto})
		} else {
			g.ports = appendRange(g.ports, proto, first, last)
		}
	}
}

func (g *portGrant) done() *portGrant {
	g.ports = sortPorts(g.ports)
	return g
}

// l7Of reads the L7 rules of a port list; nil: none.
func l7Of(p *api.PortRule, path string) *l7Rules {
	switch {
	case len(p.ServerNames) > 0:
		return &l7Rules{kind: l7TLS}
	case p.Rules.Empty():
		return nil
	case len(p.Rules.DNS) > 0:
		return dnsOf(p.Rules.DNS, path)
	case len(p.Rules.Kafka) > 0:
		return &l7Rules{kind: l7Kafka}
	}
	out := &l7Rules{kind: l7HTTP}
	for i, h := range p.Rules.HTTP {
		rule := httprules.Rule{Path: h.Path, Method: h.Method, Host: h.Host, Headers: h.Headers}
		for _, m := range h.HeaderMatches {
			rule.HeaderMatches = append(rule.HeaderMatches, httprules.HeaderMatch{Mismatch: m.Mismatch, Name: m.Name, Value: m.Value})
		}
		out.http = append(out.http, rule)
		out.path = append(out.path, fmt.Sprintf("%s.http[%d]", path, i))
	}
	return out
}

func dnsOf(rules []api.DNSRule, path string) *l7Rules {
	out := &l7Rules{kind: l7DNS}
	for i, r := range rules {
		out.dns = append(out.dns, dnsrules.Rule{Selector: dnsrules.NewSelector(r.MatchName, r.MatchPattern)})
		out.path = append(out.path, fmt.Sprintf("%s.dns[%d]", path, i))
	}
	return out
}
