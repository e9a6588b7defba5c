package test

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"

	"github.com/weirnet/weir/kube"
	"github.com/weirnet/weir/test/apiserver"
	"github.com/weirnet/weir/test/node"
)

// serverOf is a real API server that the nodes of a story reach as one account.
type serverOf struct {
	*testing.T
	*apiserver.Server
}

// apply applies an object, and then its status.
func (a *serverOf) apply(object map[string]any) {
	a.Helper()
	text := func(v any) []byte {
		out, err := json.Marshal(v)
		if err != nil {
			a.Fatal(err)
		}
		return out
	}
	meta := object["metadata"].(map[string]any)
	namespace, _ := meta["namespace"].(string)
	path := apiserver.Path(object["apiVersion"].(string), object["kind"].(string), namespace) + "/" + meta["name"].(string)
	status := object["status"]
	delete(object, "status")
	delete(meta, "uid")
	delete(meta, "creationTimestamp")
	if code, answer, err := a.Do(http.MethodPatch, path+"?fieldManager=test&force=true", "application/apply-patch+yaml", text(object)); err != nil || code >= 300 {
		a.Fatalf("apply %s: %d %s %v", path, code, answer, err)
	}
	if status == nil {
		return
	}
	if code, answer, err := a.Do(http.MethodPatch, path+"/status", "application/merge-patch+json", text(map[string]any{"status": status})); err != nil || code >= 300 {
		a.Fatalf("status of %s: %d %s %v", path, code, answer, err)
	}
}

// applyText applies YAML documents.
func (a *serverOf) applyText(text string) {
	a.Helper()
	for _, doc := range strings.Split(text, "---\n") {
		var object map[string]any
		if err := yaml.Unmarshal([]byte(doc), &object); err != nil {
			a.Fatal(err)
		}
		if object != nil {
			a.apply(object)
		}
	}
}

// role makes the account's rights those of an agent, less a resource.
func (a *serverOf) role(lacking string) {
	a.Helper()
	cluster, _ := kube.ConditionRules()
	rules := append(append(kube.Rules(), kube.DefinitionRules()...), cluster...)
	for i := range rules {
		rules[i].Resources = slices.DeleteFunc(slices.Clone(rules[i].Resources), func(r string) bool { return r == lacking })
	}
	rules = slices.DeleteFunc(rules, func(r rbacv1.PolicyRule) bool { return len(r.Resources) == 0 })
	text, err := yaml.Marshal(map[string]any{
		"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": map[string]any{"name": "weir"}, "rules": rules,
	})
	if err != nil {
		a.Fatal(err)
	}
	a.applyText(string(text))
}

// kubeconfig makes a way to the server on a node, as the account.
func (a *serverOf) kubeconfig(n *node.Node) string {
	a.Helper()
	target, err := url.Parse(a.URL)
	if err != nil {
		a.Fatal(err)
	}
	relay := &httputil.ReverseProxy{
		FlushInterval: -1, // of watches
		Transport:     &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}},
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Header.Set("Authorization", "Bearer "+a.Token)
			r.Out.Header.Set("Impersonate-User", "system:serviceaccount:weir:agent")
			r.Out.Header.Set("Impersonate-Group", "system:authenticated")
		},
	}
	l, err := n.Host.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		a.Fatal(err)
	}
	server := &http.Server{Handler: relay}
	go func() { _ = server.Serve(l) }()
	a.Cleanup(func() { server.Close() })
	path := filepath.Join(a.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: c
clusters: [{name: c, cluster: {server: "http://%s"}}]
users: [{name: c, user: {}}]
contexts: [{name: c, context: {cluster: c, user: c}}]
`, l.Addr())
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		a.Fatal(err)
	}
	return path
}

const bindingYAML = `apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: weir}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: weir}
subjects: [{kind: ServiceAccount, name: agent, namespace: weir}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: sealed, namespace: shop}
spec: {podSelector: {matchLabels: {app: stranger}}, policyTypes: [Egress]}
`

// TestForbiddenKind: an agent whose ClusterRole lacks NetworkPolicies says so, and
// enforces all other policies; once both kinds are in force, neither that right nor
// a restart without it takes anything out of force.
func TestForbiddenKind(t *testing.T) {
	server := apiserver.Require(t)
	s := tell(t, "setups/not-started.txtar")
	s.noExplain = true
	a := &serverOf{t, server}
	n := s.nodes[0]
	crds, err := os.ReadFile("../deploy/crds/ciliumnetworkpolicies.yaml")
	if err != nil {
		t.Fatal(err)
	}
	a.applyText(string(crds))
	time.Sleep(time.Second) // until the kind is served
	files, err := filepath.Glob(filepath.Join(s.objects.Dir, "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(files, func(x, y string) int { // namespaces first
		return strings.Compare(strings.Replace(x, "/namespace", "/0", 1), strings.Replace(y, "/namespace", "/0", 1))
	})
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		a.applyText(string(text))
	}
	a.applyText(bindingYAML)
	a.role("networkpolicies")
	config := a.kubeconfig(n)
	w := n.NewWeir(program, s.objects, s)
	s.started[n.Name] = true
	start := func() {
		t.Helper()
		err := w.StartCommand(exec.Command(program, "agent", "--kubeconfig", config, "--node-name", n.Name, "--state", n.State, "--cgroup", "none", "--metrics-addr", ""))
		if err != nil {
			t.Fatal(err)
		}
	}
	says := func(texts ...string) {
		t.Helper()
		for _, text := range texts {
			if err := s.status(text); err != nil {
				t.Fatal(err)
			}
		}
	}
	const lacks = `the agent's ClusterRole lacks apiGroups: ["networking.k8s.io"], resources: ["networkpolicies"], verbs: ["list"]`
	start()
	says("NOT READY", lacks, "NetworkPolicy: NOT ENFORCED", "1 CiliumNetworkPolicy", "shop/web ")
	if err := s.follow(n); err != nil {
		t.Fatal(err)
	}
	s.check("shop/client GET shop/web:8080/a => 200")
	s.check("shop/client GET shop/web:8080/b => 403")
	s.check("shop/stranger tcp shop/web:8080 => dropped")
	s.check("shop/stranger tcp shop/client:7000 => ok")

	a.role("")
	says("synced", "1 NetworkPolicy")
	s.must("status ready on node")
	s.check("shop/stranger tcp shop/client:7000 => dropped")

	a.role("networkpolicies")
	w.Agent().Kill()
	start()
	says("NOT READY", lacks, "what was in force before is", "NOT READ YET")
	s.check("shop/client GET shop/web:8080/a => 200")
	if err := s.mustTimeOut("shop/stranger", "shop/client", 7000); err != nil {
		t.Error(err)
	}
	if err := s.mustTimeOut("shop/stranger", "shop/web", 8080); err != nil {
		t.Error(err)
	}
	a.role("")
	says("synced")
	if err := s.mustTimeOut("shop/stranger", "shop/client", 7000); err != nil {
		t.Error(err)
	}
}
