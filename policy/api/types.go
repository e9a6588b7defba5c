package api

import (
	"k8s.io/apimachinery/pkg/util/intstr"
)

// The types below have the JSON names of Cilium's policy API, version 2. A
// list that was not written is nil, one that was written empty is not: the two
// mean different things, and encoding keeps them apart (omitzero).

// Rule is one rule set of a policy object: what `spec`, or one item of
// `specs`, says.
type Rule struct {
	EndpointSelector *EndpointSelector `json:"endpointSelector,omitempty"`
	// NodeSelector makes it a policy for nodes (clusterwide policies only).
	NodeSelector      *EndpointSelector  `json:"nodeSelector,omitempty"`
	Ingress           []IngressRule      `json:"ingress,omitzero"`
	IngressDeny       []IngressDenyRule  `json:"ingressDeny,omitzero"`
	Egress            []EgressRule       `json:"egress,omitzero"`
	EgressDeny        []EgressDenyRule   `json:"egressDeny,omitzero"`
	Labels            []Label            `json:"labels,omitzero"`
	EnableDefaultDeny *DefaultDenyConfig `json:"enableDefaultDeny,omitempty"`
	Description       string             `json:"description,omitempty"`
	Log               *LogConfig         `json:"log,omitempty"`
}

// DefaultDeny tells which directions the rule puts under default deny: where
// enableDefaultDeny is silent, those it has rules for. `true` without any rule
// in that direction has no effect.
func (r *Rule) DefaultDeny() (ingress, egress bool) {
	ingress = len(r.Ingress)+len(r.IngressDeny) > 0
	egress = len(r.Egress)+len(r.EgressDeny) > 0
	if d := r.EnableDefaultDeny; d != nil {
		ingress = ingress && (d.Ingress == nil || *d.Ingress)
		egress = egress && (d.Egress == nil || *d.Egress)
	}
	return ingress, egress
}

// DefaultDenyConfig overrides default deny per direction; nil: not written.
type DefaultDenyConfig struct {
	Ingress *bool `json:"ingress,omitempty"`
	Egress  *bool `json:"egress,omitempty"`
}

// Label is a label of the rule itself, for reporting only.
type Label struct {
	Key    string `json:"key"`
	Source string `json:"source,omitempty"`
	Value  string `json:"value,omitempty"`
}

// LogConfig carries a text for the flow log.
type LogConfig struct {
	Value string `json:"value,omitempty"`
}

// IngressPeers are the peers of an ingress rule. At most one list has items.
type IngressPeers struct {
	FromEndpoints []EndpointSelector `json:"fromEndpoints,omitzero"`
	FromRequires  []string           `json:"fromRequires,omitzero"` // refused with items
	FromCIDR      []CIDR             `json:"fromCIDR,omitzero"`
	FromCIDRSet   []CIDRRule         `json:"fromCIDRSet,omitzero"`
	FromEntities  []Entity           `json:"fromEntities,omitzero"`
	FromGroups    []Groups           `json:"fromGroups,omitzero"` // refused with items
	FromNodes     []EndpointSelector `json:"fromNodes,omitzero"`
}

// EgressPeers are the peers of an egress rule. At most one list has items.
type EgressPeers struct {
	ToEndpoints []EndpointSelector `json:"toEndpoints,omitzero"`
	ToRequires  []string           `json:"toRequires,omitzero"` // refused with items
	ToCIDR      []CIDR             `json:"toCIDR,omitzero"`
	ToCIDRSet   []CIDRRule         `json:"toCIDRSet,omitzero"`
	ToEntities  []Entity           `json:"toEntities,omitzero"`
	ToServices  []Service          `json:"toServices,omitzero"`
	ToGroups    []Groups           `json:"toGroups,omitzero"` // refused with items
	ToNodes     []EndpointSelector `json:"toNodes,omitzero"`
}

// IngressRule allows.
type IngressRule struct {
	IngressPeers   `json:",inline"`
	ToPorts        []PortRule      `json:"toPorts,omitzero"`
	ICMPs          []ICMPRule      `json:"icmps,omitzero"`
	Authentication *Authentication `json:"authentication,omitempty"` // "disabled", else refused
}

