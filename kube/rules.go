package kube

import rbacv1 "k8s.io/api/rbac/v1"

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
