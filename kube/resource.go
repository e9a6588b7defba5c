package kube

import (
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/weirnet/weir/policy/api"
)

// resource is a kind as the API server serves it.
type resource struct {
	kind           string
	group, version string
	plural         string
	// optional: a cluster may not have it; its CRD is not installed.
	optional bool
	// slim makes an item of a decoded object; nil: the object is kept as JSON,
	// for the strict decoder of policies.
	slim slimmer
}

// resources are what is read of a cluster.
func resources() []*resource {
	return []*resource{
		{kind: "Namespace", version: "v1", plural: "namespaces", slim: slimAs(namespace)},
		{kind: "Node", version: "v1", plural: "nodes", slim: slimAs(node)},
		{kind: "Pod", version: "v1", plural: "pods", slim: slimAs(pod)},
		{kind: "Service", version: "v1", plural: "services", slim: slimAs(service)},
		{kind: "EndpointSlice", group: discoveryv1.GroupName, version: "v1", plural: "endpointslices", slim: slimAs(endpointSlice)},
		{kind: api.KindNetworkPolicy, group: "networking.k8s.io", version: "v1", plural: "networkpolicies"},
		{kind: api.KindCiliumPolicy, group: "cilium.io", version: "v2", plural: "ciliumnetworkpolicies", optional: true},
		{kind: api.KindClusterwide, group: "cilium.io", version: "v2", plural: "ciliumclusterwidenetworkpolicies", optional: true},
		{kind: api.KindCiliumCIDRGroup, group: "cilium.io", version: "v2", plural: "ciliumcidrgroups", optional: true},
	}
}

func (r *resource) apiVersion() string {
	if r.group == "" {
		return r.version
	}
	return r.group + "/" + r.version
}

// path is where the objects of all namespaces are.
func (r *resource) path() string {
	if r.group == "" {
		return "/api/" + r.version + "/" + r.plural
	}
	return "/apis/" + r.group + "/" + r.version + "/" + r.plural
}

// String is its name as kubectl has it: "ciliumcidrgroups.cilium.io".
func (r *resource) String() string {
	if r.group == "" {
		return r.plural
	}
	return r.plural + "." + r.group
}
