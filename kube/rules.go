package kube

import (
	"slices"

	rbacv1 "k8s.io/api/rbac/v1"
)

// Rules are the rights that a Cluster needs, for the whole cluster, and none
// that it could do without: to list and watch what it reads, and to watch the
// definitions of the kinds that may be installed later.
func Rules() []rbacv1.PolicyRule {
	var out []rbacv1.PolicyRule
	for _, r := range resources() {
		if n := len(out) - 1; n >= 0 && out[n].APIGroups[0] == r.group {
			out[n].Resources = append(out[n].Resources, r.plural)
		} else {
			out = append(out, r.rule())
		}
	}
	var d rbacv1.PolicyRule
	for _, r := range resources() {
		if r.optional {
			names := d.ResourceNames
			d = definitionRule(r)
			d.ResourceNames = append(names, d.ResourceNames...)
		}
	}
	return append(out, d)
}

// MergeRules makes of rules as few as grant the same: one for each set of
// resources, less what another one grants anyway.
func MergeRules(rules []rbacv1.PolicyRule) []rbacv1.PolicyRule {
	var out []rbacv1.PolicyRule
	covers := func(a, b []string) bool {
		return !slices.ContainsFunc(b, func(s string) bool { return !slices.Contains(a, s) })
	}
	for _, r := range rules {
		i := slices.IndexFunc(out, func(o rbacv1.PolicyRule) bool {
			of := slices.Equal(o.APIGroups, r.APIGroups) && slices.Equal(o.ResourceNames, r.ResourceNames)
			return of && (slices.Equal(o.Resources, r.Resources) || covers(o.Resources, r.Resources) && covers(o.Verbs, r.Verbs))
		})
		if i < 0 {
			r.Verbs = slices.Clone(r.Verbs)
			out = append(out, r)
			continue
		}
		out[i].Verbs = append(out[i].Verbs, r.Verbs...)
		slices.Sort(out[i].Verbs)
		out[i].Verbs = slices.Compact(out[i].Verbs)
	}
	return out
}

// rule is what reading a resource needs. Lists are the way out where a server
// has no streams, and what Sync compares with.
func (r *resource) rule() rbacv1.PolicyRule {
	return rbacv1.PolicyRule{APIGroups: []string{r.group}, Resources: []string{r.plural}, Verbs: []string{"list", "watch"}}
}

// definitionRule is what noticing a resource's CRD needs.
func definitionRule(r *resource) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{
		APIGroups: []string{"apiextensions.k8s.io"}, Resources: []string{"customresourcedefinitions"},
		ResourceNames: []string{r.String()}, Verbs: []string{"watch"},
	}
}
