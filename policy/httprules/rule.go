// Package httprules matches HTTP requests against the HTTP rules of policies:
// the same code in the proxy and in `weir policy explain`.
package httprules

// Rule is one HTTP rule; every field that is set must match. Regular
// expressions are RE2 and match the whole value.
type Rule struct {
	Path   string `json:"path,omitempty"`   // regular expression over :path, query included
	Method string `json:"method,omitempty"` // regular expression, case-sensitive
	Host   string `json:"host,omitempty"`   // regular expression over the authority, port included; case-insensitive as hosts are
	// Headers: "Name: value" asks for that value, "Name" for the header alone.
	Headers       []string      `json:"headers,omitempty"`
	HeaderMatches []HeaderMatch `json:"headerMatches,omitempty"`
	// Rule is the number of the policy rule this came from (policy.Engine.Rule).
	Rule uint32 `json:"rule,omitempty"`
}

// HeaderMatch asks for a header with a value. Mismatch tells what happens
// where it is not so: "" the rule does not match; LOG, ADD, DELETE and
// REPLACE let the request match, with that change made to it.
type HeaderMatch struct {
	Mismatch string `json:"mismatch,omitempty"`
	Name     string `json:"name"`
	Value    string `json:"value,omitempty"`
}
