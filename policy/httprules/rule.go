// Package httprules matches HTTP requests against the HTTP rules of policies:
// the same code in the proxy and in `weir policy explain`.
//
// The regular expressions of one dimension (path, method, host) of all rules
// are one automaton, whose states are built as requests ask for them, so a
// request costs about the same against one rule and against a thousand.
package httprules

// Rule is one HTTP rule; every field that is set must match. Regular
// expressions are RE2, match the whole value and are case-sensitive ("(?i)"
// makes one that is not).
type Rule struct {
	Path   string `json:"path,omitempty"`   // regular expression over :path, query included
	Method string `json:"method,omitempty"` // regular expression
	Host   string `json:"host,omitempty"`   // regular expression over the authority as it was sent, port included
	// Headers: "Name: value" asks for that value, "Name" for the header alone.
	Headers       []string      `json:"headers,omitempty"`
	HeaderMatches []HeaderMatch `json:"headerMatches,omitempty"`
	// Rule is the number of the policy rule this came from (policy.Engine.Rule).
	Rule uint32 `json:"rule,omitempty"`
}

// HeaderMatch asks for a header with a value; without a value, for the header
// alone. Mismatch tells what happens where it is not so: "" the rule does not
// match; LOG, ADD, DELETE and REPLACE let the request match, with that change
// made to it.
type HeaderMatch struct {
	Mismatch string `json:"mismatch,omitempty"`
	Name     string `json:"name"`
	Value    string `json:"value,omitempty"`
}
