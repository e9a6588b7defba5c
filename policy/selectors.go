package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy/api"
	"github.com/weirnet/weir/policy/dnsrules"
)

// scope narrows down which peers a selector can select at all.
type scope uint8

const (
	anyScope   scope = iota
	podScope         // pods, of the selector's namespaces if it names some
	otherScope       // everything but pods and names
	namesScope       // names
)

// selector selects peers. One is made for each peer list item of a rule; those
// with one key select the same peers and share their members in the table.
type selector struct {
	key        string
	text       string // for people
	scope      scope
	namespaces []string
	matches    func(*peer) bool
	// particular: it is about certain peers, not about everybody, the world,
	// the cluster or all pods around. Selectors with one key may differ in it.
	particular bool

	// Kept while a compiled policy uses it.
	users   int
	members map[*peer]struct{}
	uses    map[*grant]*enforcement
}

// selects tells whether a peer is selected.
func (s *selector) selects(p *peer) bool {
	if p.kind == pairPeer {
		return s.matches(p.pair.outside) || s.matches(p.pair.named)
	}
	return s.matches(p)
}

// labelSelector selects pods by labels, or with scope anyScope every peer.
func labelSelector(s identity.Selector, sc scope, text string) *selector {
	sel := &selector{key: fmt.Sprintf("labels %d ", sc) + s.Key(), text: text, scope: sc}
	if sc == podScope {
		sel.namespaces, _ = s.Values(identity.SourceK8s, identity.KeyNamespace)
		sel.matches = func(p *peer) bool { return p.kind == podPeer && s.Matches(p.labels) }
	} else {
		sel.matches = func(p *peer) bool {
			return p.kind != servicePeer && p.kind != unknownPeer && p.kind != namesPeer && s.Matches(p.labels)
		}
	}
	return sel
}

// nodeSelector selects nodes other than this one.
func nodeSelector(s identity.Selector, text string) *selector {
	return &selector{key: "nodes " + s.Key(), text: text, scope: otherScope, particular: true,
		matches: func(p *peer) bool { return p.kind == nodePeer && s.Matches(p.labels) }}
}

// entitySelector selects what an entity stands for; not for EntityAll, which
// is every peer.
func entitySelector(e api.Entity) *selector {
	reserved := func(names ...string) func(*peer) bool {
		return func(p *peer) bool {
			return slices.ContainsFunc(names, p.labels.HasReserved)
		}
	}
	sel := &selector{key: "entity " + string(e), text: "entity " + string(e), scope: otherScope}
	sel.particular = e == api.EntityHost || e == api.EntityRemoteNode || e == api.EntityKubeAPIServer
	switch e {
	case api.EntityWorld:
		sel.matches = reserved(identity.ReservedWorld, identity.ReservedWorldIPv4, identity.ReservedWorldIPv6)
	case api.EntityCluster, api.EntityClusterMesh:
		known := reserved(identity.ReservedHost, identity.ReservedRemoteNode, identity.ReservedInit, identity.ReservedIngress,
			identity.ReservedHealth, identity.ReservedUnmanaged, identity.ReservedKubeAPIServer)
		sel.scope = anyScope
		sel.matches = func(p *peer) bool { return p.kind == podPeer || p.kind == unknownPeer || known(p) }
	case api.EntityNone:
		sel.matches = func(*peer) bool { return false }
	default: // each of the others is a reserved label of that name
		sel.matches = reserved(string(e))
	}
	return sel
}

// cidrSelector selects outside addresses in one of the prefixes and in none of
// the exceptions.
func cidrSelector(prefixes, except []netip.Prefix, text string) *selector {
	return &selector{key: "cidr " + prefixList(prefixes) + " except " + prefixList(except), text: text, scope: otherScope,
		particular: !slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Bits() == 0 }),
		matches: func(p *peer) bool {
			return p.isWorld() && anyCovers(prefixes, p.prefix) && !anyCovers(except, p.prefix)
		}}
}

// groupSelector selects outside addresses by the labels of the groups they
// are in: an address has the labels of all of them.
func groupSelector(s identity.Selector, groups []*cidrGroup, except []netip.Prefix, version uint64, text string) *selector {
	return &selector{key: fmt.Sprintf("groups %d %s except %s", version, s.Key(), prefixList(except)), text: text, scope: otherScope,
		particular: !slices.ContainsFunc(groups, func(g *cidrGroup) bool {
			return slices.ContainsFunc(g.prefixes, func(p netip.Prefix) bool { return p.Bits() == 0 })
		}),
		matches: func(p *peer) bool {
			if !p.isWorld() || anyCovers(except, p.prefix) {
				return false
			}
			var in []*cidrGroup
			for _, g := range groups {
				if anyCovers(g.prefixes, p.prefix) {
					in = append(in, g)
				}
			}
			if len(s) == 0 {
				return len(in) > 0
			}
			for i := range s {
				if !groupsMeet(&s[i], in, p.labels) {
					return false
				}
			}
			return true
		}}
}

