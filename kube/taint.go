package kube

import (
	"context"
	"encoding/json"
	"fmt"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	core "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
)

// TaintRules is the right that Untaint needs. It can't be had for the own node
// only.
func TaintRules() []rbacv1.PolicyRule {
	return []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"nodes"}, Verbs: []string{"patch"}}}
}

// Untaint takes all taints with this key off a node. That there are none is no
// error.
func Untaint(ctx context.Context, config *rest.Config, node, key string) error {
	client, err := core.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("connect to the API server: %w", err)
	}
	// The list is merged by key: others' taints that come meanwhile stay.
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{
		"taints": []map[string]string{{"$patch": "delete", "key": key}},
	}})
	if err != nil {
		return fmt.Errorf("take taint %s off: %w", key, err)
	}
	if _, err := client.Nodes().Patch(ctx, node, types.StrategicMergePatchType, patch, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("take taint %s off node %s: %w", key, node, err)
	}
	return nil
}
