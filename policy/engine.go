package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"time"

	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy/dnsrules"
)

// The objects policies are evaluated against, as little of each as they need.
type (
	// Pod is a pod of any node. Terminal pods (Succeeded, Failed) are not
	// given to the engine: they own no address.
	Pod struct {
		Namespace, Name string
		UID             string
		Node            string
		Labels          map[string]string
		ServiceAccount  string
		HostNetwork     bool
		Addresses       []netip.Addr
		Ports           []NamedPort
		HostPorts       []HostPort
		// Created orders pods that claim one address: of those that are not Deleting
		// the newest owns it, else the newest of the others.
		Created  int64 // seconds since the epoch
		Deleting bool  // its deletion was asked for
	}
	// NamedPort is a container port with a name.
	NamedPort struct {
		Name     string
		Protocol uint8
		Port     uint16
	}
	Namespace struct {
		Name   string
		Labels map[string]string
	}
	Node struct {
		Name      string
		Labels    map[string]string
		Addresses []netip.Addr
		PodCIDRs  []netip.Prefix
	}
	Service struct {
		Namespace, Name string
		Labels          map[string]string
		Selector        map[string]string
		ClusterIPs      []netip.Addr
		ExternalIPs     []netip.Addr // and load-balancer addresses
		// ProxiedIPs are those of them that the load balancer answers itself
		// (ipMode Proxy): nobody on the way may take its place.
		ProxiedIPs []netip.Addr
		Ports      []ServicePort
		// Affinity is that of clients to backends (sessionAffinity ClientIP); 0: none.
		Affinity time.Duration
		// InternalLocal: by its cluster IPs only backends on the client's node are
		// reached (internalTrafficPolicy Local).
		InternalLocal bool
		// OtherProxy: it is not kube-proxy that serves it
		// (service.kubernetes.io/service-proxy-name).
		OtherProxy bool
	}
	ServicePort struct {
		Name     string
		Protocol uint8
		Port     uint16
		NodePort uint16
		// Where it leads in a pod, by number or name; neither: Port. It counts
		// where the service selects pods and no EndpointSlice of it is there.
		TargetPort uint16
		TargetName string
	}
	EndpointSlice struct {
		Namespace, Name string
		Service         string // kubernetes.io/service-name
		Ports           []SlicePort
		Addresses       []netip.Addr // of endpoints that serve (ready, or serving while terminating)
		Backends        []SliceBackend
	}
	// SliceBackend is one of Addresses, with what matters for who is sent there.
	SliceBackend struct {
		Addr        netip.Addr
		Node        string
		Terminating bool // and serving, but not ready
	}
	SlicePort struct {
		Name     string
		Protocol uint8
		Port     uint16
	}
)

// Object is a key of what the engine holds: kind is one of Pod, Namespace,
// Node, Service, EndpointSlice, NetworkPolicy, CiliumNetworkPolicy,
// CiliumClusterwideNetworkPolicy, CiliumCIDRGroup, NameSet, which is an
// asker's, and HostAddresses and Stranger, which are the node's own.
type Object struct{ Kind, Namespace, Name string }

// Change is an object's new state. Value is nil (gone), or a *Pod,
// *Namespace, *Node, *Service, *EndpointSlice, *NameSet, *HostAddresses, *Stranger, or an
// *api.Policy or *api.CIDRGroup as the decoder made it, refused ones included
// (Refused set): the engine closes what they would select.
type Change struct {
	Object Object
	Value  any
}

// Options of an Engine.
type Options struct {
	// NodeName is this node: its addresses (those of its Node object and
	// HostAddresses) are identity host, the others' remote-node; policies are
	// resolved for its pods.
	NodeName string
	// Seeds are the numbers a predecessor gave out.
	Seeds Seeds
	// Failsafe is what policies for nodes are not asked about.
	Failsafe []Failsafe
	// Resolvers says which services are the cluster's DNS, for
	// Delta.Resolvers. Without labels: those labelled k8s-app=kube-dns in
	// kube-system.
	Resolvers ResolverServices
}

// ResolverServices are the services of a namespace with all of these labels;
// namespace "": of any.
type ResolverServices struct {
	Namespace string
	Labels    map[string]string
}

// Seeds are numbers given out before, per kind (see identity.NewAllocator).
type Seeds struct{ Identities, Policies, RuleSets, Rules map[uint32]identity.Digest }

