package api

// L7Rules tells what may pass through a port. At most one of the lists has
// items; none has: no L7 rule.
type L7Rules struct {
	// HTTP requests that may pass; the others are answered with 403.
	// +optional
	HTTP []HTTPRule `json:"http,omitzero"`
	// DNS questions that may pass; the others are refused. In egress only.
	// +optional
	DNS []DNSRule `json:"dns,omitzero"`
	// Kafka requests that may pass. Not enforced yet: all traffic of these
	// ports is denied.
	// +optional
	Kafka []KafkaRule `json:"kafka,omitzero"`
}

// Empty tells whether there is no rule; a nil receiver has none.
func (r *L7Rules) Empty() bool {
	return r == nil || len(r.HTTP)+len(r.DNS)+len(r.Kafka) == 0
}

// HTTPRule lets a request pass if all that is set matches. Path, method and
// host are regular expressions over the whole value.
type HTTPRule struct {
	// A regular expression (RE2) for the whole path, with its query:
	// "/items(\?.*)?". Not written: any.
	// +optional
	Path string `json:"path,omitempty"`
	// A regular expression for the whole method: "GET", "GET|HEAD". Not written: any.
	// +optional
	Method string `json:"method,omitempty"`
	// A regular expression for the whole host, as the client wrote it, with its
	// port if it wrote one: "shop\.example(:80)?". Not written: any.
	// +optional
	Host string `json:"host,omitempty"`
	// Headers the request must have: "Name", or "Name: value".
	// +optional
	Headers []string `json:"headers,omitzero"`
	// Headers that are asked for, and what happens where one is not as asked.
	// +optional
	HeaderMatches []HeaderMatch `json:"headerMatches,omitzero"`
}

// HeaderMatch asks for a header, with that value if one is set.
type HeaderMatch struct {
	// Not written: a request without the header does not match. Else it matches
	// all the same, and LOG logs it, ADD adds the header, DELETE removes it,
	// REPLACE gives it the value.
	// +optional
	// +kubebuilder:validation:Enum=LOG;ADD;DELETE;REPLACE
	Mismatch string `json:"mismatch,omitempty"` // one of the Mismatch constants, or empty: no match
	// The header's name.
	// +kubebuilder:validation:MinLength=1
	Name string `json:"name"`
	// Not supported: write the value as value.
	// +optional
	Secret *Secret `json:"secret,omitempty"` // refused
	// The header's value; not written: any.
	// +optional
	Value string `json:"value,omitempty"`
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
	// A name: "shop.example.com", in any case.
	// +optional
	// +kubebuilder:validation:MaxLength=255
	// +kubebuilder:validation:Pattern=`^[-_a-zA-Z0-9]+(\.[-_a-zA-Z0-9]+)*\.?$`
	MatchName string `json:"matchName,omitempty"`
	// A pattern: * stands for letters of one part ("*.example.com"), a leading
	// **. for any number of parts, "*" alone for every name.
	// +optional
	// +kubebuilder:validation:MaxLength=255
	// +kubebuilder:validation:Pattern=`^[-_*a-zA-Z0-9]+(\.[-_*a-zA-Z0-9]+)*\.?$`
	MatchPattern string `json:"matchPattern,omitempty"`
}

// FQDNSelector selects the addresses of a name, or of those a pattern matches.
type FQDNSelector struct {
	// A name: "api.example.com", in any case.
	// +optional
	// +kubebuilder:validation:MaxLength=255
	// +kubebuilder:validation:Pattern=`^[-_a-zA-Z0-9]+(\.[-_a-zA-Z0-9]+)*\.?$`
	MatchName string `json:"matchName,omitempty"`
	// A pattern: * stands for letters of one part ("*.example.com"), a leading
	// **. for any number of parts, "*" alone for every name.
	// +optional
	// +kubebuilder:validation:MaxLength=255
	// +kubebuilder:validation:Pattern=`^[-_*a-zA-Z0-9]+(\.[-_*a-zA-Z0-9]+)*\.?$`
	MatchPattern string `json:"matchPattern,omitempty"`
}

// KafkaRule lets a Kafka request pass if all that is set matches. Role and
// APIKey are not set together. This is the rule Cilium had up to version 1.18.
type KafkaRule struct {
	// "produce" or "consume": what a client of that role needs.
	// +optional
	// +kubebuilder:validation:Enum=produce;consume
	Role string `json:"role,omitempty"` // "produce" or "consume"
	// The kind of request: "fetch", "metadata", ... Not beside role.
	// +optional
	APIKey string `json:"apiKey,omitempty"` // in lower case, as in the Kafka protocol
	// The version of the request, 0 to 32767.
	// +optional
	APIVersion string `json:"apiVersion,omitempty"`
	// The client's id.
	// +optional
	ClientID string `json:"clientID,omitempty"`
	// The topic.
	// +optional
	// +kubebuilder:validation:MaxLength=255
	// +kubebuilder:validation:Pattern=`^[-_.a-zA-Z0-9]*$`
	Topic string `json:"topic,omitempty"`
}
