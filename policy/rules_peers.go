package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy/api"
	"github.com/weirnet/weir/policy/dnsrules"
)

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
	case l.all:
		r.any = true
	default:
		r.peers = l.out
	}
}

func (t *translator) ingressPeers(r *rule, p *api.IngressPeers, hasPorts bool) {
	var l peerList
	t.commonPeers(&l, p.FromEndpoints, p.FromNodes, p.FromEntities, p.FromCIDR, p.FromCIDRSet, r.deny)
	l.seen = l.seen || p.FromGroups != nil
	l.into(r, hasPorts)
}

func (t *translator) egressPeers(r *rule, p *api.EgressPeers, fqdns []api.FQDNSelector, hasPorts bool) {
	var l peerList
	t.commonPeers(&l, p.ToEndpoints, p.ToNodes, p.ToEntities, p.ToCIDR, p.ToCIDRSet, r.deny)
	list(&l, fqdns, func(f api.FQDNSelector) {
		s := dnsrules.NewSelector(f.MatchName, f.MatchPattern)
		t.names(&l, s)
		if ns := t.policy.object.Namespace; ns != "" {
			t.names(&l, s.In(ns)) // what servers say whom only policies of this namespace name
		}
		r.fqdns = true
	})
	// These lists select nobody where they are empty, or resolve to nothing:
	// groups are refused.
	l.seen = l.seen || p.ToServices != nil || p.ToGroups != nil
	for _, s := range p.ToServices {
		t.servicePeers(&l, s, r.deny)
	}
	l.into(r, hasPorts)
}

func (t *translator) names(l *peerList, s dnsrules.Selector) {
	t.policy.fqdns = append(t.policy.fqdns, s)
	l.out = append(l.out, fqdnSelector(s))
}

func (t *translator) commonPeers(l *peerList, endpoints, nodes []api.EndpointSelector, entities []api.Entity,
	cidrs []api.CIDR, sets []api.CIDRRule, deny bool) {
	list(l, endpoints, func(s api.EndpointSelector) { l.out = append(l.out, t.endpoints(&s)) })
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
func (t *translator) endpoints(s *api.EndpointSelector) *selector {
	sel := selectorOf(s, api.SourceAny)
	namespace, namespaceLabels := false, false
	for _, r := range sel {
		if r.Source == identity.SourceReserved {
			t.nodeKeys(sel)
			t.cidrKeys(sel)
			out := labelSelector(sel, anyScope, "endpoints "+describe(s))
			out.particular = positive(&r) && !strings.HasPrefix(r.Key, identity.ReservedWorld)
			return out
		}
		if r.Source == identity.SourceAny || r.Source == identity.SourceK8s {
			namespace = namespace || r.Key == identity.KeyNamespace
			namespaceLabels = namespaceLabels || strings.HasPrefix(r.Key, identity.KeyNamespaceLabels+".")
		}
	}
	text := "endpoints " + describe(s)
	particular := slices.ContainsFunc(sel, func(r identity.Requirement) bool {
		return positive(&r) && (r.Key != identity.KeyNamespace || !slices.Contains(r.Values, t.policy.object.Namespace))
	})
	if ns := t.policy.object.Namespace; ns != "" && !namespace && !namespaceLabels {
		sel = append(sel, identity.Requirement{Source: identity.SourceK8s, Key: identity.KeyNamespace, Operator: identity.In, Values: []string{ns}})
		text += " in namespace " + ns
	}
	out := labelSelector(sel, podScope, text)
	out.particular = particular
	return out
}

// positive tells whether a requirement asks for something to be there.
func positive(r *identity.Requirement) bool {
	return r.Operator == identity.In || r.Operator == identity.Exists
}

// nodeKeys notes the labels that nodes must be told apart by.
func (t *translator) nodeKeys(s identity.Selector) {
	for _, r := range s {
		if r.Source == identity.SourceAny || r.Source == identity.SourceUnspec || r.Source == identity.SourceNode || r.Key == identity.KeyCluster {
			t.policy.nodeKeys = append(t.policy.nodeKeys, r.Key)
		}
	}
}

// cidrKeys notes the prefixes that keys of a selector name: addresses inside
// must be told apart from those outside.
func (t *translator) cidrKeys(s identity.Selector) {
	for _, r := range s {
		if r.Source != identity.SourceCIDR {
			continue
		}
		if p, ok := identity.PrefixOfKey(r.Key); ok {
			t.tellApart([]netip.Prefix{p})
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
		t.cidrKeys(sel)
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
			pods := labelSelector(svc.podSelector(), podScope, text)
			pods.particular = true
			l.out = append(l.out, pods)
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
