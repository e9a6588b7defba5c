package api

import (
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/validate/content"

	"github.com/weirnet/weir/identity"
)

// oneKind refuses a rule that lists peers of more than one kind.
func (d *decoder) oneKind(path string, lists []peerList) {
	var set []string
	for _, l := range lists {
		if l.items > 0 {
			set = append(set, l.name)
		}
	}
	if len(set) > 1 {
		d.errorf(path, "combines %s: a rule takes peers of one kind, write a rule for each", strings.Join(set, " and "))
	}
}

type peerList struct {
	name  string
	items int
}

func (d *decoder) ingressPeers(p *IngressPeers, path string) {
	d.oneKind(path, []peerList{
		{"fromEndpoints", len(p.FromEndpoints)}, {"fromCIDR", len(p.FromCIDR)}, {"fromCIDRSet", len(p.FromCIDRSet)},
		{"fromEntities", len(p.FromEntities)}, {"fromGroups", len(p.FromGroups)}, {"fromNodes", len(p.FromNodes)},
	})
	d.selectors(p.FromEndpoints, path+".fromEndpoints")
	d.selectors(p.FromNodes, path+".fromNodes")
	d.cidrs(p.FromCIDR, path+".fromCIDR")
	d.cidrRules(p.FromCIDRSet, path+".fromCIDRSet")
	d.entities(p.FromEntities, path+".fromEntities")
	d.gone(len(p.FromRequires), path+".fromRequires")
	d.unsupported(len(p.FromGroups) > 0, path+".fromGroups")
}

func (d *decoder) egressPeers(p *EgressPeers, fqdns int, path string) {
	d.oneKind(path, []peerList{
		{"toEndpoints", len(p.ToEndpoints)}, {"toCIDR", len(p.ToCIDR)}, {"toCIDRSet", len(p.ToCIDRSet)},
		{"toEntities", len(p.ToEntities)}, {"toServices", len(p.ToServices)}, {"toGroups", len(p.ToGroups)},
		{"toNodes", len(p.ToNodes)}, {"toFQDNs", fqdns},
	})
	d.selectors(p.ToEndpoints, path+".toEndpoints")
	d.selectors(p.ToNodes, path+".toNodes")
	d.cidrs(p.ToCIDR, path+".toCIDR")
	d.cidrRules(p.ToCIDRSet, path+".toCIDRSet")
	d.entities(p.ToEntities, path+".toEntities")
	d.gone(len(p.ToRequires), path+".toRequires")
	d.unsupported(len(p.ToGroups) > 0, path+".toGroups")
	for i, s := range p.ToServices {
		if s.K8sServiceSelector == nil {
			continue
		}
		sp := index(path+".toServices", i) + ".k8sServiceSelector.selector"
		if !d.has(sp) {
			d.errorf(sp, "is missing")
		}
		d.selector(&s.K8sServiceSelector.Selector, sp)
	}
}

func (d *decoder) gone(items int, path string) {
	if items > 0 {
		d.errorf(path, "no longer exists: write a deny rule for the peers that lack the labels")
	}
}

func (d *decoder) unsupported(set bool, path string) {
	if set {
		d.errorf(path, "%s", notSupported)
	}
}

func (d *decoder) entities(list []Entity, path string) {
	for i, e := range list {
		if p := index(path, i); !slices.Contains(Entities(), e) && !d.failed(p) {
			names := make([]string, 0, len(Entities()))
			for _, known := range Entities() {
				names = append(names, string(known))
			}
			d.errorf(p, "%q is no entity: %s", e, strings.Join(names, ", "))
		}
	}
}

func (d *decoder) cidrs(list []CIDR, path string) {
	for i, c := range list {
		d.cidr(c, index(path, i))
	}
}

// cidr returns the prefix, or records why it is none.
func (d *decoder) cidr(c CIDR, path string) (netip.Prefix, bool) {
	if d.failed(path) {
		return netip.Prefix{}, false
	}
	p, err := c.Prefix()
	if err == nil {
		return p, true
	}
	if a, err := netip.ParseAddr(string(c)); err == nil && a.Zone() == "" {
		d.errorf(path, "%q lacks the length of the prefix: write %s/%d", c, a, a.BitLen())
		return p, false
	}
	d.errorf(path, "%q is not a CIDR such as 10.0.0.0/8 or 2001:db8::/32", c)
	return p, false
}

