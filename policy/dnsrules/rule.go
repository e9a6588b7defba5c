// Package dnsrules matches DNS names against the DNS rules and toFQDNs
// selectors of policies: the same code in the proxy and in `weir policy
// explain`.
package dnsrules

// Selector names DNS names: those of DNS rules and of toFQDNs. Exactly one
// field is set. Both are in normal form: lower case, no final dot.
type Selector struct {
	// Name is one name.
	Name string `json:"matchName,omitempty"`
	// Pattern is Cilium's matchPattern (pkg/fqdn/matchpattern): "*" within a
	// label, a lone "*" every name, a leading "**." any number of labels.
	Pattern string `json:"matchPattern,omitempty"`
}

// Rule is one DNS rule of a policy.
type Rule struct {
	Selector
	// Rule is the number of the policy rule this came from (policy.Engine.Rule).
	Rule uint32 `json:"rule,omitempty"`
}
