package api

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
)

func TestNetworkPolicyDefaults(t *testing.T) {
	tests := []struct {
		spec string
		want []networkingv1.PolicyType
	}{
		{"{podSelector: {}}", []networkingv1.PolicyType{"Ingress"}},
		{"{podSelector: {}, policyTypes: []}", []networkingv1.PolicyType{"Ingress"}},
		{"{podSelector: {}, egress: []}", []networkingv1.PolicyType{"Ingress"}},
		{"{podSelector: {}, egress: [{}]}", []networkingv1.PolicyType{"Ingress", "Egress"}},
		{"{podSelector: {}, policyTypes: [Egress], ingress: [{}]}", []networkingv1.PolicyType{"Egress"}},
		{"{podSelector: {}, policyTypes: [Ingress, Ingress]}", []networkingv1.PolicyType{"Ingress", "Ingress"}},
		{"{}", []networkingv1.PolicyType{"Ingress"}},
		{"null", []networkingv1.PolicyType{"Ingress"}},
	}
	for _, tt := range tests {
		p := onePolicy(t, npHead+"spec: "+tt.spec+"\n")
		if len(p.Refused) > 0 {
			t.Errorf("%s: %v", tt.spec, p.Refused)
			continue
		}
		if !slices.Equal(p.NetworkPolicy.PolicyTypes, tt.want) {
			t.Errorf("%s: %v, want %v", tt.spec, p.NetworkPolicy.PolicyTypes, tt.want)
		}
	}
	p := onePolicy(t, npHead+"spec: {podSelector: {}, ingress: [{ports: [{port: 80}, {port: dns, protocol: UDP}], from: []}, {from: null}]}\n")
	ports := p.NetworkPolicy.Ingress[0].Ports
	if *ports[0].Protocol != corev1.ProtocolTCP || *ports[1].Protocol != corev1.ProtocolUDP {
		t.Errorf("protocols %v, %v", *ports[0].Protocol, *ports[1].Protocol)
	}
	if ports[0].Port.IntVal != 80 || ports[1].Port.StrVal != "dns" {
		t.Errorf("ports %v", ports)
	}
}