// groupsMeet tells whether an address in these groups meets a requirement.
// Only labels of groups have values to ask for; the address's own labels, and
// what the groups are named by, are there or not.
func groupsMeet(r *identity.Requirement, groups []*cidrGroup, own identity.Labels) bool {
	anySource := r.Source == identity.SourceAny || r.Source == identity.SourceUnspec
	ofGroups := anySource || r.Source == api.SourceCIDRGroup
	has := false
	switch r.Operator {
	case identity.In, identity.NotIn:
		has = ofGroups && slices.ContainsFunc(groups, func(g *cidrGroup) bool {
			v, ok := g.labels[r.Key]
			return ok && slices.Contains(r.Values, v)
		})
	default:
		if r.Source != api.SourceCIDRGroup {
			_, has = own.Get(r.Source, r.Key)
		}
		has = has || ofGroups && slices.ContainsFunc(groups, func(g *cidrGroup) bool {
			_, ok := g.labels[r.Key]
			return ok || r.Key == groupNameKey+g.name
		})
	}
	if r.Operator == identity.NotIn || r.Operator == identity.Absent {
		return !has
	}
	return has
}

// fqdnSelector selects what the addresses of names are known as.
func fqdnSelector(s dnsrules.Selector) *selector {
	text := s.In("").String()
	return &selector{key: fqdnKey(s), text: "name " + text, scope: namesScope,
		particular: strings.Trim(text, "*.") != "",
		matches:    func(p *peer) bool { return p.kind == namesPeer && slices.Contains(p.fqdns, s) }}
}

func fqdnKey(s dnsrules.Selector) string {
	return fmt.Sprintf("fqdn %q %q %q", s.Namespace, s.Name, s.Pattern)
}

// portNameSelector selects the pods that have a port of that name.
func portNameSelector(name string, protos []uint8) *selector {
	return &selector{key: fmt.Sprintf("port %q %d", name, protos), text: "pods with a port named " + name, scope: podScope,
		matches: func(p *peer) bool {
			return p.kind == podPeer && slices.ContainsFunc(protos, func(proto uint8) bool { return len(p.named(name, proto)) > 0 })
		}}
}

// serviceSelector selects a service's cluster IP.
func serviceSelector(o Object) *selector {
	return &selector{key: "service " + o.Namespace + "/" + o.Name, text: "service " + o.Namespace + "/" + o.Name, scope: otherScope,
		matches: func(p *peer) bool { return p.kind == servicePeer && p.service == o }}
}

func anyCovers(prefixes []netip.Prefix, p netip.Prefix) bool {
	for _, q := range prefixes {
		if q.Bits() <= p.Bits() && q.Contains(p.Addr()) {
			return true
		}
	}
	return false
}

func prefixList(prefixes []netip.Prefix) string {
	parts := make([]string, len(prefixes))
	for i, p := range prefixes {
		parts[i] = p.String()
	}
	slices.Sort(parts)
	return strings.Join(parts, ",")
}

// selectorTable keeps the members of every selector in use, as peers come
// and go.
type selectorTable struct {
	byKey       map[string]*selector
	byNamespace map[string]map[*selector]struct{} // podScope with namespaces
	pods        map[*selector]struct{}            // other podScope and anyScope
	others      map[*selector]struct{}            // otherScope and anyScope
}

func newSelectorTable() *selectorTable {
	return &selectorTable{byKey: map[string]*selector{}, byNamespace: map[string]map[*selector]struct{}{},
		pods: map[*selector]struct{}{}, others: map[*selector]struct{}{}}
}

// acquire returns the table's selector with the key of want, and holds it.
func (t *selectorTable) acquire(want *selector, peers *peerTable) *selector {
	if s, ok := t.byKey[want.key]; ok {
		s.users++
		return s
	}
	s := *want
	s.users, s.members, s.uses = 1, map[*peer]struct{}{}, map[*grant]*enforcement{}
	sel := &s
	consider := func(ps map[*peer]struct{}) {
		for p := range ps {
			if sel.matches(p) {
				sel.members[p] = struct{}{}
			}
		}
	}
	t.byKey[sel.key] = sel
	switch {
	case sel.scope == podScope && sel.namespaces != nil:
		for _, ns := range sel.namespaces {
			addTo(t.byNamespace, ns, sel)
			consider(peers.pods[ns])
		}
		return sel
	case sel.scope == namesScope:
		consider(peers.names)
		return sel
	case sel.scope != otherScope:
		t.pods[sel] = struct{}{}
		for _, ps := range peers.pods {
			consider(ps)
		}
	}
	if sel.scope != podScope {
		t.others[sel] = struct{}{}
		consider(peers.others)
	}
	return sel
}

func (t *selectorTable) release(s *selector) {
	if s.users--; s.users > 0 {
		return
	}
	delete(t.byKey, s.key)
	delete(t.pods, s)
	delete(t.others, s)
	for _, ns := range s.namespaces {
		takeFrom(t.byNamespace, ns, s)
	}
}

// update follows peers that came and went, and tells the enforcements that
// name those that came.
func (t *selectorTable) update(added, removed []*peer) {
	for _, p := range removed {
		t.each(p, func(s *selector) { delete(s.members, p) })
	}
	for _, p := range added {
		t.each(p, func(s *selector) {
			if !s.matches(p) {
				return
			}
			s.members[p] = struct{}{}
			for g, f := range s.uses {
				f.name(g, p)
				f.pending[p] = struct{}{}
			}
		})
	}
}

// each calls f for every selector that could select p.
func (t *selectorTable) each(p *peer, f func(*selector)) {
	if p.kind == namesPeer {
		for _, s := range p.fqdns {
			if s, ok := t.byKey[fqdnKey(s)]; ok {
				f(s)
			}
		}
		return
	}
	if p.kind != podPeer {
		for s := range t.others {
			f(s)
		}
		return
	}
	for s := range t.byNamespace[p.namespace] {
		f(s)
	}
	for s := range t.pods {
		f(s)
	}
}
