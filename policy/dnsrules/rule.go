// Package dnsrules matches DNS names against the DNS rules and toFQDNs
// selectors of policies: the same code in the proxy and in `weir policy
// explain`.
//
// A pattern speaks of a name label by label, so patterns are a tree of labels
// from the right, and a name costs one path through it, however many patterns
// there are. What a pattern means is what Cilium says (its package
// fqdn/matchpattern translates patterns to regular expressions; the tests
// here do the same and compare).
//
// Names are given as master files spell them, without the final dot: the root
// is "". A byte of a label that is no letter, digit, hyphen or underscore must
// not look like one of those or like a dot: it is spelled with a backslash
// (`\.`, `\032`), which no pattern but a lone "*" of a DNS rule matches.
package dnsrules

import "cmp"

// Selector names DNS names: those of DNS rules and of toFQDNs. Exactly one of
// Name and Pattern is set, in normal form: lower case, no final dot.
type Selector struct {
	// Name is one name.
	Name string `json:"matchName,omitempty"`
	// Pattern is Cilium's matchPattern (pkg/fqdn/matchpattern): "*" within a
	// label, a lone "*" every name, a leading "**." any number of labels.
	Pattern string `json:"matchPattern,omitempty"`
	// Namespace tells of a toFQDNs selector which answers it is about: those that
	// count for everybody's policies (""), or those that count for the policies of
	// one namespace only. Which names it is for does not depend on it.
	Namespace string `json:"namespace,omitempty"`
}

// In is the selector for the same names in answers that count for the policies
// of a namespace only.
func (s Selector) In(namespace string) Selector {
	s.Namespace = namespace
	return s
}

// Compare orders selectors: by namespace, those for everybody first, then by
// what they are for.
func (s Selector) Compare(o Selector) int {
	return cmp.Or(cmp.Compare(s.Namespace, o.Namespace), cmp.Compare(s.Name, o.Name), cmp.Compare(s.Pattern, o.Pattern))
}

// Rule is one DNS rule of a policy.
type Rule struct {
	Selector
	// Rule is the number of the policy rule this came from (policy.Engine.Rule).
	Rule uint32 `json:"rule,omitempty"`
}
