package kube

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	core "k8s.io/client-go/kubernetes/typed/core/v1"
)

// TestUntaint takes the taints of one key off a node, whatever is around them,
// with the rights that are said to be enough.
func TestUntaint(t *testing.T) {
	c := serve(t)
	c.apply(`
apiVersion: v1
kind: Node
metadata: {name: tainted}
spec:
  taints:
  - {key: weir.example/starting, effect: NoSchedule}
  - {key: another, value: x, effect: NoSchedule}
  - {key: weir.example/starting, effect: NoExecute}
  - {key: last, effect: PreferNoSchedule}
`)
	nodes, err := core.NewForConfig(c.config())
	if err != nil {
		t.Fatal(err)
	}
	config := c.account("untaint", TaintRules())
	for range 2 { // the second time there is nothing to do
		if err := Untaint(t.Context(), config, "tainted", "weir.example/starting"); err != nil {
			t.Fatal(err)
		}
		n, err := nodes.Nodes().Get(t.Context(), "tainted", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var left []string
		for _, taint := range n.Spec.Taints {
			if taint.Key != corev1.TaintNodeNotReady {
				left = append(left, taint.Key)
			}
		}
		if !slices.Equal(left, []string{"another", "last"}) {
			t.Errorf("left: %v", left)
		}
	}
	if err := Untaint(t.Context(), config, "nobody", "weir.example/starting"); err == nil {
		t.Error("a node that is not there")
	}
	if err := Untaint(t.Context(), c.account("reader", Rules()), "tainted", "another"); err == nil {
		t.Error("without the right")
	}
}
