package kube

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/policy/api"
	"github.com/weirnet/weir/test/apiserver"
)

// The tests here run a Cluster at a real API server (make test-kube).

// cluster is an API server, what a test does to it, and a source of its objects.
type cluster struct {
	*testing.T
	server *apiserver.Server
	source *Cluster
	sink   *sink
}

func serve(t *testing.T) *cluster {
	return &cluster{T: t, server: apiserver.Require(t)}
}

func (c *cluster) config() *rest.Config {
	return &rest.Config{Host: c.server.URL, BearerToken: c.server.Token, TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
}

// account connects as a service account whose rights are those of rules.
func (c *cluster) account(name string, rules []rbacv1.PolicyRule) *rest.Config {
	c.Helper()
	role := map[string]any{
		"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": map[string]any{"name": name}, "rules": rules,
	}
	text, err := yaml.Marshal(role)
	if err != nil {
		c.Fatal(err)
	}
	c.apply(string(text) + fmt.Sprintf(`---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: %s}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: %s}
subjects: [{kind: ServiceAccount, name: %s, namespace: kube-system}]
`, name, name, name))
	config := c.config()
	config.Impersonate = rest.ImpersonationConfig{
		UserName: "system:serviceaccount:kube-system:" + name,
		Groups:   []string{"system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"},
	}
	return config
}

// run follows the server until the test ends.
func (c *cluster) run(config *rest.Config) (stop func()) {
	c.Helper()
	source, err := NewCluster(config, slog.New(slog.NewTextHandler(c.Output(), nil)))
	if err != nil {
		c.Fatal(err)
	}
	c.source, c.sink = source, &sink{}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.source.Run(ctx, c.sink) }()
	ended := false
	stop = func() {
		if ended {
			return
		}
		ended = true
		start := time.Now()
		cancel()
		if err := <-done; err != nil {
			c.Errorf("Run: %v", err)
		}
		if took := time.Since(start); took > 2*time.Second {
			c.Errorf("it took %v to stop", took)
		}
	}
	c.Cleanup(stop)
	return stop
}

func (c *cluster) do(method, path, contentType, body string) {
	c.Helper()
	var data []byte
	if body != "" {
		data = []byte(body)
	}
	status, answer, err := c.server.Do(method, path, contentType, data)
	if err != nil || status >= 300 {
		c.Fatalf("%s %s: %d %s %v", method, path, status, answer, err)
	}
}

// apply applies objects as a user does, and then their status as a controller.
func (c *cluster) apply(texts ...string) {
	c.Helper()
	for _, text := range strings.Split(strings.Join(texts, "---\n"), "---\n") {
		path, object := c.read(text)
		c.do(http.MethodPatch, path+"?fieldManager=test&force=true&fieldValidation=Ignore", "application/apply-patch+yaml", text)
		if status, ok := object["status"]; ok {
			patch, err := yaml.Marshal(map[string]any{"status": status})
			if err != nil {
				c.Fatal(err)
			}
			if patch, err = yaml.YAMLToJSON(patch); err != nil {
				c.Fatal(err)
			}
			c.do(http.MethodPatch, path+"/status", "application/merge-patch+json", string(patch))
		}
	}
}

func (c *cluster) read(text string) (path string, object map[string]any) {
	c.Helper()
	if err := yaml.Unmarshal([]byte(text), &object); err != nil {
		c.Fatalf("%v in\n%s", err, text)
	}
	meta := object["metadata"].(map[string]any)
	namespace, _ := meta["namespace"].(string)
	if namespace == "" {
		namespace = "default"
	}
	return apiserver.Path(object["apiVersion"].(string), object["kind"].(string), namespace) + "/" + meta["name"].(string), object
}

func (c *cluster) delete(text string) {
	c.Helper()
	path, _ := c.read(text)
	c.do(http.MethodDelete, path+"?gracePeriodSeconds=0", "", "")
}

