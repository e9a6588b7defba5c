package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// account is who the agents are to the API server.
const account = "system:serviceaccount:weir-system:weir"

// rareRights are those that nothing in these stories uses. What they are for is
// tested where it is done.
var rareRights = []string{
	// Where an API server has no streams (package kube), and of nodes only.
	"list nodes", "list services", "list namespaces", "list pods", "list endpointslices", "list networkpolicies",
	"list ciliumcidrgroups", "list ciliumnetworkpolicies", "list ciliumclusterwidenetworkpolicies",
	// A definition is waited for where it is not there.
	"watch customresourcedefinitions",
	"patch ciliumclusterwidenetworkpolicies/status",
}

// rights looks at all that the agents asked the API server for: nothing may have
// been denied, and no right be there that nobody used.
func (d *deployed) rights() {
	used := d.requests()
	var role struct {
		Items []struct {
			Rules []struct{ Verbs, Resources []string }
		}
	}
	for _, kind := range [][]string{{"clusterroles"}, {"roles", "-n", "weir-system"}} {
		text := d.kubectl("", append([]string{"get", "-l", "app.kubernetes.io/part-of=weir", "-o", "json"}, kind...)...)
		if err := json.Unmarshal([]byte(text), &role); err != nil {
			d.t.Fatal(err)
		}
		for _, item := range role.Items {
			for _, rule := range item.Rules {
				for _, resource := range rule.Resources {
					for _, verb := range rule.Verbs {
						right := verb + " " + resource
						if !used[right] && !slices.Contains(rareRights, right) {
							d.t.Errorf("the right to %s is not used", right)
						}
					}
				}
			}
		}
	}
}

// requests are those that the agents made, as "verb resource".
func (d *deployed) requests() map[string]bool {
	f, err := os.Open(d.AuditLog())
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	used := map[string]bool{}
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e struct {
			Verb, RequestURI string
			User             struct{ Username string }
			ObjectRef        struct{ Resource, Subresource string }
			ResponseStatus   struct{ Code int }
			Annotations      map[string]string
		}
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			d.t.Fatal(err)
		}
		if e.User.Username != account {
			continue
		}
		what := e.Verb + " " + e.ObjectRef.Resource
		if e.ObjectRef.Subresource != "" {
			what += "/" + e.ObjectRef.Subresource
		}
		if decision := e.Annotations["authorization.k8s.io/decision"]; decision != "allow" {
			d.t.Errorf("%s %s was denied (%s)", e.Verb, e.RequestURI, e.Annotations["authorization.k8s.io/reason"])
		}
		used[what] = true
	}
	if err := lines.Err(); err != nil {
		d.t.Fatal(err)
	}
	if len(used) == 0 {
		d.t.Error("the audit log knows of no request")
	}
	return used
}

// fallback are capabilities that containers have for nodes without user
// namespaces.
var fallback = map[string][]string{
	"agent": {"KILL"}, "proxy": {"KILL", "NET_ADMIN", "NET_BIND_SERVICE", "SETPCAP"},
}

// capabilities takes each capability away that a container has, those of the
// fallback or all others: something must fail, or it could do without.
func (d *deployed) capabilities(ofFallback bool) {
	d.apply(httpPolicy)
	var set struct {
		Spec struct {
			Template struct {
				Spec struct {
					Containers []struct {
						Name            string
						SecurityContext struct {
							Privileged   bool
							Capabilities struct{ Add, Drop []string }
						}
					}
				}
			}
		}
	}
	text := d.kubectl("", "-n", "weir-system", "get", "daemonset", "weir", "-o", "json")
	if err := json.Unmarshal([]byte(text), &set); err != nil {
		d.t.Fatal(err)
	}
	restore := func() {
		d.kubectl("", "apply", "-f", manifest)
		d.kubectl("", "-n", "weir-system", "rollout", "status", "daemonset/weir", "--timeout=90s")
	}
	defer restore()
	for i, c := range set.Spec.Template.Spec.Containers {
		own := c.SecurityContext
		if own.Privileged || !slices.Equal(own.Capabilities.Drop, []string{"ALL"}) || len(own.Capabilities.Add) == 0 {
			d.t.Errorf("container %s: privileged %v, drops %v, adds %v", c.Name, own.Privileged, own.Capabilities.Drop, own.Capabilities.Add)
		}
		for n, capability := range own.Capabilities.Add {
			if slices.Contains(fallback[c.Name], capability) != ofFallback {
				continue
			}
			// One after the other: no surge, and no old pod that would go on.
			rest := slices.Delete(slices.Clone(own.Capabilities.Add), n, n+1)
			list, err := json.Marshal(rest)
			if err != nil {
				d.t.Fatal(err)
			}
			d.kubectl("", "-n", "weir-system", "patch", "daemonset", "weir", "--type=json", "-p", fmt.Sprintf(
				`[{"op":"replace","path":"/spec/template/spec/containers/%d/securityContext/capabilities/add","value":%s}]`, i, list))
			why := d.fails()
			if c.Name == "agent" && capability == "KILL" {
				why = d.hangs() // until then all is well
			}
			if why == "" {
				d.t.Errorf("container %s can do without %s", c.Name, capability)
			} else {
				d.t.Logf("container %s without %s: %s", c.Name, capability, why)
			}
			restore()
		}
	}
}

// fails waits until the surge pod says that something does not work; "": it is
// ready, and that for some seconds.
func (d *deployed) fails() string {
	ready := 0
	for end := time.Now().Add(40 * time.Second); time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
		text := d.kubectl("", "-n", "weir-system", "get", "pods", "-l", "app.kubernetes.io/name=weir,pod-template-generation="+d.generation(0),
			"--output=jsonpath={range .items[*].status.containerStatuses[*]}{.name}/{.ready}/{.restartCount}/{.state.terminated.exitCode}{.lastState.terminated.exitCode} {end}")
		states := strings.Fields(text)
		healthy := len(states) > 0
		for _, s := range states {
			f := strings.Split(s, "/")
			if f[2] != "0" || f[3] != "" {
				return "container " + f[0] + " ends with status " + f[3]
			}
			healthy = healthy && f[1] == "true"
		}
		if healthy {
			if ready++; ready >= 10 {
				return d.complains()
			}
		}
	}
	return "it does not get ready"
}

// complains returns an error in the pods' logs or status; "": there is none.
func (d *deployed) complains() string {
	text := d.kubectl("", "-n", "weir-system", "logs", "-l", "app.kubernetes.io/name=weir,pod-template-generation="+d.generation(0), "--all-containers", "--tail=-1")
	for line := range strings.Lines(text) {
		if strings.Contains(line, "level=ERROR") || strings.Contains(line, "NOT ") {
			return strings.TrimSpace(line)
		}
	}
	return ""
}
