package policy

import (
	"strings"
	"testing"
)

var portPoints = []point{
	// Ports and ICMP.
	{21, "cnp: ingress: [{toPorts: [{ports: [{port: '80', protocol: ANY}]}]}]", []string{"default/api > default/web TCP/80 = allowed", "default/api > default/web UDP/80 = allowed", "default/api > default/web SCTP/80 = allowed", "default/api > default/web ICMP/80 = denied"}},
	{21, "cnp: ingress: [{fromEndpoints: [{}]}]", []string{"default/api > default/web ICMP/8 = allowed", "default/api > default/web GRE/0 = allowed"}},
	{21, "cnp: ingress: [{toPorts: [{ports: [{port: '0', protocol: ANY}]}]}]", []string{"default/api > default/web SCTP/9 = allowed", "default/api > default/web ICMP/8 = denied", "default/api > default/web GRE/0 = denied"}},
	{22, "cnp: ingress: [{toPorts: [{ports: [{port: '0120', protocol: TCP}]}]}]", []string{"default/api > default/web TCP/80 = allowed", "default/api > default/web TCP/120 = denied"}},
	{22, "cnp: ingress: [{toPorts: [{ports: [{port: '080', protocol: TCP}]}]}]", []string{"default/api > default/web TCP/80 = denied", "192.168.5.2 > default/web TCP/80 = denied"}},
	{22, "cnp: ingress: [{toPorts: [{ports: [{port: '0x50', protocol: TCP}]}]}]", []string{"default/api > default/web TCP/80 = denied"}},
	{22, "cnp: ingress: [{toPorts: [{ports: [{port: '80', endPort: 70, protocol: TCP}]}]}]", []string{"default/api > default/web TCP/80 = allowed", "default/api > default/web TCP/75 = denied"}},
	{22, "cnp: ingress: [{toPorts: [{ports: [{port: '80', endPort: 100, protocol: TCP}]}]}]", []string{"default/api > default/web TCP/80 = allowed", "default/api > default/web TCP/100 = allowed", "default/api > default/web TCP/79 = denied", "default/api > default/web TCP/101 = denied"}},
	{22, "cnp: ingress: [{toPorts: [{ports: [{port: '0', protocol: TCP}]}]}]", []string{"default/api > default/web TCP/65535 = allowed", "default/api > default/web UDP/80 = denied"}},
	{22, "cnp: ingress: [{toPorts: [{ports: [{port: http, endPort: 90, protocol: TCP}]}]}]", []string{"default/api > default/web TCP/80 = allowed", "default/api > default/web TCP/90 = allowed", "default/api > default/web TCP/91 = denied"}},
	{22, "cnp: egress: [{toEndpoints: [{}], toPorts: [{ports: [{port: http, endPort: 9000, protocol: TCP}]}]}]", []string{"default/web > default/api TCP/8080 = allowed", "default/web > default/api TCP/8081 = denied"}},
	{23, "cnp: egress: [{toPorts: [{ports: [{port: http, protocol: TCP}]}]}]", []string{"default/web > default/api TCP/8080 = allowed", "default/web > shop/api TCP/8081 = allowed", "default/web > shop/api TCP/8080 = denied", "default/web > shop/api UDP/53 = denied", "default/web > 9.9.9.9 TCP/80 = denied", "default/web > 192.168.5.2 TCP/80 = denied"}},
	{23, "cnp: egress: [{toPorts: [{ports: [{port: HTTP}]}]}]", []string{"default/web > shop/api UDP/53 = allowed", "default/web > shop/api TCP/8081 = allowed"}},
	{23, "cnp: ingress: [{toPorts: [{ports: [{port: admin, protocol: TCP}]}]}]", []string{"default/api > default/web TCP/9000 = allowed", "default/api > default/web TCP/admin = allowed", "default/api > default/web TCP/80 = denied"}},
	{24, "cnp: ingress: [{icmps: [{fields: [{type: EchoReply}]}]}]", []string{"default/api > default/web ICMP/0 = allowed", "default/api > default/web ICMP/8 = denied"}},
	{24, "cnp: ingress: [{icmps: [{fields: [{type: 0, family: IPv4}]}]}]", []string{"default/api > default/web ICMP/0 = allowed", "default/api > default/web ICMP/3 = denied", "fd00::12 > default/web ICMPv6/0 = denied"}},
	{24, "cnp: ingress: [{icmps: [{fields: [{type: 128, family: IPv6}]}]}]", []string{"fd00::12 > default/web ICMPv6/128 = allowed", "default/api > default/web ICMP/128 = denied"}},

	// HTTP, DNS, TLS.
	{25, "cnp: ingress: [{fromEndpoints: [{matchLabels: {app: api}}], toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{path: /a}]}}]}, {fromEndpoints: [{}], toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{path: /b}]}}]}]",
		[]string{"default/api > default/web TCP/80 GET /a = allowed", "default/api > default/web TCP/80 GET /b = allowed", "default/web > default/web TCP/80 = allowed", "default/api > default/web TCP/80 GET /c = denied", "default/api > default/web TCP/80 = l7"}},
	{25, "cnp: ingress: [{toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{path: /a}]}}]}];;cnp: ingress: [{fromEndpoints: [{}]}]",
		[]string{"default/api > default/web TCP/80 = allowed", "default/api > default/web TCP/80 GET /b = allowed", "shop/api > default/web TCP/80 = l7", "shop/api > default/web TCP/80 GET /b = denied"}},
	{25, "cnp: ingress: [{toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{path: /a}]}}]}, {toPorts: [{ports: [{port: '1', endPort: 1000, protocol: TCP}]}]}]", []string{"default/api > default/web TCP/80 = allowed"}},
	{25, "cnp: ingress: [{toPorts: [{ports: [{port: '1', endPort: 1000, protocol: TCP}], rules: {http: [{path: /a}]}}]}, {toPorts: [{ports: [{port: '80', protocol: TCP}]}]}]", []string{"default/api > default/web TCP/80 = allowed", "default/api > default/web TCP/81 = l7"}},
	{25, "cnp: ingress: [{toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{}]}}]}]", []string{"default/api > default/web TCP/80 = allowed"}},
	{26, "cnp: egress: [{toEndpoints: [{}], toPorts: [{ports: [{port: '53', protocol: ANY}], rules: {dns: [{matchPattern: '*'}]}}]}, {toEndpoints: [{}]}]", []string{"default/web > default/api UDP/53 = l7", "default/web > default/api TCP/53 ? x.test = allowed", "default/web > default/api UDP/54 = allowed"}},
	{26, "cnp: egress: [{toEndpoints: [{}], toPorts: [{ports: [{port: '53', protocol: ANY}], rules: {dns: [{matchName: A.test.}]}}]}, {toEndpoints: [{}]}, {toPorts: [{ports: [{port: '50', endPort: 60, protocol: ANY}]}]}]",
		[]string{"default/web > default/api UDP/53 ? a.TEST = allowed", "default/web > default/api UDP/53 ? a.test. = allowed", "default/web > default/api UDP/53 ? b.test = denied", "default/web > default/api SCTP/53 = denied",
			"default/web > 9.9.9.9 UDP/53 = allowed", "default/web > default/api UDP/53 GET / = denied"}},
	// The same ports without DNS rules lift them, in whatever policy.
	{26, "cnp: egress: [{toEndpoints: [{}], toPorts: [{ports: [{port: '53', protocol: ANY}], rules: {dns: [{matchName: a.test}]}}]}];;np: policyTypes: [Egress], egress: [{ports: [{port: 53, protocol: UDP}]}]",
		[]string{"default/web > default/api UDP/53 = allowed", "default/web > default/api UDP/53 ? b.test = allowed", "default/web > default/api TCP/53 ? b.test = denied"}},
	{26, "cnp: egress: [{toEndpoints: [{}], toPorts: [{ports: [{port: http, protocol: TCP}], rules: {dns: [{matchName: a.test}]}}]}, {toEndpoints: [{}], toPorts: [{ports: [{port: '8080', protocol: TCP}]}]}]",
		[]string{"default/web > default/api TCP/8080 = l7", "default/web > default/api TCP/8080 ? b.test = denied"}},
	{26, "cnp: enableDefaultDeny: {egress: false}, egress: [{toEndpoints: [{}], toPorts: [{ports: [{port: '53', protocol: ANY}], rules: {dns: [{matchName: a.test}]}}]}]",
		[]string{"default/web > default/api UDP/53 = l7", "default/web > default/api UDP/53 ? b.test = allowed", "default/web > 9.9.9.9 TCP/80 = allowed"}},
	{27, "cnp: ingress: [{toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{path: /public, method: GET}]}}]}]", []string{"default/api > default/web TCP/80 GET /public = allowed", "default/api > default/web TCP/80 GET /public?x=1 = denied", "default/api > default/web TCP/80 get /public = denied"}},
	{28, "cnp: ingress: [{toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{headers: ['X-A: v']}]}}]}]", []string{"default/api > default/web TCP/80 GET / x-a=v = allowed", "default/api > default/web TCP/80 GET / x-a=w = denied", "default/api > default/web TCP/80 GET / = denied"}},
	{28, "cnp: ingress: [{toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{headerMatches: [{name: X-A, value: v, mismatch: REPLACE}]}]}}]}]", []string{"default/api > default/web TCP/80 GET / x-a=w = allowed"}},
	{29, "cnp: ingress: [{toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{path: '/a/.*'}]}}]}]", []string{"default/api > default/web TCP/80 GET /a/../b = denied", "default/api > default/web TCP/80 GET /b/%2e%2e/a//c = allowed", "default/api > default/web TCP/80 GET /a/x%2fy = denied", "default/api > default/web TCP/80 GET /a/%00 = denied"}},
	{30, "cnp: egress: [{toEndpoints: [{}], toPorts: [{ports: [{port: '53', protocol: TCP}], rules: {dns: [{matchPattern: '*'}]}}]}, {toEndpoints: [{}], toPorts: [{ports: [{port: '53', protocol: TCP}], rules: {http: [{}]}}]}]", []string{"default/web > default/api TCP/53 = denied"}},
	{30, "cnp: egress: [{toEndpoints: [{}], toPorts: [{ports: [{port: '443', protocol: TCP}], serverNames: [a.example]}]}, {toEndpoints: [{}], toPorts: [{ports: [{port: '443', protocol: TCP}]}]}]", []string{"default/web > default/api TCP/443 = denied"}},

	// Names, in brackets behind the address.
	{31, "cnp: egress: [{toFQDNs: [{matchPattern: '*example.com'}]}]", []string{"default/web > 9.9.9.9 TCP/443 [example.com] = allowed", "default/web > 9.9.9.9 TCP/443 [subexample.com] = allowed",
		"default/web > 9.9.9.9 TCP/443 [www.example.com] = denied", "default/web > 9.9.9.9 TCP/443 = denied", "default/web > 2001:db8::1 UDP/443 [a.test,Example.COM.] = allowed"}},
	{31, "cnp: egress: [{toFQDNs: [{matchPattern: '*.example.com'}, {matchName: WWW.test}], toPorts: [{ports: [{port: '443', protocol: TCP}]}]}]", []string{"default/web > 9.9.9.9 TCP/443 [a.example.com] = allowed",
		"default/web > 9.9.9.9 TCP/80 [a.example.com] = denied", "default/web > 9.9.9.9 TCP/443 [a.b.example.com] = denied", "default/web > 9.9.9.9 TCP/443 [www.TEST.] = allowed"}},
	{31, "cnp: egress: [{toFQDNs: [{matchPattern: '**.example.com'}]}]", []string{"default/web > 9.9.9.9 TCP/443 [a.b.example.com] = allowed", "default/web > 9.9.9.9 TCP/443 [example.com] = denied"}},
	// Addresses of pods and nodes have no names.
	{12, "cnp: egress: [{toFQDNs: [{matchPattern: '*'}]}]", []string{"default/web > 10.0.0.12 TCP/443 [a.test] = denied", "default/web > 192.168.5.2 TCP/443 [a.test] = denied", "default/web > 10.0.0.99 TCP/443 [a.test] = denied",
		"default/web > 9.9.9.9 TCP/443 [a.test] = allowed"}},
	{3, "cnp: egress: [{toFQDNs: []}]", []string{"default/web > 9.9.9.9 TCP/443 [a.test] = denied"}},
	{13, "cnp: egress: [{toFQDNs: [{matchName: a.test}]}], egressDeny: [{toCIDR: [9.9.0.0/16]}]", []string{"default/web > 9.9.9.9 TCP/443 [a.test] = denied", "default/web > 9.8.9.9 TCP/443 [a.test] = allowed"}},
	{25, "cnp: egress: [{toFQDNs: [{matchName: a.test}], toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{path: /a}]}}]}]",
		[]string{"default/web > 9.9.9.9 TCP/80 [a.test] = l7", "default/web > 9.9.9.9 TCP/80 [a.test] GET /a = allowed", "default/web > 9.9.9.9 TCP/80 [a.test] GET /b = denied", "default/web > 9.9.9.9 TCP/80 = denied"}},
}

