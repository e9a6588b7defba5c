package api

import (
	networkingv1 "k8s.io/api/networking/v1"
)

// Kinds of policy objects.
const (
	KindNetworkPolicy   = "NetworkPolicy"
	KindCiliumPolicy    = "CiliumNetworkPolicy"
	KindClusterwide     = "CiliumClusterwideNetworkPolicy"
	KindCiliumCIDRGroup = "CiliumCIDRGroup"
)

// Policy is one policy object as it was read.
type Policy struct {
	Kind            string
	Namespace, Name string
	UID             string
	Source          Position

	// NetworkPolicy is set for that kind, Rules for Cilium's: spec first, then
	// specs in their order. Path names each rule's place ("spec", "specs[1]").
	NetworkPolicy *networkingv1.NetworkPolicySpec
	Rules         []*Rule
	Paths         []string

	// Refused tells why the object is not enforced as written; empty: it is.
	// Then Closed holds instead of Rules and NetworkPolicy, which are nil.
	// Closed may be empty: an object that would have denied nothing closes
	// nothing. A refused object may have no Name.
	Refused []*Error
	Closed  []Closure

	// Warnings tell what is suspicious about it, refused or not. They change
	// nothing.
	Warnings []*Error

	// Lines finds the line of a field path ("spec.ingress[0]") in Source.File;
	// nil where the object did not come from text.
	Lines map[string]int
}

// Closure is what a refused policy closes: everything of its subjects in the
// directions it speaks of.
type Closure struct {
	// Subjects selects pods; nil: it could not be read, so every pod of the
	// policy's namespace (of the cluster for a clusterwide one) is meant.
	Subjects *EndpointSelector
	// Nodes: the rule selects nodes, not pods.
	Nodes           bool
	Ingress, Egress bool
}

// Position is a place in a file.
type Position struct {
	File     string // as it was named; "" for objects not from a file
	Document int    // from 1
	Line     int    // from 1, of the document's first line
}
