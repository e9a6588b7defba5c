package api

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestClosed: a refused object closes what it would select, in the directions
// it speaks of; what can't be told is taken for the most it could be.
func TestClosed(t *testing.T) {
	web := &EndpointSelector{MatchLabels: map[string]string{"app": "web"}}
	const sel = "endpointSelector: {matchLabels: {app: web}}, "
	tests := []struct {
		name, in string
		want     []Closure
	}{
		{"ingress only", cnpHead + "spec: {" + sel + "ingress: [{x: 1}]}", []Closure{{Subjects: web, Ingress: true}}},
		{"egress only", cnpHead + "spec: {" + sel + "egress: [{toPorts: 5}]}", []Closure{{Subjects: web, Egress: true}}},
		{"deny rules speak, too", cnpHead + "spec: {" + sel + "egressDeny: [{x: 1}]}", []Closure{{Subjects: web, Egress: true}}},
		{"both", cnpHead + "spec: {" + sel + "ingress: [{}], egress: [{x: 1}]}", []Closure{{Subjects: web, Ingress: true, Egress: true}}},
		{"an empty list beside one with rules", cnpHead + "spec: {" + sel + "ingress: [], egress: [{x: 1}]}", []Closure{{Subjects: web, Egress: true}}},
		{"only empty lists", cnpHead + "spec: {" + sel + "ingress: []}", []Closure{{Subjects: web, Ingress: true}}},
		{"no list", cnpHead + "spec: {" + sel + "}", []Closure{{Subjects: web, Ingress: true, Egress: true}}},
		{"a list that is none", cnpHead + "spec: {" + sel + "ingress: {}, egress: [{}]}", []Closure{{Subjects: web, Ingress: true, Egress: true}}},
		{"a null list", cnpHead + "spec: {" + sel + "ingress: null, egress: [{}]}", []Closure{{Subjects: web, Ingress: true, Egress: true}}},
		{"unknown field of the rule set", cnpHead + "spec: {" + sel + "ingress: [{}], egres: [{}]}", []Closure{{Subjects: web, Ingress: true, Egress: true}}},
		{"rules written twice", cnpHead + "spec: {" + sel + "ingress: [{}], ingress: [{}]}", []Closure{{Subjects: web, Ingress: true}}},
		{"bad selector", cnpHead + "spec: {endpointSelector: {matchlabels: {app: web}}, ingress: [{}]}", []Closure{{Ingress: true}}},
		{"selector with a bad value", cnpHead + "spec: {endpointSelector: {matchLabels: {app: 'a b'}}, ingress: [{}]}", []Closure{{Ingress: true}}},
		{"selector twice", cnpHead + "spec: {endpointSelector: {}, endpointSelector: {matchLabels: {app: web}}, ingress: [{}]}", []Closure{{Ingress: true}}},
		{"no selector", cnpHead + "spec: {ingress: [{}]}", []Closure{{Ingress: true}}},
		{"selector misspelt", cnpHead + "spec: {endpointselector: {}, ingress: [{}]}", []Closure{{Ingress: true, Egress: true}}},
		{"only metadata is bad", cnpHead + "spec: {" + sel + "ingress: [{}]}\nfoo: 1", []Closure{{Subjects: web, Ingress: true}}},
		{"spec missing", cnpHead, []Closure{{Ingress: true, Egress: true}}},
		{"spec misspelt", cnpHead + "sepc: {" + sel + "ingress: [{}]}", []Closure{{Ingress: true, Egress: true}}},
		{"spec is no object", cnpHead + "spec: [x]", []Closure{{Ingress: true, Egress: true}}},
		{"spec twice", cnpHead + "spec: {" + sel + "ingress: [{}]}\nspec: {" + sel + "egress: [{}]}", []Closure{{Ingress: true, Egress: true}}},
		{"specs is no list", cnpHead + "spec: {" + sel + "ingress: [{}]}\nspecs: {}", []Closure{{Ingress: true, Egress: true}}},
		{"one bad rule of specs", cnpHead + "spec: {" + sel + "ingress: [{}]}\nspecs: [{endpointSelector: {}, egress: [{x: 1}]}]",
			[]Closure{{Subjects: web, Ingress: true}, {Subjects: &EndpointSelector{}, Egress: true}}},
		{"a rule of specs that is no object", cnpHead + "specs: [x]", []Closure{{Ingress: true, Egress: true}}},
		{"allowing without default deny closes nothing", cnpHead + "spec: {" + sel + "enableDefaultDeny: {egress: false}, egress: [{x: 1}]}", nil},
		{"denying without default deny closes", cnpHead + "spec: {" + sel + "enableDefaultDeny: {egress: false}, egressDeny: [{x: 1}]}", []Closure{{Subjects: web, Egress: true}}},
		{"unreadable default deny", cnpHead + "spec: {" + sel + "enableDefaultDeny: {egress: no, x: 1}, egress: [{}]}", []Closure{{Subjects: web, Egress: true}}},
		{"default deny in the other direction", cnpHead + "spec: {" + sel + "enableDefaultDeny: {ingress: false}, ingress: [{}], egress: [{x: 1}]}", []Closure{{Subjects: web, Egress: true}}},
		{"nodes", ccnpHead + "spec: {nodeSelector: {matchLabels: {app: web}}, ingress: [{x: 1}]}", []Closure{{Subjects: web, Nodes: true, Ingress: true}}},
		{"pods and nodes", ccnpHead + "spec: {" + sel + "nodeSelector: {}, ingress: [{}]}", []Closure{{Subjects: web, Ingress: true}, {Subjects: &EndpointSelector{}, Nodes: true, Ingress: true}}},
		{"nodes in a namespaced policy close pods, not nodes", cnpHead + "spec: {nodeSelector: {}, ingress: [{}]}", []Closure{{Ingress: true}}},

		{"np: default types", npHead + "spec: {podSelector: {matchLabels: {app: web}}, ingress: [{x: 1}]}", []Closure{{Subjects: web, Ingress: true}}},
		{"np: egress is implied", npHead + "spec: {podSelector: {matchLabels: {app: web}}, egress: [{x: 1}]}", []Closure{{Subjects: web, Ingress: true, Egress: true}}},
		{"np: egress that is no list", npHead + "spec: {podSelector: {matchLabels: {app: web}}, egress: x}", []Closure{{Subjects: web, Ingress: true, Egress: true}}},
		{"np: types", npHead + "spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{x: 1}]}", []Closure{{Subjects: web, Egress: true}}},
		{"np: bad types", npHead + "spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [egress]}", []Closure{{Subjects: web, Ingress: true, Egress: true}}},
		{"np: bad selector", npHead + "spec: {podSelector: {matchlabels: {app: web}}}", []Closure{{Ingress: true}}},
		{"np: selector misspelt", npHead + "spec: {podselector: {matchLabels: {app: web}}}", []Closure{{Ingress: true, Egress: true}}},
		{"np: unknown field beside a selector", npHead + "spec: {podSelector: {matchLabels: {app: web}}, policytypes: [Egress]}", []Closure{{Subjects: web, Ingress: true, Egress: true}}},
		{"np: spec is no object", npHead + "spec: x", []Closure{{Ingress: true, Egress: true}}},
		{"np: expressions", npHead + "spec: {podSelector: {matchExpressions: [{key: a, operator: In, values: [b]}]}, ingress: [{x: 1}]}",
			[]Closure{{Subjects: &EndpointSelector{MatchExpressions: []LabelRequirement{{"a", In, []string{"b"}}}}, Ingress: true}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := onePolicy(t, tt.in+"\n")
			if len(p.Refused) == 0 {
				t.Fatal("accepted")
			}
			if d := cmp.Diff(tt.want, p.Closed); d != "" {
				t.Errorf("closed (-want +got):\n%s\nrefused: %v", d, p.Refused)
			}
		})
	}
}
