package policy

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weirnet/weir/identity"
)

func hostAddresses(addrs ...string) Change {
	h := &HostAddresses{}
	for _, a := range addrs {
		h.Addresses = append(h.Addresses, netip.MustParseAddr(a))
	}
	return Change{Object{Kind: KindHostAddresses}, h}
}

// TestHostAddresses: who has an address that an interface of this node has, and
// objects say something else of.
func TestHostAddresses(t *testing.T) {
	e, tb := applied(t, Options{NodeName: "n1"}, world, policyYAML("cnp: egress: [{toCIDR: [172.17.0.0/16, 10.1.0.0/16, 0.0.0.0/0]}]"))
	who := func(a string) string {
		p := tb.who(netip.MustParseAddr(a))
		if p.World {
			return "world"
		}
		return strings.Join(e.IdentityLabels(p.Identity), " ")
	}
	cases := []struct {
		what, addr    string
		before, after string
	}{
		{"that no object has", "172.17.0.1", "world", "reserved:host"},
		{"IPv6", "2001:db8::7", "world", "reserved:host"},
		{"the node's, as its object says", "192.168.5.1", "reserved:host", "reserved:host"},
		{"another node's: it moved here", "192.168.5.2", "reserved:remote-node", "reserved:host"},
		{"in a range of pods: a gateway", "10.0.0.1", "reserved:unknown-pod", "reserved:host"},
		{"a pod's of this node", "10.0.0.11", who("10.0.0.11"), who("10.0.0.11")},
		{"a pod's of another node", "10.1.0.12", who("10.1.0.12"), "reserved:host"},
		{"a cluster IP", "10.96.0.7", "service:shop/api", "service:shop/api"},
		{"link-local", "fe80::1", "reserved:unknown-pod", "reserved:host"},
	}
	var all []string
	for _, c := range cases {
		all = append(all, c.addr)
		if got := who(c.addr); got != c.before {
			t.Errorf("%s (%s): %s, want %s", c.what, c.addr, got, c.before)
		}
	}
	all = append(all, "::ffff:172.17.0.1", "172.17.0.1") // one, however often and however it is written
	d := step(t, e, tb, hostAddresses(all...))
	if len(d.Prefixes) != 6 {
		t.Errorf("changed: %v", d.Prefixes)
	}
	for _, c := range cases {
		if got := who(c.addr); got != c.after {
			t.Errorf("%s (%s), on an interface: %s, want %s", c.what, c.addr, got, c.after)
		}
	}
	if d := step(t, e, tb, hostAddresses(all...)); len(d.Prefixes)+len(d.Policies) > 0 {
		t.Errorf("the same again changes %+v", d)
	}
	// Some go.
	d = step(t, e, tb, hostAddresses(all[1:]...))
	if len(d.Prefixes) > 0 {
		t.Errorf("172.17.0.1 is there in another form, and changes %v", d.Prefixes)
	}
	step(t, e, tb, hostAddresses("192.168.5.2"))
	for _, c := range cases {
		want := c.before
		if c.addr == "192.168.5.2" {
			want = c.after
		}
		if got := who(c.addr); got != want {
			t.Errorf("%s (%s), gone again: %s, want %s", c.what, c.addr, got, want)
		}
	}
	step(t, e, tb, Change{Object{Kind: KindHostAddresses}, nil})
	if got := who("192.168.5.2"); got != "reserved:remote-node" {
		t.Errorf("192.168.5.2 without any: %s", got)
	}
}

// TestHostAddressesFollowObjects: what objects say counts again as they come and
// go.
func TestHostAddressesFollowObjects(t *testing.T) {
	e, tb := applied(t, Options{NodeName: "n1"})
	step(t, e, tb, hostAddresses("10.0.0.11", "10.96.0.7", "192.168.5.2"))
	want := func(when string, labels ...string) {
		t.Helper()
		for i, a := range []string{"10.0.0.11", "10.96.0.7", "192.168.5.2"} {
			if got := e.IdentityLabels(tb.who(netip.MustParseAddr(a)).Identity); !slices.Contains(got, labels[i]) {
				t.Errorf("%s: %s is %v, want %s", when, a, got, labels[i])
			}
		}
	}
	want("without objects", "reserved:host", "reserved:host", "reserved:host")
	all := objects(t, world)
	step(t, e, tb, all...)
	want("with objects", "k8s:app=web", "service:shop/api", "reserved:host")
	for i := range all {
		all[i].Value = nil
	}
	step(t, e, tb, all...)
	want("without them again", "reserved:host", "reserved:host", "reserved:host")
}

// TestHostIsOneIdentity: where the API server has one of the node's addresses,
// rules about it count for all of them, as they are one identity.
func TestHostIsOneIdentity(t *testing.T) {
	e, tb := applied(t, Options{NodeName: "n1"}, world, policyYAML("cnp: egress: [{toEntities: [kube-apiserver]}]"))
	web := Question{From: "default/web", Port: "6443"}
	check := func(when string, want Verdict) {
		t.Helper()
		for _, to := range []string{"192.168.5.1", "172.17.0.1", "1.2.3.9"} {
			web.To = to
			a := e.Explain(web)
			want := want
			if to == "1.2.3.9" && when != "at home" {
				want = Allowed
			}
			if a.Verdict != want {
				t.Errorf("%s: to %s: %s (%+v), want %s", when, to, a.Verdict, a.Egress, want)
			}
			p := tb.policies[tb.endpoints[netip.MustParseAddr("10.0.0.11")].Policy]
			entry, ok := Lookup(p.Entries, Egress, []identity.ID{tb.who(netip.MustParseAddr(to)).Identity}, protoTCP, 6443)
			if got := ok && entry.Action == Allow; got != (want == Allowed) {
				t.Errorf("%s: to %s: the table says %+v %v, want %s", when, to, entry, ok, want)
			}
		}
	}
	step(t, e, tb, hostAddresses("172.17.0.1"))
	check("elsewhere", Denied)
	step(t, e, tb, hostAddresses("172.17.0.1", "1.2.3.9"))
	check("at home", Allowed)
	step(t, e, tb, hostAddresses("172.17.0.1"))
	check("elsewhere again", Denied)
}

// TestExplainHostAddresses: each pod is judged as on its own node, and what the
// interfaces of this one have says nothing of others.
func TestExplainHostAddresses(t *testing.T) {
	e, tb := applied(t, Options{NodeName: "n1"}, world,
		policyYAML("ccnp: endpointSelector: {}, egress: [{toEntities: [host]}], ingress: [{fromCIDR: [0.0.0.0/0]}]"))
	step(t, e, tb, hostAddresses("172.17.0.1", "10.0.0.1"))
	for _, c := range []struct {
		from, to string
		want     Verdict
	}{
		{"default/web", "172.17.0.1", Allowed},
		{"default/web", "10.0.0.1", Allowed},
		{"default/web", "172.17.0.2", Denied},
		{"shop/api", "172.17.0.1", Denied},
		{"shop/api", "10.0.0.1", Denied},
		{"172.17.0.1", "default/web", Allowed},
		{"172.17.0.1", "shop/api", Allowed}, // for that node it is outside
		{"10.0.0.1", "shop/api", Denied},    // and this one a pod
	} {
		if a := e.Explain(Question{From: c.from, To: c.to, Port: "80"}); a.Verdict != c.want {
			t.Errorf("%s to %s: %s %s (%+v, %+v), want %s", c.from, c.to, a.Verdict, a.Error, a.Egress, a.Ingress, c.want)
		}
	}
}
