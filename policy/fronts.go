package policy

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/weirnet/weir/identity"
)

// Front is what policy makes of an address and port in front of a service that is
// no cluster IP of it: an external or load-balancer address, or a node port; or in
// front of a pod: a host port. Whoever sends there comes to the service's backends,
// by kube-proxy, or to the pod, so it is judged as the cluster IP or the pod is, and
// neither as the node nor as the world that the address is else.
type Front struct {
	// Identity is the service's or the pod's; 0: it can't be told whose it is, and
	// what pods whose egress policy is enforced send there is denied.
	Identity identity.ID
	// Port is the service's or the pod's own, which the entries of that identity are
	// about.
	Port uint16
}

// frontTable holds who claims fronts. Cluster IPs are claimed as well: they are no
// fronts, but whoever else claims one makes it one that nobody can tell about.
type frontTable struct {
	claims map[Frontend][]frontClaim // in the order of the services
	told   map[Frontend]Front
}

type frontClaim struct {
	service *service
	port    uint16
	cluster bool // as a cluster IP
}

func newFrontTable() *frontTable {
	return &frontTable{map[Frontend][]frontClaim{}, map[Frontend]Front{}}
}

// fronts are what a service claims. One that somebody else than kube-proxy is to
// serve has them, too. Headless ones have none.
func (s *service) fronts() map[Frontend]frontClaim {
	if s.src == nil || len(s.src.ClusterIPs) == 0 {
		return nil
	}
	out := map[Frontend]frontClaim{}
	for _, sp := range s.src.Ports {
		claim := func(a netip.Addr, port uint16, cluster bool) {
			if f := (Frontend{a.Unmap(), port, sp.Protocol}); a.IsValid() && port != 0 {
				if _, ok := out[f]; !ok {
					out[f] = frontClaim{s, sp.Port, cluster}
				}
			}
		}
		for _, a := range s.src.ExternalIPs {
			if !slices.Contains(s.src.ProxiedIPs, a) {
				claim(a, sp.Port, false)
			}
		}
		for _, six := range [...]bool{false, true} {
			if hasFamily(s.src.ClusterIPs, six) {
				claim(wildcard(six), sp.NodePort, false)
			}
		}
		for _, a := range s.src.ClusterIPs {
			claim(a, sp.Port, true)
		}
	}
	return out
}

func wildcard(six bool) netip.Addr {
	if six {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

// settleFronts brings what is told of fronts up to date with the services
// and host ports that changed, and holds the identities of services that it names.
func (e *Engine) settleFronts() error {
	var failed error
	touched := map[Frontend]struct{}{}
	t := e.fronts
	for s := range e.dirty.services {
		want := s.fronts()
		only := true // cluster IPs
		for f := range s.claims {
			t.claims[f] = slices.DeleteFunc(t.claims[f], func(c frontClaim) bool { return c.service == s })
			if touched[f] = struct{}{}; len(t.claims[f]) == 0 {
				delete(t.claims, f)
			}
		}
		for f, c := range want {
			only = only && c.cluster
			touched[f] = struct{}{}
			i, _ := slices.BinarySearchFunc(t.claims[f], c, func(a, b frontClaim) int { return compareObjects(a.service.object, b.service.object) })
			t.claims[f] = slices.Insert(t.claims[f], i, c)
		}
		s.claims = want
		switch {
		case only && s.front != nil:
			e.peers.release(s.front)
			s.front = nil
		case !only && s.front == nil:
			p, err := e.peers.acquire(newServicePeer(s.object))
			if err != nil {
				failed = fmt.Errorf("service %s/%s: %w", s.object.Namespace, s.object.Name, err)
				continue // its fronts are denied
			}
			s.front = p
		}
	}
	for f := range touched {
		e.hostPorts.touchClaimed(f)
	}
	maps.Copy(touched, e.hostPorts.touched)
	for f := range touched {
		now, is := e.hostPortFront(f)
		if !is {
			now, is = t.front(f)
		}
		was, had := t.told[f]
		if is == had && now == was {
			continue
		}
		if e.delta.Fronts == nil {
			e.delta.Fronts = map[Frontend]*Front{}
		}
		if !is {
			delete(t.told, f)
			e.delta.Fronts[f] = nil
			continue
		}
		t.told[f] = now
		e.delta.Fronts[f] = &now
	}
	return failed
}

// front tells what claims make of an address and port.
func (t *frontTable) front(f Frontend) (_ Front, ok bool) {
	claims := t.claims[f]
	if !slices.ContainsFunc(claims, func(c frontClaim) bool { return !c.cluster }) {
		return Front{}, false
	}
	if c := claims[0]; len(claims) == 1 && c.service.front != nil {
		return Front{c.service.front.id, c.port}, true
	}
	return Front{}, true
}

// frontOf finds the front that a flow from a pod to this end comes to, as the kernel
// does: by the address itself, then, if that is a node's or on the pod's own link,
// among the node ports.
func (e *Engine) frontOf(from, to end, proto uint8, port uint16) (f Frontend, ok bool) {
	if from.pod == nil {
		return f, false
	}
	near := to.addr.IsValid() && linkLocal6.Contains(to.addr)
	for _, a := range e.frontAddresses(from, to) {
		f = Frontend{a, port, proto}
		if _, ok := e.fronts.told[f]; ok && (len(e.hostPorts.claims[f]) == 0 || e.knows(from, to)) {
			return f, true
		}
	}
	switch {
	case to.isNode, to.other != nil && (to.other.kind == nodePeer || to.other.kind == hostPeer), near:
	default:
		return f, false
	}
	for _, six := range [...]bool{false, true} {
		f = Frontend{wildcard(six), port, proto}
		if _, ok := e.fronts.told[f]; ok && (!to.addr.IsValid() || to.addr.Is6() == six) {
			return f, true
		}
	}
	return f, false
}

// frontAddresses are the addresses, in order, at which fronts may be that a flow from
// a pod to this end comes to.
func (e *Engine) frontAddresses(from, to end) []netip.Addr {
	switch {
	case !to.addr.IsValid() && to.isNode:
		return slices.SortedFunc(maps.Keys(e.hostPorts.addrs[cmp.Or(to.node, from.node)]), netip.Addr.Compare)
	case !to.addr.IsValid():
		return nil
	case linkLocal6.Contains(to.addr) && from.node == e.nodeName:
		return []netip.Addr{to.addr, linkLocal6.Addr()}
	}
	return []netip.Addr{to.addr}
}

// knows tells whether the pod's own node knows that the address is a node's: what
// only the interfaces of a node tell, others don't know.
func (e *Engine) knows(from, to end) bool {
	return to.isNode || to.pod != nil || from.node == e.nodeName || len(e.claims.nodes[to.addr]) > 0
}
