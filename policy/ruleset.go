package policy

import (
	"github.com/weirnet/weir/policy/dnsrules"
	"github.com/weirnet/weir/policy/httprules"
)

// Protocol is what the rules of a RuleSet are about: how the proxy reads the
// flow.
type Protocol uint8

const (
	ProtocolHTTP Protocol = 0
	ProtocolDNS  Protocol = 1
)

// RuleSet is an immutable set of L7 rules: all that hold for one peer and
// port, of every policy, in a fixed order. Equal sets have equal IDs. The
// proxy keeps them by ID and never changes one.
type RuleSet struct {
	ID       uint32   `json:"id"`
	Protocol Protocol `json:"protocol,omitempty"`
	// AllowAll: another rule without L7 lets every request pass, or the
	// direction is not under default deny. Requests are read and recorded, and
	// header changes of HTTP rules still apply.
	AllowAll bool `json:"allowAll,omitempty"`
	// AllowRule is the rule that decides where no HTTP rule does (AllowAll).
	AllowRule uint32           `json:"allowRule,omitempty"`
	HTTP      []httprules.Rule `json:"http,omitempty"`
	DNS       []dnsrules.Rule  `json:"dns,omitempty"`
	// Teaches: a DNS rule names the servers this set leads to (by a peer that
	// is not the world and not everybody), so their answers are believed. What
	// other servers say is believed if they are among Delta.Resolvers.
	Teaches bool `json:"teaches,omitempty"`
	// TeachesFor is the namespace whose policies alone what is taught counts for,
	// since no clusterwide policy names the servers; "": it counts for all.
	TeachesFor string `json:"teachesFor,omitempty"`
}

// passesAll tells whether the set is there to see, and everything passes.
func (s *RuleSet) passesAll() bool { return s.AllowAll && len(s.HTTP)+len(s.DNS) == 0 }
