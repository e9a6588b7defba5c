package api

import (
	"reflect"
	"strconv"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
)

// DefaultNamespace is where a namespaced object belongs that names none.
const DefaultNamespace = "default"

// decodeInto decodes n into the value that out points to; siblings are names
// the object may have beside its own fields, for the hints at unknown ones.
func decodeInto(d *decoder, n *node, out any, path string, siblings []string) {
	v := reflect.ValueOf(out).Elem()
	if path == "" {
		fields := d.fieldsOf(v.Type())
		for _, s := range siblings {
			fields = append(fields, jsonField{name: s})
		}
		d.faults(n, path)
		for _, m := range n.fields {
			known := false
			for _, f := range fields {
				if known = f.name == m.key && f.index != nil; known {
					d.value(m.value, v.FieldByIndex(f.index), m.key)
					break
				}
			}
			if !known {
				p := printable(m.key)
				d.lines[p] = m.line
				d.unknown(p, m.key, fields)
			}
		}
		return
	}
	d.value(n, v, path)
}

// Policy decodes and checks a policy object. Whatever is wrong with it is in
// Refused, and Closed then says what is closed for it; a policy is always
// returned, except for documents of other kinds: nil.
func (doc *Document) Policy() *Policy {
	if !doc.IsPolicy() || doc.Kind == KindCiliumCIDRGroup {
		return nil
	}
	d := newDecoder(doc.Source)
	p := &Policy{Kind: doc.Kind, Source: doc.Source, Lines: d.lines}
	namespaced := doc.Kind != KindClusterwide
	cilium := doc.Kind != KindNetworkPolicy
	bodies := []string{"spec"}
	if cilium {
		bodies = append(bodies, "specs")
	}
	meta, body := d.envelope(doc.root, namespaced, bodies...)
	p.Name, p.UID = doc.Name, meta.UID
	if namespaced {
		if p.Namespace = doc.Namespace; p.Namespace == "" {
			p.Namespace = DefaultNamespace
		}
	}
	wanted := "networking.k8s.io/v1"
	if cilium {
		wanted = "cilium.io/v2"
	}
	if doc.APIVersion != wanted {
		d.errorf("apiVersion", "%q is not supported: %s", doc.APIVersion, wanted)
	}
	if cilium {
		p.ciliumRules(d, body)
	} else {
		p.networkPolicy(d, body["spec"])
	}
	p.Warnings = d.lint(p, meta)
	if len(d.errs) > 0 {
		p.Refused = d.sorted()
		p.NetworkPolicy, p.Rules = nil, nil
	} else {
		p.Closed = nil
	}
	return p
}

func (p *Policy) networkPolicy(d *decoder, spec *node) {
	d.nulls = true
	doubtful := d.doubtful()
	s := &networkingv1.NetworkPolicySpec{}
	if spec != nil {
		d.value(spec, reflect.ValueOf(s).Elem(), "spec")
	}
	d.networkPolicy(s, "spec")
	p.NetworkPolicy, p.Paths = s, []string{"spec"}
	p.Closed = []Closure{d.closeNetworkPolicy(s)}
	if doubtful {
		p.Closed = []Closure{{Ingress: true, Egress: true}}
	}
}

// doubtful tells, before the rules are read, whether they may stand elsewhere
// too: written twice, or under a name that looks like theirs.
func (d *decoder) doubtful() bool {
	for _, e := range d.errs {
		if under(e.Field, "spec") || under(e.Field, "specs") ||
			!strings.Contains(e.Field, ".") && distance(strings.ToLower(e.Field), "specs") <= 2 {
			return true
		}
	}
	return false
}

func (p *Policy) ciliumRules(d *decoder, body map[string]*node) {
	doubtful := d.doubtful()
	spec, specs := body["spec"], body["specs"]
	if spec == nil && specs == nil {
		d.errorf("spec", "is missing")
	}
	if spec != nil {
		p.rule(d, spec, "spec")
	}
	if specs != nil {
		d.lines["specs"] = specs.line
		d.faults(specs, "specs")
		doubtful = doubtful || specs.kind != listNode
		switch specs.kind {
		case listNode:
			for i, item := range specs.items {
				p.rule(d, item, index("specs", i))
			}
		case nullNode:
			d.errorf("specs", "must not be null")
		default:
			d.expect(specs, listNode, "specs")
		}
	}
	// Built last: an error in one rule refuses them all, and unreadable
	// parts must be known.
	for i, r := range p.Rules {
		if doubtful {
			break
		}
		p.Closed = append(p.Closed, d.closeRule(r, p.Paths[i], p.Kind)...)
	}
	if doubtful || len(p.Rules) == 0 {
		p.Closed = []Closure{{Ingress: true, Egress: true}}
	}
}

func (p *Policy) rule(d *decoder, n *node, path string) {
	r := &Rule{}
	d.value(n, reflect.ValueOf(r).Elem(), path)
	if n.kind == objectNode {
		d.rule(r, path, p.Kind)
	}
	p.Rules, p.Paths = append(p.Rules, r), append(p.Paths, path)
}

// CIDRGroup decodes and checks a CiliumCIDRGroup; nil for documents of other
// kinds.
func (doc *Document) CIDRGroup() *CIDRGroup {
	if !doc.IsPolicy() || doc.Kind != KindCiliumCIDRGroup {
		return nil
	}
	d := newDecoder(doc.Source)
	meta, body := d.envelope(doc.root, false, "spec")
	g := &CIDRGroup{Name: doc.Name, UID: meta.UID, Labels: meta.Labels, Source: doc.Source}
	if doc.APIVersion != "cilium.io/v2" && doc.APIVersion != "cilium.io/v2alpha1" {
		d.errorf("apiVersion", "%q is not supported: cilium.io/v2", doc.APIVersion)
	}
	var spec CIDRGroupSpec
	if body["spec"] == nil {
		d.errorf("spec", "is missing")
	} else {
		d.value(body["spec"], reflect.ValueOf(&spec).Elem(), "spec")
		if !d.has("spec.externalCIDRs") {
			d.errorf("spec.externalCIDRs", "is missing")
		}
		d.cidrs(spec.ExternalCIDRs, "spec.externalCIDRs")
	}
	l := &linter{d: d}
	for i, c := range spec.ExternalCIDRs {
		l.cidr(c, index("spec.externalCIDRs", i))
	}
	g.Warnings = l.found
	if len(d.errs) > 0 {
		g.Refused = d.sorted()
		return g
	}
	g.ExternalCIDRs = spec.ExternalCIDRs
	return g
}

// String names the policy as kubectl does: "CiliumNetworkPolicy shop/web".
func (p *Policy) String() string {
	name := p.Name
	if name == "" {
		name = "(document " + strconv.Itoa(p.Source.Document) + ")"
	}
	if p.Namespace != "" {
		name = p.Namespace + "/" + name
	}
	return p.Kind + " " + name
}
