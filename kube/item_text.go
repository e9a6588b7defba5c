package kube

import (
	"encoding/json"
	"fmt"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// textDecoder keeps policies as JSON: fields that the API server let pass
// without knowing them must come to the strict decoder.
type textDecoder struct {
	runtime.Decoder
	of *resource
}

func (d textDecoder) Decode(data []byte, defaults *schema.GroupVersionKind, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	o, err := readFields(data)
	if err != nil {
		return nil, nil, err
	}
	switch o.text("kind") {
	case "Status":
		return d.Decoder.Decode(data, defaults, into)
	case d.of.kind + "List":
		p, err := d.page(o)
		return p, nil, err
	}
	i, err := d.item(o)
	return i, nil, err
}

func (d textDecoder) page(list fields) (*page, error) {
	metadata, err := readFields(list["metadata"])
	if err != nil {
		return nil, fmt.Errorf("metadata: %w", err)
	}
	var items []json.RawMessage
	if raw := list["items"]; raw != nil {
		if err := json.Unmarshal(raw, &items); err != nil {
			return nil, fmt.Errorf("items: %w", err)
		}
	}
	p := &page{version: metadata.text("resourceVersion"), next: metadata.text("continue")}
	for n, text := range items {
		o, err := readFields(text)
		if err != nil {
			return nil, fmt.Errorf("items[%d]: %w", n, err)
		}
		i, err := d.item(o)
		if err != nil {
			return nil, fmt.Errorf("items[%d]: %w", n, err)
		}
		p.items = append(p.items, i)
	}
	return p, nil
}

// unread are fields of metadata that say nothing about what a policy means,
// and change without it.
var unread = []string{
	"managedFields", "resourceVersion", "generation", "generateName", "selfLink", "creationTimestamp",
	"deletionTimestamp", "deletionGracePeriodSeconds", "ownerReferences", "finalizers",
}

// lastApplied is a copy of the object that kubectl keeps in it.
const lastApplied = "kubectl.kubernetes.io/last-applied-configuration"

// item is the policy without its status and what else changes without it.
func (d textDecoder) item(o fields) (*item, error) {
	metadata, err := readFields(o["metadata"])
	if err != nil {
		return nil, fmt.Errorf("metadata: %w", err)
	}
	annotations := map[string]string{}
	if raw := metadata["annotations"]; raw != nil && json.Unmarshal(raw, &annotations) != nil {
		annotations = nil // the strict decoder says what is wrong
	}
	i := &item{
		name:    name{metadata.text("namespace"), metadata.text("name")},
		version: metadata.text("resourceVersion"), end: endsInitial(annotations),
	}
	if i.name.name == "" {
		return i, nil // a bookmark
	}
	for _, field := range unread {
		delete(metadata, field)
	}
	if _, ok := annotations[lastApplied]; ok {
		delete(annotations, lastApplied)
		if len(annotations) == 0 {
			delete(metadata, "annotations")
		} else if metadata["annotations"], err = json.Marshal(annotations); err != nil {
			return nil, err
		}
	}
	delete(o, "status")
	if o["metadata"], err = json.Marshal(metadata); err != nil {
		return nil, err
	}
	// Items of a list may leave these out.
	o["apiVersion"], o["kind"] = quote(d.of.apiVersion()), quote(d.of.kind)
	i.text, err = json.Marshal(o)
	return i, err
}

// fields are those of a JSON object under exactly the names they have there.
type fields map[string]json.RawMessage

// readFields reads an object; nothing and null have no fields.
func readFields(text []byte) (fields, error) {
	f := fields{}
	if len(text) == 0 {
		return f, nil
	}
	if err := json.Unmarshal(text, &f); err != nil {
		return nil, err
	}
	if f == nil {
		f = fields{}
	}
	return f, nil
}

// text is a field that is a string, else "".
func (f fields) text(name string) string {
	var s string
	if json.Unmarshal(f[name], &s) != nil {
		return ""
	}
	return s
}

func quote(s string) json.RawMessage { return json.RawMessage(`"` + s + `"`) }
