package api

import (
	"k8s.io/apimachinery/pkg/util/intstr"
)

// The types below have the JSON names of Cilium's policy API, version 2. A
// list that was not written is nil, one that was written empty is not: the two
// mean different things, and encoding keeps them apart (omitzero).
//
// What stands above a type or a field is what `kubectl explain` says of it, and
// the markers below it are in the schema of the custom resources: deploy/crds
// is generated from here. The schema may refuse nothing that the decoder takes.

// Rule says what the selected pods may send and receive.
//
// A direction that has rules is closed but for what they allow. Deny rules win
// over allow rules, also over those of other policies.
type Rule struct {
	// The pods that the rule holds for, by their labels: in the policy's own
	// namespace, or in all of them if the policy is clusterwide. {} selects every pod.
	// +optional
	EndpointSelector *EndpointSelector `json:"endpointSelector,omitempty"`
	// The nodes that the rule holds for, by their labels; clusterwide policies
	// only. What nodes need to be reached themselves passes all the same.
	// +optional
	NodeSelector *EndpointSelector `json:"nodeSelector,omitempty"`
	// What may reach the pods. Each item allows; [{}] allows nothing, and puts
	// the pods under default deny.
	// +optional
	Ingress []IngressRule `json:"ingress,omitzero"`
	// What may not reach the pods, whatever else allows it.
	// +optional
	IngressDeny []IngressDenyRule `json:"ingressDeny,omitzero"`
	// Where the pods may send to. Each item allows; [{}] allows nothing, and
	// puts the pods under default deny.
	// +optional
	Egress []EgressRule `json:"egress,omitzero"`
	// Where the pods may not send to, whatever else allows it.
	// +optional
	EgressDeny []EgressDenyRule `json:"egressDeny,omitzero"`
	// Labels of the rule itself. They change nothing.
	// +optional
	Labels []Label `json:"labels,omitzero"`
	// Whether the rule closes a direction for what it does not allow. Not
	// written: it does where it has rules. false lets a rule only add.
	// +optional
	EnableDefaultDeny *DefaultDenyConfig `json:"enableDefaultDeny,omitempty"`
	// A text for people.
	// +optional
	Description string `json:"description,omitempty"`
	// A text for the log of flows that the rule decides.
	// +optional
	Log *LogConfig `json:"log,omitempty"`
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
	// false: what no rule speaks of may reach the pods.
	// +optional
	Ingress *bool `json:"ingress,omitempty"`
	// false: the pods may send to what no rule speaks of.
	// +optional
	Egress *bool `json:"egress,omitempty"`
}

// Label is a label of the rule itself, for reporting only.
type Label struct {
	// The label's key.
	// +kubebuilder:validation:MinLength=1
	Key string `json:"key"`
	// Where the label comes from, such as "k8s".
	// +optional
	Source string `json:"source,omitempty"`
	// The label's value.
	// +optional
	Value string `json:"value,omitempty"`
}

// LogConfig carries a text for the flow log.
type LogConfig struct {
	// Up to 32 printable characters.
	// +optional
	// +kubebuilder:validation:MaxLength=32
	Value string `json:"value,omitempty"`
}

// IngressPeers are the peers of an ingress rule. At most one list has items.
type IngressPeers struct {
	// Senders that are pods, by their labels; an item allows those that all of
	// its labels fit. In a namespaced policy they are of its own namespace,
	// unless the item asks for one (k8s:io.kubernetes.pod.namespace). [{}] is
	// every pod there, [] nobody.
	// +optional
	FromEndpoints []EndpointSelector `json:"fromEndpoints,omitzero"`
	// No longer exists: must be empty. Write a deny rule instead.
	// +optional
	FromRequires []string `json:"fromRequires,omitzero"` // refused with items
	// Senders outside the cluster, by their addresses. Pods and nodes are not
	// meant, even if their addresses lie within.
	// +optional
	FromCIDR []CIDR `json:"fromCIDR,omitzero"`
	// Senders outside the cluster, by their addresses, with exceptions.
	// +optional
	FromCIDRSet []CIDRRule `json:"fromCIDRSet,omitzero"`
	// Senders of a class: world, cluster, host, remote-node, kube-apiserver, all, ...
	// +optional
	FromEntities []Entity `json:"fromEntities,omitzero"`
	// Not supported: must be empty.
	// +optional
	FromGroups []Groups `json:"fromGroups,omitzero"` // refused with items
	// Senders that are other nodes of the cluster, by their labels.
	// +optional
	FromNodes []EndpointSelector `json:"fromNodes,omitzero"`
}

