package policy

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weirnet/weir/identity"
)

// TestIPBlocks: an ipBlock of a NetworkPolicy selects whoever has the address.
func TestIPBlocks(t *testing.T) {
	for _, c := range []struct {
		policy string
		asks   []string
	}{
		// The three that Kubernetes' own tests have.
		{"np: policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.1.0.12/32}}]}]", []string{
			"default/web > shop/api TCP/8081 = allowed", "default/web > 10.1.0.12 TCP/80 = allowed", "default/web > default/api TCP/80 = denied",
			"default/web > 10.1.0.13 TCP/80 = denied"}},
		{"np: policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.1.0.0/24, except: [10.1.0.12/32]}}]}]", []string{
			"default/web > shop/api TCP/8081 = denied", "default/web > 10.1.0.13 TCP/80 = allowed", "default/web > 10.1.1.13 TCP/80 = denied"}},
		{"np: policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.1.0.0/24, except: [10.1.0.12/32]}}]}, {to: [{ipBlock: {cidr: 10.1.0.12/32}}], ports: [{port: 8081}]}]", []string{
			"default/web > shop/api TCP/8081 = allowed", "default/web > shop/api TCP/80 = denied", "default/web > 10.1.0.13 TCP/80 = allowed"}},
		// By the address of the flow, of pods that have several.
		{"np: policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 'fd00::12/128'}}]}]", []string{
			"default/web > default/api TCP/80 = denied", "default/web > fd00::12 TCP/80 = allowed", "default/web > 10.0.0.12 TCP/80 = denied",
			"default/web > default/api ICMPv6/128 = allowed", "default/web > default/api ICMP/8 = denied"}},
		{"np: ingress: [{from: [{ipBlock: {cidr: 10.0.0.12/32}}]}]", []string{
			"default/api > default/web TCP/80 = allowed", "10.0.0.12 > default/web TCP/80 = allowed", "fd00::12 > default/web TCP/80 = denied",
			"shop/api > default/web TCP/80 = denied", "node:n1 > default/web TCP/80 = allowed", "node:n2 > default/web TCP/80 = denied"}},
		// Of other nodes, and what is on their network.
		{"np: ingress: [{from: [{ipBlock: {cidr: 192.168.5.0/30}}]}]", []string{
			"node:n2 > default/web TCP/80 = allowed", "shop/agent > default/web TCP/80 = allowed", "192.168.5.2 > default/web TCP/80 = allowed",
			"192.168.5.3 > default/web TCP/80 = allowed", "192.168.5.4 > default/web TCP/80 = denied", "default/api > default/web TCP/80 = denied"}},
		// Of the pod's own node, which is the host all the same.
		{"np: policyTypes: [Ingress, Egress], egress: [{to: [{ipBlock: {cidr: 192.168.5.1/32}}], ports: [{port: 80}]}]", []string{
			"default/web > node:n1 TCP/80 = allowed", "default/web > 192.168.5.1 TCP/80 = allowed", "default/web > 192.168.5.1 TCP/81 = denied",
			"default/web > node:n2 TCP/80 = denied", "default/web > entity:host TCP/80 = denied", "node:n1 > default/web TCP/22 = allowed"}},
		{"np: policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0, except: [192.168.5.1/32]}}]}];;cnp: egress: [{toEntities: [host], toPorts: [{ports: [{port: '81'}]}]}]", []string{
			"default/web > node:n1 TCP/80 = denied", "default/web > node:n1 TCP/81 = allowed", "default/web > node:n2 TCP/80 = allowed"}},
		{"np: policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 192.168.0.0/16}}]}];;cnp: egressDeny: [{toEntities: [host], toPorts: [{ports: [{port: '81'}]}]}]", []string{
			"default/web > node:n1 TCP/80 = allowed", "default/web > node:n1 TCP/81 = denied", "default/web > node:n2 TCP/81 = allowed"}},
		// Services by their backends, and neighbors on the link not at all.
		{"np: policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.1.0.0/16}}, {ipBlock: {cidr: '::/0'}}], ports: [{port: 8081}]}]", []string{
			"default/web > service:shop/api TCP/80 = allowed", "default/web > 10.96.0.7 TCP/80 = allowed", "default/web > fe80::1 TCP/8081 = denied",
			"default/web > 2001:db8::1 TCP/8081 = allowed"}},
		{"np: policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.96.0.7/32}}]}]", []string{"default/web > service:shop/api TCP/80 = denied"}},
		{"np: policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 1.2.3.0/24}}]}]", []string{"default/web > service:shop/ext TCP/443 = denied"}},
		{"np: policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.1.0.0/16]}}]}]", []string{
			"default/web > service:shop/ext TCP/443 = allowed", "default/web > service:shop/api TCP/80 = denied", "default/web > 9.9.9.9 TCP/80 = allowed",
			"default/web > 10.1.9.9 TCP/80 = denied", "default/web > 10.0.9.9 TCP/80 = allowed"}},
		// Cilium's rules stay about the outside, whatever blocks there are.
		{"cnp: egress: [{toCIDR: [10.0.0.0/8]}];;np: policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.1.0.12/32}}], ports: [{port: 1}]}]", []string{
			"default/web > shop/api TCP/80 = denied", "default/web > 10.1.0.13 TCP/80 = denied", "default/web > shop/api TCP/1 = allowed",
			"default/web > 10.9.0.1 TCP/80 = allowed"}},
		{"cnp: egressDeny: [{toCIDR: [10.0.0.0/8]}];;np: policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8}}]}]", []string{
			"default/web > shop/api TCP/80 = allowed", "default/web > 10.9.0.1 TCP/80 = denied"}},
	} {
		e := newEngine(t, "n1", world+"---\n"+policyYAML(c.policy))
		for _, ask := range c.asks {
			text, want, _ := strings.Cut(ask, " = ")
			if got, a := askText(t, e, text); string(got) != want {
				t.Errorf("%s: %s: %s, want %s (egress %+v, ingress %+v)", c.policy, text, got, want, a.Egress, a.Ingress)
			}
		}
	}
}

