package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weirnet/weir/identity"
)

const waitingNode = `
apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {podCIDRs: [10.0.0.0/24]}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: closed, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: closed}}
  egress: [{}]
  ingress: [{}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: http, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: http}}
  egress: [{toCIDR: [1.2.3.0/24], toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{path: /a}]}}]}]
`

func shopPod(name, app, uid string, addrs ...string) Change {
	p := &Pod{Namespace: "shop", Name: name, UID: uid, Node: "n1", Labels: map[string]string{"app": app}}
	for _, a := range addrs {
		p.Addresses = append(p.Addresses, netip.MustParseAddr(a))
	}
	return Change{Object{KindPod, "shop", name}, p}
}

func strangerAt(name string, s Stranger, addrs ...string) Change {
	for _, a := range addrs {
		s.Addresses = append(s.Addresses, netip.MustParseAddr(a))
	}
	return Change{Object{Kind: KindStranger, Name: name}, &s}
}

// guess spells what became of a stranger: whose it may be, under which labels it
// is known, and whether its policy lets 1.2.3.4:80 pass.
func (tb *tables) guess(e *Engine, name string) string {
	g := tb.strangers[name]
	if g == nil {
		return "left alone"
	}
	var pods []string
	for _, p := range g.Pods {
		pods = append(pods, p.Name)
	}
	who := "unknown"
	if g.Identity != identity.UnknownPod {
		labels := e.IdentityLabels(g.Identity)
		i := slices.IndexFunc(labels, func(l string) bool { return strings.Contains(l, "app=") })
		who = labels[i][strings.Index(labels[i], "app=")+4:]
	}
	r := tb.policies[g.Policy]
	v := verdictOf(r, Egress, []identity.ID{tb.who(netip.MustParseAddr("1.2.3.4")).Identity}, protoTCP, 80)
	return fmt.Sprintf("%s as %s: %s, exact %v", strings.Join(pods, "|"), who, map[Action]string{Allow: "allow", Deny: "deny", Redirect: "proxy"}[v.Action], g.Exact)
}

