package kube

import (
	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/policy/api"
)

// addPolicy adds a policy or a group of addresses, refused ones included: they
// close what they would select.
func (d *document) addPolicy(key policy.Object, o *api.Document) {
	var value any
	var refused, warned []*api.Error
	if o.Kind == api.KindCiliumCIDRGroup {
		g := o.CIDRGroup()
		key.Namespace, key.Name = "", g.Name
		value, refused = g, g.Refused
	} else {
		p := o.Policy()
		key.Namespace, key.Name = p.Namespace, p.Name
		value, refused, warned = p, p.Refused, p.Warnings
	}
	d.objects = append(d.objects, object{key: key, value: value, line: o.Source.Line})
	for _, e := range refused {
		d.problems = append(d.problems, policyProblem(Refused, key, e))
	}
	for _, e := range warned {
		d.problems = append(d.problems, policyProblem(Suspicious, key, e))
	}
}

func policyProblem(kind ProblemKind, key policy.Object, e *api.Error) problem {
	return problem{key: key, Problem: Problem{
		Kind: kind, File: e.File, Document: e.Document, Line: e.Line, Object: Name(key), Message: message(e),
	}}
}

// refused tells whether a value is a policy that is closed instead of enforced.
func refused(v any) bool {
	p, ok := v.(*api.Policy)
	return ok && len(p.Refused) > 0
}