// TestIPBlocksComeAndGo: only addresses inside a block that came or went become
// others, and they become what they were.
func TestIPBlocksComeAndGo(t *testing.T) {
	e, tb := applied(t, Options{NodeName: "n1"}, world)
	before := tb.text(e)
	np := func(name, block string) []Change {
		return objects(t, strings.ReplaceAll(policyYAML("np: ingress: [{from: [{ipBlock: "+block+"}]}]"), "p0", name))
	}
	changed := func(what string, d Delta, want ...string) {
		t.Helper()
		var got []string
		for p := range d.Prefixes {
			got = append(got, p.String())
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v became others, want %v", what, got, want)
		}
	}
	web, api := netip.MustParseAddr("10.0.0.11"), netip.MustParseAddr("10.0.0.12")
	plain := tb.who(api).Identity
	changed("a pod's address", step(t, e, tb, np("a", "{cidr: 10.0.0.12/32}")...), "10.0.0.12/32")
	if ep := tb.endpoints[api]; ep.Labels != plain || ep.Identity == plain || ep.Identity != tb.who(api).Identity {
		t.Errorf("the endpoint is %+v, others know it as %v", ep, tb.who(api))
	}
	if got := e.IdentityLabels(tb.who(api).Identity); !slices.Contains(got, "block:10.0.0.12/32") {
		t.Errorf("its identity is %q", got)
	}
	if who := tb.who(web).Identity; who != tb.endpoints[web].Labels || who != tb.who(netip.MustParseAddr("fd00::11")).Identity {
		t.Errorf("the other pod became another")
	}
	changed("the same block again", step(t, e, tb, np("b", "{cidr: 10.0.0.12/32}")...))
	changed("one that has a user still", step(t, e, tb, Change{Object: np("a", "{}")[0].Object}))
	changed("a part of a range", step(t, e, tb, np("c", "{cidr: 10.0.0.8/29, except: [10.0.0.8/30]}")...), "10.0.0.12/32", "10.0.0.8/29", "10.0.0.8/30")
	if inside, out := tb.who(netip.MustParseAddr("10.0.0.13")).Identity, tb.who(web).Identity; inside == identity.UnknownPod || out != tb.endpoints[web].Labels {
		t.Errorf("the block: %v inside, %v in its exception", inside, out)
	}
	changed("around pods", step(t, e, tb, np("d", "{cidr: 10.0.0.0/15, except: [10.0.0.0/29, 10.1.0.0/24]}")...),
		"10.0.0.0/15", "10.0.0.0/16", "10.0.0.0/29", "10.0.0.11/32", "10.0.0.12/32", "10.0.0.8/29", "10.0.0.8/30", "10.1.0.0/16", "10.1.0.0/24")
	changed("and no more", step(t, e, tb, Change{Object: np("d", "{}")[0].Object}),
		"10.0.0.0/15", "10.0.0.0/16", "10.0.0.0/29", "10.0.0.11/32", "10.0.0.12/32", "10.0.0.8/29", "10.0.0.8/30", "10.1.0.0/16", "10.1.0.0/24")
	changed("gone", step(t, e, tb, Change{Object: np("c", "{}")[0].Object}, Change{Object: np("b", "{}")[0].Object}), "10.0.0.12/32", "10.0.0.8/29", "10.0.0.8/30")
	same(t, "as before", tb.text(e), before)
}