// EgressPeers are the peers of an egress rule. At most one list has items.
type EgressPeers struct {
	// Receivers that are pods, by their labels; an item allows those that all
	// of its labels fit. In a namespaced policy they are of its own namespace,
	// unless the item asks for one (k8s:io.kubernetes.pod.namespace). [{}] is
	// every pod there, [] nobody.
	// +optional
	ToEndpoints []EndpointSelector `json:"toEndpoints,omitzero"`
	// No longer exists: must be empty. Write a deny rule instead.
	// +optional
	ToRequires []string `json:"toRequires,omitzero"` // refused with items
	// Receivers outside the cluster, by their addresses. Pods and nodes are not
	// meant, even if their addresses lie within.
	// +optional
	ToCIDR []CIDR `json:"toCIDR,omitzero"`
	// Receivers outside the cluster, by their addresses, with exceptions.
	// +optional
	ToCIDRSet []CIDRRule `json:"toCIDRSet,omitzero"`
	// Receivers of a class: world, cluster, host, remote-node, kube-apiserver, all, ...
	// +optional
	ToEntities []Entity `json:"toEntities,omitzero"`
	// Receivers behind a Kubernetes service. One that is nowhere stands for nobody.
	// +optional
	ToServices []Service `json:"toServices,omitzero"`
	// Not supported: must be empty.
	// +optional
	ToGroups []Groups `json:"toGroups,omitzero"` // refused with items
	// Receivers that are other nodes of the cluster, by their labels.
	// +optional
	ToNodes []EndpointSelector `json:"toNodes,omitzero"`
}

// IngressRule allows: what comes from one of its peers to one of its ports.
// Without peers it allows any, without ports all of them; without both, nothing.
type IngressRule struct {
	IngressPeers `json:",inline"`
	// Ports of the pods that may be reached, and what may pass through them.
	// Several items add up.
	// +optional
	ToPorts []PortRule `json:"toPorts,omitzero"`
	// ICMP messages that may come in. Not beside toPorts.
	// +optional
	ICMPs []ICMPRule `json:"icmps,omitzero"`
	// Mutual authentication is not supported: only mode "disabled" may stand here.
	// +optional
	Authentication *Authentication `json:"authentication,omitempty"` // "disabled", else refused
}

// IngressDenyRule denies: what comes from one of its peers to one of its ports.
type IngressDenyRule struct {
	IngressPeers `json:",inline"`
	// Ports of the pods that are closed.
	// +optional
	ToPorts []PortDenyRule `json:"toPorts,omitzero"`
	// ICMP messages that may not come in. Not beside toPorts.
	// +optional
	ICMPs []ICMPRule `json:"icmps,omitzero"`
}

// EgressRule allows: what goes to one of its peers and one of its ports.
// Without peers it allows any, without ports all of them; without both, nothing.
// ToFQDNs is a peer list as those of EgressPeers.
type EgressRule struct {
	EgressPeers `json:",inline"`
	// Ports of the receivers that may be reached, and what may pass through
	// them. Several items add up.
	// +optional
	ToPorts []PortRule `json:"toPorts,omitzero"`
	// Receivers outside the cluster, by their DNS names: the addresses that
	// trusted DNS servers gave the pods of this node for them. The pods must be
	// allowed to ask a DNS server.
	// +optional
	ToFQDNs []FQDNSelector `json:"toFQDNs,omitzero"`
	// ICMP messages that may go out. Not beside toPorts.
	// +optional
	ICMPs []ICMPRule `json:"icmps,omitzero"`
	// Mutual authentication is not supported: only mode "disabled" may stand here.
	// +optional
	Authentication *Authentication `json:"authentication,omitempty"` // "disabled", else refused
}

// EgressDenyRule denies: what goes to one of its peers and one of its ports.
type EgressDenyRule struct {
	EgressPeers `json:",inline"`
	// Ports of the receivers that are closed.
	// +optional
	ToPorts []PortDenyRule `json:"toPorts,omitzero"`
	// ICMP messages that may not go out. Not beside toPorts.
	// +optional
	ICMPs []ICMPRule `json:"icmps,omitzero"`
}

// PortRule names ports, and what must hold of what passes through them.
type PortRule struct {
	// The ports. An item without any says nothing; leave toPorts out to mean all.
	// +optional
	// +kubebuilder:validation:MaxItems=40
	Ports []PortProtocol `json:"ports,omitzero"`
	// Not supported: TLS is not opened.
	// +optional
	TerminatingTLS *TLSContext `json:"terminatingTLS,omitempty"` // refused
	// Not supported: TLS is not opened.
	// +optional
	OriginatingTLS *TLSContext `json:"originatingTLS,omitempty"` // refused
	// Names a TLS client may ask for (SNI); * stands for any letters of one
	// part. Not enforced yet: all traffic of these ports is denied.
	// +optional
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:items:MaxLength=255
	// +kubebuilder:validation:items:Pattern=`^[-_*a-zA-Z0-9]+(\.[-_*a-zA-Z0-9]+)*\.?$`
	ServerNames []string `json:"serverNames,omitzero"`
	// Not supported: there is no Envoy.
	// +optional
	Listener *Listener `json:"listener,omitempty"` // refused
	// What may pass, request by request. What no rule allows is denied.
	// +optional
	Rules *L7Rules `json:"rules,omitempty"`
}