func TestStrangers(t *testing.T) {
	live := Stranger{New: true, Fresh: true}
	cases := []struct {
		name  string
		steps []Change
		want  string
	}{
		{"nobody waits, elsewhere", []Change{strangerAt("v", live, "172.17.0.2")}, "left alone"},
		{"nobody waits, no address", []Change{strangerAt("v", live)}, "left alone"},
		{"nobody waits, in the pods' range", []Change{strangerAt("v", live, "10.0.0.9")}, " as unknown: deny, exact false"},
		{"one waits", []Change{shopPod("a", "http", ""), strangerAt("v", live, "10.0.0.9")}, "a as http: proxy, exact true"},
		{"one waits, IPv4 in IPv6 form", []Change{shopPod("a", "http", ""), strangerAt("v", live, "::ffff:10.0.0.9")}, "a as http: proxy, exact true"},
		{"one waits, no address yet", []Change{shopPod("a", "http", ""), strangerAt("v", live)}, "a as unknown: proxy, exact true"},
		{"one waits that no policy selects", []Change{shopPod("a", "free", ""), strangerAt("v", live, "10.0.0.9")}, "a as free: allow, exact true"},
		{"one waits, an address outside the range", []Change{shopPod("a", "http", ""), strangerAt("v", live, "10.9.0.9")}, "a as unknown: proxy, exact true"},
		{"one waits, and pods' addresses are those of the range", []Change{
			shopPod("b", "free", "", "10.0.0.8"), shopPod("a", "http", ""), strangerAt("v", live, "172.17.0.2")}, "left alone"},
		{"one waits, and pods' addresses are not those of the range", []Change{
			shopPod("b", "free", "", "10.9.0.8"), shopPod("a", "http", ""), strangerAt("v", live, "10.9.0.9")}, "a as unknown: proxy, exact true"},
		{"one waits, but it may be older", []Change{shopPod("a", "http", ""), strangerAt("v", Stranger{}, "10.0.0.9")}, "a as unknown: proxy, exact true"},
		{"equal ones wait", []Change{shopPod("a", "http", ""), shopPod("b", "http", ""), strangerAt("v", live, "10.0.0.9")}, "a|b as http: proxy, exact true"},
		{"two wait, one closed", []Change{shopPod("a", "http", ""), shopPod("b", "closed", ""), strangerAt("v", live, "10.0.0.9")}, "a|b as unknown: deny, exact false"},
		{"two wait, one free", []Change{shopPod("a", "http", ""), shopPod("b", "free", ""), strangerAt("v", live, "10.0.0.9")}, "a|b as unknown: proxy, exact false"},
		{"no policy selects any", []Change{shopPod("a", "free", ""), shopPod("b", "other", ""), strangerAt("v", live, "10.0.0.9")}, "a|b as unknown: allow, exact false"},
		{"the other is known then", []Change{shopPod("a", "http", ""), shopPod("b", "closed", ""), strangerAt("v", live, "10.0.0.9"),
			shopPod("b", "closed", "", "10.0.0.7")}, "a as http: proxy, exact true"},
		{"the other is gone then", []Change{shopPod("a", "http", ""), shopPod("b", "closed", ""), strangerAt("v", live, "10.0.0.9"),
			{Object{KindPod, "shop", "b"}, nil}}, "a as http: proxy, exact true"},
		{"the other is surely another's", []Change{shopPod("a", "http", ""), strangerAt("v", live, "10.0.0.9"),
			shopPod("b", "closed", ""), strangerAt("w", live, "10.0.0.8")}, "a as http: proxy, exact true"},
		{"who came later has another", []Change{shopPod("a", "http", ""), strangerAt("w", live, "10.0.0.9"),
			shopPod("b", "closed", ""), strangerAt("v", live, "10.0.0.8")}, "b as closed: deny, exact true"},
		{"the only one has another", []Change{shopPod("a", "free", ""), strangerAt("u", live, "10.0.0.9"), strangerAt("v", live, "10.0.0.8")},
			" as unknown: deny, exact false"},
		{"the only one has another, and a pod comes then", []Change{shopPod("a", "free", ""), strangerAt("u", live, "10.0.0.9"),
			strangerAt("v", live, "10.0.0.8"), shopPod("b", "http", "")}, "b as unknown: proxy, exact true"},
		{"another interface of the only one", []Change{shopPod("a", "http", ""), strangerAt("u", live, "10.0.0.9"), strangerAt("v", live, "192.168.7.1")},
			"a as unknown: proxy, exact true"},
		{"what is no pod's for sure takes nobody's place", []Change{shopPod("a", "http", ""), strangerAt("w", live, "10.9.0.9"),
			shopPod("b", "closed", ""), strangerAt("v", live, "10.0.0.8")}, "a|b as unknown: deny, exact false"},
		{"the pod comes after its interface", []Change{strangerAt("v", live, "10.0.0.9"), shopPod("a", "http", "")}, "a as unknown: proxy, exact true"},
		{"a pod comes long after", []Change{strangerAt("v", Stranger{New: true}, "10.0.0.9"), shopPod("a", "http", "")}, " as unknown: deny, exact false"},
		{"a pod comes after something elsewhere", []Change{strangerAt("v", live, "172.17.0.2"), shopPod("a", "http", "")}, "left alone"},
		{"what a pod left is nobody's who waits", []Change{shopPod("a", "free", ""), strangerAt("v", Stranger{Left: true, Fresh: true}, "10.0.0.9")},
			" as unknown: deny, exact false"},
		{"not all could be read", []Change{strangerAt("v", Stranger{Unread: true, Fresh: true}, "10.0.0.9")}, "left alone"},
		{"not all could be read, and one waits", []Change{shopPod("a", "http", ""), strangerAt("v", Stranger{Unread: true}, "10.0.0.9")}, "a as unknown: proxy, exact true"},
		{"its pod has another address", []Change{shopPod("a", "http", ""), strangerAt("v", live, "10.0.0.9"), shopPod("a", "http", "", "10.0.0.7")},
			" as unknown: deny, exact false"},
		{"pods of other nodes and the host's network don't count", []Change{
			{Object{KindPod, "shop", "far"}, &Pod{Namespace: "shop", Name: "far", Node: "n2"}},
			{Object{KindPod, "shop", "host"}, &Pod{Namespace: "shop", Name: "host", Node: "n1", HostNetwork: true}},
			strangerAt("v", live)}, "left alone"},
		{"told", []Change{shopPod("a", "http", "1"), shopPod("b", "closed", "2"),
			strangerAt("v", Stranger{Pod: &PodName{"shop", "a", "1"}}, "10.9.0.9")}, "a as http: proxy, exact true"},
		{"told, not known", []Change{shopPod("a", "http", "1"), strangerAt("v", Stranger{New: true, Fresh: true, Pod: &PodName{"shop", "a", "2"}}, "10.0.0.9")},
			" as unknown: deny, exact false"},
		{"of a pod that is not known", []Change{shopPod("a", "free", ""), strangerAt("v", Stranger{New: true, Unheard: true})}, " as unknown: deny, exact false"},
		{"of a pod that is not known, and nobody waits", []Change{strangerAt("v", Stranger{New: true, Fresh: true, Unheard: true})}, " as unknown: deny, exact false"},
		{"of a pod that is not known, and who waited is known then", []Change{shopPod("a", "free", ""),
			strangerAt("v", Stranger{New: true, Unheard: true}), shopPod("a", "free", "", "10.0.0.7")}, " as unknown: deny, exact false"},
		{"of a pod that is not known, elsewhere", []Change{shopPod("b", "free", "", "10.0.0.8"), strangerAt("v", Stranger{Unheard: true}, "172.17.0.2")}, "left alone"},
		{"of a pod that is not known, and not all could be read", []Change{shopPod("a", "http", ""), strangerAt("v", Stranger{Unheard: true, Unread: true})},
			"a as unknown: proxy, exact true"},
		{"of a pod that is known then", []Change{shopPod("b", "closed", ""), strangerAt("v", Stranger{New: true, Fresh: true, Unheard: true}), shopPod("a", "http", "1"),
			strangerAt("v", Stranger{New: true, Fresh: true, Pod: &PodName{"shop", "a", "1"}})}, "a as http: proxy, exact true"},
		{"gone", []Change{shopPod("a", "http", ""), strangerAt("v", live, "10.0.0.9"), {Object{Kind: KindStranger, Name: "v"}, nil}}, "left alone"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			e, tb := applied(t, Options{NodeName: "n1"}, waitingNode)
			empty := len(tb.policies)
			for _, change := range c.steps {
				step(t, e, tb, change)
			}
			if got := tb.guess(e, "v"); got != c.want {
				t.Errorf("%s\nwant %s", got, c.want)
			}
			for o := range e.pods {
				step(t, e, tb, Change{o, nil})
			}
			step(t, e, tb, Change{Object{Kind: KindStranger, Name: "v"}, nil}, Change{Object{Kind: KindStranger, Name: "w"}, nil},
				Change{Object{Kind: KindStranger, Name: "u"}, nil})
			if len(tb.policies) != empty || len(e.strangers.unions) != 0 || len(e.strangers.at) != 0 {
				t.Errorf("left behind: %d policies, %d unions, %d addresses", len(tb.policies), len(e.strangers.unions), len(e.strangers.at))
			}
		})
	}
}