// IngressDenyRule denies.
type IngressDenyRule struct {
	IngressPeers `json:",inline"`
	ToPorts      []PortDenyRule `json:"toPorts,omitzero"`
	ICMPs        []ICMPRule     `json:"icmps,omitzero"`
}

// EgressRule allows. ToFQDNs is a peer list as those of EgressPeers.
type EgressRule struct {
	EgressPeers    `json:",inline"`
	ToPorts        []PortRule      `json:"toPorts,omitzero"`
	ToFQDNs        []FQDNSelector  `json:"toFQDNs,omitzero"`
	ICMPs          []ICMPRule      `json:"icmps,omitzero"`
	Authentication *Authentication `json:"authentication,omitempty"` // "disabled", else refused
}

// EgressDenyRule denies.
type EgressDenyRule struct {
	EgressPeers `json:",inline"`
	ToPorts     []PortDenyRule `json:"toPorts,omitzero"`
	ICMPs       []ICMPRule     `json:"icmps,omitzero"`
}

// PortRule names ports, and what must hold of what passes through them.
type PortRule struct {
	Ports          []PortProtocol `json:"ports,omitzero"`
	TerminatingTLS *TLSContext    `json:"terminatingTLS,omitempty"` // refused
	OriginatingTLS *TLSContext    `json:"originatingTLS,omitempty"` // refused
	ServerNames    []string       `json:"serverNames,omitzero"`
	Listener       *Listener      `json:"listener,omitempty"` // refused
	Rules          *L7Rules       `json:"rules,omitempty"`
}

// PortDenyRule names ports.
type PortDenyRule struct {
	Ports []PortProtocol `json:"ports,omitzero"`
}

// TLSContext refers to the secret of a TLS interception.
type TLSContext struct {
	Secret      *Secret `json:"secret"`
	TrustedCA   string  `json:"trustedCA,omitempty"`
	Certificate string  `json:"certificate,omitempty"`
	PrivateKey  string  `json:"privateKey,omitempty"`
}

// Secret refers to a Kubernetes secret.
type Secret struct {
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
}

// Listener refers to a custom Envoy listener.
type Listener struct {
	EnvoyConfig *EnvoyConfig `json:"envoyConfig"`
	Name        string       `json:"name"`
	Priority    uint8        `json:"priority,omitempty"`
}

// EnvoyConfig names the resource that defines a listener.
type EnvoyConfig struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
}

// Authentication asks for mutual authentication of the peers.
type Authentication struct {
	Mode string `json:"mode"`
}

// Groups refers to addresses kept by a cloud provider.
type Groups struct {
	AWS *AWSGroup `json:"aws,omitempty"`
}

// AWSGroup selects addresses of AWS.
type AWSGroup struct {
	Labels              map[string]string `json:"labels,omitempty"`
	SecurityGroupsIDs   []string          `json:"securityGroupsIds,omitzero"`
	SecurityGroupsNames []string          `json:"securityGroupsNames,omitzero"`
	Region              string            `json:"region,omitempty"`
}

// Service names services: by selector, or by name.
type Service struct {
	// K8sServiceSelector wins where both are set.
	K8sServiceSelector *K8sServiceSelectorNamespace `json:"k8sServiceSelector,omitempty"`
	K8sService         *K8sServiceNamespace         `json:"k8sService,omitempty"`
}

// K8sServiceNamespace is one service; without namespace, of that name in any.
type K8sServiceNamespace struct {
	ServiceName string `json:"serviceName,omitempty"`
	Namespace   string `json:"namespace,omitempty"`
}

// K8sServiceSelectorNamespace selects services by their labels; without
// namespace, in any.
type K8sServiceSelectorNamespace struct {
	Selector  EndpointSelector `json:"selector"`
	Namespace string           `json:"namespace,omitempty"`
}

// ICMPRule lists ICMP messages.
type ICMPRule struct {
	Fields []ICMPField `json:"fields,omitzero"`
}

// ICMPField is one type of ICMP message, by number or name; see Number.
type ICMPField struct {
	Family string             `json:"family,omitempty"` // FamilyIPv4 if empty
	Type   intstr.IntOrString `json:"type"`
}
