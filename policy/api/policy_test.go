package api

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestErrorsAreAllFoundAtOnce(t *testing.T) {
	p := onePolicy(t, `apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata:
  name: Web
  namespace: shop
spec:
  endpointSelector:
    matchlabels: {app: web}
  ingress:
  - fromEndpoints:
    - matchLabels: {app: 5}
    fromCIDR: [10.0.0.0, 10.0.0.0/8]
    toPorts:
    - ports:
      - port: 80
        protocol: tcp
      rules:
        http:
        - path: "/("
          host: "a("
          headers: ["X-A:v"]
          headerMatches: [{name: a, secret: {name: s}}]
  egress:
    toEntities: [world]
specs:
- endpointSelector: {}
  egress:
  - toFQDNs: [{matchName: a.*}]
    toPorts:
    - ports: [{port: "53", protocol: UDP}]
      rules: {dns: [{matchPattern: "*"}], http: []}
`)
	want := []string{
		`4: metadata.name: "Web": a lowercase RFC 1123 subdomain must consist of`,
		`8: spec.endpointSelector.matchlabels: unknown field; did you mean matchLabels?`,
		`10: spec.ingress[0]: combines fromEndpoints and fromCIDR: a rule takes peers of one kind, write a rule for each`,
		`11: spec.ingress[0].fromEndpoints[0].matchLabels[app]: must be a string, not a number: quote it`,
		`12: spec.ingress[0].fromCIDR[0]: "10.0.0.0" lacks the length of the prefix: write 10.0.0.0/32`,
		`15: spec.ingress[0].toPorts[0].ports[0].port: must be a string, not a number: quote it`,
		`16: spec.ingress[0].toPorts[0].ports[0].protocol: "tcp" is none of TCP, UDP, SCTP`,
		"19: spec.ingress[0].toPorts[0].rules.http[0].path: not a regular expression: error parsing regexp: missing closing ): `/(`",
		"20: spec.ingress[0].toPorts[0].rules.http[0].host: not a regular expression: error parsing regexp: missing closing ): `a(`",
		`21: spec.ingress[0].toPorts[0].rules.http[0].headers[0]: "X-A:v" asks for a header of that whole name`,
		`22: spec.ingress[0].toPorts[0].rules.http[0].headerMatches[0].secret: is not supported`,
		`24: spec.egress: must be a list, not an object`,
		`28: specs[0].egress[0].toFQDNs[0].matchName: "a.*" has a wildcard: write it as matchPattern`,
		`31: specs[0].egress[0].toPorts[0].rules: needs exactly one of http, dns and kafka`,
	}
	got := texts(p.Refused)
	for i := range got {
		if i < len(want) && strings.HasPrefix(got[i], want[i]) {
			got[i] = want[i]
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("errors (-want +got):\n%s", d)
	}
}

func TestErrorText(t *testing.T) {
	for want, e := range map[string]Error{
		"f:3: spec: m":       {File: "f", Line: 3, Field: "spec", Message: "m"},
		"f: m":               {File: "f", Message: "m"},
		"line 3: m":          {Line: 3, Message: "m"},
		"spec.ingress[0]: m": {Field: "spec.ingress[0]", Message: "m"},
	} {
		if got := e.Error(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// TestNilAndEmpty: a list that was not written and one written empty are two
// things, in what is decoded and in what is encoded again.
func TestNilAndEmpty(t *testing.T) {
	p := onePolicy(t, cnpHead+`spec:
  endpointSelector: {}
  ingress:
  - {}
  - fromEndpoints: []
  - toPorts: []
  - toPorts: [{ports: [], rules: {http: []}}]
  - fromCIDRSet: []
    icmps: [{fields: []}]
  egress:
  - toFQDNs: []
  - toServices: []
  - toCIDRSet: [{cidr: 10.0.0.0/8, except: []}]
  egressDeny: []
`)
	if len(p.Refused) > 0 {
		t.Fatal(p.Refused)
	}
	r := p.Rules[0]
	checks := map[string]bool{
		"ingress[0] has no lists":             r.Ingress[0].FromEndpoints == nil && r.Ingress[0].ToPorts == nil && r.Ingress[0].FromCIDR == nil,
		"ingress[1] has an empty list":        r.Ingress[1].FromEndpoints != nil && len(r.Ingress[1].FromEndpoints) == 0,
		"ingress[2] has empty ports":          r.Ingress[2].ToPorts != nil && len(r.Ingress[2].ToPorts) == 0,
		"ingress[3] has rules that are empty": r.Ingress[3].ToPorts[0].Rules != nil && r.Ingress[3].ToPorts[0].Rules.HTTP != nil && r.Ingress[3].ToPorts[0].Rules.Empty(),
		"ingress[3] has no DNS rules":         r.Ingress[3].ToPorts[0].Rules.DNS == nil,
		"ingress[4] has an empty set":         r.Ingress[4].FromCIDRSet != nil && len(r.Ingress[4].FromCIDRSet) == 0,
		"ingress[4] has icmps, but no fields": len(r.Ingress[4].ICMPs) == 1 && r.Ingress[4].ICMPs[0].Fields != nil,
		"egress[0] has empty FQDNs":           r.Egress[0].ToFQDNs != nil && r.Egress[0].ToServices == nil,
		"egress[1] has empty services":        r.Egress[1].ToServices != nil && r.Egress[1].ToFQDNs == nil,
		"egress[2] has empty exceptions":      r.Egress[2].ToCIDRSet[0].Except != nil,
		"egressDeny is empty, not absent":     r.EgressDeny != nil && len(r.EgressDeny) == 0,
		"ingressDeny is absent":               r.IngressDeny == nil,
	}
	for what, ok := range checks {
		if !ok {
			t.Errorf("not so: %s", what)
		}
	}
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"endpointSelector":{},"ingress":[{},{"fromEndpoints":[]},{"toPorts":[]},{"toPorts":[{"ports":[],"rules":{"http":[]}}]},` +
		`{"fromCIDRSet":[],"icmps":[{"fields":[]}]}],"egress":[{"toFQDNs":[]},{"toServices":[]},{"toCIDRSet":[{"cidr":"10.0.0.0/8","except":[]}]}],"egressDeny":[]}`
	if string(text) != want {
		t.Errorf("encoded %s\nwant    %s", text, want)
	}
}

func TestObjects(t *testing.T) {
	p := onePolicy(t, "# a policy\n"+cnpHead+"spec: {endpointSelector: {matchLabels: {a: b}}, ingress: [{}]}\nspecs:\n- {endpointSelector: {}, egress: [{}]}\n- {endpointSelector: {}, egressDeny: [{}]}\n")
	if len(p.Refused) > 0 {
		t.Fatal(p.Refused)
	}
	if got, want := p.String(), "CiliumNetworkPolicy default/t"; got != want {
		t.Errorf("String %q, want %q", got, want)
	}
	if d := cmp.Diff([]string{"spec", "specs[0]", "specs[1]"}, p.Paths); d != "" {
		t.Error(d)
	}
	if p.Source != (Position{File: "x.yaml", Document: 1, Line: 2}) {
		t.Errorf("source %+v", p.Source)
	}
	for path, line := range map[string]int{"spec": 5, "spec.ingress[0]": 5, "specs[1].egressDeny[0]": 8} {
		if p.Lines[path] != line {
			t.Errorf("line of %s: %d, want %d", path, p.Lines[path], line)
		}
	}
	if in, out := p.Rules[0].DefaultDeny(); !in || out {
		t.Errorf("default deny of spec: %v, %v", in, out)
	}
}

func TestNamespaces(t *testing.T) {
	rule := "spec: {endpointSelector: {}, ingress: [{}]}\n"
	p := onePolicy(t, "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: t}\n"+rule)
	if p.Namespace != "default" || len(p.Warnings) != 1 {
		t.Errorf("namespace %q, warnings %v", p.Namespace, p.Warnings)
	}
	p = onePolicy(t, "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {name: t, namespace: x}\n"+rule)
	if p.Namespace != "" || len(p.Warnings) != 1 || len(p.Refused) > 0 {
		t.Errorf("namespace %q, warnings %v", p.Namespace, p.Warnings)
	}
	p = onePolicy(t, "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: t, namespace: a.b}\n"+rule)
	if p.Namespace != "a.b" || len(p.Refused) == 0 {
		t.Errorf("namespace %q, refused %v", p.Namespace, p.Refused)
	}
}

func TestVersionsAndKinds(t *testing.T) {
	tests := []struct {
		version, kind string
		policy        bool
		refused       string
	}{
		{"cilium.io/v2", "CiliumNetworkPolicy", true, ""},
		{"cilium.io/v2alpha1", "CiliumNetworkPolicy", true, `apiVersion: "cilium.io/v2alpha1" is not supported: cilium.io/v2`},
		{"cilium.io/v2", "CiliumEnvoyConfig", false, ""},
		{"projectcalico.org/v3", "NetworkPolicy", false, ""},
		{"v1", "CiliumNetworkPolicy", false, ""},
		{"extensions/v1beta1", "NetworkPolicy", true, `"extensions/v1beta1" is not supported: networking.k8s.io/v1`},
	}
	for _, tt := range tests {
		spec := "{endpointSelector: {}, ingress: [{}]}"
		if tt.kind == KindNetworkPolicy {
			spec = "{podSelector: {}}"
		}
		got := Read("f", []byte("apiVersion: "+tt.version+"\nkind: "+tt.kind+"\nmetadata: {name: a, namespace: b}\nspec: "+spec+"\n"))
		if (len(got.Policies) == 1) != tt.policy || (len(got.Others) == 1) == tt.policy {
			t.Errorf("%s %s: %+v", tt.version, tt.kind, got)
			continue
		}
		if !tt.policy {
			if w := got.Others[0].NotEnforced(); (w != nil) != (tt.version != "v1") {
				t.Errorf("%s %s: warning %v", tt.version, tt.kind, w)
			}
			continue
		}
		refused := strings.Join(texts(got.Policies[0].Refused), "; ")
		if tt.refused == "" && refused != "" || !strings.Contains(refused, tt.refused) {
			t.Errorf("%s %s: refused %q, want %q", tt.version, tt.kind, refused, tt.refused)
		}
	}
}

func TestCIDRGroup(t *testing.T) {
	head := "apiVersion: cilium.io/v2\nkind: CiliumCIDRGroup\nmetadata: {name: g, uid: u, labels: {a: b}}\n"
	got := Read("f", []byte(head+"spec: {externalCIDRs: [10.0.0.0/8, \"2001:db8::1/32\"]}\n"))
	if len(got.CIDRGroups) != 1 || len(got.Errors) > 0 {
		t.Fatalf("%+v", got)
	}
	want := &CIDRGroup{Name: "g", UID: "u", Labels: map[string]string{"a": "b"}, Source: Position{"f", 1, 1},
		ExternalCIDRs: []CIDR{"10.0.0.0/8", "2001:db8::1/32"},
		Warnings: []*Error{{File: "f", Document: 1, Line: 4, Field: "spec.externalCIDRs[1]",
			Message: "2001:db8::1/32 has bits set behind the prefix, which don't count: 2001:db8::/32 is meant"}}}
	if d := cmp.Diff(want, got.CIDRGroups[0]); d != "" {
		t.Error(d)
	}
	for _, spec := range []string{"", "spec: {}", "spec: {externalCIDRs: [10.0.0.1]}", "spec: {externalCIDRs: null}", "spec: {externalCIDRs: [], x: 1}", "spec: {externalCIDRs: []}\nx: 1"} {
		got := Read("f", []byte(head+spec+"\n"))
		if len(got.CIDRGroups) != 1 || len(got.CIDRGroups[0].Refused) == 0 || got.CIDRGroups[0].ExternalCIDRs != nil {
			t.Errorf("%q: %+v", spec, got.CIDRGroups)
		}
	}
}

// TestKeysOfAllAddresses: no key of a peer's labels may stand for every address.
func TestKeysOfAllAddresses(t *testing.T) {
	for rule, refused := range map[string]string{
		`toCIDRSet: [{cidrGroupSelector: {matchExpressions: [{key: "cidr:0.0.0.0/0", operator: DoesNotExist}]}}]`: "spec.egress[0].toCIDRSet[0].cidrGroupSelector.matchExpressions[0].key",
		`toCIDRSet: [{cidrGroupSelector: {matchLabels: {"cidr:0--0/0": ""}}}]`:                                    "spec.egress[0].toCIDRSet[0].cidrGroupSelector.matchLabels[cidr:0--0/0]",
		`toEndpoints: [{matchExpressions: [{key: "cidr:1.2.3.4/0", operator: Exists}]}]`:                          "spec.egress[0].toEndpoints[0].matchExpressions[0].key",
		`toCIDRSet: [{cidrGroupSelector: {matchExpressions: [{key: "cidr:0.0.0.0/1", operator: DoesNotExist}]}}]`: "",
		`toEndpoints: [{matchLabels: {"any:0.0.0.0/0": ""}}]`:                                                     "",
	} {
		var got string
		if p := onePolicy(t, cnpHead+"spec:\n  endpointSelector: {}\n  egress: [{"+rule+"}]\n"); len(p.Refused) > 0 {
			got = p.Refused[0].Field
		}
		if got != refused {
			t.Errorf("%s: refused %q, want %q", rule, got, refused)
		}
	}
}

func TestKafka(t *testing.T) {
	tests := []struct {
		rule string
		ok   bool
	}{
		{"{}", true}, {"{role: produce}", true}, {"{role: consume, topic: a.b-c_1}", true}, {"{apiKey: fetch, apiVersion: \"2\", clientID: x}", true},
		{"{role: admin}", false}, {"{role: ''}", false}, {"{role: produce, apiKey: fetch}", false}, {"{apiKey: nope}", false},
		{"{apiVersion: \"-1\"}", false}, {"{apiVersion: \"99999\"}", false}, {"{apiVersion: 2}", false},
		{"{topic: \"a b\"}", false}, {"{topic: " + strings.Repeat("a", 256) + "}", false}, {"{topics: [a]}", false}, {"null", false},
	}
	for _, tt := range tests {
		p := onePolicy(t, cnpHead+"spec:\n  endpointSelector: {}\n  ingress: [{toPorts: [{ports: [{port: '9092', protocol: TCP}], rules: {kafka: ["+tt.rule+"]}}]}]\n")
		if (len(p.Refused) == 0) != tt.ok {
			t.Errorf("%s: %v", tt.rule, p.Refused)
		}
	}
	for _, bad := range []string{
		"ingress: [{toPorts: [{ports: [{port: '9092', protocol: UDP}], rules: {kafka: [{}]}}]}]",
		"ingress: [{toPorts: [{ports: [{port: '0', protocol: TCP}], rules: {kafka: [{}]}}]}]",
		"ingress: [{toPorts: [{ports: [{port: '9092', protocol: TCP}], rules: {kafka: [{}], http: [{}]}}]}]",
		"ingress: [{toPorts: [{ports: [{port: '9092', protocol: TCP}], serverNames: [a], rules: {kafka: [{}]}}]}]",
	} {
		if p := onePolicy(t, cnpHead+"spec:\n  endpointSelector: {}\n  "+bad+"\n"); len(p.Refused) == 0 {
			t.Errorf("accepted: %s", bad)
		}
	}
	if p := onePolicy(t, ccnpHead+"spec:\n  nodeSelector: {}\n  egress: [{toPorts: [{ports: [{port: '9092', protocol: TCP}], rules: {kafka: [{}]}}]}]\n"); len(p.Refused) == 0 {
		t.Error("accepted for nodes")
	}
}

// TestConflict: two parsers on one port of one rule.
func TestConflict(t *testing.T) {
	http := func(port string) string { return "{ports: [" + port + "], rules: {http: [{}]}}" }
	dns := func(port string) string { return "{ports: [" + port + "], rules: {dns: [{matchName: a}]}}" }
	sni := func(port string) string { return "{ports: [" + port + "], serverNames: [a]}" }
	tests := []struct {
		a, b string
		ok   bool
	}{
		{http("{port: '80', protocol: TCP}"), http("{port: '80', protocol: TCP}"), true},
		{http("{port: '80', protocol: TCP}"), dns("{port: '53', protocol: TCP}"), true},
		{http("{port: '80', protocol: TCP}"), dns("{port: '80', protocol: UDP}"), true},
		{http("{port: '80', protocol: TCP}"), dns("{port: '80', protocol: TCP}"), false},
		{http("{port: '80', protocol: TCP}"), dns("{port: '80', protocol: ANY}"), false},
		{dns("{port: '80'}"), http("{port: '70', endPort: 90, protocol: TCP}"), false},
		{http("{port: '80', protocol: TCP}"), sni("{port: '80', protocol: TCP}"), false},
		{http("{port: '80', protocol: TCP}"), sni("{port: '0', protocol: TCP}"), false},
		{http("{port: web, protocol: TCP}"), sni("{port: WEB, protocol: TCP}"), false},
		{http("{port: web, protocol: TCP}"), sni("{port: '80', protocol: TCP}"), true},
		{http("{port: '80', protocol: TCP}"), "{ports: [{port: '80', protocol: TCP}]}", true},
	}
	for _, tt := range tests {
		p := onePolicy(t, cnpHead+"spec:\n  endpointSelector: {}\n  egress: [{toPorts: ["+tt.a+", "+tt.b+"]}]\n")
		if (len(p.Refused) == 0) != tt.ok {
			t.Errorf("%s and %s: %v", tt.a, tt.b, p.Refused)
		}
	}
}

// TestTerminal: no text of a file reaches a terminal as a command to it.
func TestTerminal(t *testing.T) {
	for _, text := range []string{
		cnpHead + "spec: {endpointSelector: {}, ingress: [{}], \"\\e[31mx\": 1}\n",
		cnpHead + "spec: {endpointSelector: {matchLabels: {\"\\e[31mx\": \"\\e\"}}, ingress: [{}]}\n",
		cnpHead + "\"\\e[31mx\": 1\nspec: {endpointSelector: {}, ingress: [{}], description: a, description: \"\\e\"}\n",
		cnpHead + "spec: {endpointSelector: {\"\\e\": 1, \"\\e\": 2}, ingress: [{fromEntities: [\"\\e\"], toPorts: [{ports: [{port: \"\\e\"}], rules: {http: [{path: \"\\e(\", headers: [\"\\e\"]}]}}]}]}\n",
	} {
		p := onePolicy(t, text)
		if len(p.Refused) == 0 {
			t.Errorf("accepted: %s", text)
		}
		for _, e := range p.Refused {
			if strings.ContainsRune(e.Error(), 0x1b) {
				t.Errorf("escape in %q", e.Error())
			}
		}
	}
}
