package api

import (
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
)

// closeRule tells what is closed if the object of this rule is refused: its
// subjects, in the directions it speaks of. What can't be told is taken for
// the most it could be.
func (d *decoder) closeRule(r *Rule, path, kind string) []Closure {
	in, out := d.directions(r, path)
	if !in && !out {
		return nil
	}
	pods := Closure{Subjects: r.EndpointSelector, Ingress: in, Egress: out}
	if d.failed(path + ".endpointSelector") {
		pods.Subjects = nil
	}
	if r.NodeSelector == nil || kind != KindClusterwide {
		return []Closure{pods}
	}
	nodes := Closure{Subjects: r.NodeSelector, Nodes: true, Ingress: in, Egress: out}
	if d.failed(path + ".nodeSelector") {
		nodes.Subjects = nil
	}
	if r.EndpointSelector == nil && !d.has(path+".endpointSelector") {
		return []Closure{nodes}
	}
	return []Closure{pods, nodes}
}

// directions tells which directions a rule speaks of: those it has rules for,
// else those it names at all, else both. Rules that allow, where the object
// says that nothing is denied by default, speak of nothing: without them no
// traffic passes that would not pass with them.
func (d *decoder) directions(r *Rule, path string) (in, out bool) {
	if d.unclear(path) {
		return true, true
	}
	lists := func(allow, deny string, allows, denies int, defaultDeny *bool) (has, named bool) {
		broken := d.lost(path+allow, allows) || d.lost(path+deny, denies)
		silent := defaultDeny != nil && !*defaultDeny && denies == 0 && !d.has(path+deny) && !broken
		return broken || (allows+denies > 0 && !silent), (d.has(path+allow) || d.has(path+deny)) && !silent
	}
	var config DefaultDenyConfig
	if r.EnableDefaultDeny != nil && !d.failed(path+".enableDefaultDeny") {
		config = *r.EnableDefaultDeny
	}
	in, inNamed := lists(".ingress", ".ingressDeny", len(r.Ingress), len(r.IngressDeny), config.Ingress)
	out, outNamed := lists(".egress", ".egressDeny", len(r.Egress), len(r.EgressDeny), config.Egress)
	switch {
	case in || out:
		return in, out
	case inNamed || outNamed:
		return inNamed, outNamed
	}
	// Rules are there, and all of them are of the silent sort.
	spoken := len(r.Ingress)+len(r.Egress) > 0
	return !spoken, !spoken
}

// lost tells whether a list was written but could not be read as one.
func (d *decoder) lost(path string, items int) bool {
	return items == 0 && d.has(path) && d.failed(path)
}

// unclear tells whether the rule is no object, or has a field nobody knows,
// which may have been meant as one of the lists.
func (d *decoder) unclear(path string) bool {
	known := d.fieldsOf(ruleType())
	for _, e := range d.errs {
		if e.Field == path && !d.readable(path) {
			return true
		}
		if len(e.Field) <= len(path)+1 || e.Field[:len(path)+1] != path+"." {
			continue
		}
		name := e.Field[len(path)+1:]
		for i, c := range name {
			if c == '.' || c == '[' {
				name = name[:i]
				break
			}
		}
		if !slices.ContainsFunc(known, func(f jsonField) bool { return f.name == name }) {
			return true
		}
	}
	return false
}

// readable tells whether anything below the path was read.
func (d *decoder) readable(path string) bool {
	for p := range d.lines {
		if len(p) > len(path) && under(p, path) {
			return true
		}
	}
	return false
}

func (d *decoder) closeNetworkPolicy(s *networkingv1.NetworkPolicySpec) Closure {
	c := Closure{
		Ingress: slices.Contains(s.PolicyTypes, networkingv1.PolicyTypeIngress),
		Egress:  slices.Contains(s.PolicyTypes, networkingv1.PolicyTypeEgress),
	}
	for _, e := range d.errs {
		// An unknown field may have been meant as one of those that count.
		if f := e.Field; f == "spec" || under(f, "spec.policyTypes") || !d.knownSpec(f) {
			c.Ingress, c.Egress = true, true
		}
	}
	if !d.has("spec") || d.failed("spec.podSelector") || !d.clearSubjects() {
		return c
	}
	c.Subjects = &EndpointSelector{MatchLabels: s.PodSelector.MatchLabels}
	for _, e := range s.PodSelector.MatchExpressions {
		c.Subjects.MatchExpressions = append(c.Subjects.MatchExpressions,
			LabelRequirement{Key: e.Key, Operator: Operator(e.Operator), Values: e.Values})
	}
	return c
}

// knownSpec tells whether an error lies in a known part of a NetworkPolicy.
func (d *decoder) knownSpec(field string) bool {
	for _, part := range []string{"metadata", "apiVersion", "kind", "spec.podSelector", "spec.ingress", "spec.egress", "spec.policyTypes"} {
		if under(field, part) {
			return true
		}
	}
	return false
}

// clearSubjects tells whether podSelector was written, or nothing unknown that
// may have been meant as it.
func (d *decoder) clearSubjects() bool {
	if d.has("spec.podSelector") {
		return true
	}
	for _, e := range d.errs {
		if !d.knownSpec(e.Field) {
			return false
		}
	}
	return true
}
