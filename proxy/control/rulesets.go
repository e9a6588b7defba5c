package control

import (
	"fmt"
	"math"
	"net/netip"

	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/policy/dnsrules"
	"github.com/weirnet/weir/policy/httprules"
)

// Names of the descriptors that come with a Wiring.
const (
	MapConns     = "conns"
	MapRevision  = "revision"  // a copy of the policy revision, to be mapped
	MapListeners = "listeners" // the sockmap of this generation
	MapFQDN      = "fqdn"
	MapConntrack = "conntrack" // read-only
	MapShares    = "shares"    // read-only
	MapGrants    = "grants"
	// Two files to write what was learned to, in turn, so that one of them is
	// whole whenever the process ends.
	MapCheckpoint0 = "checkpoint0"
	MapCheckpoint1 = "checkpoint1"
)

// MaxCheckpoint is the size that a file of the proxy can have, in bytes: what is
// written beyond it fails with EFBIG.
const MaxCheckpoint = 128 << 20

// RuleSetOf is the message of a rule set.
func RuleSetOf(rs *policy.RuleSet) *RuleSet {
	m := &RuleSet{
		Id: rs.ID, Protocol: uint32(rs.Protocol), AllowAll: rs.AllowAll, AllowRule: rs.AllowRule,
		Teaches: rs.Teaches, TeachesFor: rs.TeachesFor,
		Http: make([]*HTTPRule, len(rs.HTTP)), Dns: make([]*DNSRule, len(rs.DNS)),
	}
	for i := range rs.HTTP {
		r := &rs.HTTP[i]
		h := &HTTPRule{Path: r.Path, Method: r.Method, Host: r.Host, Headers: r.Headers, Rule: r.Rule}
		for _, hm := range r.HeaderMatches {
			h.HeaderMatches = append(h.HeaderMatches, &HeaderMatch{Mismatch: hm.Mismatch, Name: hm.Name, Value: hm.Value})
		}
		m.Http[i] = h
	}
	for i, r := range rs.DNS {
		m.Dns[i] = &DNSRule{Selector: NameSelectorOf(r.Selector), Rule: r.Rule}
	}
	return m
}

// RuleSetFrom converts back. A protocol that this binary does not know stays what
// it is, for the receiver to refuse.
func RuleSetFrom(m *RuleSet) policy.RuleSet {
	rs := policy.RuleSet{
		ID: m.Id, Protocol: policy.Protocol(min(m.Protocol, unknownProtocol)),
		AllowAll: m.AllowAll, AllowRule: m.AllowRule,
		Teaches: m.Teaches, TeachesFor: m.TeachesFor,
	}
	for _, h := range m.Http {
		r := httprules.Rule{Path: h.Path, Method: h.Method, Host: h.Host, Headers: h.Headers, Rule: h.Rule}
		for _, hm := range h.HeaderMatches {
			r.HeaderMatches = append(r.HeaderMatches, httprules.HeaderMatch{Mismatch: hm.Mismatch, Name: hm.Name, Value: hm.Value})
		}
		rs.HTTP = append(rs.HTTP, r)
	}
	for _, r := range m.Dns {
		rs.DNS = append(rs.DNS, dnsrules.Rule{Selector: NameSelectorFrom(r.Selector), Rule: r.Rule})
	}
	return rs
}

// unknownProtocol is none of policy.Protocol.
const unknownProtocol = 255

// NameSelectorOf is the message of a selector.
func NameSelectorOf(s dnsrules.Selector) *NameSelector {
	return &NameSelector{Name: s.Name, Pattern: s.Pattern, Namespace: s.Namespace}
}

// NameSelectorFrom converts back; nil gives the zero Selector, which is none.
func NameSelectorFrom(m *NameSelector) dnsrules.Selector {
	return dnsrules.Selector{Name: m.GetName(), Pattern: m.GetPattern(), Namespace: m.GetNamespace()}
}

// ServerOf is the message of a server.
func ServerOf(s policy.Server) *Server {
	return &Server{Address: s.Addr.Addr().AsSlice(), Port: uint32(s.Addr.Port()), Protocol: uint32(s.Protocol)}
}

// ServerFrom converts back; what is no server is an error.
func ServerFrom(m *Server) (policy.Server, error) {
	a, ok := netip.AddrFromSlice(m.GetAddress())
	if !ok || m.GetPort() > math.MaxUint16 || m.GetProtocol() > math.MaxUint8 {
		return policy.Server{}, fmt.Errorf("server %x, port %d, protocol %d: there is no such", m.GetAddress(), m.GetPort(), m.GetProtocol())
	}
	return policy.Server{Addr: netip.AddrPortFrom(a.Unmap(), uint16(m.GetPort())), Protocol: uint8(m.GetProtocol())}, nil
}
