package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/weirnet/weir/deploy/crds"
)

// variable is a variable of a ValidatingAdmissionPolicy.
type variable struct{ Name, Expression string }

// longest is the most characters of a refusal.
const longest = 1500

// admission returns a ValidatingAdmissionPolicy that refuses an object if
// variables.problems is not "", and its binding.
//
// An update that changes nothing but metadata and status passes: an object
// that is there already must be deletable. A policy of thousands of rules costs
// more than an API server lets an expression cost, and passes as well: the
// agent refuses what is wrong with it all the same.
func admission(name string, resources []string, variables []variable) []any {
	metadata := map[string]any{"name": name, "labels": map[string]any{crds.PartOf: crds.PartOfValue}}
	vars := make([]any, 0, len(variables))
	for _, v := range variables {
		vars = append(vars, map[string]any{"name": v.Name, "expression": v.Expression})
	}
	policy := map[string]any{
		"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": metadata,
		"spec": map[string]any{
			"failurePolicy": "Ignore",
			"matchConstraints": map[string]any{"resourceRules": []any{map[string]any{
				"apiGroups": []any{"cilium.io"}, "apiVersions": []any{"*"}, "operations": []any{"CREATE", "UPDATE"}, "resources": resources,
			}}},
			"matchConditions": []any{map[string]any{
				"name": "changed",
				"expression": "request.operation != 'UPDATE' || object.exists(k, !(k in ['apiVersion', 'metadata', 'status']) &&" +
					" (!(k in oldObject) || object[k] != oldObject[k]))",
			}},
			"variables": vars,
			"validations": []any{map[string]any{
				"expression": "variables.problems == ''",
				"messageExpression": fmt.Sprintf("(variables.problems.size() > %[1]d ? variables.problems.substring(0, %[1]d) + ' ...' : variables.problems)", longest) +
					".replace('\\n', '; ')",
				"reason": "Invalid",
			}},
		},
	}
	binding := map[string]any{
		"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding", "metadata": metadata,
		"spec": map[string]any{"policyName": name, "validationActions": []any{"Deny"}},
	}
	return []any{policy, binding}
}

// policyVariables are the variables for policies. The lists of rules are
// looked at in expressions of their own: each has a budget.
func policyVariables(root schema) []variable {
	rule := root.child("spec")
	lists := []string{"ingress", "ingressDeny", "egress", "egressDeny"}
	var w walker
	out := []variable{
		{"rules", "(has(object.spec) && object.spec != null ? [object.spec] : []) + (has(object.specs) && object.specs != null ? object.specs : [])"},
		{"place", "has(object.spec) && object.spec != null ? 'spec' : ''"},
		{"top", w.own("object", root)},
	}
	add := func(name string, text func(r string) string) {
		r := w.name("r")
		// Equal rules have the same problems, so it does not matter which is named.
		at := "(variables.place != '' && variables.rules.indexOf(" + r + ") == 0 ? 'spec' : " +
			"'specs[' + string(variables.rules.indexOf(" + r + ") - (variables.place != '' ? 1 : 0)) + ']')"
		out = append(out, variable{name, "variables.rules.map(" + r + ", " + w.prefixed(text(r), at) + ").filter(s, s != '').join('\\n')"})
	}
	add("head", func(r string) string {
		return w.object(r, rule, func(key string) bool { return !slices.Contains(lists, key) })
	})
	for _, list := range lists {
		add(list, func(r string) string {
			return "(" + w.field(r, list, rule.child(list)) + ").filter(s, s != '').join('\\n')"
		})
	}
	names := []string{"variables.top.join('\\n')", "variables.head"}
	for _, list := range lists {
		names = append(names, "variables."+list)
	}
	return append(out, problems(names...))
}

func groupVariables(root schema) []variable {
	var w walker
	return []variable{
		{"top", w.object("object", root, func(key string) bool { return key == "spec" })},
		problems("variables.top"),
	}
}

