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
// It holds for the definitions in this package alone: where another one of the
// name is, Cilium's mostly, what is unknown here may be known there. So the
// definitions with Weir's label are its parameters, and it asks that the one of
// the object's resource be among them and keep unknown fields, as Weir's do: the
// label stays if somebody merges his own definition into it.
//
// All fields that the API server would fill in are written: matchConstraints
// belongs as a whole to whoever applies it, and another who applies the same
// would change it.
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
			"paramKind":     map[string]any{"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition"},
			"matchConstraints": map[string]any{
				"matchPolicy": "Equivalent", "namespaceSelector": map[string]any{}, "objectSelector": map[string]any{},
				"resourceRules": []any{map[string]any{
					"apiGroups": []any{"cilium.io"}, "apiVersions": []any{"*"}, "operations": []any{"CREATE", "UPDATE"}, "resources": resources,
					"scope": "*",
				}},
			},
			"matchConditions": []any{map[string]any{
				"name": "weirs-definition",
				"expression": "params.metadata.name == request.resource.resource + '.cilium.io' &&" +
					" params.spec.versions.all(v, v.schema.openAPIV3Schema[?'x-kubernetes-preserve-unknown-fields'].orValue(false))",
			}, map[string]any{
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
		"spec": map[string]any{
			"policyName": name, "validationActions": []any{"Deny"},
			"paramRef": map[string]any{
				"selector":                map[string]any{"matchLabels": map[string]any{crds.PartOf: crds.PartOfValue}},
				"parameterNotFoundAction": "Allow",
			},
		},
	}
	return []any{policy, binding}
}

// policyVariables are the variables for policies. An expression costs an API
// server the square of its length when it is compiled, and has a budget when it
// is evaluated: so there is one for each field of each list of rules.
func policyVariables(root schema) []variable {
	rule := root.child("spec")
	lists := []string{"ingress", "ingressDeny", "egress", "egressDeny"}
	var w walker
	out := []variable{
		{"rules", "(has(object.spec) && object.spec != null ? [object.spec] : []) + (has(object.specs) && object.specs != null ? object.specs : [])"},
		{"single", "has(object.spec) && object.spec != null"},
		{"top", lines(w.own("object", root))},
	}
	names := []string{"variables.top"}
	add := func(name string, text func(r string) string) {
		r := w.name("r")
		// Equal rules have the same problems, so it does not matter which is named.
		i := "variables.rules.indexOf(" + r + ")"
		at := "(variables.single && " + i + " == 0 ? '.spec' : '.specs[' + string(" + i + " - (variables.single ? 1 : 0)) + ']')"
		out = append(out, variable{name, "variables.rules.map(" + r + ", " + w.prefixed(text(r), at) + ").filter(s, s != '').join('\\n')"})
		names = append(names, "variables."+name)
	}
	add("rule", func(r string) string {
		return w.object(r, rule, func(key string) bool { return !slices.Contains(lists, key) })
	})
	for _, list := range lists {
		items := rule.child(list).items()
		each := func(problems func(y string) string) func(r string) string {
			return func(r string) string { return lines(w.items(r, list, problems)) }
		}
		add(list, each(func(y string) string { return lines(w.own(y, items)) }))
		for _, key := range items.keys() {
			if w.field("x", key, items.child(key)) != "" {
				add(list+"_"+key, each(func(y string) string { return lines(w.field(y, key, items.child(key))) }))
			}
		}
	}
	return append(out, w.problems(names)...)
}

func groupVariables(root schema) []variable {
	var w walker
	top := variable{"top", w.object("object", root, func(key string) bool { return key == "spec" })}
	return append([]variable{top}, w.problems([]string{"variables.top"})...)
}

// unknown is what is said of an unknown field; behind the mark, until it is told,
// stands the number of the list of fields that are known there.
const unknown, mark = ": unknown field", "|"