// TestStrangerAddresses: who the address of a pod is to others before its object
// tells, and that a stranger takes nobody's.
func TestStrangerAddresses(t *testing.T) {
	live := Stranger{New: true, Fresh: true}
	e, tb := applied(t, Options{NodeName: "n1"}, waitingNode)
	who := func(a string) string {
		return strings.Join(e.IdentityLabels(tb.who(netip.MustParseAddr(a)).Identity), " ")
	}
	step(t, e, tb, shopPod("b", "closed", "", "10.0.0.8"), shopPod("a", "http", ""))
	known, b := who("10.0.0.9"), who("10.0.0.8")
	step(t, e, tb, strangerAt("v", live, "10.0.0.9", "10.0.0.8", "fe80::1"))
	a := who("10.0.0.9")
	if known != "reserved:unknown-pod" || !strings.Contains(a, "app=http") || who("10.0.0.8") != b || who("fe80::1") != known {
		t.Errorf("before %q, then %q; the other pod's %q, fe80::1 %q", known, a, who("10.0.0.8"), who("fe80::1"))
	}
	step(t, e, tb, shopPod("c", "free", ""))
	step(t, e, tb, strangerAt("w", live, "10.0.0.9", "10.0.0.10"))
	if who("10.0.0.9") != a || !strings.Contains(who("10.0.0.10"), "app=free") {
		t.Errorf("a second one with the address: %q, its own %q", who("10.0.0.9"), who("10.0.0.10"))
	}
	d := step(t, e, tb, shopPod("a", "http", "", "10.0.0.9"))
	if len(d.Prefixes) != 0 || who("10.0.0.9") != a {
		t.Errorf("the object has it now: %q, prefixes %v", who("10.0.0.9"), d.Prefixes)
	}
}

