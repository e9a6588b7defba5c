package policy

import (
	"slices"

	"github.com/weirnet/weir/policy/api"
)

// settlePolicies translates what changed, and notes the subjects it selects or
// selected.
func (e *Engine) settlePolicies() {
	t := func(o Object, src *api.Policy) *policyObject {
		return (&translator{groups: e.groups, groupsVersion: e.groupsSeen, services: e.servicesNamed}).translate(o, src)
	}
	for o, src := range e.dirty.policies {
		var p *policyObject
		if src != nil {
			p = t(o, src)
		}
		e.replacePolicy(e.policies[o], p)
	}
	for o := range e.dirty.again {
		old := e.policies[o]
		if _, done := e.dirty.policies[o]; done || old == nil {
			continue
		}
		if p := t(o, old.src); !p.selectsAs(old) {
			e.replacePolicy(old, p)
		}
	}
}

// replacePolicy puts a policy in the place of another; either may be nil.
func (e *Engine) replacePolicy(old, p *policyObject) {
	if old != nil {
		e.forget(old)
	}
	if p != nil {
		e.remember(p, old)
	}
	if old != nil {
		e.rules.release(old)
	}
}

// selectsAs tells whether two translations of one policy select the same
// peers.
func (p *policyObject) selectsAs(o *policyObject) bool {
	return slices.EqualFunc(p.rules, o.rules, func(a, b *rule) bool {
		return a.any == b.any && a.closed == b.closed &&
			slices.EqualFunc(a.peers, b.peers, func(x, y *selector) bool { return x.key == y.key })
	})
}

func (e *Engine) remember(p, old *policyObject) {
	e.policies[p.object] = p
	list := e.scoped[p.object.Namespace]
	i, _ := slices.BinarySearchFunc(list, p, (*policyObject).compare)
	e.scoped[p.object.Namespace] = slices.Insert(list, i, p)
	for _, q := range p.prefixes {
		e.claims.cidr(q, true)
	}
	for _, b := range p.blocks {
		e.blocks.use(b, true)
		e.claims.block(b, true)
	}
	e.names.use(p, 1)
	for _, k := range p.nodeKeys {
		if e.nodeKeys[k]++; e.nodeKeys[k] == 1 {
			e.dirty.nodeKeys[k] = struct{}{}
		}
	}
	if old != nil {
		e.rules.inherit(p, old)
	}
	e.touchSubjects(p, true)
}

func (e *Engine) forget(p *policyObject) {
	delete(e.policies, p.object)
	ns := p.object.Namespace
	e.scoped[ns] = slices.DeleteFunc(e.scoped[ns], func(q *policyObject) bool { return q == p })
	if len(e.scoped[ns]) == 0 {
		delete(e.scoped, ns)
	}
	for _, q := range p.prefixes {
		e.claims.cidr(q, false)
	}
	for _, b := range p.blocks {
		e.blocks.use(b, false)
		e.claims.block(b, false)
	}
	e.names.use(p, -1)
	for _, k := range p.nodeKeys {
		if e.nodeKeys[k]--; e.nodeKeys[k] == 0 {
			delete(e.nodeKeys, k)
			e.dirty.nodeKeys[k] = struct{}{}
		}
	}
	e.touchSubjects(p, false)
}

// touchSubjects notes a policy that comes or goes for the subjects it selects.
func (e *Engine) touchSubjects(p *policyObject, comes bool) {
	for _, s := range e.subjects {
		if s.resolved == nil || !slices.ContainsFunc(p.rules, func(r *rule) bool { return r.selects(s.peer) }) {
			continue
		}
		change := e.dirty.subjects[s]
		if change == nil {
			change = &policyChange{}
			e.dirty.subjects[s] = change
		}
		if comes {
			change.news = append(change.news, p)
		} else {
			change.olds = append(change.olds, p)
		}
	}
}

// policiesFor lists the policies that may select a subject, in order.
func (e *Engine) policiesFor(p *peer) []*policyObject {
	if p.namespace == "" {
		return e.scoped[""]
	}
	return slices.Concat(e.scoped[""], e.scoped[p.namespace])
}

// teaches tells whether it is a policy of a namespace with DNS rules whose
// servers are believed, which then counts in that namespace.
func (p *policyObject) teaches() bool {
	return p.object.Namespace != "" && slices.ContainsFunc(p.rules, func(r *rule) bool {
		return r.direction == Egress && slices.ContainsFunc(r.grants, func(g *portGrant) bool { return g.l7 != nil && g.l7.kind == l7DNS }) &&
			slices.ContainsFunc(r.peers, func(s *selector) bool { return s.particular })
	})
}

// paths lists the field paths that numbers may be given for.
func (p *policyObject) paths() []string {
	var out []string
	for _, r := range p.rules {
		if r.closed {
			out = append(out, r.path)
		}
		for _, g := range r.grants {
			out = append(out, g.path)
			if g.l7 != nil {
				out = append(out, g.l7.path...)
			}
		}
	}
	return out
}
