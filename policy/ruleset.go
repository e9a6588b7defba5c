package policy

import "github.com/weirnet/weir/policy/httprules"

// RuleSet is an immutable set of L7 rules: all that hold for one peer and
// port, of every policy, in a fixed order. Equal sets have equal IDs. The
// proxy keeps them by ID and never changes one.
type RuleSet struct {
	ID uint32 `json:"id"`
	// AllowAll: another rule without L7 lets every request pass, or the
	// direction is not under default deny. Requests are read and recorded, and
	// header changes of HTTP rules still apply.
	AllowAll bool `json:"allowAll,omitempty"`
	// AllowRule is the rule that decides where no HTTP rule does (AllowAll).
	AllowRule uint32           `json:"allowRule,omitempty"`
	HTTP      []httprules.Rule `json:"http,omitempty"`
}
