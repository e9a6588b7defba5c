package kube

import (
	"fmt"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/weirnet/weir/policy"
)

// name is an object's name within its kind.
type name struct{ namespace, name string }

// item is an object as the API server sent it, less what nobody here looks at.
// It is made while the stream or list it stands in is decoded, so that no more
// than one object (one page of a list) is in memory as a whole.
type item struct {
	name    name
	version string // resourceVersion
	value   any    // as in policy.Change; nil: counts as absent
	// text is a policy as JSON instead of a value: it is decoded only if it is
	// another than before.
	text []byte
	err  error // why it is no valid object of its kind
	// end: everything that was there when the watch began has been sent. It is
	// of bookmarks, which have a version besides and nothing more.
	end bool
}

// page is a part of a list.
type page struct {
	items   []*item
	version string
	next    string // the token for the next one; "" in the last
}

func (*item) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }
func (*page) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }
func (i *item) DeepCopyObject() runtime.Object { c := *i; return &c }
func (p *page) DeepCopyObject() runtime.Object { c := *p; return &c }

// slimmer makes an item of a decoded object.
type slimmer func(runtime.Object) *item

func slimAs[T any, P interface {
	*T
	metav1.Object
}](convert func(policy.Object, *T) (any, error)) slimmer {
	return func(in runtime.Object) *item {
		o, ok := in.(P)
		if !ok {
			return &item{err: fmt.Errorf("unexpected %T", in)}
		}
		i := &item{name: name{o.GetNamespace(), o.GetName()}, version: o.GetResourceVersion(), end: endsInitial(o.GetAnnotations())}
		if i.name.name == "" {
			return i // a bookmark
		}
		i.value, i.err = convert(policy.Object{Namespace: i.name.namespace, Name: i.name.name}, (*T)(o))
		return i
	}
}

func endsInitial(annotations map[string]string) bool {
	return annotations[metav1.InitialEventsAnnotationKey] == "true"
}

// slimDecoder decodes objects of a kind, and lists of them, to items and pages.
type slimDecoder struct {
	runtime.Decoder
	slim slimmer
}

func (d slimDecoder) Decode(data []byte, defaults *schema.GroupVersionKind, _ runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	o, kind, err := d.Decoder.Decode(data, defaults, nil)
	if err != nil {
		return nil, kind, err
	}
	if status, ok := o.(*metav1.Status); ok {
		return status, kind, nil
	}
	list, err := meta.ListAccessor(o)
	if err != nil {
		return d.slim(o), kind, nil // not a list
	}
	p := &page{version: list.GetResourceVersion(), next: list.GetContinue()}
	err = meta.EachListItem(o, func(o runtime.Object) error {
		p.items = append(p.items, d.slim(o))
		return nil
	})
	return p, kind, err
}
