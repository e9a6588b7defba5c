package api

import (
	"slices"

	"k8s.io/apimachinery/pkg/api/validate/content"
)

// maxAnnotations is the most bytes of an object's annotations.
const maxAnnotations = 256 << 10

// objectMeta is as much of an object's metadata as matters here.
type objectMeta struct {
	Name        string            `json:"name"`
	Namespace   string            `json:"namespace"`
	UID         string            `json:"uid"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

// passedOver tells of fields that metadata may have, and that say nothing here.
func passedOver(field string) bool {
	return slices.Contains([]string{
		"generateName", "selfLink", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp",
		"deletionGracePeriodSeconds", "ownerReferences", "finalizers", "managedFields", "clusterName",
	}, field)
}

// envelope is an object less its spec.
type envelope struct {
	APIVersion string     `json:"apiVersion"`
	Kind       string     `json:"kind"`
	Metadata   objectMeta `json:"metadata"`
}

// envelope decodes what every object has and returns the values of the fields
// named in bodies. Status is for others to write, and not looked at.
func (d *decoder) envelope(root *node, namespaced bool, bodies ...string) (objectMeta, map[string]*node) {
	found := map[string]*node{}
	head := &node{kind: objectNode, line: root.line, faults: root.faults}
	for _, m := range root.fields {
		switch {
		case m.key == "status":
		case slices.Contains(bodies, m.key):
			found[m.key] = m.value
		case m.key == "metadata" && m.value.kind == objectNode:
			head.fields = append(head.fields, member{key: m.key, line: m.line, value: ownMetadata(m.value)})
		default:
			head.fields = append(head.fields, m)
		}
	}
	var e envelope
	strict := d.nulls
	d.nulls = true // creationTimestamp, labels: null is how encoders write "none"
	decodeInto(d, head, &e, "", bodies)
	d.nulls = strict
	d.checkMetadata(&e.Metadata, namespaced)
	return e.Metadata, found
}

func ownMetadata(n *node) *node {
	out := &node{kind: objectNode, line: n.line, faults: n.faults}
	for _, m := range n.fields {
		if !passedOver(m.key) {
			out.fields = append(out.fields, m)
		}
	}
	return out
}

func (d *decoder) checkMetadata(m *objectMeta, namespaced bool) {
	switch {
	case d.failed("metadata.name"):
	case m.Name == "":
		d.errorf("metadata.name", "is missing")
	default:
		d.name(m.Name, "metadata.name", content.IsDNS1123Subdomain)
	}
	if namespaced && m.Namespace != "" {
		d.name(m.Namespace, "metadata.namespace", content.IsDNS1123Label)
	}
	for _, k := range sortedKeys(m.Labels) {
		p := entry("metadata.labels", k)
		d.name(k, p, content.IsLabelKey)
		d.name(m.Labels[k], p, content.IsLabelValue)
	}
	size := 0
	for k, v := range m.Annotations {
		size += len(k) + len(v)
	}
	if size > maxAnnotations {
		d.errorf("metadata.annotations", "are %d bytes long, more than %d", size, maxAnnotations)
	}
}
