package api

import (
	"strings"
	"testing"
)

func TestWarnings(t *testing.T) {
	in := func(rule string) string { return cnpHead + "spec: {endpointSelector: {}, ingress: [" + rule + "]}\n" }
	out := func(rule string) string { return cnpHead + "spec: {endpointSelector: {}, egress: [" + rule + "]}\n" }
	tests := []struct{ in, want string }{
		{in("{}"), ""},
		{in("{fromEndpoints: [{matchLabels: {app: a}}], toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{path: '/.*', method: GET}]}}]}"), ""},
		{out("{toPorts: [{ports: [{port: '53', protocol: UDP}], rules: {dns: [{matchPattern: '*'}]}}]}"), ""},
		{out("{toFQDNs: [{matchName: a.b}]}"), ""},
		{out("{toPorts: [{ports: [{port: '443', protocol: TCP}], serverNames: [a.b]}]}"), "spec.egress[0].toPorts[0].serverNames: is not enforced by this version"},
		{in("{toPorts: [{ports: [{port: '9092', protocol: TCP}], rules: {kafka: [{}]}}]}"), "spec.ingress[0].toPorts[0].rules.kafka: is not enforced by this version"},
		{in("{fromEndpoints: [{matchLabels: {pod-template-hash: a}}]}"), "spec.ingress[0].fromEndpoints[0]: label pod-template-hash does not count"},
		{in("{fromEndpoints: [{matchLabels: {'k8s:topology.kubernetes.io/zone': a}}]}"), "label topology.kubernetes.io/zone does not count"},
		{in("{fromEndpoints: [{matchExpressions: [{key: pod-template-hash, operator: NotIn, values: [a]}]}]}"), ""},
		{in("{fromEndpoints: [{matchLabels: {app.kubernetes.io/name: a}}]}"), ""},
		{in("{fromNodes: [{matchLabels: {topology.kubernetes.io/zone: a}}]}"), ""},
		{in("{fromEndpoints: [{matchLabels: {'reserved:world': ''}}]}"), "reserved:world selects nobody"},
		{in("{fromEndpoints: []}"), "spec.ingress[0].fromEndpoints: is empty: the rule is for nobody"},
		{out("{toServices: []}"), "spec.egress[0].toServices: is empty"},
		{out("{toServices: [{k8sService: {namespace: a}}]}"), "spec.egress[0].toServices[0]: selects no service"},
		{in("{toPorts: [{}]}"), "spec.ingress[0].toPorts[0]: allows nothing: it has no ports"},
		{in("{icmps: [{}]}"), "spec.ingress[0].icmps[0]: matches nothing"},
		{in("{icmps: [{fields: [{type: 264}]}]}"), "spec.ingress[0].icmps[0].fields[0].type: 264 matches nothing"},
		{in("{fromEntities: [init]}"), "entity init stands for nobody"},
		{in("{fromCIDR: [10.1.2.3/8]}"), "10.0.0.0/8 is meant"},
		{in("{fromCIDR: ['::ffff:10.0.0.0/104']}"), "no packet has such an address"},
		{in("{toPorts: [{ports: [{port: '0120'}]}]}"), `"0120" is read as octal: port 80`},
		{in("{toPorts: [{ports: [{port: '0x50'}]}]}"), "is the name of a port"},
		{in("{toPorts: [{ports: [{port: '80', endPort: 70}]}]}"), "does not count: it is below port 80"},
		{in("{toPorts: [{ports: [{port: http, endPort: 70}]}]}"), ""},
		{out("{toPorts: [{ports: [{port: http, endPort: 70}]}]}"), "does not count with a named port in egress"},
		{in("{toPorts: [{ports: [{port: http, protocol: VRRP}]}]}"), "protocol VRRP has no ports"},
		{in("{toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{path: public}]}}]}"), `"public" matches nothing`},
		{in("{toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{path: 'a*/b'}]}}]}"), ""},
		{in("{toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{method: get}]}}]}"), "methods are written in capitals"},
		{in("{toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{headerMatches: [{name: x-a, value: b, mismatch: ADD}]}]}}]}"), "ADD lets the request pass"},
		{out("{toFQDNs: [{matchPattern: '*a.b'}]}"), `"*a.b" also matches names such as "a.b" and "evila.b"`},
		{cnpHead + "spec: {endpointSelector: {}, ingressDeny: [{}]}\n", "spec.ingressDeny[0]: denies nothing"},
		{cnpHead + "spec: {endpointSelector: {}, egressDeny: [{toPorts: [{}]}]}\n", "spec.egressDeny[0].toPorts[0]: denies nothing"},
		{cnpHead + "spec: {endpointSelector: {}, ingress: [{}], enableDefaultDeny: {egress: true}}\n", "spec.enableDefaultDeny.egress: has no effect"},
		{cnpHead + "spec: {endpointSelector: {matchLabels: {'k8s:io.kubernetes.pod.namespace': x}}, ingress: [{}]}\n", "asks for namespace x"},
		{ccnpHead + "spec: {nodeSelector: {}, ingress: [{}]}\n", ""},
		{ccnpHead + "spec: {endpointSelector: {matchLabels: {'reserved:host': ''}}, ingress: [{}]}\n", "spec.endpointSelector: reserved:host is no label that pods have"},
		{ccnpHead + "spec: {endpointSelector: {matchExpressions: [{key: 'reserved:host', operator: DoesNotExist}]}, ingress: [{}]}\n", ""},
		{ccnpHead + "spec: {nodeSelector: {}, egress: [{toPorts: [{ports: [{port: '53', protocol: UDP}], rules: {dns: [{matchName: a.test}]}}]}]}\n", "spec.egress[0].toPorts[0].rules.dns: is not enforced by this version"},
		{ccnpHead + "spec: {nodeSelector: {}, egress: [{toFQDNs: [{matchName: a.test}]}]}\n", "spec.egress[0].toFQDNs: stands for what DNS told pods only"},
		{cnpHead + "specs: []\n", "specs: has no rule"},
		{npHead + "spec: {podSelector: {}, policyTypes: [Egress], ingress: [{}]}\n", "spec.ingress: does not count: policyTypes lacks Ingress"},
		{npHead + "spec: {podSelector: {}, policyTypes: [Ingress], egress: [{}]}\n", "spec.egress: does not count: policyTypes lacks Egress"},
		{npHead + "spec: {podSelector: {}, ingress: [{from: null}]}\n", "spec.ingress[0].from: is null"},
		{npHead + "spec: {}\n", "spec: has no podSelector"},
		{npHead + "spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.1.0.0/8}}]}]}\n", "spec.ingress[0].from[0].ipBlock.cidr: 10.1.0.0/8 has bits set"},
		{npHead + "spec:\n  podSelector:\n    matchLabels:\n      io.kubernetes.pod.namespace: a\n", "7: spec.podSelector.matchLabels[io.kubernetes.pod.namespace]: io.kubernetes.pod.namespace is no label that pods have"},
		{npHead + "spec: {podSelector: {}, egress: [{to: [{namespaceSelector: {}}, {namespaceSelector: {}, podSelector: {matchExpressions: [{key: a, operator: Exists}, {key: io.kubernetes.pod.namespace, operator: NotIn, values: [a]}]}}]}]}\n",
			"spec.egress[0].to[1].podSelector.matchExpressions[1].key: io.kubernetes.pod.namespace is no label that pods have"},
		{npHead + "spec: {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {io.kubernetes.pod.namespace: a}}}]}]}\n",
			"spec.ingress[0].from[0].namespaceSelector.matchLabels[io.kubernetes.pod.namespace]: io.kubernetes.pod.namespace is no label that namespaces have"},
		{npHead + "spec: {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: a}}}]}]}\n", ""},
		{in("{fromEndpoints: [{matchLabels: {io.kubernetes.pod.namespace: b}}]}"), ""},
	}
	for _, tt := range tests {
		p := onePolicy(t, tt.in)
		if len(p.Refused) > 0 {
			t.Errorf("refused: %v\n%s", p.Refused, tt.in)
		}
		got := strings.Join(texts(p.Warnings), "\n")
		if tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
			t.Errorf("warnings %q, want %q\n%s", got, tt.want, tt.in)
		}
	}
}
