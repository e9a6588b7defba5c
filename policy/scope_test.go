package policy

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy/dnsrules"
)

// scopes are policies about one name: of two namespaces and of none, and a DNS
// rule of the namespace default.
const scopes = `cnp: egress: [{toFQDNs: [{matchName: a.test}, {matchPattern: '*.test'}], toPorts: [{ports: [{port: '443', protocol: TCP}]}]}];;` +
	`ccnp: egress: [{toFQDNs: [{matchName: a.test}], toPorts: [{ports: [{port: '80', protocol: TCP}]}]}]`

const ownServer = `cnp: egress: [{toCIDR: [1.2.3.0/24], toPorts: [{ports: [{port: '5300', protocol: UDP}], rules: {dns: [{matchPattern: '*'}]}}]}]`

// TestScopes: what servers teach that only policies of a namespace name counts
// for toFQDNs of that namespace's policies, and for no other.
func TestScopes(t *testing.T) {
	shop := strings.ReplaceAll(strings.ReplaceAll(policyYAML("cnp: endpointSelector: {}, egress: [{toFQDNs: [{matchName: a.test}]}]"), "namespace: default", "namespace: shop"), "name: p0", "name: s")
	e, tb := applied(t, Options{NodeName: "n1"}, world, policyYAML(scopes), shop)
	everybody := []string{"[a.test]", "[*.test]", "[*.test a.test]"}
	check := func(what string, want ...string) {
		t.Helper()
		slices.Sort(want)
		if got := tb.nameSets(); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	check("nobody teaches", everybody...)

	own := objects(t, strings.ReplaceAll(policyYAML(ownServer), "name: p0", "name: own"))
	step(t, e, tb, own...)
	check("a namespace's server", append([]string{"[default/a.test]", "[default/*.test]", "[default/*.test default/a.test]"}, everybody...)...)
	for _, c := range []struct{ set, want string }{
		{"[a.test]", "allow allow none"},
		{"[*.test]", "none allow none"},
		{"[default/a.test]", "none allow none"},
		{"[default/*.test]", "none allow none"},
	} {
		for id, set := range tb.names {
			if labels := e.IdentityLabels(id); "["+strings.TrimPrefix(strings.Join(labels, " "), "fqdn:")+"]" == c.set {
				ids := []identity.ID{id}
				got := strings.Join([]string{tb.entryText(ids, protoTCP, 80), tb.entryText(ids, protoTCP, 443), tb.entryText(ids, protoTCP, 81)}, " ")
				if got != c.want {
					t.Errorf("%v: %s, want %s", set, got, c.want)
				}
			}
		}
	}

	// Combinations that are asked for keep their namespaces, and others' count for
	// nothing.
	name := dnsrules.NewSelector("a.test", "")
	step(t, e, tb, Change{Object{Kind: KindNameSet, Name: "x"}, &NameSet{Selectors: []dnsrules.Selector{name.In("shop"), name.In("default"), name}}})
	check("asked for", append([]string{"[default/a.test]", "[default/*.test]", "[default/*.test default/a.test]", "[a.test default/a.test]"}, everybody...)...)

	for _, c := range []struct {
		to, in string
		port   string
		want   Verdict
	}{
		{"a.test", "", "80", Allowed}, {"a.test", "", "443", Allowed}, {"b.test", "", "443", Allowed},
		{"a.test", "default", "80", Denied}, {"a.test", "default", "443", Allowed}, {"b.test", "default", "443", Allowed},
		{"a.test", "shop", "443", Denied}, {"a.test", "shop", "80", Denied}, {"a.test", "nowhere", "443", Denied},
	} {
		a := e.Explain(Question{From: "default/web", To: "9.9.9.9", Port: c.port, Names: []string{c.to}, NamesIn: c.in})
		if a.Verdict != c.want {
			t.Errorf("%s in %q, port %s: %+v, want %s", c.to, c.in, c.port, a, c.want)
		}
	}
	if a := e.Explain(Question{From: "default/web", To: "9.9.9.9", NamesIn: "default"}); a.Verdict != Failed {
		t.Errorf("no names in a namespace: %+v", a)
	}

	step(t, e, tb, Change{Object: own[0].Object})
	check("nobody teaches any more", everybody...)
}

// TestTeachesFor: a rule set teaches everybody if some clusterwide policy names
// the server.
func TestTeachesFor(t *testing.T) {
	for policies, want := range map[string]string{
		ownServer:                          "DNS * teaches default",
		"c" + ownServer:                    "DNS * teaches all",
		ownServer + ";;c" + ownServer:      "DNS * teaches all",
		"c" + ownServer + ";;" + ownServer: "DNS * teaches all",
		ownServer + ";;ccnp: egress: [{toPorts: [{ports: [{port: '5300', protocol: UDP}], rules: {dns: [{matchName: x.test}]}}]}]": "DNS x.test * teaches default",
	} {
		_, tb := applied(t, Options{NodeName: "n1"}, world, policyYAML(policies))
		if got := tb.entryText([]identity.ID{tb.who(netip.MustParseAddr("1.2.3.77")).Identity}, protoUDP, 5300); got != want {
			t.Errorf("%s: %s, want %s", policies, got, want)
		}
	}
}
