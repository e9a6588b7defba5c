package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	core "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
)

// TaintRules are the rights that Untaint needs. They can't be had for the own
// node only.
func TaintRules() []rbacv1.PolicyRule {
	return []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"nodes"}, Verbs: []string{"get", "patch"}}}
}

// Untaint takes all taints with this key off a node. That there are none is no
// error. Where another changes the node's taints meanwhile it fails, and nothing
// is done.
func Untaint(ctx context.Context, config *rest.Config, node, key string) error {
	client, err := core.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("connect to the API server: %w", err)
	}
	n, err := client.Nodes().Get(ctx, node, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("take taint %s off node %s: %w", key, node, err)
	}
	type step struct {
		Op    string        `json:"op"`
		Path  string        `json:"path"`
		Value *corev1.Taint `json:"value,omitempty"`
	}
	var steps []step
	for i, t := range slices.Backward(n.Spec.Taints) { // the last first: removing one moves those behind it
		if t.Key == key {
			path := fmt.Sprintf("/spec/taints/%d", i)
			steps = append(steps, step{"test", path, &t}, step{Op: "remove", Path: path})
		}
	}
	if len(steps) == 0 {
		return nil
	}
	patch, err := json.Marshal(steps)
	if err != nil {
		return fmt.Errorf("take taint %s off: %w", key, err)
	}
	if _, err := client.Nodes().Patch(ctx, node, types.JSONPatchType, patch, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("take taint %s off node %s: %w", key, node, err)
	}
	return nil
}
