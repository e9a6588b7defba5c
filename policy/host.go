package policy

import (
	"net/netip"
	"slices"
)

// KindHostAddresses is no object of the cluster, see HostAddresses.
const KindHostAddresses = "HostAddresses"

// HostAddresses are all addresses that this node was found to have, on whatever
// interface: there are more of them than its Node object names. It is the value
// of a Change of that kind, of which there is one, without a name; the next one
// takes its place. They are identity host, so no CIDR covers them and no answer
// can claim them.
//
// What the node has counts more than what objects say of the address, if they
// say that it is another node's or a pod's of another node: packets to it stay
// here. It counts less than a pod of this node, and than a service whose cluster
// IP it is: kube-proxy (IPVS) and node-local DNS caches put those on interfaces
// of their own, and what is sent there goes on to the backends.
type HostAddresses struct {
	Addresses []netip.Addr
	// Resolvers are the servers that the node itself asks for names.
	Resolvers []Server
}

func (e *Engine) takeHostAddresses(h *HostAddresses) {
	now := map[netip.Addr]struct{}{}
	if h != nil {
		for _, a := range h.Addresses {
			if a.IsValid() {
				now[a.Unmap().WithZone("")] = struct{}{}
			}
		}
	}
	for a := range now {
		if _, ok := e.claims.host[a]; !ok {
			e.claims.touch(a)
		}
	}
	for a := range e.claims.host {
		if _, ok := now[a]; !ok {
			e.claims.touch(a)
		}
	}
	e.claims.host = now
	e.host.resolvers = nil
	if h != nil {
		e.host.resolvers = slices.DeleteFunc(slices.Clone(h.Resolvers), func(s Server) bool { return !s.Addr.IsValid() })
	}
}

// onHost tells whether an address is this node's because one of its interfaces
// has it.
func (e *Engine) onHost(a netip.Addr) bool {
	c := e.claims
	if _, ok := c.host[a]; !ok || e.nodeName == "" {
		return false
	}
	if p := c.owner(a); p != nil && e.isLocal(p.src) {
		return false
	}
	return len(c.services[a]) == 0 || len(c.nodes[a]) > 0
}

// isLocal tells whether a pod runs on this node.
func (e *Engine) isLocal(p *Pod) bool { return e.nodeName != "" && p.Node == e.nodeName }

// runsAPIServer tells whether the API server has an address of the node.
func (e *Engine) runsAPIServer(node string) bool {
	for a := range e.claims.apiServers {
		if _, ok := e.claims.nodes[a][node]; ok || node == e.nodeName && e.onHost(a) {
			return true
		}
	}
	return false
}

// settleHost notes all addresses of this node if the API server came to one of
// them, or went: they are one identity.
func (e *Engine) settleHost() {
	api := e.nodeName != "" && e.runsAPIServer(e.nodeName)
	if api == e.apiServerHere {
		return
	}
	e.apiServerHere = api
	for a := range e.claims.host {
		e.claims.touch(a)
	}
	for a, names := range e.claims.nodes {
		if _, ok := names[e.nodeName]; ok {
			e.claims.touch(a)
		}
	}
}