// Delta is what a batch of changes made of the tables: desired state after it,
// less desired state before. Whoever applies it keeps the order: new rule
// sets, then new policies and entries, then prefixes and endpoints, then
// deletes in the reverse order.
type Delta struct {
	// Prefixes: 0 as identity means the prefix is gone.
	Prefixes map[netip.Prefix]Peer
	// Policies by policy id; nil: gone.
	Policies map[uint32]*Resolved
	// Endpoints by address of a local pod that is not on the host network;
	// nil: gone.
	Endpoints map[netip.Addr]*Endpoint
	// Strangers, by the name of the change that spoke of them: under which policy
	// they are; nil: under none, they are left alone.
	Strangers map[string]*Guess
	// RuleSets by id; nil: gone.
	RuleSets map[uint32]*RuleSet
	// Names by identity: what the addresses of toFQDNs selectors are known as;
	// nil: gone. There is one for each selector, and one for each combination
	// that a change of kind NameSet asked for. Selectors of a namespace are there
	// where its policies have DNS rules whose servers are believed. An address that
	// answers gave to names gets the identity of exactly those selectors that match
	// one of them: answers that count for all those without a namespace, others
	// those of the namespace. Combinations that a selector's own text makes sure of
	// (a name that patterns match as well) are there from the start. A new one is
	// told to the proxy after its policy entries are written; one that goes, before
	// they are deleted.
	Names map[identity.ID]*NameSet
	// Pairs are the identities under which policies have what rules about
	// addresses and rules about names say together of an address that is both,
	// where that is not what they say one by one; 0: gone. Whoever knows an
	// address as such a pair asks for that identity first, then for the two. A
	// new one is told after the policy entries are written; one that goes,
	// before they are deleted.
	Pairs map[Pair]identity.ID
	// Resolvers, if not nil, are where the cluster's DNS service answers after
	// this batch, cluster IPs and backends, ordered: what they say is believed,
	// and counts for all policies.
	Resolvers []Server
	// Services tells where pods' connections to services and host ports go; nil: the
	// frontend is gone.
	Services map[Frontend]*Backends
	// Fronts are what policy makes of the addresses and ports of services beside
	// their cluster IPs, and of host ports; nil: gone. The unspecified address stands
	// for all that are Peer.Node. A new one is told after the policy entries and prefixes are
	// written; one that goes, before they are deleted.
	Fronts map[Frontend]*Front
	// NodeAddresses serve node ports (true), or don't any more.
	NodeAddresses map[netip.Addr]bool
	// Host, if not nil, is what is enforced on the node itself after this batch.
	Host *HostPolicy
	// Numbers that must be remembered before anything uses them, and those
	// that can be forgotten after everything else was applied.
	Numbers Seeds
	Freed   Seeds
}

// Peer is what an address prefix stands for.
type Peer struct {
	Identity identity.ID
	// World: an outside address; what DNS taught about it counts as well.
	World bool
	// Host: an address of this node, by which the node itself is told from what
	// passes by. Its identity is not always identity.Host: IP blocks that the
	// address lies in make it another.
	Host bool
	// Node: an address of some node, this one included: it may serve node ports.
	Node bool
}

// Server is where names are asked for.
type Server struct {
	Addr     netip.AddrPort // not IPv4 in IPv6 form
	Protocol uint8
}

// String is for people and logs: address, port and the protocol's number.
func (s Server) String() string { return fmt.Sprintf("%s/%d", s.Addr, s.Protocol) }

// Compare orders servers.
func (s Server) Compare(o Server) int {
	return cmp.Or(s.Addr.Compare(o.Addr), cmp.Compare(s.Protocol, o.Protocol))
}

// Pair is what an outside address is known as: by the longest prefix it lies
// in, and by its names.
type Pair struct{ Outside, Names identity.ID }

// NameSet is a combination of toFQDNs selectors, ordered, each of which some
// name of an address matches. As the value of a Change of kind NameSet it asks
// for an identity (Object.Name is free for the asker to choose, and unique per
// set); selectors that no policy has are left out.
type NameSet struct {
	Selectors []dnsrules.Selector `json:"selectors"`
}

// Endpoint is a pod of this node.
type Endpoint struct {
	Namespace, Name, UID string
	Identity             identity.ID // of the address: the pod's labels, and the IP blocks that it lies in
	Labels               identity.ID // of the labels alone; that of packets from other addresses
	Policy               uint32      // key of Delta.Policies
	Deleting             bool        // it gets no other interface than it has
}

// Resolved is the policy of one label set: what the kernel's policy map says
// under one policy id.
type Resolved struct {
	// Enforced tells per direction whether the entries decide; if not,
	// everything passes.
	Enforced [2]bool
	// Entries are the engine's: from the next Apply on it changes them in place.
	Entries map[Key]Entry
	// Edited, if not nil, are the keys of all entries that may differ from those
	// in the Delta before that spoke of this policy: they came, went or changed.
	Edited []Key
	// Selecting names the policies that put the subject under default deny, per
	// direction: what that is explained with.
	Selecting [2][]string
	// Adding names the policies whose rules count though they put nothing under
	// default deny; Open tells that no policy does: what no rule denies passes.
	Adding [2][]string
	Open   [2]bool
}

// RuleRef names the rule behind a number.
type RuleRef struct {
	Policy string `json:"policy"` // "CiliumNetworkPolicy shop/web", kind and name as in kubectl
	Rule   string `json:"rule"`   // field path in the object: "spec.ingress[1].toPorts[0]"
	File   string `json:"file,omitempty"`
	Line   int    `json:"line,omitempty"`
}