// PortDenyRule names ports.
type PortDenyRule struct {
	// The ports. An item without any says nothing; leave toPorts out to mean all.
	// +optional
	// +kubebuilder:validation:MaxItems=40
	Ports []PortProtocol `json:"ports,omitzero"`
}

// TLSContext refers to the secret of a TLS interception.
type TLSContext struct {
	// The secret with certificates.
	Secret *Secret `json:"secret"`
	// Entry of the secret with the authorities to trust.
	// +optional
	TrustedCA string `json:"trustedCA,omitempty"`
	// Entry of the secret with the certificate.
	// +optional
	Certificate string `json:"certificate,omitempty"`
	// Entry of the secret with the private key.
	// +optional
	PrivateKey string `json:"privateKey,omitempty"`
}

// Secret refers to a Kubernetes secret.
type Secret struct {
	// The secret's namespace.
	// +optional
	Namespace string `json:"namespace,omitempty"`
	// The secret's name.
	Name string `json:"name"`
}

// Listener refers to a custom Envoy listener.
type Listener struct {
	// The resource that defines the listener.
	EnvoyConfig *EnvoyConfig `json:"envoyConfig"`
	// The listener's name.
	// +kubebuilder:validation:MinLength=1
	Name string `json:"name"`
	// Which listener wins where several hold.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	Priority uint8 `json:"priority,omitempty"`
}

// EnvoyConfig names the resource that defines a listener.
type EnvoyConfig struct {
	// CiliumEnvoyConfig or CiliumClusterwideEnvoyConfig.
	// +optional
	Kind string `json:"kind"`
	// The resource's name.
	// +kubebuilder:validation:MinLength=1
	Name string `json:"name"`
}

// Authentication asks for mutual authentication of the peers.
type Authentication struct {
	// Only "disabled" is supported.
	// +kubebuilder:validation:Enum=disabled
	Mode string `json:"mode"`
}

// Groups refers to addresses kept by a cloud provider.
type Groups struct {
	// Addresses of AWS.
	// +optional
	AWS *AWSGroup `json:"aws,omitempty"`
}

// AWSGroup selects addresses of AWS.
type AWSGroup struct {
	// Labels of the instances.
	// +optional
	Labels map[string]string `json:"labels,omitempty"`
	// Security groups of the instances, by id.
	// +optional
	SecurityGroupsIDs []string `json:"securityGroupsIds,omitzero"`
	// Security groups of the instances, by name.
	// +optional
	SecurityGroupsNames []string `json:"securityGroupsNames,omitzero"`
	// The region.
	// +optional
	Region string `json:"region,omitempty"`
}

// Service names services: by selector, or by name.
type Service struct {
	// Services by their labels. It wins where k8sService is set, too.
	// +optional
	K8sServiceSelector *K8sServiceSelectorNamespace `json:"k8sServiceSelector,omitempty"`
	// One service by its name.
	// +optional
	K8sService *K8sServiceNamespace `json:"k8sService,omitempty"`
}

// K8sServiceNamespace is one service; without namespace, of that name in any.
type K8sServiceNamespace struct {
	// The service's name.
	// +optional
	ServiceName string `json:"serviceName,omitempty"`
	// The service's namespace; not written: any.
	// +optional
	Namespace string `json:"namespace,omitempty"`
}

// K8sServiceSelectorNamespace selects services by their labels; without
// namespace, in any.
type K8sServiceSelectorNamespace struct {
	// Labels of the services.
	Selector EndpointSelector `json:"selector"`
	// The services' namespace; not written: any.
	// +optional
	Namespace string `json:"namespace,omitempty"`
}

// ICMPRule lists ICMP messages.
type ICMPRule struct {
	// The messages.
	// +optional
	// +kubebuilder:validation:MaxItems=40
	Fields []ICMPField `json:"fields,omitzero"`
}

// ICMPField is one type of ICMP message, by number or name; see Number.
type ICMPField struct {
	// IPv4 (if not written) or IPv6.
	// +optional
	// +kubebuilder:validation:Enum=IPv4;IPv6
	Family string `json:"family,omitempty"` // FamilyIPv4 if empty
	// The type of message: a number (8), or a name (EchoRequest, DestinationUnreachable, ...).
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:Pattern=`^([0-9]|[1-9][0-9]|1[0-9]{2}|2[0-4][0-9]|25[0-5]|[A-Z][A-Za-z]+)$`
	Type intstr.IntOrString `json:"type"`
}
