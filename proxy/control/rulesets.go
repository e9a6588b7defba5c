package control

import (
	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/policy/httprules"
)

// Names of the descriptors that come with a Wiring.
const (
	MapConns     = "conns"
	MapRevision  = "revision"  // a copy of the policy revision, to be mapped
	MapListeners = "listeners" // the sockmap of this generation
)

// RuleSetOf is the message of a rule set.
func RuleSetOf(rs *policy.RuleSet) *RuleSet {
	m := &RuleSet{Id: rs.ID, AllowAll: rs.AllowAll, AllowRule: rs.AllowRule, Http: make([]*HTTPRule, len(rs.HTTP))}
	for i := range rs.HTTP {
		r := &rs.HTTP[i]
		h := &HTTPRule{Path: r.Path, Method: r.Method, Host: r.Host, Headers: r.Headers, Rule: r.Rule}
		for _, hm := range r.HeaderMatches {
			h.HeaderMatches = append(h.HeaderMatches, &HeaderMatch{Mismatch: hm.Mismatch, Name: hm.Name, Value: hm.Value})
		}
		m.Http[i] = h
	}
	return m
}

// RuleSetFrom converts back.
func RuleSetFrom(m *RuleSet) policy.RuleSet {
	rs := policy.RuleSet{ID: m.Id, AllowAll: m.AllowAll, AllowRule: m.AllowRule}
	for _, h := range m.Http {
		r := httprules.Rule{Path: h.Path, Method: h.Method, Host: h.Host, Headers: h.Headers, Rule: h.Rule}
		for _, hm := range h.HeaderMatches {
			r.HeaderMatches = append(r.HeaderMatches, httprules.HeaderMatch{Mismatch: hm.Mismatch, Name: hm.Name, Value: hm.Value})
		}
		rs.HTTP = append(rs.HTTP, r)
	}
	return rs
}