func (c *cluster) sync() {
	c.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	if err := c.source.Sync(ctx); err != nil {
		c.Fatalf("sync: %v", err)
	}
}

// eventually fails unless a condition holds soon.
func (c *cluster) eventually(what string, cond func() bool) {
	c.Helper()
	for end := time.Now().Add(20 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			c.Fatalf("%s: not so: %s; %+v", what, c.sink.names(), c.source.Report())
		}
	}
}

// has tells whether the sink has objects, by their names.
func (c *cluster) has(names ...string) bool {
	have := strings.Split(c.sink.names(), ", ")
	return !slices.ContainsFunc(names, func(n string) bool { return !slices.Contains(have, n) })
}

func (c *cluster) watch(kind string) Watch {
	for _, w := range c.source.Report().Watches {
		if w.Kind == kind {
			return w
		}
	}
	c.Fatalf("no watch of %s", kind)
	return Watch{}
}

const shopYAML = `apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: a}}
`

// realPod is a pod that an API server takes.
func realPod(name, ip string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: shop, labels: {app: %s}}
spec: {nodeName: n1, containers: [{name: c, image: none, ports: [{name: http, containerPort: 8080}]}]}
status: {phase: Running, podIP: %s, podIPs: [{ip: %s}]}
`, name, name, ip, ip)
}

const crdYAML = `apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: PLURAL.cilium.io}
spec:
  group: cilium.io
  scope: SCOPE
  names: {kind: KIND, plural: PLURAL, singular: SINGULAR}
  versions:
  - name: v2
    served: true
    storage: true
    subresources: {status: {}}
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`

func crd(kind, scope string) string {
	singular := strings.ToLower(kind)
	plural := singular + "s"
	if strings.HasSuffix(singular, "y") {
		plural = strings.TrimSuffix(singular, "y") + "ies"
	}
	return strings.NewReplacer("PLURAL", plural, "SINGULAR", singular, "KIND", kind, "SCOPE", scope).Replace(crdYAML)
}

func allCRDs() string {
	return crd(api.KindCiliumPolicy, "Namespaced") + "---\n" + crd(api.KindClusterwide, "Cluster") + "---\n" + crd(api.KindCiliumCIDRGroup, "Cluster")
}

const strictYAML = `apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: shop, annotations: {kubectl.kubernetes.io/last-applied-configuration: '{}', note: x}}
spec:
  endpointSelector: {matchLabels: {app: a}}
  ingress: [{fromEndpoints: [{}]}]
`

func TestClusterFollowsTheServer(t *testing.T) {
	c := serve(t)
	c.apply(shopYAML, `apiVersion: v1