// problems is the variable of all problems. The dot that a path begins with
// is dropped.
func problems(lists ...string) variable {
	return variable{"problems", "[" + strings.Join(lists, ", ") + "].filter(s, s != '').map(s, s.split('\\n').map(l, l.startsWith('.') ? l.substring(1) : l).join('\\n')).join('\\n')"}
}

// walker writes CEL that looks through an object for what its schema does not
// say. Texts are lists or lines of "path: message", the path relative to the
// value and empty for the value itself.
type walker struct{ names int }

// name returns a variable that no other has.
func (w *walker) name(prefix string) string {
	w.names++
	return prefix + strconv.Itoa(w.names)
}

// object is a string with the problems of x, which has the schema, in lines.
func (w *walker) object(x string, s schema, wanted func(key string) bool) string {
	terms := []string{w.own(x, s)}
	for _, key := range s.keys() {
		if wanted == nil || wanted(key) {
			if t := w.field(x, key, s.child(key)); t != "" {
				terms = append(terms, t)
			}
		}
	}
	return "(" + strings.Join(terms, " + ") + ").filter(s, s != '').join('\\n')"
}

// own is a list of x's own problems: fields that are unknown or null, and what
// can't stand together.
func (w *walker) own(x string, s schema) string {
	k, f := w.name("k"), w.name("f")
	known := list(s.keys())
	// A hint is a name that has almost the same letters.
	hint := known + ".filter(" + f + ", " + similar(f, k) + ")"
	terms := []string{x + ".filter(" + k + ", !(" + k + " in " + known + ") || " + x + "[" + k + "] == null)" +
		".map(" + k + ", '.' + " + k + " + (" + k + " in " + known + " ? ': must not be null' : ': unknown field' + " +
		hint + ".map(" + f + ", '; did you mean ' + " + f + " + '?').join('')))"}
	for _, c := range checks(s) {
		terms = append(terms, "("+strings.ReplaceAll(c.when, "$", x)+" ? ["+strings.ReplaceAll(c.say, "$", x)+"] : [])")
	}
	return strings.Join(terms, " + ")
}

// similar tells whether a name may have been meant by a key: it begins with it
// or the other way round, or no more than a letter of either is not in the
// other.
func similar(name, key string) string {
	n, k := name+".lowerAscii()", key+".lowerAscii()"
	return n + ".startsWith(" + k + ") || " + k + ".startsWith(" + n + ") || " +
		name + ".size() - " + key + ".size() in [-1, 0, 1] && " +
		n + ".split('').filter(c, !" + k + ".contains(c)).size() + " + k + ".split('').filter(c, !" + n + ".contains(c)).size() <= 1"
}

// field is a list of strings with the problems below x's field; "" if there
// can be none.
func (w *walker) field(x, key string, s schema) string {
	field := x + "." + key
	there := "has(" + field + ") && " + field + " != null"
	switch {
	case s.items() != nil && s.items().checked():
		y := w.name("y")
		at := "'." + key + "[' + string(" + field + ".indexOf(" + y + ")) + ']'"
		return "(" + there + " ? " + field + " : []).map(" + y + ", " + w.prefixed(w.object(y, s.items(), nil), at) + ")"
	case s.values() != nil:
		k := w.name("k")
		return "(" + there + " ? " + field + ".filter(" + k + ", " + field + "[" + k + "] == null).map(" + k + ", '." + key + "[' + " + k + " + ']: must not be null') : [])"
	case len(s.keys()) > 0:
		y := w.name("y")
		return "(" + there + " ? [" + field + "] : []).map(" + y + ", " + w.prefixed(w.object(y, s, nil), "'."+key+"'") + ")"
	}
	return ""
}

// prefixed puts a path before each line.
func (w *walker) prefixed(lines, at string) string {
	s, l := w.name("s"), w.name("l")
	return "[" + lines + "].map(" + s + ", " + s + " == '' ? '' : " + s + ".split('\\n').map(" + l + ", " + at + " + " + l + ").join('\\n'))[0]"
}

func list(names []string) string { return "['" + strings.Join(names, "', '") + "']" }
