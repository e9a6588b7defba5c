// Package crds holds the custom resources that Weir's policies are kept in at
// an API server, and what is checked of them beyond their schema.
//
// The schemas say what a schema can: types, bounds, patterns. They keep fields
// that they do not know, for admission.yaml to refuse them by name: an API
// server would else drop them without a word, and `matchlabels` would select
// every pod. The same goes for a null. What passes both may still be refused by
// Weir itself (a regular expression that is none); the object's condition says
// so.
//
// All files are generated from the types of policy/api.
package crds

import "embed"

//go:generate go run ./generate

// PartOf is the label, and its value, that Weir's own objects have.
const (
	PartOf      = "app.kubernetes.io/part-of"
	PartOfValue = "weir"
)

//go:embed *.yaml
var files embed.FS

// Definitions returns the CustomResourceDefinitions as YAML documents, each
// with its marker: CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy and
// CiliumCIDRGroup.
func Definitions() []byte {
	return read("ciliumnetworkpolicies", "ciliumclusterwidenetworkpolicies", "ciliumcidrgroups")
}

// Admission returns the ValidatingAdmissionPolicies and their bindings as YAML
// documents, each with its marker. They hold where the definition of an object
// is one that this package has, and say nothing of objects of others.
func Admission() []byte { return read("admission") }

func read(names ...string) []byte {
	var out []byte
	for _, name := range names {
		text, err := files.ReadFile(name + ".yaml")
		if err != nil {
			panic(err) // it is part of the program
		}
		out = append(out, text...)
	}
	return out
}
