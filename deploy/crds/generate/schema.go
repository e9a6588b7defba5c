package main

import (
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/weirnet/weir/deploy/crds"
)

// schema is a JSON schema, as YAML has it.
type schema map[string]any

// finish adds to a definition what markers can't say, and returns its schema.
func finish(d definition, plural string) (schema, error) {
	metadata, _ := d["metadata"].(map[string]any)
	spec, _ := d["spec"].(map[string]any)
	versions, _ := spec["versions"].([]any)
	if metadata == nil || len(versions) != 1 {
		return nil, errors.New("is not of the form that is known")
	}
	metadata["labels"] = map[string]any{crds.PartOf: crds.PartOfValue}
	version, _ := versions[0].(map[string]any)
	holder, _ := version["schema"].(map[string]any)
	top, _ := holder["openAPIV3Schema"].(map[string]any)
	root := schema(top)
	if root == nil {
		return nil, errors.New("has no schema")
	}
	root.child("apiVersion")["description"] = "cilium.io/v2"
	root.child("kind")["description"] = "The kind of object."
	root.prepare("", true)
	if plural == "ciliumcidrgroups" {
		// Manifests that name the old version go on working.
		old := maps.Clone(version)
		old["name"], old["storage"], old["deprecated"] = "v2alpha1", false, true
		spec["versions"] = append(versions, old)
	}
	return root, nil
}

// prepare makes the schema keep unknown fields and nulls, so that they can be
// refused with their names. A null that means "not written" is dropped by the
// API server, as without `nullable` any would be.
func (s schema) prepare(name string, top bool) {
	properties, isObject := s["properties"].(map[string]any)
	if isObject {
		s["x-kubernetes-preserve-unknown-fields"] = true
		for key := range properties {
			switch {
			case top && (key == "apiVersion" || key == "kind" || key == "metadata"):
			case top && key == "status":
				s.child(key)["x-kubernetes-preserve-unknown-fields"] = true
			case name == "enableDefaultDeny":
				s.child(key).prepare("", false) // null: not written
			default:
				s.child(key).prepare(key, false)
			}
		}
	}
	if items := s.items(); items != nil {
		items.prepare("", false)
	}
	if values, ok := s["additionalProperties"].(map[string]any); ok {
		// An item of matchLabels that were dropped would select more.
		values["nullable"] = true
		if name == "matchLabels" {
			values["maxLength"] = 63
			values["pattern"] = `^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$`
		}
	}
	if name != "" && !harmlessNull(name) {
		s["nullable"] = true
	}
}

// harmlessNull tells of the fields whose null means that they were not written.
// It knows what the decoder of policy/api knows, which tests compare.
func harmlessNull(name string) bool {
	return slices.Contains([]string{"description", "log", "labels", "enableDefaultDeny", "values", "endPort", "family"}, name)
}

func (s schema) child(name string) schema {
	properties, _ := s["properties"].(map[string]any)
	child, _ := properties[name].(map[string]any)
	return child
}

func (s schema) items() schema {
	items, _ := s["items"].(map[string]any)
	return items
}

// values is the schema of a map's values.
func (s schema) values() schema {
	values, _ := s["additionalProperties"].(map[string]any)
	return values
}

// keys are the names of an object's fields, sorted.
func (s schema) keys() []string {
	properties, _ := s["properties"].(map[string]any)
	return slices.Sorted(maps.Keys(properties))
}

// keysText spells all fields below the schema.
func (s schema) keysText() string {
	var b strings.Builder
	for _, k := range s.keys() {
		b.WriteString(k + "{" + s.child(k).keysText() + "}")
	}
	if items := s.items(); items != nil {
		b.WriteString("[" + items.keysText() + "]")
	}
	return b.String()
}

// checked tells whether anything below the schema can be unknown or null.
func (s schema) checked() bool { return len(s.keys()) > 0 || s.values() != nil }
