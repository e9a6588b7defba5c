package kube

import (
	"slices"

	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/policy/api"
)

// decodePolicy decodes a policy or a group of addresses that came without a
// file. There is always one: text that is beyond the bounds of the decoder
// closes all it could have selected.
func decodePolicy(key policy.Object, text []byte) (any, []Problem) {
	docs, errs := api.Documents("", text)
	if len(errs) > 0 || len(docs) != 1 || !docs[0].IsPolicy() {
		return unreadable(key, errs)
	}
	var problems []Problem
	add := func(kind ProblemKind, errs []*api.Error) {
		for _, e := range errs {
			unplaced(e)
			problems = append(problems, policyProblem(kind, key, e).Problem)
		}
	}
	if g := docs[0].CIDRGroup(); g != nil {
		g.Source = api.Position{}
		add(Refused, g.Refused)
		add(Suspicious, g.Warnings)
		return g, problems
	}
	p := docs[0].Policy()
	// Lines of a text that nobody wrote tell nothing.
	p.Source, p.Lines = api.Position{}, nil
	add(Refused, p.Refused)
	add(Suspicious, p.Warnings)
	return p, problems
}

func unreadable(key policy.Object, errs []*api.Error) (any, []Problem) {
	if len(errs) == 0 {
		errs = []*api.Error{{Message: "can't be read"}}
	}
	var problems []Problem
	for _, e := range errs {
		unplaced(e)
		problems = append(problems, policyProblem(Refused, key, e).Problem)
	}
	if key.Kind == api.KindCiliumCIDRGroup {
		return &api.CIDRGroup{Name: key.Name, Refused: errs}, problems
	}
	return &api.Policy{
		Kind: key.Kind, Namespace: key.Namespace, Name: key.Name, Refused: slices.Clone(errs),
		Closed: []api.Closure{{Ingress: true, Egress: true}},
	}, problems
}

func unplaced(e *api.Error) { e.File, e.Document, e.Line = "", 0, 0 }