// TestReasons holds that what decides is named, with the place in its file.
func TestReasons(t *testing.T) {
	for _, c := range []struct{ policy, ask, verdict, by, rule, reason string }{
		{"cnp: ingress: [{fromEndpoints: [{matchLabels: {app: api}}], toPorts: [{ports: [{port: '80', protocol: TCP}]}]}]", "default/api > default/web TCP/80", "allowed", "CiliumNetworkPolicy default/p0", "spec.ingress[0].toPorts[0]", "a rule allows it"},
		{"ccnp: ingress: [{fromEntities: [all]}], ingressDeny: [{fromEntities: [world]}]", "9.9.9.9 > default/web TCP/80", "denied", "CiliumClusterwideNetworkPolicy p0", "spec.ingressDeny[0]", "a deny rule"},
		{"np: ingress: [{from: [{podSelector: {}}], ports: [{port: 81}, {port: 80}]}]", "default/api > default/web TCP/80", "allowed", "NetworkPolicy default/p0", "spec.ingress[0].ports[1]", "a rule allows it"},
		{"cnp: ingress: [{}];;np: ingress: []", "default/api > default/web TCP/80", "denied", "CiliumNetworkPolicy default/p0, NetworkPolicy default/p1", "", "default deny"},
		{"cnp: ingress: [{toPorts: [{ports: [{port: '99999'}]}]}]", "default/api > default/web TCP/80", "denied", "CiliumNetworkPolicy default/p0", "spec.ingress[0].toPorts[0].ports[0].port", "refused"},
		{"cnp: egress: [{toEndpoints: [{}], toPorts: [{ports: [{port: '53', protocol: ANY}], rules: {dns: [{matchPattern: '*'}]}}]}]", "default/web > default/api SCTP/53", "denied", "CiliumNetworkPolicy default/p0", "spec.egress[0].toPorts[0]", "DNS rules are enforced on UDP and TCP only"},
		{"cnp: egress: [{toEndpoints: [{}], toPorts: [{ports: [{port: '53', protocol: ANY}], rules: {dns: [{matchName: a.test}, {matchPattern: '*.test'}]}}]}]", "default/web > default/api UDP/53 ? b.test", "allowed", "CiliumNetworkPolicy default/p0", "spec.egress[0].toPorts[0].rules.dns[1]", "a DNS rule allows the question"},
		{"cnp: egress: [{toEndpoints: [{}], toPorts: [{ports: [{port: '53', protocol: ANY}], rules: {dns: [{matchName: a.test}]}}]}]", "default/web > default/api UDP/53 ? B.test.", "denied", "CiliumNetworkPolicy default/p0", "spec.egress[0].toPorts[0]", "no DNS rule of 1 allows b.test"},
		{"cnp: egress: [{toFQDNs: [{matchName: a.test}]}, {toEndpoints: [{}]}]", "default/web > default/api UDP/53", "allowed", "CiliumNetworkPolicy default/p0", "spec.egress[1]", "what the answers say is learned"},
		{"cnp: egress: [{toEndpoints: [{}], toPorts: [{ports: [{port: '443', protocol: TCP}], serverNames: [a.example]}]}]", "default/web > default/api TCP/443", "denied", "CiliumNetworkPolicy default/p0", "spec.egress[0].toPorts[0]", "server name rules are not enforced yet"},
		{"cnp: ingress: [{toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{path: /a}, {path: /b}]}}]}]", "default/api > default/web TCP/80 GET /b", "allowed", "CiliumNetworkPolicy default/p0", "spec.ingress[0].toPorts[0].rules.http[1]", "an HTTP rule allows"},
		{"cnp: endpointSelector: {matchLabels: {app: api}}, ingress: [{}]", "default/api > default/web TCP/80", "allowed", "", "", "not enforced: no policy selects pod default/web for ingress"},
		{"cnp: ingress: [{}]", "192.168.5.1 > default/web TCP/80", "allowed", "", "", "host:"},
		{"cnp: enableDefaultDeny: {ingress: false}, ingress: [{}]", "default/api > default/web TCP/80", "allowed", "", "", "not under default deny"},
	} {
		e := newEngine(t, "n1", world+"---\n"+policyYAML(c.policy))
		v, a := askText(t, e, c.ask)
		s := a.Ingress
		if strings.HasPrefix(c.ask, "default/web") {
			s = a.Egress
		}
		if string(v) != c.verdict || s.Policy != c.by || s.Rule != c.rule || !strings.Contains(s.Reason, c.reason) {
			t.Errorf("%s\n%s: %+v", c.policy, c.ask, *s)
		}
		if (s.Rule != "") != (s.Line > 0) {
			t.Errorf("%s: rule %q is at line %d", c.ask, s.Rule, s.Line)
		}
	}
}

// TestOthers holds that each rule that did not decide says why.
func TestOthers(t *testing.T) {
	e := newEngine(t, "n1", world+"---\n"+policyYAML(`cnp: ingress: [{}, {fromEndpoints: [{matchLabels: {app: none}}]}, {fromEndpoints: [{}], toPorts: [{ports: [{port: '79', endPort: 90, protocol: TCP}, {port: admin, protocol: TCP}]}]},
  {fromEntities: [cluster], toPorts: [{ports: [{port: '443', protocol: TCP}]}]}]`))
	a := e.Explain(Question{From: "default/api", To: "default/web", Port: "443", Others: true})
	want := []string{
		"spec.ingress[0]: allows nothing: it names no peer that exists, or no port",
		"spec.ingress[1]: pod default/api is not among its peers: endpoints app=none in namespace default",
		"spec.ingress[2].toPorts[0]: TCP port 443 is not among its ports: TCP 79-90, TCP 9000, the port named admin",
	}
	var got []string
	for _, o := range a.Ingress.Others {
		got = append(got, o.Rule+": "+o.Reason)
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got %s\nwant %s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
