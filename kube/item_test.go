package kube

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime"

	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/policy/api"
)

func ciliumText() textDecoder {
	for _, r := range resources() {
		if r.kind == api.KindCiliumPolicy {
			return textDecoder{of: r}
		}
	}
	panic("there is no such kind")
}

func TestTextDecoder(t *testing.T) {
	const head = `"apiVersion":"cilium.io/v2","kind":"CiliumNetworkPolicy"`
	d := ciliumText()
	for _, c := range []struct{ name, in, text string }{
		{"whole", `{"kind":"CiliumNetworkPolicy","apiVersion":"cilium.io/v2","metadata":{"name":"a","namespace":"n","uid":"u","resourceVersion":"7",` +
			`"generation":2,"managedFields":[{"manager":"x"}],"labels":{"a":"b"},"finalizers":["x"]},"spec":{"b":1,"a":[]},"status":{"x":1},"extra":null}`,
			`{` + head + `,"extra":null,"metadata":{"labels":{"a":"b"},"name":"a","namespace":"n","uid":"u"},"spec":{"b":1,"a":[]}}`},
		{"kubectl's copy", `{"metadata":{"name":"a","annotations":{"x":"y","kubectl.kubernetes.io/last-applied-configuration":"{}"}}}`,
			`{` + head + `,"metadata":{"annotations":{"x":"y"},"name":"a"}}`},
		{"other case", `{"Kind":"Status","\u212aind":"Status","Metadata":{"name":"b"},"metadata":{"name":"a"},"Status":{}}`,
			`{"Kind":"Status","Metadata":{"name":"b"},"Status":{},` + head + `,"metadata":{"name":"a"},"Kind":"Status"}`},
		{"annotations that are none", `{"metadata":{"name":"a","annotations":[1]}}`, `{` + head + `,"metadata":{"annotations":[1],"name":"a"}}`},
		{"bookmark", `{"kind":"CiliumNetworkPolicy","metadata":{"resourceVersion":"7","annotations":{"k8s.io/initial-events-end":"true"}}}`, ""},
	} {
		o, _, err := d.Decode([]byte(c.in), nil, nil)
		i, ok := o.(*item)
		if err != nil || !ok || !sameJSON(t, string(i.text), c.text) {
			t.Errorf("%s: %v\n got %s\nwant %s", c.name, err, i.text, c.text)
			continue
		}
		if ended := c.name == "bookmark"; i.end != ended || (i.name.name == "") != ended {
			t.Errorf("%s: %+v", c.name, i)
		}
	}
	o, _, err := d.Decode([]byte(`{"kind":"CiliumNetworkPolicyList","metadata":{"resourceVersion":"9","continue":"c"},"items":[{"metadata":{"name":"a","resourceVersion":"3"}},{"metadata":{"name":"b"}}]}`), nil, nil)
	if p, ok := o.(*page); err != nil || !ok || p.version != "9" || p.next != "c" || len(p.items) != 2 || p.items[0].version != "3" || p.items[1].name.name != "b" {
		t.Errorf("list: %+v, %v", o, err)
	}
	for _, bad := range []string{``, `[]`, `{`, `{"metadata":[]}`, `{"kind":"CiliumNetworkPolicyList","items":{}}`, `{"kind":"CiliumNetworkPolicyList","items":[1]}`} {
		if o, _, err := d.Decode([]byte(bad), nil, nil); err == nil && o.(*item).name.name != "" {
			t.Errorf("%q is %+v", bad, o)
		}
	}
}

func sameJSON(t *testing.T, a, b string) bool {
	t.Helper()
	if a == "" || b == "" {
		return a == b
	}
	var x, y any
	if err := errors.Join(json.Unmarshal([]byte(a), &x), json.Unmarshal([]byte(b), &y)); err != nil {
		t.Fatal(err)
	}
	return reflect.DeepEqual(x, y)
}

// What is cut off anywhere is an error and no object.
func TestTextDecoderEveryPrefix(t *testing.T) {
	text := `{"kind":"CiliumNetworkPolicy","metadata":{"name":"a"},"spec":{"endpointSelector":{},"ingress":[{}]}}`
	for n := range len(text) {
		if o, _, err := ciliumText().Decode([]byte(text[:n]), nil, nil); err == nil {
			if i, ok := o.(*item); !ok || i.name.name != "" {
				t.Errorf("%s: %+v", text[:n], o)
			}
		}
	}
}

// What the strict decoder would refuse of the whole text, it refuses of what is
// left of it.
func FuzzTextDecoder(f *testing.F) {
	for _, s := range []string{
		`{"kind":"CiliumNetworkPolicy","apiVersion":"cilium.io/v2","metadata":{"name":"a"},"spec":{"endpointSelector":{},"ingress":[{}]},"status":{}}`,
		`{"metadata":{"name":"a","managedFields":[],"x":1},"specs":[],"Spec":{}}`, `{"metadata":{"name":"a","annotations":{"a":1}},"spec":null}`,
		`{"kind":"Status"}`, `{"kind":"CiliumNetworkPolicyList","items":[{"metadata":{"name":"a"}}]}`,
	} {
		f.Add(s)
	}
	d := ciliumText()
	f.Fuzz(func(t *testing.T, text string) {
		var o runtime.Object
		var err error
		if head, e := readFields([]byte(text)); e != nil || head.text("kind") == "Status" {
			return
		}
		if o, _, err = d.Decode([]byte(text), nil, nil); err != nil {
			return
		}
		i, ok := o.(*item)
		if !ok || i.text == nil {
			return
		}
		key := policy.Object{Kind: api.KindCiliumPolicy, Namespace: i.name.namespace, Name: i.name.name}
		value, _ := decodePolicy(key, i.text)
		kept, ok := value.(*api.Policy)
		if !ok {
			t.Fatalf("%s became %T", i.text, value)
		}
		if len(kept.Refused) > 0 {
			return
		}
		var whole map[string]json.RawMessage
		if json.Unmarshal([]byte(text), &whole) != nil {
			return
		}
		whole["apiVersion"], whole["kind"] = quote("cilium.io/v2"), quote(api.KindCiliumPolicy)
		again, err := json.Marshal(whole)
		if err != nil {
			return
		}
		docs, errs := api.Documents("", again)
		if len(errs) > 0 || len(docs) != 1 {
			t.Fatalf("%s is no document: %v", again, errs)
		}
		for _, e := range docs[0].Policy().Refused {
			// Encoders do not write a name twice, nor a status that is cut off.
			if !strings.Contains(e.Message, "is written twice") && !strings.HasPrefix(e.Field, "metadata.annotations") {
				t.Fatalf("%s is taken, though %v", text, e)
			}
		}
	})
}
