package policy

import (
	"slices"
	"strings"
	"testing"
)

// TestDefaultDenyNamesAll: what no rule allows is denied by every policy that
// puts the pod under default deny in that direction, and by no other.
func TestDefaultDenyNamesAll(t *testing.T) {
	e, tb := applied(t, Options{NodeName: "n1"}, sourcesCluster+`
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: both, namespace: a}
spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress, Egress], egress: [{ports: [{port: 53}]}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: others, namespace: a}
spec: {podSelector: {matchLabels: {app: db}}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: elsewhere, namespace: b}
spec: {podSelector: {}}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: bare, namespace: a}
spec: {endpointSelector: {}, ingress: [{}]}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: http, namespace: a}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress: [{toPorts: [{ports: [{port: "8080", protocol: TCP}], rules: {http: [{path: /a}]}}]}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: deny, namespace: a}
spec:
  endpointSelector: {matchLabels: {app: web}}
  egressDeny: [{toPorts: [{ports: [{port: "25", protocol: TCP}]}]}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: adds, namespace: a}
spec:
  endpointSelector: {matchLabels: {app: web}}
  enableDefaultDeny: {ingress: false, egress: false}
  ingress: [{toPorts: [{ports: [{port: "81", protocol: TCP}]}]}]
  egress: [{toPorts: [{ports: [{port: "81", protocol: TCP}]}]}]
---
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: cluster}
spec: {endpointSelector: {matchExpressions: [{key: app, operator: Exists}]}, ingress: [{fromEntities: [host]}]}
`)
	want := [2][]string{
		Ingress: {"CiliumClusterwideNetworkPolicy cluster", "CiliumNetworkPolicy a/bare", "CiliumNetworkPolicy a/http", "NetworkPolicy a/both"},
		Egress:  {"CiliumNetworkPolicy a/deny", "NetworkPolicy a/both"},
	}
	for d, q := range map[Direction]Question{
		Ingress: {From: "b/db", To: "a/web", Port: "80"},
		Egress:  {From: "a/web", To: "9.9.9.9", Port: "80"},
	} {
		a := e.Explain(q)
		side := map[Direction]*Side{Ingress: a.Ingress, Egress: a.Egress}[d]
		if side.Verdict != Denied || side.Rule != "" {
			t.Errorf("%s: %+v", d, side)
		}
		if got := strings.Split(side.Policy, ", "); !slices.Equal(slices.Sorted(slices.Values(got)), want[d]) {
			t.Errorf("%s: explained by %q, want %q", d, got, want[d])
		}
		for _, ep := range tb.endpoints {
			if ep.Namespace+"/"+ep.Name != "a/web" {
				continue
			}
			if got := tb.policies[ep.Policy].Selecting[d]; !slices.Equal(slices.Sorted(slices.Values(got)), want[d]) {
				t.Errorf("%s: the table says %q, want %q", d, got, want[d])
			}
		}
	}
}
