package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/client-go/rest"

	"github.com/weirnet/weir/deploy/crds"
	"github.com/weirnet/weir/policy/api"
	"github.com/weirnet/weir/test/apiserver"
)

const conditionsYAML = `apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: good, namespace: default}
spec: {endpointSelector: {}, ingress: [{}]}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: bad, namespace: default}
spec: {endpointSelector: {}, ingress: [{toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{path: "/("}]}}]}]}
---
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: nodes}
spec: {nodeSelector: {}, egress: [{toPorts: [{ports: [{port: "53", protocol: UDP}], rules: {dns: [{matchName: a.test}]}}]}]}
---
apiVersion: cilium.io/v2
kind: CiliumCIDRGroup
metadata: {name: odd}
spec: {externalCIDRs: [10.0.0.1/8]}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: dangling, namespace: default}
spec: {endpointSelector: {}, egress: [{toCIDRSet: [{cidrGroupRef: nosuch}]}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: hosts, namespace: default}
spec: {podSelector: {}, ingress: [{ports: [{port: nosuch}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: default}
spec: {containers: [{name: c, image: i}]}
`

// teller runs a source and Conditions until stop is called or the test ends.
func (c *cluster) teller(identity string, config *rest.Config) (stop func()) {
	c.Helper()
	log := slog.New(slog.NewTextHandler(c.Output(), nil)).With("agent", identity)
	doubts := NewDoubts()
	doubts.pause, doubts.after = 100*time.Millisecond, time.Second
	conditions, err := NewConditions(ConditionsOptions{
		Config: config, Namespace: "kube-system", Identity: identity, Log: log, Lease: 4 * time.Second, Doubts: doubts,
	})
	if err != nil {
		c.Fatal(err)
	}
	source, err := NewCluster(config, log)
	if err != nil {
		c.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 3)
	go func() { done <- source.Run(ctx, doubts.After(conditions.After(&sink{}))) }()
	go func() { done <- conditions.Run(ctx) }()
	go func() { done <- doubts.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		for range 3 {
			if err := <-done; err != nil {
				c.Error(err)
			}
		}
	}
	c.Cleanup(stop)
	return stop
}

// object reads an object's version and conditions.
func (c *cluster) object(path string) (version string, conditions []api.Condition) {
	c.Helper()
	status, answer, err := c.server.Do("GET", path, "", nil)
	if err != nil || status != 200 {
		c.Fatalf("%s: %d %v", path, status, err)
	}
	var o struct {
		Metadata struct{ ResourceVersion string }
		Status   api.PolicyStatus
	}
	if err := json.Unmarshal(answer, &o); err != nil {
		c.Fatal(err)
	}
	return o.Metadata.ResourceVersion, o.Status.Conditions
}

// events lists the events of namespace default, as "object: type reason note".
func (c *cluster) events() []string {
	c.Helper()
	_, answer, err := c.server.Do("GET", "/apis/events.k8s.io/v1/namespaces/default/events", "", nil)
	if err != nil {
		c.Fatal(err)
	}
	var list struct {
		Items []struct {
			Type, Reason, Note, ReportingController string
			Regarding                               struct{ Kind, Name string }
		}
	}
	if err := json.Unmarshal(answer, &list); err != nil {
		c.Fatal(err)
	}
	var out []string
	for _, e := range list.Items {
		if e.ReportingController == "weir" {
			out = append(out, fmt.Sprintf("%s: %s %s %s", e.Regarding.Name, e.Type, e.Reason, e.Note))
		}
	}
	return out
}

func (c *cluster) soon(what string, cond func() bool) {
	c.Helper()
	for end := time.Now().Add(30 * time.Second); !cond(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			c.Fatalf("not so: %s; events %q", what, c.events())
		}
	}
}

const (
	policiesPath = "/apis/cilium.io/v2/namespaces/default/ciliumnetworkpolicies/"
	nodesPath    = "/apis/cilium.io/v2/ciliumclusterwidenetworkpolicies/nodes"
)

