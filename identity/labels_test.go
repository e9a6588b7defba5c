package identity

import (
	"slices"
	"testing"
)

func TestCountsForIdentity(t *testing.T) {
	for key, want := range map[string]bool{
		"app":                                      true,
		"example.com/team":                         true,
		"app.kubernetes.io/name":                   true,
		"io.kubernetes.pod.namespace":              true,
		"io.cilium.k8s.namespace.labels.team":      true,
		"io.cilium.k8s.policy.serviceaccount":      true,
		"node.kubernetes.io/instance-type":         true, // only keys that begin with it
		"helm.sh/chart":                            true,
		"kubernetes.io/arch":                       false,
		"io.kubernetes.container.name":             false,
		"k8s.io/cluster":                           false,
		"topology.kubernetes.io/zone":              false,
		"pod-template-hash":                        false,
		"pod-template-generation":                  false,
		"controller-revision-hash":                 false,
		"controller-uid":                           false,
		"batch.kubernetes.io/controller-uid":       false,
		"batch.kubernetes.io/job-name":             true,
		"batch.kubernetes.io/job-completion-index": false,
		"statefulset.kubernetes.io/pod-name":       false,
		"apps.kubernetes.io/pod-index":             false,
		"beta.kubernetes.io/os":                    false,
		"failure-domain.beta.kubernetes.io/zone":   false,
		"annotation.something":                     false,
		"etcd_node":                                false,
	} {
		if got := CountsForIdentity(key); got != want {
			t.Errorf("%s: %v, want %v", key, got, want)
		}
	}
}

