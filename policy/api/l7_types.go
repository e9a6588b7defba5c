package api

// L7Rules tells what may pass through a port. At most one of the lists has
// items; none has: no L7 rule.
type L7Rules struct {
	HTTP  []HTTPRule  `json:"http,omitzero"`
	DNS   []DNSRule   `json:"dns,omitzero"`
	Kafka []KafkaRule `json:"kafka,omitzero"`
}

// Empty tells whether there is no rule; a nil receiver has none.
func (r *L7Rules) Empty() bool {
	return r == nil || len(r.HTTP)+len(r.DNS)+len(r.Kafka) == 0
}

// HTTPRule lets a request pass if all that is set matches. Path, method and
// host are regular expressions over the whole value.
type HTTPRule struct {
	Path   string `json:"path,omitempty"`
	Method string `json:"method,omitempty"`
	Host   string `json:"host,omitempty"`
	// Headers are of the form "Name" or "Name: value".
	Headers       []string      `json:"headers,omitzero"`
	HeaderMatches []HeaderMatch `json:"headerMatches,omitzero"`
}

// HeaderMatch asks for a header, with that value if one is set.
type HeaderMatch struct {
	Mismatch string  `json:"mismatch,omitempty"` // one of the Mismatch constants, or empty: no match
	Name     string  `json:"name"`
	Secret   *Secret `json:"secret,omitempty"` // refused
	Value    string  `json:"value,omitempty"`
}

// What happens where a header is not as a HeaderMatch asks; the request
// matches all the same.
const (
	MismatchLog     = "LOG"
	MismatchAdd     = "ADD"
	MismatchDelete  = "DELETE"
	MismatchReplace = "REPLACE"
)

// DNSRule lets a question pass: for a name, or for those a pattern matches.
type DNSRule struct {
	MatchName    string `json:"matchName,omitempty"`
	MatchPattern string `json:"matchPattern,omitempty"`
}

// FQDNSelector selects the addresses of a name, or of those a pattern matches.
type FQDNSelector struct {
	MatchName    string `json:"matchName,omitempty"`
	MatchPattern string `json:"matchPattern,omitempty"`
}

// KafkaRule lets a Kafka request pass if all that is set matches. Role and
// APIKey are not set together. This is the rule Cilium had up to version 1.18.
type KafkaRule struct {
	Role       string `json:"role,omitempty"`   // "produce" or "consume"
	APIKey     string `json:"apiKey,omitempty"` // in lower case, as in the Kafka protocol
	APIVersion string `json:"apiVersion,omitempty"`
	ClientID   string `json:"clientID,omitempty"`
	Topic      string `json:"topic,omitempty"`
}
