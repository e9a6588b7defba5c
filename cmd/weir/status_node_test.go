package main

import (
	"strings"
	"testing"

	"github.com/weirnet/weir/endpoint"
)

func TestNodePolicyText(t *testing.T) {
	for _, c := range []struct {
		name string
		h    *endpoint.HostStatus
		want string
	}{
		{"none", nil, ""},
		{"not yet", &endpoint.HostStatus{Policy: 7}, "node     POLICIES SELECT IT, BUT ARE NOT ENFORCED YET\n"},
		{"both directions", &endpoint.HostStatus{
			Enforced: true, Ingress: true, Egress: true, IngressPolicies: []string{"CiliumClusterwideNetworkPolicy a", "CiliumClusterwideNetworkPolicy b"},
			EgressPolicies: []string{"CiliumClusterwideNetworkPolicy a"}, Interfaces: []string{"cni0", "eth0"}, Unguarded: []string{"wg0 (without Ethernet)"},
			Failsafe: []string{"ssh: in TCP 22", "icmp: in ICMP type 3", "icmp: out ICMP type 3", "dhcp: out UDP 67", "dhcp: in UDP 68", "in TCP 9100"},
		}, `node     closed for ingress by CiliumClusterwideNetworkPolicy a, CiliumClusterwideNetworkPolicy b; closed for egress by CiliumClusterwideNetworkPolicy a, on cni0, eth0 and towards its pods
         NOT ENFORCED on wg0 (without Ethernet)
         always open: ssh: in TCP 22
                      icmp: in and out ICMP type 3
                      dhcp: out UDP 67, in UDP 68
                      besides: in TCP 9100
`},
		{"open, without interfaces", &endpoint.HostStatus{Enforced: true}, `node     under policies that close nothing by default, towards its pods only
         nothing is open to it all the same
`},
	} {
		var b strings.Builder
		printNodePolicy(&errWriter{out: &b}, c.h)
		if b.String() != c.want {
			t.Errorf("%s:\n%s\nwant\n%s", c.name, b.String(), c.want)
		}
	}
}

func TestHostOptions(t *testing.T) {
	for _, c := range []struct {
		failsafe []string
		devices  string
		want     string
	}{
		{[]string{"default"}, "", ""},
		{[]string{"none"}, "eth.*", ""},
		{[]string{"ssh", "telnet"}, "", "host-failsafe"},
		{[]string{"ssh"}, "eth(", "host-devices"},
	} {
		o := hostOptions{failsafe: c.failsafe, devices: c.devices}
		err := o.check()
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v %q: %v", c.failsafe, c.devices, err)
		}
		if err == nil && c.devices != "" && (o.pattern.MatchString("xeth0") || !o.pattern.MatchString("eth0")) {
			t.Errorf("%q matches by part of a name", c.devices)
		}
	}
}