// TestConditions: what became of policies is written once, by one agent, with
// no more rights than it says.
func TestConditions(t *testing.T) {
	c := serve(t)
	c.define(c.config())
	c.soon("the definitions are served", func() bool {
		for _, plural := range []string{"ciliumnetworkpolicies", "ciliumclusterwidenetworkpolicies", "ciliumcidrgroups"} {
			if status, _, _ := c.server.Do("GET", "/apis/cilium.io/v2/"+plural, "", nil); status != 200 {
				return false
			}
		}
		return true
	})
	c.apply(conditionsYAML)
	clusterRules, namespaceRules := ConditionRules()
	config := c.account("weir", append(append(Rules(), clusterRules...), namespaceRules...))
	stopFirst := c.teller("a", config)
	says := func(path string, want ...string) func() bool {
		return func() bool {
			_, conditions := c.object(path)
			var got []string
			for _, x := range conditions {
				got = append(got, fmt.Sprintf("%s=%s %s", x.Type, x.Status, x.Reason))
			}
			return strings.Join(got, ", ") == strings.Join(want, ", ")
		}
	}
	c.soon("good is accepted", says(policiesPath+"good", "Valid=True Accepted"))
	c.soon("bad is refused", says(policiesPath+"bad", "Valid=False Refused"))
	c.soon("questions of nodes are not enforced", says(nodesPath, "Valid=True Accepted", "Enforced=False NotEnforced"))
	_, bad := c.object(policiesPath + "bad")
	if !strings.Contains(bad[0].Message, "spec.ingress[0].toPorts[0].rules.http[0].path: ") || bad[0].LastTransitionTime.IsZero() {
		t.Errorf("%+v", bad)
	}
	told := func(of, what string) func() bool {
		return func() bool {
			for _, e := range c.events() {
				if strings.HasPrefix(e, of+": "+what) {
					return true
				}
			}
			return false
		}
	}
	c.soon("an event of bad", told("bad", "Warning Refused everything it selects is closed"))
	c.soon("an event of nodes", told("nodes", "Warning NotEnforced spec.egress[0].toPorts[0].rules.dns"))
	c.soon("an event of the group", told("odd", "Warning Doubtful spec.externalCIDRs[0]"))
	c.describes()
	c.soon("a group that is not there is told of", says(policiesPath+"dangling", "Valid=True Doubtful"))
	c.soon("an event of it", told("dangling", "Warning Doubtful spec.egress[0].toCIDRSet[0].cidrGroupRef: there is no CiliumCIDRGroup nosuch"))
	c.soon("an event of a port that nobody has", told("hosts", "Warning Doubtful spec.ingress[0].ports[0]: port nosuch stands for nothing"))

	// Another agent has nothing to say while the first one is there, and none
	// of it again when it is gone.
	versions := func() (out string) {
		for _, path := range []string{policiesPath + "good", policiesPath + "bad", policiesPath + "dangling", nodesPath} {
			v, _ := c.object(path)
			out += v + " "
		}
		return out
	}
	before, events := versions(), len(c.events())
	c.teller("b", config)
	stopFirst()
	c.soon("the other one leads", func() bool {
		_, answer, _ := c.server.Do("GET", "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/"+LeaseName, "", nil)
		return strings.Contains(string(answer), `"holderIdentity":"b"`)
	})
	c.apply(strings.ReplaceAll(strings.Split(conditionsYAML, "---\n")[0], "name: good", "name: late"))
	c.soon("it writes what is new", says(policiesPath+"late", "Valid=True Accepted"))
	if after := versions(); after != before || len(c.events()) != events {
		t.Errorf("written again: %s, were %s; events %q", after, before, c.events())
	}

	c.apply(strings.ReplaceAll(strings.Split(conditionsYAML, "---\n")[1], "/(", "/"))
	c.soon("bad is good", says(policiesPath+"bad", "Valid=True Accepted"))
	c.soon("it is told", told("bad", "Normal Accepted"))
	c.apply(strings.ReplaceAll(strings.Split(conditionsYAML, "---\n")[3], "name: odd", "name: nosuch"))
	c.soon("the group is there", says(policiesPath+"dangling", "Valid=True Accepted"))

	// What belongs to somebody else stays theirs.
	c.apply(strings.ReplaceAll(strings.Split(conditionsYAML, "---\n")[1], "name: bad", "name: theirs"))
	c.soon("theirs is refused", says(policiesPath+"theirs", "Valid=False Refused"))
	status, answer, err := c.server.Do("PATCH", policiesPath+"theirs/status?fieldManager=other&force=true", "application/apply-patch+yaml", []byte(
		`{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: theirs}, status: {conditions: [{type: Valid, status: "Unknown", reason: Theirs}]}}`))
	if err != nil || status != 200 {
		t.Fatal(status, string(answer), err)
	}
	c.apply(strings.NewReplacer("name: bad", "name: theirs", "/(", "/").Replace(strings.Split(conditionsYAML, "---\n")[1]))
	time.Sleep(time.Second)
	if !says(policiesPath+"theirs", "Valid=Unknown Theirs")() {
		t.Error("a condition of somebody else was overwritten")
	}
}

// define applies Weir's definitions.
func (c *cluster) define(config *rest.Config) {
	c.Helper()
	d, err := NewDefinitions(config, crds.PartOf, crds.PartOfValue)
	if err != nil {
		c.Fatal(err)
	}
	if err := d.Apply(context.Background(), crds.Definitions(), false, func(string) {}); err != nil {
		c.Fatal(err)
	}
}

