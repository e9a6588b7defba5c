package policy

import (
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weirnet/weir/policy/api"
)

const referred = `
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: a}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: n1, containers: [{name: c, ports: [{name: http, containerPort: 8080, protocol: TCP}]}]}
status: {podIP: 10.0.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: proxy, namespace: kube-system, labels: {app: proxy}}
spec: {nodeName: n1, hostNetwork: true, containers: [{name: c, ports: [{name: metrics, containerPort: 9100, protocol: TCP}]}]}
status: {podIP: 192.0.2.1}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {tier: front}}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80, protocol: TCP}]}
---
apiVersion: v1
kind: Service
metadata: {name: manual, namespace: shop}
spec: {clusterIP: 10.96.0.2, ports: [{port: 80, protocol: TCP}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: manual-1, namespace: shop, labels: {kubernetes.io/service-name: manual}}
addressType: IPv4
ports: [{port: 80, protocol: TCP}]
endpoints: [{addresses: [10.0.0.1], conditions: {ready: true}}]
---
apiVersion: cilium.io/v2
kind: CiliumCIDRGroup
metadata: {name: office, labels: {where: here}}
spec: {externalCIDRs: [192.0.2.0/24]}
`

const cnpHead = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec: {endpointSelector: {matchLabels: {app: web}}, "

var referenceCases = []struct {
	name, policy, want string
	// repair is what makes it right.
	repair string
}{
	{"group", cnpHead + "egress: [{}, {toCIDRSet: [{cidrGroupRef: office}, {cidrGroupRef: nosuch}]}]}",
		"spec.egress[1].toCIDRSet[1].cidrGroupRef: there is no CiliumCIDRGroup nosuch: it stands for nobody",
		"apiVersion: cilium.io/v2\nkind: CiliumCIDRGroup\nmetadata: {name: nosuch}\nspec: {externalCIDRs: [198.51.100.0/24]}"},
	{"group denied", cnpHead + "ingressDeny: [{fromCIDRSet: [{cidrGroupRef: nosuch}]}]}",
		"spec.ingressDeny[0].fromCIDRSet[0].cidrGroupRef: there is no CiliumCIDRGroup nosuch: it stands for nobody",
		"apiVersion: cilium.io/v2\nkind: CiliumCIDRGroup\nmetadata: {name: nosuch}\nspec: {externalCIDRs: [198.51.100.0/24]}"},
	{"group by labels", cnpHead + "ingress: [{fromCIDRSet: [{cidrGroupSelector: {matchLabels: {where: there}}}]}]}",
		"spec.ingress[0].fromCIDRSet[0].cidrGroupSelector: no CiliumCIDRGroup has these labels: it stands for nobody",
		"apiVersion: cilium.io/v2\nkind: CiliumCIDRGroup\nmetadata: {name: new, labels: {where: there}}\nspec: {externalCIDRs: [198.51.100.0/24]}"},
	{"group by labels that is there", cnpHead + "ingress: [{fromCIDRSet: [{cidrGroupSelector: {matchLabels: {where: here}}}]}]}", "", ""},
	{"service", cnpHead + "egress: [{toServices: [{k8sService: {serviceName: web, namespace: shop}}, {k8sService: {serviceName: wbe, namespace: shop}}]}]}",
		"spec.egress[0].toServices[1]: there is no service shop/wbe: it stands for nobody",
		"apiVersion: v1\nkind: Service\nmetadata: {name: wbe, namespace: shop}\nspec: {clusterIP: 10.96.0.3, selector: {a: b}, ports: [{port: 80, protocol: TCP}]}"},
	{"service anywhere", cnpHead + "egressDeny: [{toServices: [{k8sService: {serviceName: wbe}}]}]}",
		"spec.egressDeny[0].toServices[0]: there is no service wbe in any namespace: it stands for nobody",
		"apiVersion: v1\nkind: Service\nmetadata: {name: wbe, namespace: other}\nspec: {clusterIP: 10.96.0.3, selector: {a: b}, ports: [{port: 80, protocol: TCP}]}"},
	{"service by labels", cnpHead + "egress: [{toServices: [{k8sServiceSelector: {selector: {matchLabels: {tier: front}}}}, {k8sServiceSelector: {selector: {matchLabels: {tier: back}}}}]}]}",
		"spec.egress[0].toServices[1]: no service has these labels: it stands for nobody",
		"apiVersion: v1\nkind: Service\nmetadata: {name: b, namespace: shop, labels: {tier: back}}\nspec: {clusterIP: 10.96.0.3, selector: {a: b}, ports: [{port: 80, protocol: TCP}]}"},
	{"service of pods without selector", cnpHead + "egress: [{toServices: [{k8sService: {serviceName: manual, namespace: shop}}]}]}",
		"spec.egress[0].toServices[0]: service shop/manual has no selector, and its endpoints are pods: it stands for none of them; write toEndpoints",
		"apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: manual-1, namespace: shop, labels: {kubernetes.io/service-name: manual}}\naddressType: IPv4\nports: [{port: 80, protocol: TCP}]\nendpoints: [{addresses: [198.51.100.1], conditions: {ready: true}}]"},
	{"port of the subject", cnpHead + "ingress: [{toPorts: [{ports: [{port: http, protocol: TCP}]}, {ports: [{port: htpt, protocol: TCP}]}]}]}",
		"spec.ingress[0].toPorts[1]: port htpt stands for nothing: no pod that the policy selects has a port of that name",
		"apiVersion: v1\nkind: Pod\nmetadata: {name: web2, namespace: shop, labels: {app: web}}\nspec: {nodeName: n2, containers: [{name: c, ports: [{name: htpt, containerPort: 8080, protocol: TCP}]}]}\nstatus: {podIP: 10.0.0.2}"},
	{"port by another protocol", cnpHead + "ingress: [{toPorts: [{ports: [{port: http, protocol: UDP}]}]}]}",
		"spec.ingress[0].toPorts[0]: port http stands for nothing: no pod that the policy selects has a port of that name",
		"apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop, labels: {app: web}}\nspec: {nodeName: n1, containers: [{name: c, ports: [{name: http, containerPort: 8080, protocol: UDP}]}]}\nstatus: {podIP: 10.0.0.1}"},
	{"port of peers", "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: other}\nspec: {podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {team: a}}}], ports: [{port: htpt}]}]}",
		"spec.egress[0].ports[0]: port htpt stands for nothing: no pod that the rule is about has a port of that name",
		"apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {team: b}}"},
	{"port of nobody yet", cnpHead + "egress: [{toEndpoints: [{matchLabels: {app: later}}], toPorts: [{ports: [{port: x, protocol: TCP}]}]}]}", "", ""},
	{"host network alone", "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: kube-system}\nspec: {podSelector: {matchLabels: {app: proxy}}}",
		"spec.podSelector: selects only pods on the host network (kube-system/proxy): those are the node to policies, and no policy for pods holds for them",
		"apiVersion: v1\nkind: Pod\nmetadata: {name: other, namespace: kube-system, labels: {app: proxy}}\nspec: {nodeName: n1}\nstatus: {podIP: 10.0.0.7}"},
	{"host network by a clusterwide one", "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {name: p}\nspecs: [{endpointSelector: {}, ingress: [{}]}, {endpointSelector: {matchLabels: {app: proxy}}, ingress: [{}], egress: [{}]}]",
		"specs[1].endpointSelector: selects only pods on the host network (kube-system/proxy): those are the node to policies, and no policy for pods holds for them",
		"apiVersion: v1\nkind: Pod\nmetadata: {name: other, namespace: shop, labels: {app: proxy}}\nspec: {nodeName: n1}\nstatus: {podIP: 10.0.0.7}"},
	{"refused", cnpHead + "egress: [{toServices: [{k8sService: {serviceName: wbe}}], toCIDR: [x]}]}", "", ""},
}

func TestReferences(t *testing.T) {
	for _, tt := range referenceCases {
		t.Run(tt.name, func(t *testing.T) {
			r := NewReferences()
			if !r.Note(append(objects(t, tt.policy), objects(t, referred)...)) {
				t.Error("nothing to look for")
			}
			found := func() []string {
				var out []string
				for _, errs := range r.Dangling() {
					for _, e := range errs {
						out = append(out, (&api.Error{Field: e.Field, Message: e.Message}).Error())
					}
				}
				return out
			}
			var want []string
			if tt.want != "" {
				want = []string{tt.want}
			}
			if diff := cmp.Diff(want, found()); diff != "" {
				t.Fatal(diff)
			}
			if tt.repair == "" {
				return
			}
			if !r.Note(objects(t, tt.repair)) {
				t.Error("a repair is no news")
			}
			if got := found(); got != nil {
				t.Errorf("repaired: %q", got)
			}
		})
	}
}

// TestReferencesFollow: however objects come and go, what is found is what would be
// found of those that are there.
func TestReferencesFollow(t *testing.T) {
	var all []Change
	for i, tt := range referenceCases {
		for _, c := range append(objects(t, tt.policy), objects(t, referred+"\n---\n"+strings.TrimSpace(tt.repair))...) {
			if p, ok := c.Value.(*api.Policy); ok {
				q := *p
				q.Name += string(rune('a' + i))
				c.Object.Name, c.Value = q.Name, &q
			}
			all = append(all, c)
		}
	}
	random := rand.New(rand.NewPCG(1, 2))
	r, there := NewReferences(), map[Object]Change{}
	most := 0
	for range 3000 {
		c := all[random.IntN(len(all))]
		if c.Object.Kind != api.KindNetworkPolicy && c.Object.Kind != api.KindCiliumPolicy && random.IntN(3) == 0 {
			c.Value = nil
		}
		news := r.Note([]Change{c})
		if there[c.Object] = c; c.Value == nil {
			delete(there, c.Object)
		}
		if random.IntN(3) == 0 && news {
			continue // more comes before anybody looks
		}
		fresh := NewReferences()
		fresh.Note(slices.Collect(maps.Values(there)))
		got, want := r.Dangling(), fresh.Dangling()
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("after %v: %s", c.Object, diff)
		}
		most = max(most, len(got))
	}
	if most < 5 {
		t.Errorf("never more than %d were found", most)
	}
}