// TestStrangersInBlocks: a pod whose object does not tell its address yet is known
// by what its address is, whoever it is.
func TestStrangersInBlocks(t *testing.T) {
	e, tb := applied(t, Options{NodeName: "n1"}, world, policyYAML("np: ingress: [{from: [{ipBlock: {cidr: 10.0.0.64/26}}]}]"))
	at := netip.MustParseAddr("10.0.0.77")
	pod := &Pod{Namespace: "default", Name: "new", Node: "n1", Labels: map[string]string{"app": "new"}}
	for _, n := range []string{"new", "other"} {
		p := *pod
		p.Name, p.Labels = n, map[string]string{"app": n}
		step(t, e, tb, Change{Object{KindPod, "default", n}, &p})
		// Of one that waits it is that; of two it is an unknown pod.
		step(t, e, tb, Change{Object{Kind: KindStranger, Name: n}, &Stranger{Addresses: []netip.Addr{at}, New: true}})
		g := tb.strangers[n]
		if g == nil || g.At[at] == 0 || g.At[at] != tb.who(at).Identity || g.At[at] == g.Identity || (n == "new") != (g.Identity >= identity.FirstLocal) {
			t.Errorf("%s: %+v, others know it as %v", n, g, e.IdentityLabels(tb.who(at).Identity))
		}
		compareIdentities(t, e, tb)
		step(t, e, tb, Change{Object{Kind: KindStranger, Name: n}, nil})
	}
}

// compareIdentities: what is told of the addresses of endpoints and strangers is
// what others know them as.
func compareIdentities(t *testing.T, e *Engine, tb *tables) {
	for a, ep := range tb.endpoints {
		if who := tb.who(a); who.Identity != ep.Identity {
			t.Errorf("endpoint %s is %v, others know it as %v", a, e.IdentityLabels(ep.Identity), e.IdentityLabels(who.Identity))
		}
		if labels := e.peers.byID[ep.Labels]; labels == nil || labels.blocks != nil {
			t.Errorf("endpoint %s is %v by its labels", a, e.IdentityLabels(ep.Labels))
		}
	}
	for name, g := range tb.strangers {
		s := e.strangers.byName[name]
		for _, a := range s.src.Addresses {
			who, _ := e.prefixes.lookup(a)
			if e.strangers.at[a] != s || who.plain().digest != s.claim.digest {
				continue // another's
			}
			id, other := g.At[a]
			if !other {
				id = g.Identity
			}
			if id != who.id {
				t.Errorf("stranger %s is %v at %s, others know it as %v", name, e.IdentityLabels(id), a, e.IdentityLabels(who.id))
			}
		}
	}
}

// TestIPBlocksOfThisNode: an address of the node that lies in a block has an
// identity of its own, and stays an address of the node.
func TestIPBlocksOfThisNode(t *testing.T) {
	e, tb := applied(t, Options{NodeName: "n1", Failsafe: DefaultFailsafe()}, world,
		policyYAML("ccnp: nodeSelector: {}, ingress: [{fromEndpoints: [{}]}];;cnp: egress: [{toEntities: [host]}]"))
	step(t, e, tb, hostAddresses("172.17.0.1"))
	before := tb.text(e)
	block := objects(t, strings.ReplaceAll(policyYAML("np: ingress: [{from: [{ipBlock: {cidr: 192.168.5.1/32}}]}]"), "p0", "block"))
	d := step(t, e, tb, block...)
	if d.Host != nil {
		t.Errorf("what is enforced on the node changed: %+v", d.Host)
	}
	object, found := netip.MustParseAddr("192.168.5.1"), netip.MustParseAddr("172.17.0.1")
	in, out := tb.who(object), tb.who(found)
	if in.Identity < identity.FirstLocal || !in.Host || in.World || out != (Peer{Identity: identity.Host, Host: true, Node: true}) {
		t.Errorf("inside %+v, outside %+v", in, out)
	}
	if got := e.IdentityLabels(in.Identity); !slices.Equal(got, []string{"reserved:host", "block:192.168.5.1/32"}) {
		t.Errorf("it is %q", got)
	}
	if who := tb.who(netip.MustParseAddr("192.168.5.2")); who.Host {
		t.Errorf("another node is this one: %+v", who)
	}
	egress := tb.policies[tb.endpoints[netip.MustParseAddr("10.0.0.11")].Policy]
	for _, id := range []identity.ID{in.Identity, out.Identity} {
		if en, ok := Lookup(egress.Entries, Egress, []identity.ID{id}, protoTCP, 80); !ok || en.Action != Allow {
			t.Errorf("identity %d: %+v %v, though the host is allowed", id, en, ok)
		}
	}
	// All of its addresses: there is still something to call it.
	step(t, e, tb, objects(t, strings.ReplaceAll(policyYAML("np: ingress: [{from: [{ipBlock: {cidr: 172.17.0.0/16}}]}]"), "p0", "rest"))...)
	if got := e.IdentityLabels(identity.Host); !slices.Equal(got, []string{"reserved:host"}) {
		t.Errorf("the host is %q", got)
	}
	for _, name := range []string{"block", "rest"} {
		block[0].Object.Name = name
		step(t, e, tb, Change{Object: block[0].Object})
	}
	same(t, "as before", tb.text(e), before)
}
