package api

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func TestPortRange(t *testing.T) {
	tests := []struct {
		port  string
		end   int32
		first uint16
		last  uint16
		ok    bool
		name  string
	}{
		{"80", 0, 80, 80, true, ""},
		{"80", 90, 80, 90, true, ""},
		{"80", 79, 80, 80, true, ""}, // an end below the port does not count
		{"80", 80, 80, 80, true, ""},
		{"0", 0, 0, 0, true, ""},
		{"0", 90, 0, 0, true, ""}, // all ports
		{"", 0, 0, 0, true, ""},
		{"65535", 65535, 65535, 65535, true, ""},
		{"1", 65535, 1, 65535, true, ""},
		{"0120", 0, 80, 80, true, ""}, // octal
		{"1_000", 0, 0, 0, false, ""},
		{"0_10", 0, 0, 0, false, ""},
		{"0_0", 0, 0, 0, false, ""},
		{"+80", 0, 0, 0, false, ""},
		{" 80", 0, 0, 0, false, ""},
		{"8e1", 0, 0, 0, false, "8e1"}, // names, like any with a letter in it
		{"0b11", 0, 0, 0, false, "0b11"},
		{"0o17", 0, 0, 0, false, "0o17"},
		{"080", 0, 0, 0, false, ""},
		{"65536", 0, 0, 0, false, ""},
		{"-1", 0, 0, 0, false, ""},
		{"0x50", 0, 0, 0, false, "0x50"},
		{"HTTP", 0, 0, 0, false, "http"},
		{"http", 90, 0, 0, false, "http"},
		{"1a", 0, 0, 0, false, "1a"},
		{"a-b", 0, 0, 0, false, "a-b"},
		{"a--b", 0, 0, 0, false, ""},
		{"-a", 0, 0, 0, false, ""},
		{"a-", 0, 0, 0, false, ""},
		{"abcdefghijklmno", 0, 0, 0, false, "abcdefghijklmno"},
		{"abcdefghijklmnop", 0, 0, 0, false, ""},
		{"1-2", 0, 0, 0, false, ""},
	}
	for _, tt := range tests {
		p := PortProtocol{Port: tt.port, EndPort: tt.end}
		first, last, ok := p.Range()
		if first != tt.first || last != tt.last || ok != tt.ok || p.Name() != tt.name {
			t.Errorf("%q to %d: %d, %d, %v, name %q", tt.port, tt.end, first, last, ok, p.Name())
		}
	}
}

func TestProtocols(t *testing.T) {
	for p, want := range map[Protocol][]uint8{
		"": {6, 17, 132}, "ANY": {6, 17, 132}, "TCP": {6}, "UDP": {17}, "SCTP": {132}, "VRRP": {112}, "IGMP": {2},
		"GRE": {47}, "IPIP": {4}, "IPV6": {41}, "ESP": {50}, "AH": {51}, "tcp": nil, "ICMP": nil,
	} {
		if got := p.Numbers(); !slices.Equal(got, want) {
			t.Errorf("%q: %v, want %v", p, got, want)
		}
		if ports := slices.Contains([]Protocol{"", "ANY", "TCP", "UDP", "SCTP"}, p); p.HasPorts() != ports {
			t.Errorf("%q has ports: %v", p, !ports)
		}
	}
}

func TestICMPNumber(t *testing.T) {
	tests := []struct {
		family string
		typ    intstr.IntOrString
		want   string
	}{
		{"", intstr.FromInt32(0), "0"}, {"", intstr.FromInt32(255), "255"}, {"", intstr.FromInt32(256), ""}, {"", intstr.FromInt32(-1), ""},
		{"", intstr.FromString("8"), "8"}, {"", intstr.FromString("0"), "0"}, {"", intstr.FromString("08"), ""}, {"", intstr.FromString("256"), ""},
		{"", intstr.FromString("EchoReply"), "0"}, {"IPv4", intstr.FromString("EchoReply"), "0"}, {"IPv6", intstr.FromString("EchoReply"), "129"},
		{"IPv4", intstr.FromString("EchoRequest"), "8"}, {"IPv6", intstr.FromString("EchoRequest"), "128"},
		{"", intstr.FromString("Echo"), "8"}, {"IPv6", intstr.FromString("Echo"), ""},
		{"IPv6", intstr.FromString("PacketTooBig"), "2"}, {"IPv4", intstr.FromString("PacketTooBig"), ""},
		{"", intstr.FromString("echo"), ""}, {"", intstr.FromString(""), ""},
	}
	for _, tt := range tests {
		f := ICMPField{Family: tt.family, Type: tt.typ}
		got := ""
		if n, ok := f.Number(); ok {
			got = fmt.Sprint(n)
		}
		if got != tt.want {
			t.Errorf("%s %s: %q, want %q", tt.family, tt.typ.String(), got, tt.want)
		}
	}
}

func TestRequirements(t *testing.T) {
	s := &EndpointSelector{
		MatchLabels:      map[string]string{"k8s:b": "1", "a": ""},
		MatchExpressions: []LabelRequirement{{"reserved:host", Exists, nil}, {"c", NotIn, []string{"z", "y", "z"}}},
	}
	want := []Requirement{
		{"any", "a", In, []string{""}},
		{"k8s", "b", In, []string{"1"}},
		{"reserved", "host", Exists, nil},
		{"any", "c", NotIn, []string{"y", "z"}},
	}
	if d := cmp.Diff(want, s.Requirements(SourceAny)); d != "" {
		t.Errorf("requirements (-want +got):\n%s", d)
	}
	if got := s.Requirements(SourceCIDRGroup)[0].Source; got != SourceCIDRGroup {
		t.Errorf("default source %q", got)
	}
	if got := (*EndpointSelector)(nil).Requirements(SourceAny); got != nil {
		t.Errorf("of nil: %v", got)
	}
	if s.MatchExpressions[1].Values[0] != "z" {
		t.Error("the selector was changed")
	}
}

func TestDefaultDeny(t *testing.T) {
	yes, no := true, false
	in, out := []IngressRule{{}}, []EgressRule{{}}
	tests := []struct {
		rule            Rule
		ingress, egress bool
	}{
		{Rule{Ingress: in}, true, false},
		{Rule{Ingress: []IngressRule{}, Egress: out}, false, true},
		{Rule{IngressDeny: []IngressDenyRule{{}}, EgressDeny: []EgressDenyRule{{}}}, true, true},
		{Rule{Ingress: in, EnableDefaultDeny: &DefaultDenyConfig{Ingress: &no}}, false, false},
		{Rule{Ingress: in, EnableDefaultDeny: &DefaultDenyConfig{Egress: &yes}}, true, false},
		{Rule{Ingress: in, Egress: out, EnableDefaultDeny: &DefaultDenyConfig{Egress: &no}}, true, false},
	}
	for i, tt := range tests {
		if ingress, egress := tt.rule.DefaultDeny(); ingress != tt.ingress || egress != tt.egress {
			t.Errorf("%d: %v, %v", i, ingress, egress)
		}
	}
}