// TestUnionFollows: the policy of a stranger follows those of the pods that it
// may be.
func TestUnionFollows(t *testing.T) {
	e, tb := applied(t, Options{NodeName: "n1"}, waitingNode)
	step(t, e, tb, shopPod("a", "http", ""), shopPod("b", "free", ""))
	step(t, e, tb, strangerAt("v", Stranger{New: true, Fresh: true}, "10.0.0.9"))
	if got := tb.guess(e, "v"); got != "a|b as unknown: proxy, exact false" {
		t.Fatal(got)
	}
	id := tb.strangers["v"].Policy
	step(t, e, tb, objects(t, policyYAML("ccnp: endpointSelector: {matchLabels: {app: free}}, egressDeny: [{toCIDR: [1.2.3.4/32]}]"))...)
	if got := tb.guess(e, "v"); got != "a|b as unknown: deny, exact false" || tb.strangers["v"].Policy != id {
		t.Error(got)
	}
	step(t, e, tb, Change{Object{"CiliumClusterwideNetworkPolicy", "", "p0"}, nil})
	if got := tb.guess(e, "v"); got != "a|b as unknown: proxy, exact false" {
		t.Error(got)
	}
}

// TestDeletingPods: an address is its new pod's though the old one's object still
// has it, in whatever order they come and however young the old one is.
func TestDeletingPods(t *testing.T) {
	old, young := shopPod("a", "http", "1", "10.0.0.9"), shopPod("z", "closed", "2", "10.0.0.9")
	old.Value.(*Pod).Deleting, old.Value.(*Pod).Created = true, 7
	young.Value.(*Pod).Created = 7
	for _, list := range [][]Change{{old, young}, {young, old}} {
		e, tb := applied(t, Options{NodeName: "n1"}, waitingNode)
		step(t, e, tb, list[0])
		step(t, e, tb, list[1])
		if ep := tb.endpoints[netip.MustParseAddr("10.0.0.9")]; ep == nil || ep.Name != "z" {
			t.Errorf("%s last: %+v owns it", list[1].Object.Name, ep)
		}
		step(t, e, tb, Change{young.Object, nil})
		if ep := tb.endpoints[netip.MustParseAddr("10.0.0.9")]; ep == nil || ep.Name != "a" {
			t.Errorf("the other is gone: %+v owns it", ep)
		}
	}
}

// TestLinkLocal: neighbours on a pod's own link are not outside, whatever a policy
// says of the world and of all addresses.
func TestLinkLocal(t *testing.T) {
	for peer, want := range map[string]Action{
		"toCIDR: ['::/0']": Deny, "toCIDR: ['fe80::/10']": Deny, "toCIDR: ['fe80::5/128']": Deny,
		"toEntities: [world]": Deny, "toEntities: [cluster]": Allow, "toEntities: [all]": Allow,
	} {
		e, tb := applied(t, Options{NodeName: "n1"}, waitingNode, policyYAML("ccnp: endpointSelector: {matchLabels: {app: local}}, egress: [{"+peer+"}]"))
		step(t, e, tb, shopPod("a", "local", "", "10.0.0.9"))
		r := tb.policies[tb.endpoints[netip.MustParseAddr("10.0.0.9")].Policy]
		at := tb.who(netip.MustParseAddr("fe80::5"))
		if v := verdictOf(r, Egress, []identity.ID{at.Identity}, protoTCP, 80); v.Action != want || at.World {
			t.Errorf("%s: %+v, want %v; it is %+v", peer, v, want, at)
		}
	}
}
