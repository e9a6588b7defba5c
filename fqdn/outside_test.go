package fqdn

import (
	"net/netip"
	"testing"
	"time"

	"github.com/weirnet/weir/identity"
)

func prefixes(list ...string) (out []netip.Prefix) {
	for _, p := range list {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// What serves the machine in a cloud is nobody's name, and neither is what is
// denied besides.
func TestRefusedAddresses(t *testing.T) {
	r := newRig(t, Settings{Deny: prefixes("192.0.2.128/25", "2001:db8:7::/48")})
	r.names(map[identity.ID]string{300: "a.test"})
	r.learn("a.test", time.Minute, "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "fd00:42::42", "100.100.100.200", "192.0.0.192", "168.63.129.16",
		"169.254.169.254", "192.0.2.128", "192.0.2.255", "2001:db8:7::1",
		"192.0.2.127", "2001:db8:8::1", "100.100.100.201", "fd20:ce::253")
	r.want(map[string]identity.ID{"192.0.2.127": 300, "2001:db8:8::1": 300, "100.100.100.201": 300, "fd20:ce::253": 300})
	if n := r.Counts().Refused; n != 11 {
		t.Errorf("%d refused", n)
	}
}

// What is denied later goes at once, though it is in use, and what a predecessor
// learned or wrote of it, too.
func TestDenyLater(t *testing.T) {
	r := newRig(t, Settings{})
	r.names(map[identity.ID]string{300: "a.test", 301: "b.test", 302: "a.test b.test"})
	r.learn("a.test", time.Hour, "192.0.2.1", "192.0.2.2", "192.0.2.3")
	r.learn("b.test", time.Hour, "192.0.2.2", "192.0.2.4")
	r.flows.set(netip.MustParseAddr("192.0.2.2"))
	r.sweepNow()
	all := map[string]identity.ID{"192.0.2.1": 300, "192.0.2.2": 302, "192.0.2.3": 300, "192.0.2.4": 301}
	r.want(all)
	r.Set(Settings{Deny: prefixes("192.0.2.2/31")})
	left := map[string]identity.ID{"192.0.2.1": 300, "192.0.2.4": 301}
	r.want(left)
	r.learn("a.test", time.Hour, "192.0.2.2")
	r.want(left)
	// No longer.
	r.Set(Settings{})
	r.learn("a.test", time.Hour, "192.0.2.2")
	left["192.0.2.2"] = 300
	r.want(left)
	if err := r.Save(); err != nil {
		t.Fatal(err)
	}
	// A successor, with a row that nothing explains besides.
	r.table.rows[netip.MustParseAddr("192.0.2.3")] = 300
	r.again(Settings{Deny: prefixes("192.0.2.2/31")})
	delete(left, "192.0.2.2")
	r.want(left)
	r.names(map[identity.ID]string{300: "a.test", 301: "b.test"})
	r.want(left)
	// A predecessor that goes on for a moment does not know.
	r.table.rows[netip.MustParseAddr("192.0.2.3")] = 300
	if err := r.inspect(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.want(left)
}
