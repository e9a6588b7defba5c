package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy/api"
	"github.com/weirnet/weir/policy/httprules"
)

// cilium makes the rules of one `spec` or one item of `specs`.
func (t *translator) cilium(r *api.Rule, path string) {
	if r.EndpointSelector == nil {
		t.policy.selectsNodes = true
		return
	}
	subject := t.subject(r.EndpointSelector)
	init := slices.ContainsFunc(subject, func(q identity.Requirement) bool {
		return q.Source == identity.SourceReserved && q.Key == identity.ReservedInit
	})
	ingress, egress := r.DefaultDeny()
	add := func(direction Direction, deny bool, field string, i int, fill func(*rule)) {
		out := &rule{path: fmt.Sprintf("%s.%s[%d]", path, field, i), direction: direction, deny: deny,
			subject: subject, namespace: t.policy.object.Namespace, defaultDeny: ingress}
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
			t.ingressPeers(out, &in.IngressPeers, len(in.ToPorts) > 0 || len(in.ICMPs) > 0, init)
		})
	}
	for i := range r.IngressDeny {
		in := &r.IngressDeny[i]
		add(Ingress, true, "ingressDeny", i, func(out *rule) {
			out.grants = t.portRules(out.path, denyPorts(in.ToPorts), in.ICMPs)
			t.ingressPeers(out, &in.IngressPeers, len(in.ToPorts) > 0 || len(in.ICMPs) > 0, init)
		})
	}
	for i := range r.Egress {
		e := &r.Egress[i]
		add(Egress, false, "egress", i, func(out *rule) {
			out.grants = t.portRules(out.path, e.ToPorts, e.ICMPs)
			t.egressPeers(out, &e.EgressPeers, e.ToFQDNs != nil, len(e.ToPorts) > 0 || len(e.ICMPs) > 0, init)
		})
	}
	for i := range r.EgressDeny {
		e := &r.EgressDeny[i]
		add(Egress, true, "egressDeny", i, func(out *rule) {
			out.grants = t.portRules(out.path, denyPorts(e.ToPorts), e.ICMPs)
			t.egressPeers(out, &e.EgressPeers, false, len(e.ToPorts) > 0 || len(e.ICMPs) > 0, init)
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

// peerList collects the peers of a rule. A list that is there and empty makes
// the whole rule select nobody.
type peerList struct {
	seen, empty, all bool
	out              []*selector
}

func list[T any](l *peerList, items []T, each func(T)) {
	if items == nil {
		return
	}
	l.seen = true
	if len(items) == 0 {
		l.empty = true
	}
	for _, it := range items {
		each(it)
	}
}

// into puts the peers into the rule: everybody where no list was written and
// there are ports, nobody where neither was.
func (l *peerList) into(r *rule, hasPorts bool) {
	switch {
	case l.empty:
	case !l.seen:
		r.any = hasPorts
	default:
		r.any, r.peers = l.all, l.out
	}
}

func (t *translator) ingressPeers(r *rule, p *api.IngressPeers, hasPorts, init bool) {
	var l peerList
	t.commonPeers(&l, p.FromEndpoints, p.FromNodes, p.FromEntities, p.FromCIDR, p.FromCIDRSet, init, r.deny)
	l.seen = l.seen || p.FromGroups != nil
	l.into(r, hasPorts)
}

func (t *translator) egressPeers(r *rule, p *api.EgressPeers, fqdns, hasPorts, init bool) {
	var l peerList
	t.commonPeers(&l, p.ToEndpoints, p.ToNodes, p.ToEntities, p.ToCIDR, p.ToCIDRSet, init, r.deny)
	// These lists select nobody where they are empty, or resolve to nothing:
	// names stand for no address yet, groups are refused.
	l.seen = l.seen || fqdns || p.ToServices != nil || p.ToGroups != nil
	for _, s := range p.ToServices {
		t.servicePeers(&l, s, r.deny)
	}
	l.into(r, hasPorts)
}

func (t *translator) commonPeers(l *peerList, endpoints, nodes []api.EndpointSelector, entities []api.Entity,
	cidrs []api.CIDR, sets []api.CIDRRule, init, deny bool) {
	list(l, endpoints, func(s api.EndpointSelector) { l.out = append(l.out, t.endpoints(&s, init)) })
	list(l, nodes, func(s api.EndpointSelector) {
		sel := selectorOf(&s, api.SourceAny)
		t.nodeKeys(sel)
		l.out = append(l.out, nodeSelector(sel, "nodes "+describe(&s)))
	})
	list(l, entities, func(e api.Entity) {
		if e == api.EntityAll {
			l.all = true
			return
		}
		l.out = append(l.out, entitySelector(e))
	})
	list(l, cidrs, func(c api.CIDR) { l.out = append(l.out, t.cidr(c, nil)) })
	list(l, sets, func(c api.CIDRRule) { l.out = append(l.out, t.cidrRule(&c, deny)) })
}

// endpoints translates a selector of peers. It stays in the policy's namespace
// unless it speaks of namespaces, and selects pods only unless it speaks of
// reserved labels.
func (t *translator) endpoints(s *api.EndpointSelector, init bool) *selector {
	sel := selectorOf(s, api.SourceAny)
	namespace, namespaceLabels := false, false
	for _, r := range sel {
		if r.Source == identity.SourceReserved {
			t.nodeKeys(sel)
			return labelSelector(sel, anyScope, "endpoints "+describe(s))
		}
		if r.Source == identity.SourceAny || r.Source == identity.SourceK8s {
			namespace = namespace || r.Key == identity.KeyNamespace
			namespaceLabels = namespaceLabels || strings.HasPrefix(r.Key, identity.KeyNamespaceLabels)
		}
	}
	text := "endpoints " + describe(s)
	if ns := t.policy.object.Namespace; ns != "" && !namespace && !namespaceLabels {
		sel = append(sel, identity.Requirement{Source: identity.SourceK8s, Key: identity.KeyNamespace, Operator: identity.In, Values: []string{ns}})
		text += " in namespace " + ns
	}
	return labelSelector(sel, podScope, text)
}

// nodeKeys notes the labels that nodes must be told apart by.
func (t *translator) nodeKeys(s identity.Selector) {
	for _, r := range s {
		if r.Source == identity.SourceAny || r.Source == identity.SourceNode {
			t.policy.nodeKeys = append(t.policy.nodeKeys, r.Key)
		}
	}
}

func (t *translator) cidr(c api.CIDR, except []api.CIDR) *selector {
	p, ok := parsePrefix(string(c))
	if !ok {
		return cidrSelector(nil, nil, "CIDR "+string(c))
	}
	return cidrSelector(t.tellApart([]netip.Prefix{p}), t.tellApart(prefixes(except)), cidrText("CIDR "+p.String(), except))
}

func (t *translator) cidrRule(c *api.CIDRRule, deny bool) *selector {
	switch {
	case c.CIDRGroupRef != "":
		t.policy.usesGroups = true
		var ps []netip.Prefix
		if g, ok := t.groups[c.CIDRGroupRef]; ok {
			ps = g.prefixes
			t.doubtful = t.doubtful || deny && g.refused
		}
		return cidrSelector(t.tellApart(ps), t.tellApart(prefixes(c.Except)), cidrText("CIDR group "+c.CIDRGroupRef, c.Except))
	case c.CIDRGroupSelector != nil:
		t.policy.usesGroups = true
		names := slices.Sorted(maps.Keys(t.groups))
		groups := make([]*cidrGroup, len(names))
		sel := selectorOf(c.CIDRGroupSelector, api.SourceCIDRGroup)
		leavesOut := slices.ContainsFunc(sel, func(r identity.Requirement) bool {
			return r.Operator == identity.NotIn || r.Operator == identity.Absent
		})
		for i, n := range names {
			groups[i] = t.groups[n]
			t.tellApart(groups[i].prefixes)
			t.doubtful = t.doubtful || (deny || leavesOut) && groups[i].refused
		}
		return groupSelector(sel, groups, t.tellApart(prefixes(c.Except)), t.groupsVersion,
			cidrText("CIDR groups "+describe(c.CIDRGroupSelector), c.Except))
	}
	return t.cidr(c.CIDR, c.Except)
}

// tellApart notes prefixes whose addresses need identities of their own.
func (t *translator) tellApart(ps []netip.Prefix) []netip.Prefix {
	t.policy.prefixes = append(t.policy.prefixes, ps...)
	return ps
}

func prefixes(cidrs []api.CIDR) []netip.Prefix {
	var out []netip.Prefix
	for _, c := range cidrs {
		if p, ok := parsePrefix(string(c)); ok {
			out = append(out, p)
		}
	}
	return out
}

func cidrText(text string, except []api.CIDR) string {
	if len(except) > 0 {
		text += fmt.Sprint(" except ", except)
	}
	return text
}

// servicePeers selects what is behind services: pods by the service's own
// selector, or the outside addresses among its endpoints. A deny rule also
// takes the cluster IP itself.
func (t *translator) servicePeers(l *peerList, s api.Service, deny bool) {
	t.policy.usesServices = true
	for _, svc := range t.services(s) {
		text := "service " + svc.object.Namespace + "/" + svc.object.Name
		if len(svc.src.Selector) > 0 {
			l.out = append(l.out, labelSelector(svc.podSelector(), podScope, text))
		} else {
			var ps []netip.Prefix
			for _, b := range svc.addresses() {
				ps = append(ps, hostPrefix(b))
			}
			l.out = append(l.out, cidrSelector(t.tellApart(ps), nil, text))
		}
		if deny {
			l.out = append(l.out, serviceSelector(svc.object))
		}
	}
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
		g.names = append(g.names, portName{name: name, protos: protos, end: uint16(max(0, min(pp.EndPort, 65535)))})
		return
	}
	first, last, ok := pp.Range()
	if !ok {
		return
	}
	for _, proto := range protos {
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
		return &l7Rules{kind: l7DNS}
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