func TestNetworkPolicyAdmission(t *testing.T) {
	wrap := map[string]func(string) string{
		"spec":     func(s string) string { return s },
		"selector": func(s string) string { return "{podSelector: " + s + "}" },
		"port":     func(s string) string { return "{podSelector: {}, ingress: [{ports: [" + s + "]}]}" },
		"peer":     func(s string) string { return "{podSelector: {}, egress: [{to: [" + s + "]}]}" },
		"types":    func(s string) string { return "{podSelector: {}, policyTypes: " + s + "}" },
	}
	tests := []struct {
		where, in string
		refused   string // field below spec, or "" if accepted
	}{
		{"selector", "{}", ""},
		{"selector", "{matchLabels: {a: ''}}", ""},
		{"selector", "{matchLabels: {a/b: c}, matchExpressions: [{key: a, operator: In, values: [b]}, {key: c, operator: Exists}]}", ""},
		{"selector", "{matchLabels: {'k8s:a': b}}", "podSelector.matchLabels[k8s:a]"},
		{"selector", "{matchLabels: {a: 'b c'}}", "podSelector.matchLabels[a]"},
		{"selector", "{matchLabels: {a: 5}}", "podSelector.matchLabels[a]"},
		{"selector", "{matchLabels: {a: null}}", "podSelector.matchLabels[a]"},
		{"selector", "{matchExpressions: [{key: a, operator: In}]}", "podSelector.matchExpressions[0].values"},
		{"selector", "{matchExpressions: [{key: a, operator: Exists, values: [a]}]}", "podSelector.matchExpressions[0].values"},
		{"selector", "{matchExpressions: [{key: a, operator: Is, values: [a]}]}", "podSelector.matchExpressions[0].operator"},
		{"selector", "{matchExpressions: [{operator: Exists}]}", "podSelector.matchExpressions[0].key"},
		{"selector", "{matchExpressions: [{key: a}]}", "podSelector.matchExpressions[0].operator"},
		{"selector", "{matchexpressions: []}", "podSelector.matchexpressions"},

		{"port", "{}", ""}, {"port", "{port: 80}", ""}, {"port", "{port: 65535}", ""}, {"port", "{port: http}", ""},
		{"port", "{protocol: SCTP}", ""}, {"port", "{port: 80, endPort: 80}", ""}, {"port", "{port: 80, endPort: 90, protocol: UDP}", ""},
		{"port", "{port: 0}", "ingress[0].ports[0].port"}, {"port", "{port: 65536}", "ingress[0].ports[0].port"}, {"port", "{port: -1}", "ingress[0].ports[0].port"},
		{"port", "{port: '80'}", "ingress[0].ports[0].port"}, {"port", "{port: HTTP}", "ingress[0].ports[0].port"},
		{"port", "{port: a--b}", "ingress[0].ports[0].port"}, {"port", "{port: abcdefghijklmnop}", "ingress[0].ports[0].port"},
		{"port", "{port: ''}", "ingress[0].ports[0].port"}, {"port", "{port: 80.5}", "ingress[0].ports[0].port"}, {"port", "{port: true}", "ingress[0].ports[0].port"},
		{"port", "{endPort: 90}", "ingress[0].ports[0].endPort"}, {"port", "{port: 80, endPort: 79}", "ingress[0].ports[0].endPort"},
		{"port", "{port: 80, endPort: 65536}", "ingress[0].ports[0].endPort"}, {"port", "{port: http, endPort: 90}", "ingress[0].ports[0].endPort"},
		{"port", "{protocol: tcp}", "ingress[0].ports[0].protocol"}, {"port", "{protocol: ICMP}", "ingress[0].ports[0].protocol"}, {"port", "{protocol: ''}", "ingress[0].ports[0].protocol"},
		{"port", "{ports: 80}", "ingress[0].ports[0].ports"}, {"port", "null", "ingress[0].ports[0]"}, {"port", "{port: 80, endport: 90}", "ingress[0].ports[0].endport"},

		{"peer", "{podSelector: {}}", ""}, {"peer", "{namespaceSelector: {}, podSelector: {matchLabels: {a: b}}}", ""},
		{"peer", "{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}", ""}, {"peer", "{ipBlock: {cidr: '::/0', except: ['2001:db8::/32']}}", ""},
		{"peer", "{ipBlock: {cidr: 10.1.2.3/8, except: []}}", ""},
		{"peer", "{}", "egress[0].to[0]"}, {"peer", "null", "egress[0].to[0]"}, {"peer", "{podSelector: null}", "egress[0].to[0]"},
		{"peer", "{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}", "egress[0].to[0]"},
		{"peer", "{ipBlock: {}}", "egress[0].to[0].ipBlock.cidr"}, {"peer", "{ipBlock: {cidr: 10.0.0.0}}", "egress[0].to[0].ipBlock.cidr"},
		{"peer", "{ipBlock: {cidr: 10.0.0.0/33}}", "egress[0].to[0].ipBlock.cidr"}, {"peer", "{ipBlock: {cidr: '::ffff:10.0.0.0/104'}}", "egress[0].to[0].ipBlock.cidr"},
		{"peer", "{ipBlock: {cidr: 010.0.0.0/8}}", "egress[0].to[0].ipBlock.cidr"},
		{"peer", "{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}", "egress[0].to[0].ipBlock.except[0]"},
		{"peer", "{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}", "egress[0].to[0].ipBlock.except[0]"},
		{"peer", "{ipBlock: {cidr: 10.0.0.0/8, except: ['::/16']}}", "egress[0].to[0].ipBlock.except[0]"},
		{"peer", "{namespaceSelector: {matchLabels: {a: 'b c'}}}", "egress[0].to[0].namespaceSelector.matchLabels[a]"},
		{"peer", "{endpointSelector: {}}", "egress[0].to[0].endpointSelector"},

		{"types", "[Ingress, Egress]", ""}, {"types", "null", ""},
		{"types", "[ingress]", "policyTypes[0]"}, {"types", "[Ingress, Egress, Ingress]", "policyTypes"}, {"types", "Ingress", "policyTypes"},
		{"types", "[null]", "policyTypes[0]"},

		{"spec", "{podSelector: {}, ingress: [null]}", "ingress[0]"}, {"spec", "{podSelector: {}, ingress: {}}", "ingress"},
		{"spec", "{podSelector: {}, ingress: [{to: []}]}", "ingress[0].to"}, {"spec", "{endpointSelector: {}}", "endpointSelector"},
		{"spec", "{podSelector: {}, ingress: [{from: {}}]}", "ingress[0].from"},
	}
	for _, tt := range tests {
		p := onePolicy(t, npHead+"spec: "+wrap[tt.where](tt.in)+"\n")
		switch {
		case tt.refused == "" && len(p.Refused) > 0:
			t.Errorf("%s %s: refused %v", tt.where, tt.in, p.Refused)
		case tt.refused != "" && len(p.Refused) == 0:
			t.Errorf("%s %s: accepted", tt.where, tt.in)
		case tt.refused != "" && p.Refused[0].Field != "spec."+tt.refused:
			t.Errorf("%s %s: refused at %s, want %s", tt.where, tt.in, p.Refused[0].Field, tt.refused)
		}
	}
	if p := onePolicy(t, npHead+"spec: {podSelector: {}}\nspecs: []\n"); len(p.Refused) != 1 || p.Refused[0].Field != "specs" {
		t.Errorf("specs: %v", p.Refused)
	}
}

func TestMetadata(t *testing.T) {
	tests := []struct{ meta, refused string }{
		{"{name: a}", ""},
		{"{name: a.b-c, namespace: d, uid: u, labels: {a: b}, annotations: {x: 'y z'}, creationTimestamp: null, managedFields: [{x: 1}], generation: 5, ownerReferences: null}", ""},
		{"{name: a, labels: null, annotations: null}", ""},
		{"{name: ''}", "metadata.name"}, {"{}", "metadata.name"}, {"null", "metadata.name"}, {"[]", "metadata"},
		{"{name: A}", "metadata.name"}, {"{name: a_b}", "metadata.name"}, {"{name: " + strings.Repeat("a", 254) + "}", "metadata.name"},
		{"{name: 5}", "metadata.name"}, {"{name: a, namespace: A}", "metadata.namespace"}, {"{name: a, namespace: n}", "metadata.namespace"},
		{"{name: a, label: {}}", "metadata.label"}, {"{name: a, labels: {a b: c}}", "metadata.labels[a b]"}, {"{name: a, labels: {a: 'b c'}}", "metadata.labels[a]"},
		{"{name: a, name: b}", "metadata.name"}, {"{name: a, annotations: {a: 5}}", "metadata.annotations[a]"},
		{"{name: a, annotations: {a: " + strings.Repeat("a", 256<<10) + "}}", "metadata.annotations"},
	}
	for _, tt := range tests {
		p := onePolicy(t, "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: "+tt.meta+"\nspec: {podSelector: {}}\n")
		switch {
		case tt.refused == "" && len(p.Refused) > 0:
			t.Errorf("%.80s: %v", tt.meta, p.Refused)
		case tt.refused != "" && (len(p.Refused) == 0 || p.Refused[0].Field != tt.refused):
			t.Errorf("%.80s: refused %v, want %s", tt.meta, p.Refused, tt.refused)
		}
	}
}