func (d *decoder) cidrRules(list []CIDRRule, path string) {
	for i := range list {
		r, p := &list[i], index(path, i)
		set := 0
		for _, name := range []string{".cidr", ".cidrGroupRef", ".cidrGroupSelector"} {
			if d.has(p + name) {
				set++
			}
		}
		if set != 1 && !d.failed(p) {
			d.errorf(p, "needs exactly one of cidr, cidrGroupRef and cidrGroupSelector")
		}
		if d.has(p + ".cidrGroupRef") {
			d.name(r.CIDRGroupRef, p+".cidrGroupRef", content.IsDNS1123Subdomain)
		}
		if r.CIDRGroupSelector != nil {
			d.peerSelector(r.CIDRGroupSelector, p+".cidrGroupSelector")
		}
		var outer netip.Prefix
		known := false
		if d.has(p + ".cidr") {
			outer, known = d.cidr(r.CIDR, p+".cidr")
		}
		for j, e := range r.Except {
			ep := index(p+".except", j)
			inner, ok := d.cidr(e, ep)
			if ok && known && (inner.Bits() < outer.Bits() || !outer.Contains(inner.Addr())) {
				d.errorf(ep, "%s does not lie inside %s", e, r.CIDR)
			}
		}
	}
}

func (d *decoder) selectors(list []EndpointSelector, path string) {
	for i := range list {
		d.peerSelector(&list[i], index(path, i))
	}
}

// peerSelector checks a selector of peers. A key of all addresses is refused:
// Cilium finds it at those that some CIDR of some policy takes in, which
// nobody means.
func (d *decoder) peerSelector(s *EndpointSelector, path string) {
	d.selector(s, path)
	for _, k := range sortedKeys(s.MatchLabels) {
		d.everyAddress(k, entry(path+".matchLabels", k))
	}
	for i, e := range s.MatchExpressions {
		d.everyAddress(e.Key, index(path+".matchExpressions", i)+".key")
	}
}

func (d *decoder) everyAddress(key, path string) {
	source, rest := SplitKey(key, SourceAny)
	if p, ok := identity.PrefixOfKey(rest); source == SourceCIDR && ok && p.Bits() == 0 {
		d.errorf(path, "%q: a key can't stand for all addresses: write reserved:world-ipv4 or reserved:world-ipv6", key)
	}
}

// selector checks labels and expressions. Keys may have a source.
func (d *decoder) selector(s *EndpointSelector, path string) {
	for _, k := range sortedKeys(s.MatchLabels) {
		p := entry(path+".matchLabels", k)
		d.labelKey(k, p)
		d.name(s.MatchLabels[k], p, content.IsLabelValue)
	}
	for i := range s.MatchExpressions {
		e, p := &s.MatchExpressions[i], index(path+".matchExpressions", i)
		d.expression(e.Operator, len(e.Values), p)
		if d.has(p + ".key") {
			d.labelKey(e.Key, p+".key")
		} else if !d.failed(p) {
			d.errorf(p+".key", "is missing")
		}
		for j, v := range e.Values {
			d.name(v, index(p+".values", j), content.IsLabelValue)
		}
	}
}

func (d *decoder) expression(op Operator, values int, path string) {
	if d.failed(path+".operator") || d.failed(path+".values") {
		return
	}
	switch op {
	case In, NotIn:
		if values == 0 {
			d.errorf(path+".values", "is missing: operator %s needs at least one", op)
		}
	case Exists, DoesNotExist:
		if values > 0 {
			d.errorf(path+".values", "must be empty with operator %s", op)
		}
	case "":
		d.errorf(path+".operator", "is missing: In, NotIn, Exists or DoesNotExist")
	default:
		d.errorf(path+".operator", "%q is none of In, NotIn, Exists, DoesNotExist", op)
	}
}

// labelKey checks a key: a Kubernetes label key, with a source and a colon
// before it or not.
func (d *decoder) labelKey(key, path string) {
	parts := strings.Split(key, ":")
	if len(parts) > 2 {
		d.errorf(path, "%q has more than one colon: one stands behind the source", key)
		return
	}
	if len(parts) == 2 && !isAlphanumeric(parts[0]) {
		d.errorf(path, "%q: the source before the colon must be letters and digits", key)
	}
	d.name(parts[len(parts)-1], path, content.IsLabelKey)
}

func isAlphanumeric(s string) bool {
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return s != ""
}

// name checks a text with one of the Kubernetes API's functions.
func (d *decoder) name(value, path string, check func(string) []string) {
	if d.failed(path) {
		return
	}
	for _, message := range check(value) {
		d.errorf(path, "%q: %s", value, message)
	}
}