// problems are the variables of all problems, with hints: fields known where the
// unknown one stands. The dot that a path begins with is dropped. What a line ends
// with may be a user's, and must not make the expression fail.
func (w *walker) problems(names []string) []variable {
	fields := make([]string, len(w.fields))
	for i, keys := range w.fields {
		fields[i] = "'" + strconv.Itoa(i) + "': " + keys
	}
	at := "l.lastIndexOf('" + mark + "')"
	hint := "[l.substring(0, " + at + ")].map(m, m + [m.substring(m.lastIndexOf('.') + 1, m.size() - " + strconv.Itoa(len(unknown)) + ")].map(k, " +
		"(l.substring(" + at + " + 1) in variables.fields ? variables.fields[l.substring(" + at + " + 1)] : [])" +
		".filter(f, " + similar("f", "k") + ").join(' or ')).map(h, h == '' ? '' : '; did you mean ' + h + '?')[0])[0]"
	hinted := "l.matches('" + unknown + "[" + mark + "][0-9]+$') ? " + hint + " : l"
	return []variable{
		{"fields", "{" + strings.Join(fields, ", ") + "}"},
		{"problems", "[" + strings.Join(names, ", ") + "].filter(s, s != '').map(s, s.split('\\n').map(l, " +
			hinted + ").map(l, l.startsWith('.') ? l.substring(1) : l).join('\\n')).join('\\n')"},
	}
}

// walker writes CEL that looks through an object for what its schema does not
// say. Texts are lists or lines of "path: message", the path relative to the
// value and empty for the value itself.
type walker struct {
	names  int
	fields []string // lists of the fields of objects
}

// known returns the number of the list of an object's fields.
func (w *walker) known(s schema) string {
	keys := list(s.keys())
	i := slices.Index(w.fields, keys)
	if i < 0 {
		i, w.fields = len(w.fields), append(w.fields, keys)
	}
	return strconv.Itoa(i)
}

// name returns a variable that no other has.
func (w *walker) name(prefix string) string {
	w.names++
	return prefix + strconv.Itoa(w.names)
}

// lines joins a list of lines.
func lines(list string) string { return "(" + list + ").filter(s, s != '').join('\\n')" }

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
	return lines(strings.Join(terms, " + "))
}

// own is a list of x's own problems: fields that are unknown or null, and what
// can't stand together.
func (w *walker) own(x string, s schema) string {
	terms := []string{x + ".filter(k, !(k in " + list(s.keys()) + ") || " + x + "[k] == null)" +
		".map(k, '.' + k + (" + x + "[k] == null ? ': must not be null' : '" + unknown + mark + w.known(s) + "'))"}
	for _, c := range checks(s) {
		terms = append(terms, "("+strings.ReplaceAll(c.when, "$", x)+" ? ["+strings.ReplaceAll(c.say, "$", x)+"] : [])")
	}
	return strings.Join(terms, " + ")
}

// similar tells whether a name may have been meant by a key, by the rule that the
// decoder of policy/api has, so that both say the same.
func similar(name, key string) string {
	n, k := name+".lowerAscii()", key+".lowerAscii()"
	return name + " != " + key + " && " + name + ".size() - " + key + ".size() in [-2, -1, 0, 1, 2] && (" +
		n + ".startsWith(" + k + ") || " + k + ".startsWith(" + n + ") || " +
		n + ".split('').filter(c, !" + k + ".contains(c)).size() + " + k + ".split('').filter(c, !" + n + ".contains(c)).size() <= 1)"
}

// field is a list of strings with the problems below x's field; "" if there
// can be none.
func (w *walker) field(x, key string, s schema) string {
	field := x + "." + key
	there := "has(" + field + ") && " + field + " != null"
	switch {
	case s.items() != nil && s.items().checked():
		return w.items(x, key, func(y string) string { return w.object(y, s.items(), nil) })
	case s.values() != nil:
		return "(" + there + " ? " + field + ".filter(k, " + field + "[k] == null).map(k, '." + key + "[' + k + ']: must not be null') : [])"
	case len(s.keys()) > 0:
		y := w.name("y")
		return "(" + there + " ? [" + field + "] : []).map(" + y + ", " + w.prefixed(w.object(y, s, nil), "'."+key+"'") + ")"
	}
	return ""
}

// items is a list of strings with the problems of the items of x's field.
func (w *walker) items(x, key string, problems func(y string) string) string {
	field := x + "." + key
	y := w.name("y")
	at := "'." + key + "[' + string(" + field + ".indexOf(" + y + ")) + ']'"
	return "(has(" + field + ") && " + field + " != null ? " + field + " : []).map(" + y + ", " + w.prefixed(problems(y), at) + ")"
}

// prefixed puts a path before each line.
func (w *walker) prefixed(lines, at string) string {
	return "[" + lines + "].map(s, s == '' ? '' : s.split('\\n').map(l, " + at + " + l).join('\\n'))[0]"
}

func list(names []string) string { return "['" + strings.Join(names, "', '") + "']" }
