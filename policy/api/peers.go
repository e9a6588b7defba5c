package api

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Label sources. A selector's key may begin with one and a colon; what has
// none is of any source.
const (
	SourceAny       = "any"
	SourceK8s       = "k8s"
	SourceReserved  = "reserved"
	SourceCIDR      = "cidr"
	SourceCIDRGroup = "cidrgroup"
)

// Operator is what a label requirement asks.
// +kubebuilder:validation:Enum=In;NotIn;Exists;DoesNotExist
type Operator string

// The operators of matchExpressions.
const (
	In           Operator = "In"
	NotIn        Operator = "NotIn"
	Exists       Operator = "Exists"
	DoesNotExist Operator = "DoesNotExist"
)

// EndpointSelector selects by labels; without any requirement, everything in
// its scope. Keys are as written, source included ("k8s:app", "app").
type EndpointSelector struct {
	// Labels and their values; all of them must fit. A key may begin with where
	// the label comes from: "k8s:app".
	// +optional
	MatchLabels map[string]string `json:"matchLabels,omitempty"`
	// Further conditions; all of them must hold.
	// +optional
	MatchExpressions []LabelRequirement `json:"matchExpressions,omitempty"`
}

// LabelRequirement is one item of matchExpressions, as written.
type LabelRequirement struct {
	// The label's key; it may begin with where the label comes from: "k8s:app".
	// +kubebuilder:validation:MinLength=1
	Key string `json:"key"`
	// In, NotIn: whether the label has one of the values. Exists, DoesNotExist:
	// whether there is such a label.
	Operator Operator `json:"operator"`
	// What In and NotIn compare with; empty for the others.
	// +optional
	// +kubebuilder:validation:items:MaxLength=63
	// +kubebuilder:validation:items:Pattern=`^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$`
	Values []string `json:"values,omitempty"`
}

// Requirement is one condition of a selector, with the key's source split off.
// All of a selector's must hold.
type Requirement struct {
	Source   string // SourceAny where the key named none
	Key      string
	Operator Operator
	Values   []string // sorted, without duplicates
}

// Requirements lists what the selector asks: matchLabels (as In with one
// value) by key, then matchExpressions in their order. A key without a source
// gets defaultSource (SourceAny, or SourceCIDRGroup in a cidrGroupSelector).
// A nil receiver asks nothing.
func (s *EndpointSelector) Requirements(defaultSource string) []Requirement {
	if s == nil {
		return nil
	}
	out := make([]Requirement, 0, len(s.MatchLabels)+len(s.MatchExpressions))
	for _, k := range sortedKeys(s.MatchLabels) {
		source, key := SplitKey(k, defaultSource)
		out = append(out, Requirement{Source: source, Key: key, Operator: In, Values: []string{s.MatchLabels[k]}})
	}
	for _, e := range s.MatchExpressions {
		source, key := SplitKey(e.Key, defaultSource)
		values := slices.Clone(e.Values)
		slices.Sort(values)
		out = append(out, Requirement{Source: source, Key: key, Operator: e.Operator, Values: slices.Compact(values)})
	}
	return out
}

// SplitKey splits a selector's key at its source.
func SplitKey(key, defaultSource string) (source, rest string) {
	if source, rest, ok := strings.Cut(key, ":"); ok && source != "" {
		return source, rest
	}
	return defaultSource, strings.TrimPrefix(key, ":")
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// CIDR is a prefix in text: "10.0.0.0/8". Host bits may be set, and do not count.
// +kubebuilder:validation:Format=cidr
type CIDR string

// CIDRRule is a prefix, or the prefixes of groups, less exceptions. Exactly
// one of CIDR, CIDRGroupRef and CIDRGroupSelector is set.
type CIDRRule struct {
	// A prefix: "10.0.0.0/8", "2001:db8::/32". Host bits may be set, and do not count.
	// +optional
	CIDR CIDR `json:"cidr,omitempty"`
	// The prefixes of the CiliumCIDRGroup of this name.
	// +optional
	CIDRGroupRef string `json:"cidrGroupRef,omitempty"`
	// The prefixes of all CiliumCIDRGroups with these labels.
	// +optional
	CIDRGroupSelector *EndpointSelector `json:"cidrGroupSelector,omitempty"`
	// Addresses that are not meant; another rule may speak of them.
	// +optional
	Except []CIDR `json:"except,omitzero"`
}

// CIDRGroup is a CiliumCIDRGroup: named prefixes outside the cluster.
type CIDRGroup struct {
	Name   string
	UID    string
	Labels map[string]string
	Source Position

	ExternalCIDRs []CIDR
	// Refused tells why the object does not count as written; empty: it does.
	// A refused group has no prefixes: what allows it allows nobody, and what
	// denies it can't know whom.
	Refused []*Error
	// Warnings tell what is suspicious about it.
	Warnings []*Error
}

// Entity names a class of peers.
// +kubebuilder:validation:Enum=all;world;cluster;cluster-mesh;host;init;ingress;unmanaged;remote-node;health;none;kube-apiserver
type Entity string

// All entities of Cilium. World-ipv4 and world-ipv6 exist in selectors and
// questions, not in policy objects.
const (
	EntityAll           Entity = "all"
	EntityWorld         Entity = "world"
	EntityWorldIPv4     Entity = "world-ipv4"
	EntityWorldIPv6     Entity = "world-ipv6"
	EntityCluster       Entity = "cluster"
	EntityClusterMesh   Entity = "cluster-mesh"
	EntityHost          Entity = "host"
	EntityInit          Entity = "init"
	EntityIngress       Entity = "ingress"
	EntityUnmanaged     Entity = "unmanaged"
	EntityRemoteNode    Entity = "remote-node"
	EntityHealth        Entity = "health"
	EntityNone          Entity = "none"
	EntityKubeAPIServer Entity = "kube-apiserver"
)

// Entities lists those a policy may name.
func Entities() []Entity {
	return []Entity{
		EntityAll, EntityWorld, EntityCluster, EntityClusterMesh, EntityHost, EntityInit, EntityIngress,
		EntityUnmanaged, EntityRemoteNode, EntityHealth, EntityNone, EntityKubeAPIServer,
	}
}

// Prefix returns the prefix, host bits masked.
func (c CIDR) Prefix() (netip.Prefix, error) {
	p, err := netip.ParsePrefix(string(c))
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("parse CIDR: %w", err)
	}
	return p.Masked(), nil
}
