package api

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// The types below are what the custom resources' schemas are generated from,
// and what their status is written with. They are not what objects are decoded
// with: see Document.Policy.

// CiliumNetworkPolicy says what pods of its namespace may send and receive, on
// top of what NetworkPolicy can say: by names, by classes of peers, and by what
// is inside HTTP and DNS.
// +kubebuilder:object:root=true
// +kubebuilder:resource:path=ciliumnetworkpolicies,singular=ciliumnetworkpolicy,scope=Namespaced,shortName={cnp,ciliumnp},categories={cilium,ciliumpolicy}
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=".metadata.creationTimestamp"
// +kubebuilder:printcolumn:name="Valid",type=string,JSONPath=".status.conditions[?(@.type=='Valid')].status"
// +kubebuilder:printcolumn:name="Enforced",type=string,JSONPath=".status.conditions[?(@.type=='Enforced')].status",description="False: something in it is accepted and not enforced"
// +kubebuilder:subresource:status
// +kubebuilder:validation:XValidation:rule="has(self.spec) || has(self.specs)",message="needs spec or specs"
type CiliumNetworkPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	// One rule.
	// +optional
	// +kubebuilder:validation:XValidation:rule="!has(self.nodeSelector)",message="only a CiliumClusterwideNetworkPolicy selects nodes"
	Spec *Rule `json:"spec,omitempty"`
	// Several rules, beside spec or in its place.
	// +optional
	// +kubebuilder:validation:XValidation:rule="self.all(r, !has(r.nodeSelector))",message="only a CiliumClusterwideNetworkPolicy selects nodes"
	Specs []Rule `json:"specs,omitzero"`
	// What became of the policy. Written by Weir.
	// +optional
	Status PolicyStatus `json:"status,omitzero"`
}

// CiliumClusterwideNetworkPolicy says what pods of all namespaces may send and
// receive.
// +kubebuilder:object:root=true
// +kubebuilder:resource:path=ciliumclusterwidenetworkpolicies,singular=ciliumclusterwidenetworkpolicy,scope=Cluster,shortName=ccnp,categories={cilium,ciliumpolicy}
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=".metadata.creationTimestamp"
// +kubebuilder:printcolumn:name="Valid",type=string,JSONPath=".status.conditions[?(@.type=='Valid')].status"
// +kubebuilder:printcolumn:name="Enforced",type=string,JSONPath=".status.conditions[?(@.type=='Enforced')].status",description="False: something in it is accepted and not enforced"
// +kubebuilder:subresource:status
// +kubebuilder:validation:XValidation:rule="has(self.spec) || has(self.specs)",message="needs spec or specs"
type CiliumClusterwideNetworkPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	// One rule.
	// +optional
	Spec *Rule `json:"spec,omitempty"`
	// Several rules, beside spec or in its place.
	// +optional
	Specs []Rule `json:"specs,omitzero"`
	// What became of the policy. Written by Weir.
	// +optional
	Status PolicyStatus `json:"status,omitzero"`
}

// PolicyStatus tells what became of a policy.
type PolicyStatus struct {
	// Valid: whether the policy is enforced, or refused, and why. Enforced:
	// there only where a part of it is not, or its traffic is denied instead.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []Condition `json:"conditions,omitempty"`
}

// ConditionType names what a condition speaks of.
type ConditionType string

// The conditions of a policy. ConditionEnforced is there only where it is False.
const (
	ConditionValid    ConditionType = "Valid"
	ConditionEnforced ConditionType = "Enforced"
)

// Condition is one thing that holds of a policy or does not.
type Condition struct {
	// What it speaks of.
	Type ConditionType `json:"type"`
	// Whether it holds: True, False or Unknown.
	Status metav1.ConditionStatus `json:"status"`
	// Since when.
	// +optional
	LastTransitionTime metav1.Time `json:"lastTransitionTime,omitzero"`
	// Why, in one word.
	// +optional
	Reason string `json:"reason,omitempty"`
	// Why, for people.
	// +optional
	Message string `json:"message,omitempty"`
}

// CiliumCIDRGroup names prefixes outside the cluster, for policies to refer to.
// +kubebuilder:object:root=true
// +kubebuilder:resource:path=ciliumcidrgroups,singular=ciliumcidrgroup,scope=Cluster,shortName=ccg,categories={cilium}
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=".metadata.creationTimestamp"
type CiliumCIDRGroup struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	// The prefixes.
	Spec CIDRGroupSpec `json:"spec"`
}

// CIDRGroupSpec lists the prefixes of a group.
type CIDRGroupSpec struct {
	// Prefixes: "10.0.0.0/8", "2001:db8::/32".
	ExternalCIDRs []CIDR `json:"externalCIDRs"`
}