kind: Node
metadata: {name: n1, labels: {zone: a}}
spec: {podCIDRs: [10.1.0.0/24], podCIDR: 10.1.0.0/24}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
`, realPod("a", "10.0.0.1"), realPod("b", "10.0.0.2"), policyYAML, `apiVersion: v1
kind: Service
metadata: {name: s, namespace: shop}
spec: {selector: {app: a}, clusterIP: 10.96.7.7, ports: [{port: 80, targetPort: http}]}
`, `apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: s-1, namespace: shop, labels: {kubernetes.io/service-name: s}}
addressType: IPv4
ports: [{name: "", port: 8080}]
endpoints: [{addresses: [10.0.0.1]}]
`)
	stop := c.run(c.config())
	c.eventually("first", func() bool { return c.sink.names() != "" })
	if !c.has("Namespace shop", "Namespace kube-system", "Node n1", "Pod shop/a", "Pod shop/b", "Service shop/s", "EndpointSlice shop/s-1", "NetworkPolicy shop/web") {
		t.Fatalf("first: %s", c.sink.names())
	}
	c.sync()
	r := c.source.Report()
	if !r.Complete || len(r.Problems) > 0 || r.Kinds["Pod"] != 2 || r.Path != c.server.URL || !strings.HasSuffix(r.From(), ", synced") {
		t.Errorf("report: %+v", r)
	}
	for _, kind := range []string{api.KindCiliumPolicy, api.KindClusterwide, api.KindCiliumCIDRGroup} {
		if w := c.watch(kind); !w.Missing || w.Error != "" {
			t.Errorf("%+v: there is no CRD", w)
		}
	}
	p := c.sink.get("Pod", "shop", "a").(*policy.Pod)
	if p.Node != "n1" || p.UID == "" || p.Created == 0 || p.ServiceAccount != "default" || p.Labels["app"] != "a" || len(p.Addresses) != 1 || len(p.Ports) != 1 {
		t.Errorf("pod: %+v", p)
	}
	if n := c.sink.get("Node", "", "n1").(*policy.Node); len(n.Addresses) != 1 || len(n.PodCIDRs) != 1 {
		t.Errorf("node: %+v", n)
	}

	// What means nothing is no change.
	// (The server writes objects of its own for a while, so no changes are counted.)
	pod, webPolicy := c.sink.get("Pod", "shop", "a"), c.sink.get("NetworkPolicy", "shop", "web")
	c.do(http.MethodPatch, "/api/v1/namespaces/shop/pods/a/status", "application/merge-patch+json", `{"status":{"message":"still here"}}`)
	c.do(http.MethodPatch, "/apis/networking.k8s.io/v1/namespaces/shop/networkpolicies/web", "application/merge-patch+json",
		`{"metadata":{"annotations":{"kubectl.kubernetes.io/last-applied-configuration":"{}"},"finalizers":["weir.test/x"]}}`)
	c.do(http.MethodPatch, "/apis/networking.k8s.io/v1/namespaces/shop/networkpolicies/web", "application/merge-patch+json", `{"metadata":{"finalizers":null}}`)
	c.sync()
	if c.sink.get("Pod", "shop", "a") != pod || c.sink.get("NetworkPolicy", "shop", "web") != webPolicy {
		t.Error("what means nothing is a change")
	}

	// Changes, one batch or several.
	c.apply(realPod("c", "10.0.0.3"), realPod("a", "10.0.0.11"))
	c.delete(realPod("b", ""))
	c.do(http.MethodPatch, "/api/v1/namespaces/shop/pods/c/status", "application/merge-patch+json", `{"status":{"phase":"Succeeded"}}`)
	c.sync()
	if a := c.sink.get("Pod", "shop", "a").(*policy.Pod); a.Addresses[0].String() != "10.0.0.11" || c.sink.get("Pod", "shop", "b") != nil || c.sink.get("Pod", "shop", "c") != nil {
		t.Errorf("after changes: %s, a at %s", c.sink.names(), a.Addresses)
	}

	// A CRD that comes is noticed, and policies under it.
	start := time.Now()
	c.apply(allCRDs())
	c.eventually("CRDs are noticed", func() bool {
		return c.watch(api.KindCiliumPolicy).Known && c.watch(api.KindClusterwide).Known && c.watch(api.KindCiliumCIDRGroup).Known
	})
	t.Logf("CRDs noticed after %v", time.Since(start))
	c.apply(strictYAML)
	c.sync()
	if p, ok := c.sink.get(api.KindCiliumPolicy, "shop", "web").(*api.Policy); !ok || len(p.Refused) > 0 || p.UID == "" {
		t.Errorf("policy: %+v, %+v", p, c.source.Report().Problems)
	}
	webPolicy = c.sink.get(api.KindCiliumPolicy, "shop", "web")
	c.do(http.MethodPatch, "/apis/cilium.io/v2/namespaces/shop/ciliumnetworkpolicies/web/status", "application/merge-patch+json", `{"status":{"conditions":[{"type":"Accepted"}]}}`)
	c.sync()
	if c.sink.get(api.KindCiliumPolicy, "shop", "web") != webPolicy {
		t.Error("a status is a change")
	}

	// What the server did not know either is refused by name.
	c.apply(strings.Replace(strictYAML, "ingress:", "ingres:", 1))
	c.sync()
	r = c.source.Report()
	if want := "CiliumNetworkPolicy shop/web: spec.ingres: unknown field; did you mean ingress?"; r.Refused != 1 || len(r.Problems) == 0 || r.Problems[0].String() != want {
		t.Errorf("refused %d, problems %v, want %s", r.Refused, r.Problems, want)
	}
	c.apply(strings.Replace(strictYAML, "spec:", "extra: {}\nspec:", 1))
	c.sync()
	if r = c.source.Report(); r.Refused != 1 || !strings.Contains(r.Problems[0].Message, "extra: unknown field") {
		t.Errorf("problems %v", r.Problems)
	}

	// A CRD that goes takes its objects along, and no time to be believed.
	c.do(http.MethodDelete, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/ciliumnetworkpolicies.cilium.io", "", "")
	c.eventually("its objects are gone", func() bool {
		return c.sink.get(api.KindCiliumPolicy, "shop", "web") == nil && c.watch(api.KindCiliumPolicy).Missing
	})
	stop()
}

// count is how many changes came.
func (s *sink) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changes
}

// TestRulesAreNeitherLessNorMoreThanNeeded: with them nothing is denied, and
// each one that is missing is reported in words that say how to mend it.
func TestRulesAreNeitherLessNorMoreThanNeeded(t *testing.T) {
	c := serve(t)
	denied := func() (out []Watch) {
		for _, w := range c.source.Report().Watches {
			if w.Denied {
				out = append(out, w)
			}
		}
		return out
	}
	n := 0
	without := func(rule rbacv1.PolicyRule, resource, resourceName, verb string) {
		t.Helper()
		n++
		var rules []rbacv1.PolicyRule
		for _, r := range Rules() {
			for _, res := range r.Resources {
				for _, v := range r.Verbs {
					one := rbacv1.PolicyRule{APIGroups: r.APIGroups, Resources: []string{res}, ResourceNames: slices.Clone(r.ResourceNames), Verbs: []string{v}}
					if r.APIGroups[0] == rule.APIGroups[0] && res == resource && v == verb {
						if resourceName == "" {
							continue
						}
						one.ResourceNames = slices.DeleteFunc(one.ResourceNames, func(n string) bool { return n == resourceName })
					}
					rules = append(rules, one)
				}
			}
		}
		stop := c.run(c.account(fmt.Sprintf("less-%d", n), rules))
		// A new role is in force a moment later; until then more is denied.
		want := fmt.Sprintf("apiGroups: [%q], resources: [%q], verbs: [%q]", rule.APIGroups[0], resource, verb)
		c.eventually("only this is missing: "+want, func() bool {
			got := denied()
			return len(got) == 1 && strings.Contains(got[0].Error, want)
		})
		if resourceName == "" && (c.sink.called() > 0 || c.source.Report().Complete) {
			t.Errorf("without the right to %s %s: %d batches were handed on; %+v", verb, resource, c.sink.called(), c.source.Report())
		}
		stop()
	}
	noClientErrors := func(of int) {
		t.Helper()
		c.run(c.account(fmt.Sprintf("all-%d", of), Rules()))
		c.eventually("rights are in force", func() bool { return c.sink.names() != "" && len(denied()) == 0 })
		stop := c.run(c.account(fmt.Sprintf("all-%d", of), Rules()))
		c.eventually("everything is read", func() bool { return c.sink.names() != "" })
		c.sync()
		time.Sleep(100 * time.Millisecond) // for the watches of definitions
		if got := denied(); len(got) > 0 {
			t.Errorf("denied: %v", got)
		}
		for n, counts := range c.source.counts {
			for verb := range counts.requests {
				if got := counts.requests[verb][4].Load(); got > 0 && (of == 1 || !c.source.Report().Watches[n].Missing) {
					t.Errorf("%s: %d requests were refused", c.source.Report().Watches[n].Kind, got)
				}
			}
		}
		stop()
	}
	noClientErrors(0)
	for _, r := range Rules() {
		for _, name := range r.ResourceNames {
			without(r, r.Resources[0], name, "watch")
		}
	}
	c.apply(allCRDs())
	noClientErrors(1)
	for _, r := range Rules() {
		if len(r.ResourceNames) > 0 {
			continue
		}
		for _, resource := range r.Resources {
			for _, verb := range r.Verbs {
				without(r, resource, "", verb)
			}
		}
	}
}

// TestLostServerChangesNothing: what was read stays, also across a restart of
// the source, and what happened meanwhile comes as a difference.
func TestLostServerChangesNothing(t *testing.T) {
	c := serve(t)
	c.apply(shopYAML, allCRDs(), realPod("a", "10.0.0.1"), realPod("b", "10.0.0.2"), policyYAML)
	c.eventuallyApplies(strictYAML)
	stop := c.run(c.config())
	c.eventually("first", func() bool { return c.sink.names() != "" })
	c.sync()
	c.server.Stop()
	time.Sleep(100 * time.Millisecond) // for what the server said last
	before, names := c.sink.count(), c.sink.names()
	c.eventually("it is noticed", func() bool {
		r := c.source.Report()
		return !slices.ContainsFunc(r.Watches, func(w Watch) bool { return w.Since.IsZero() })
	})
	r := c.source.Report()
	if !r.Complete || c.sink.count() != before || c.sink.names() != names || !strings.HasSuffix(r.From(), "NOT UP TO DATE") ||
		!strings.Contains(r.Watches[2].String(), "Pod: what was read before counts; not up to date since ") {
		t.Errorf("after the server's end: %d changes, report %+v", c.sink.count()-before, r)
	}

	// A source that starts now waits, and hands on nothing.
	first, firstSink := c.source, c.sink
	stopSecond := c.run(c.config())
	c.eventually("the second source notices", func() bool {
		return !slices.ContainsFunc(c.source.Report().Watches, func(w Watch) bool { return w.Error == "" })
	})
	if r := c.source.Report(); r.Complete || c.sink.called() != 0 || !strings.HasSuffix(r.From(), "NOT READ YET") || !strings.Contains(r.Watches[2].String(), "not read yet, tried since") {
		t.Errorf("a source without a server: %d calls, %+v", c.sink.called(), r)
	}

	if err := c.server.Restart(); err != nil {
		t.Fatal(err)
	}
	c.delete(realPod("b", ""))
	c.apply(realPod("c", "10.0.0.3"))
	c.eventually("the second source catches up", func() bool { return c.has("Pod shop/a", "Pod shop/c", "CiliumNetworkPolicy shop/web") })
	stopSecond()
	c.source, c.sink = first, firstSink
	c.eventually("the first source catches up", func() bool { return c.has("Pod shop/a", "Pod shop/c") && !c.has("Pod shop/b") })
	c.sync()
	if got := c.sink.count() - before; got < 2 || got > 8 {
		t.Errorf("%d changes came of two", got)
	}
	c.eventually("all is well again", func() bool {
		r := c.source.Report()
		return r.Complete && strings.HasSuffix(r.From(), ", synced")
	})
	stop()
}

// eventuallyApplies applies what the server takes only after a moment: a CRD
// has come.
func (c *cluster) eventuallyApplies(text string) {
	c.Helper()
	path, _ := c.read(text)
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		status, answer, err := c.server.Do(http.MethodPatch, path+"?fieldManager=test&force=true", "application/apply-patch+yaml", []byte(text))
		if err == nil && status < 300 {
			return
		}
		if time.Now().After(end) {
			c.Fatalf("%s: %d %s %v", path, status, answer, err)
		}
	}
}

// called is how many batches came.
func (s *sink) called() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls
}