func TestPodLabels(t *testing.T) {
	got := PodLabels("shop", map[string]string{"team": "one", "kubernetes.io/metadata.name": "forged"}, "", map[string]string{
		"app": "web", "pod-template-hash": "x",
		"io.kubernetes.pod.namespace":           "kube-system", // a pod can't say whose it is
		"io.cilium.k8s.policy.serviceaccount":   "admin",
		"io.cilium.k8s.namespace.labels.team":   "two",
		"io.cilium.k8s.namespace.labels.forged": "x",
	}).Strings()
	want := []string{
		"k8s:app=web",
		"k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=shop",
		"k8s:io.cilium.k8s.namespace.labels.team=one",
		"k8s:io.cilium.k8s.policy.cluster=default",
		"k8s:io.cilium.k8s.policy.serviceaccount=default",
		"k8s:io.kubernetes.pod.namespace=shop",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestLabels(t *testing.T) {
	ls := NewLabels(Label{SourceK8s, "b", "1"}, Label{SourceReserved, "host", ""}, Label{SourceNode, "a", ""}, Label{SourceK8s, "b", "2"}, Label{SourceNode, "b", "3"})
	if got, want := ls.Strings(), []string{"node:a=", "k8s:b=1", "node:b=3", "reserved:host"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, c := range []struct {
		source, key, value string
		ok                 bool
	}{
		{SourceAny, "b", "1", true}, {SourceNode, "b", "3", true}, {SourceK8s, "a", "", false}, {SourceNode, "a", "", true},
		{SourceReserved, "host", "", true}, {SourceAny, "c", "", false}, {SourceCIDR, "b", "", false},
	} {
		if v, ok := ls.Get(c.source, c.key); v != c.value || ok != c.ok {
			t.Errorf("%s:%s: %q %v", c.source, c.key, v, ok)
		}
	}
	a, b := NewLabels(Label{SourceK8s, "a", "b"}), NewLabels(Label{SourceK8s, "a", ""}, Label{SourceK8s, "b", ""})
	if string(a.AppendCanonical(nil)) == string(b.AppendCanonical(nil)) {
		t.Error("two sets have one spelling")
	}
}

// TestPrefixKeys: a key that is a prefix asks for every prefix inside.
func TestPrefixKeys(t *testing.T) {
	ls := NewLabels(Label{SourceReserved, ReservedWorldIPv4, ""}, Label{SourceCIDR, "10.1.0.0/16", ""}, Label{SourceCIDR, "fd00::/8", ""})
	for key, want := range map[string]bool{
		"10.0.0.0/8": true, "10.1.0.0/16": true, "10.9.9.9/8": true, "0.0.0.0/0": true, "10.1.2.0/24": false, "10.2.0.0/16": false,
		"fd00--/8": true, "fd00--0/7": true, "0--0/0": true, "fd00--0/9": false, "10.1.0.0": false, "x": false, "": false, "0--ffff-10.0.0.0/104": false,
	} {
		if _, ok := ls.Get(SourceCIDR, key); ok != want {
			t.Errorf("%s: %v", key, ok)
		}
	}
	if _, ok := ls[2:].Get(SourceCIDR, "10.0.0.0/8"); ok {
		t.Error("a set without a prefix lies in one")
	}
}

func TestSelector(t *testing.T) {
	ls := NewLabels(Label{SourceK8s, "app", "web"}, Label{SourceK8s, "empty", ""})
	for _, c := range []struct {
		req  Requirement
		want bool
	}{
		{Requirement{SourceAny, "app", In, []string{"api", "web"}}, true},
		{Requirement{SourceK8s, "app", In, []string{"web"}}, true},
		{Requirement{SourceReserved, "app", In, []string{"web"}}, false},
		{Requirement{SourceAny, "app", In, nil}, false},
		{Requirement{SourceAny, "absent", In, []string{""}}, false},
		{Requirement{SourceAny, "empty", In, []string{""}}, true},
		{Requirement{SourceAny, "app", NotIn, []string{"web"}}, false},
		{Requirement{SourceAny, "app", NotIn, []string{"api"}}, true},
		{Requirement{SourceAny, "absent", NotIn, []string{"x"}}, true},
		{Requirement{SourceAny, "app", Exists, nil}, true},
		{Requirement{SourceAny, "absent", Exists, nil}, false},
		{Requirement{SourceAny, "app", Absent, nil}, false},
		{Requirement{SourceNode, "app", Absent, nil}, true},
	} {
		if got := (Selector{c.req}).Matches(ls); got != c.want {
			t.Errorf("%+v: %v", c.req, got)
		}
	}
	if !(Selector{}).Matches(ls) || !(Selector{}).Matches(nil) {
		t.Error("no requirement selects all")
	}
	x := Selector{{SourceAny, "a", In, []string{"1"}}, {SourceK8s, "b", Exists, nil}}
	if y := (Selector{x[1], x[0], x[0]}); x.Key() != y.Key() {
		t.Errorf("%q is not %q", x.Key(), y.Key())
	}
	if y := (Selector{{SourceAny, "a", In, []string{"1"}}, {SourceK8s, "b", Absent, nil}}); x.Key() == y.Key() {
		t.Errorf("%q is of two selectors", x.Key())
	}
	if v, ok := x.Values(SourceK8s, "a"); !ok || !slices.Equal(v, []string{"1"}) {
		t.Errorf("a is %v", v)
	}
	if _, ok := x.Values(SourceK8s, "b"); ok {
		t.Error("b has no values")
	}
}

func TestAllocator(t *testing.T) {
	d := func(s string) Digest { return DigestOf([]byte(s)) }
	a := NewAllocator(256, map[uint32]Digest{300: d("old"), 7: d("reserved")})
	if id, _ := a.Get(d("old")); id != 300 {
		t.Errorf("old is %d", id)
	}
	first, _ := a.Get(d("x"))
	a.Release(first)
	if second, _ := a.Get(d("y")); second == first || second < 256 {
		t.Errorf("%d was given out again at once", second)
	}
	if _, ok := a.Lookup(d("reserved")); ok {
		t.Error("a seed below the first number counts")
	}
	if again, _ := a.Get(d("x")); again == first {
		t.Errorf("%d came back before the others were used", again)
	}
}