// TestDefinitions: Weir's definitions are applied once and again, and never
// over others.
func TestDefinitions(t *testing.T) {
	c := serve(t)
	d, err := NewDefinitions(c.account("weir", DefinitionRules()), crds.PartOf, crds.PartOfValue)
	if err != nil {
		t.Fatal(err)
	}
	admin, err := NewDefinitions(c.config(), crds.PartOf, crds.PartOfValue)
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	foreign := func(want ...string) {
		t.Helper()
		if got, err := d.Foreign(ctx); err != nil || !slices.Equal(got, want) {
			t.Fatalf("foreign: %q %v, want %q", got, err, want)
		}
	}
	foreign()
	const path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/ciliumnetworkpolicies.cilium.io"
	theirs := strings.NewReplacer("PLURAL", "ciliumnetworkpolicies", "SCOPE", "Namespaced", "KIND", "CiliumNetworkPolicy", "SINGULAR", "ciliumnetworkpolicy").Replace(crdYAML)
	c.apply(theirs)
	foreign("ciliumnetworkpolicies.cilium.io")
	before, _ := c.object(path)
	var taken *ForeignError
	err = admin.Apply(ctx, crds.Definitions(), false, func(o string) { t.Errorf("applied %s", o) })
	if !errors.As(err, &taken) || !slices.Equal(taken.Names, []string{"ciliumnetworkpolicies.cilium.io"}) {
		t.Fatalf("over others: %v", err)
	}
	if after, _ := c.object(path); after != before {
		t.Error("the definition of others was changed")
	}
	c.delete(theirs)
	c.soon("it is gone", func() bool { status, _, _ := c.server.Do("GET", path, "", nil); return status == 404 })
	for range 2 {
		var said []string
		if err := admin.Apply(ctx, append(crds.Definitions(), crds.Admission()...), false, func(o string) { said = append(said, o) }); err != nil {
			t.Fatal(err)
		}
		if len(said) != 7 {
			t.Fatalf("applied %q", said)
		}
	}
	foreign()
	if notes := d.Notes(); notes != nil {
		t.Errorf("%q", notes)
	}
	// Others that take their place while an agent runs are noted soon.
	source, err := NewCluster(c.config(), slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	source.Interrupted(d.Ask)
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 2)
	go func() { done <- source.Run(ctx, &sink{}) }()
	go func() { done <- d.Run(ctx) }()
	defer func() {
		cancel()
		if err := errors.Join(<-done, <-done); err != nil {
			t.Error(err)
		}
	}()
	c.soon("all is read", func() bool { return source.Report().Complete })
	_, own, err := c.server.Do("GET", path, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	unlabelled := bytes.ReplaceAll(own, []byte(crds.PartOf), []byte("somebody"))
	unlabelled = bytes.ReplaceAll(unlabelled, []byte(`"x-kubernetes-preserve-unknown-fields":true`), []byte(`"x-kubernetes-preserve-unknown-fields":null`))
	if status, answer, err := c.server.Do("PUT", path, "application/json", unlabelled); err != nil || status != 200 {
		t.Fatalf("%d %.500s %v", status, answer, err)
	}
	c.soon("a note", func() bool { return len(d.Notes()) == 1 })
}

// TestMergeRules: what is merged grants the same, with a rule for each set of
// resources.
func TestMergeRules(t *testing.T) {
	cluster, _ := ConditionRules()
	rules := slices.Concat(Rules(), DefinitionRules(), cluster)
	grants := func(rules []rbacv1.PolicyRule) []string {
		var out []string
		for _, r := range rules {
			for _, resource := range r.Resources {
				for _, verb := range r.Verbs {
					out = append(out, fmt.Sprint(r.APIGroups, r.ResourceNames, resource, verb))
				}
			}
		}
		slices.Sort(out)
		return slices.Compact(out)
	}
	merged := MergeRules(rules)
	if got, want := grants(merged), grants(rules); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	seen := map[string]bool{}
	for _, r := range merged {
		for _, resource := range r.Resources {
			if key := fmt.Sprint(r.APIGroups, resource); seen[key] {
				t.Errorf("two rules for %s", key)
			} else {
				seen[key] = true
			}
		}
	}
}

// describes checks what kubectl shows of a refused policy.
func (c *cluster) describes() {
	c.Helper()
	kubectl, err := apiserver.Binary("kubectl")
	if err != nil {
		c.Fatal(err)
	}
	kubeconfig, err := c.server.Kubeconfig()
	if err != nil {
		c.Fatal(err)
	}
	out, err := exec.Command(kubectl, "--kubeconfig", kubeconfig, "describe", "cnp", "bad").CombinedOutput()
	if err != nil {
		c.Fatalf("%v: %s", err, out)
	}
	c.Logf("%s", out)
	for _, want := range []string{
		"Reason:                Refused", "refused, and everything it selects is closed in the directions it speaks of: spec.ingress[0]",
		"Type:                  Valid", "Warning  Refused",
	} {
		if !strings.Contains(string(out), want) {
			c.Errorf("kubectl describe does not say %q", want)
		}
	}
	out, err = exec.Command(kubectl, "--kubeconfig", kubeconfig, "get", "cnp").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "VALID") || !strings.Contains(string(out), "ENFORCED") || !strings.Contains(string(out), "False") {
		c.Errorf("kubectl get: %v %s", err, out)
	}
}
