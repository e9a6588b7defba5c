package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Two policies, of which one can't be enforced as it is written.
const judgedPolicies = `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: good, namespace: across}
spec: {endpointSelector: {matchLabels: {app: other}}, ingress: [{}]}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: bad, namespace: across}
spec:
  endpointSelector: {matchLabels: {app: other}}
  egress: [{toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{path: "/("}]}}]}]
`

// takeover is how long the others may take to see that the agent which writes
// conditions is gone, and to go on for it: less than the lease's time and what
// they take to look, twice (kube.ConditionsOptions).
const takeover = 60 * time.Second

// conditions are shown to who asks for a policy, and written by another agent
// when the one that wrote them is gone.
func (d *deployed) conditions() {
	d.apply(judgedPolicies)
	d.described("good", "Reason:                Accepted", "Status:                True", "Type:                  Valid")
	d.described("bad", "Reason:                Refused", "Status:                False", "Type:                  Valid",
		"everything it selects is closed in the directions it speaks of: spec.egress[0].toPorts[0].rules.http[0].path", "Warning  Refused")
	if len(d.Nodes) == 1 {
		d.t.Log("one node: nobody to take over")
		return
	}
	holder := d.holder()
	at := -1
	for i, n := range d.Nodes {
		if n.Name == holder {
			at = i
		}
	}
	if at < 0 {
		d.t.Fatalf("the lease is held by %q", holder)
	}
	// Without kubelet nobody starts it again.
	out, err := d.Nodes[at].Command("pidof", "kubelet").CombinedOutput()
	kubelet, err2 := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil || err2 != nil {
		d.t.Fatalf("kubelet: %q, %v", out, err)
	}
	d.signal(at, kubelet, syscall.SIGSTOP)
	defer func() {
		d.signal(at, kubelet, syscall.SIGCONT)
		d.kubectl("", "wait", "--for=condition=Ready", "nodes", "--all", "--timeout=60s")
		d.kubectl("", "-n", "weir-system", "wait", "--for=condition=Ready", "pod", "-l", "app.kubernetes.io/name=weir", "--timeout=60s")
		d.enforced()
		// It comes back, and leaves that to the other one.
		if now := d.holder(); now == holder {
			d.t.Errorf("%s has the lease again", now)
		}
	}()
	d.signal(at, d.agentPID(at), syscall.SIGKILL)
	gone := time.Now()
	d.apply(strings.NewReplacer("name: good", "name: late-good", "name: bad", "name: late-bad").Replace(judgedPolicies))
	if said := eventually(takeover, func() string {
		if now := d.holder(); now == holder {
			return "the lease is still held by " + now
		}
		return ""
	}); said != "" {
		d.t.Fatal(said)
	}
	d.t.Logf("%s took over from %s after %v", d.holder(), holder, time.Since(gone).Round(time.Second))
	d.described("late-good", "Reason:                Accepted")
	d.described("late-bad", "Reason:                Refused", "Warning  Refused")
}

// described waits until what kubectl shows of a policy has these texts.
func (d *deployed) described(name string, wants ...string) {
	d.t.Helper()
	if said := eventually(20*time.Second, func() string {
		out := d.kubectl("", "-n", "across", "describe", "cnp", name)
		for _, want := range wants {
			if !strings.Contains(out, want) {
				return fmt.Sprintf("kubectl describe does not say %q:\n%s", want, out)
			}
		}
		return ""
	}); said != "" {
		d.t.Error(said)
	}
}

// holder is the node whose agent writes conditions.
func (d *deployed) holder() string {
	return d.kubectl("", "-n", "weir-system", "get", "lease", "weir-conditions", "--output=jsonpath={.spec.holderIdentity}")
}

// signal sends a signal to a process of a node.
func (d *deployed) signal(node, pid int, signal syscall.Signal) {
	out, err := d.Nodes[node].Command("kill", fmt.Sprintf("-%d", signal), strconv.Itoa(pid)).CombinedOutput()
	if err != nil {
		d.t.Errorf("signal %d to %d on %s: %q, %v", signal, pid, d.Nodes[node].Name, out, err)
	}
}
