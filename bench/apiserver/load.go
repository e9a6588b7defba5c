package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"
)

// size is how much there is in the cluster.
type size struct {
	Pods       int `json:"pods"`
	Nodes      int `json:"nodes"`
	Namespaces int `json:"namespaces"`
	Policies   int `json:"policies"`
	Own        int `json:"ownPods"` // those of the agent's node
}

// writer writes objects as users and controllers do.
type writer struct {
	client *http.Client
	url    string
}

func newWriter(c *rest.Config) (*writer, error) {
	client, err := rest.HTTPClientFor(c)
	return &writer{client, c.Host}, err
}

func (w *writer) do(ctx context.Context, method, path string, object any) error {
	contentType := "application/json"
	if method == http.MethodPatch {
		contentType = "application/merge-patch+json"
	}
	var body io.Reader
	if object != nil {
		text, err := json.Marshal(object)
		if err != nil {
			return err
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, w.url+path, body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := w.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= 300 {
		err = fmt.Errorf("%s %s: %s %s", method, path, resp.Status, answer)
	}
	return err
}

type object = map[string]any

func namespaceOf(n int) string { return fmt.Sprintf("tenant-%d", n) }

// load creates everything, with many requests at a time, and says how far it is.
func (w *writer) load(ctx context.Context, s size, say func(string, ...any)) error {
	each := func(what string, n int, do func(ctx context.Context, i int) error) error {
		group, ctx := errgroup.WithContext(ctx)
		group.SetLimit(24)
		said := time.Now()
		say("creating %d %s", n, what)
		for i := range n {
			if time.Since(said) > 5*time.Second {
				said = time.Now()
				say("  %d of %d %s", i, n, what)
			}
			group.Go(func() error { return do(ctx, i) })
		}
		return group.Wait()
	}
	if err := each("namespaces", s.Namespaces, func(ctx context.Context, i int) error {
		return w.do(ctx, http.MethodPost, "/api/v1/namespaces", object{"metadata": object{
			"name": namespaceOf(i), "labels": object{"tenant": fmt.Sprint(i), "team": fmt.Sprint("team-", i%20)}}})
	}); err != nil {
		return err
	}
	if err := each("nodes", s.Nodes, func(ctx context.Context, i int) error {
		name := fmt.Sprintf("node-%d", i)
		if err := w.do(ctx, http.MethodPost, "/api/v1/nodes", object{"metadata": object{"name": name, "labels": object{"kubernetes.io/hostname": name}},
			"spec": object{"podCIDR": fmt.Sprintf("10.%d.%d.0/24", 64+i/256, i%256)}}); err != nil {
			return err
		}
		return w.do(ctx, http.MethodPatch, "/api/v1/nodes/"+name+"/status", object{"status": object{
			"addresses": []object{{"type": "InternalIP", "address": fmt.Sprintf("192.168.%d.%d", i/250, 1+i%250)}}}})
	}); err != nil {
		return err
	}
	if err := each("policies", s.Policies, func(ctx context.Context, i int) error {
		if i%2 == 0 {
			return w.do(ctx, http.MethodPost, "/apis/cilium.io/v2/namespaces/"+namespaceOf(i%s.Namespaces)+"/ciliumnetworkpolicies", ciliumPolicy(i, 8080))
		}
		return w.do(ctx, http.MethodPost, "/apis/networking.k8s.io/v1/namespaces/"+namespaceOf(i%s.Namespaces)+"/networkpolicies", networkPolicy(i))
	}); err != nil {
		return err
	}
	return each("pods", s.Pods, func(ctx context.Context, i int) error { return w.pod(ctx, s, i) })
}

func ciliumPolicy(i, port int) object {
	return object{"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": object{"name": fmt.Sprintf("p-%d", i)},
		"spec": object{"endpointSelector": object{"matchLabels": object{"app": "web"}},
			"ingress": []object{{"fromEndpoints": []object{{"matchLabels": object{"app": "web"}}, {"matchLabels": object{"app": "monitor", "k8s:io.kubernetes.pod.namespace": namespaceOf(0)}}},
				"toPorts": []object{{"ports": []object{{"port": fmt.Sprint(port), "protocol": "TCP"}}}}}}}}
}

func networkPolicy(i int) object {
	return object{"metadata": object{"name": fmt.Sprintf("p-%d", i)}, "spec": object{"podSelector": object{}, "policyTypes": []string{"Ingress"},
		"ingress": []object{{"from": []object{{"podSelector": object{}}, {"namespaceSelector": object{"matchLabels": object{"team": fmt.Sprint("team-", i%20)}}}}}}}}
}

// pod creates a pod as a Deployment, a scheduler and a kubelet would leave it.
func (w *writer) pod(ctx context.Context, s size, i int) error {
	node := fmt.Sprintf("node-%d", 1+i%(s.Nodes-1))
	if i < s.Own {
		node = "node-0"
	}
	ip := fmt.Sprintf("10.%d.%d.%d", 64+i/65536, i/256%256, i%256)
	path := "/api/v1/namespaces/" + namespaceOf(i%s.Namespaces) + "/pods"
	name := fmt.Sprintf("web-7c9f8d6b5-%d", i)
	var env []object
	for e := range 8 {
		env = append(env, object{"name": fmt.Sprintf("SETTING_%d", e), "value": strings.Repeat("v", 40)})
	}
	if err := w.do(ctx, http.MethodPost, path, object{
		"metadata": object{"name": name, "labels": object{"app": "web", "pod-template-hash": "7c9f8d6b5", "tier": fmt.Sprint("t", i%3)},
			"annotations": object{"checksum/config": strings.Repeat("0a", 32)}},
		"spec": object{"nodeName": node, "containers": []object{{
			"name": "web", "image": "registry.example/web:v1.2.3", "env": env, "ports": []object{{"name": "http", "containerPort": 8080}},
			"resources":      object{"requests": object{"cpu": "100m", "memory": "64Mi"}},
			"readinessProbe": object{"httpGet": object{"path": "/healthz", "port": 8080}}}}},
	}); err != nil {
		return err
	}
	const at = "2026-01-01T00:00:00Z"
	condition := func(t string) object { return object{"type": t, "status": "True", "lastTransitionTime": at} }
	return w.do(ctx, http.MethodPatch, path+"/"+name+"/status", object{"status": object{
		"phase": "Running", "podIP": ip, "podIPs": []object{{"ip": ip}}, "hostIP": "192.168.0.1", "startTime": at,
		"conditions": []object{condition("Ready"), condition("Initialized"), condition("ContainersReady"), condition("PodScheduled")},
		"containerStatuses": []object{{"name": "web", "image": "registry.example/web:v1.2.3", "imageID": "registry.example/web@sha256:" + strings.Repeat("ab", 32),
			"containerID": "containerd://" + strings.Repeat("cd", 32), "ready": true, "restartCount": 0, "state": object{"running": object{"startedAt": at}}}},
	}})
}

func (w *writer) deletePod(ctx context.Context, s size, i int) error {
	return w.do(ctx, http.MethodDelete, fmt.Sprintf("/api/v1/namespaces/%s/pods/web-7c9f8d6b5-%d?gracePeriodSeconds=0", namespaceOf(i%s.Namespaces), i), nil)
}
