package policy

import (
	"fmt"
	"maps"
	"slices"

	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy/api"
)

// Kinds of objects that are no policies.
const (
	KindPod           = "Pod"
	KindNamespace     = "Namespace"
	KindNode          = "Node"
	KindService       = "Service"
	KindEndpointSlice = "EndpointSlice"
	// KindNameSet is no object of the cluster, see NameSet.
	KindNameSet = "NameSet"
)

// take stores an object's new state and notes what it touches.
func (e *Engine) take(c Change) error {
	switch c.Object.Kind {
	case KindPod:
		return takeAs(c, e.takePod)
	case KindNamespace:
		return takeAs(c, e.takeNamespace)
	case KindNode:
		return takeAs(c, e.takeNode)
	case KindService:
		return takeAs(c, e.takeService)
	case KindEndpointSlice:
		return takeAs(c, e.takeSlice)
	case api.KindNetworkPolicy, api.KindCiliumPolicy:
		if c.Object.Namespace == "" { // or it would count in every namespace
			c.Object.Namespace = api.DefaultNamespace
		}
		return takeAs(c, e.takePolicy)
	case api.KindClusterwide:
		c.Object.Namespace = ""
		return takeAs(c, e.takePolicy)
	case api.KindCiliumCIDRGroup:
		return takeAs(c, e.takeGroup)
	case KindHostAddresses:
		return takeAs(c, func(_ Object, h *HostAddresses) { e.takeHostAddresses(h) })
	case KindStranger:
		return takeAs(c, func(o Object, s *Stranger) { e.takeStranger(o.Name, s) })
	case KindNameSet:
		return takeAs(c, func(o Object, set *NameSet) { e.names.ask(o.Name, set) })
	}
	return fmt.Errorf("unknown kind %q", c.Object.Kind)
}

// takeAs calls take with the change's value, nil if the object is gone.
func takeAs[T any](c Change, take func(Object, *T)) error {
	if c.Value == nil {
		take(c.Object, nil)
		return nil
	}
	v, ok := c.Value.(*T)
	if !ok {
		return fmt.Errorf("value is a %T", c.Value)
	}
	take(c.Object, v)
	return nil
}

func (e *Engine) takePolicy(o Object, p *api.Policy) { e.dirty.policies[o] = p }

func (e *Engine) takePod(o Object, src *Pod) {
	p := e.pods[o]
	if p == nil {
		if src == nil {
			return
		}
		p = &pod{object: o}
		e.pods[o] = p
		addTo(e.byNS, o.Namespace, p)
	}
	e.claimAddresses(p, false)
	p.src = src
	e.claimAddresses(p, true)
	p.gone = src == nil
	if p.gone {
		delete(e.pods, o)
		takeFrom(e.byNS, o.Namespace, p)
	}
	e.dirty.pods[p] = struct{}{}
}

// claimAddresses claims a pod's addresses, or takes the claims back. Those of
// a pod on the host network are its node's.
func (e *Engine) claimAddresses(p *pod, add bool) {
	if p.src == nil {
		return
	}
	for _, a := range p.src.Addresses {
		if !a.IsValid() {
			continue
		}
		if p.src.HostNetwork {
			e.claims.node(p.src.Node, a, add)
		} else {
			e.claims.pod(p, a, add)
		}
	}
}

func (e *Engine) takeNamespace(o Object, ns *Namespace) {
	var labels map[string]string
	if ns != nil {
		labels = ns.Labels
	}
	if maps.Equal(e.namespaces[o.Name], labels) {
		return
	}
	if ns == nil {
		delete(e.namespaces, o.Name)
	} else {
		e.namespaces[o.Name] = labels
	}
	for p := range e.byNS[o.Name] {
		e.dirty.pods[p] = struct{}{}
	}
}

func (e *Engine) takeNode(o Object, n *Node) {
	if old := e.nodes[o.Name]; old != nil {
		e.claimNode(old, false)
		delete(e.nodes, o.Name)
	}
	if n != nil {
		e.nodes[o.Name] = n
		e.claimNode(n, true)
	}
	// A pod on the host network may have lent the node an address.
	for a, names := range e.claims.nodes {
		if _, ok := names[o.Name]; ok {
			e.claims.touch(a)
		}
	}
}

func (e *Engine) claimNode(n *Node, add bool) {
	for _, a := range n.Addresses {
		if a.IsValid() {
			e.claims.node(n.Name, a, add)
		}
	}
	for _, p := range n.PodCIDRs {
		if p.IsValid() {
			e.claims.podCIDR(p.Masked(), add)
		}
	}
}

// touchNodes notes that nodes with a label of that key may be other peers now.
func (e *Engine) touchNodes(key string) {
	for a, names := range e.claims.nodes {
		for name := range names {
			if n := e.nodes[name]; n != nil {
				if _, ok := n.Labels[key]; ok || key == identity.KeyCluster {
					e.claims.touch(a)
				}
			}
		}
	}
}

func (e *Engine) serviceOf(namespace, name string) *service {
	o := Object{KindService, namespace, name}
	s := e.services[o]
	if s == nil {
		s = &service{object: o, slices: map[Object]*EndpointSlice{}}
		e.services[o] = s
	}
	e.dirty.services[s] = struct{}{}
	return s
}

func (e *Engine) takeService(o Object, src *Service) {
	if src == nil && e.services[o] == nil {
		return
	}
	s := e.serviceOf(o.Namespace, o.Name)
	if s.src != nil {
		for _, a := range s.src.ClusterIPs {
			if a.IsValid() {
				e.claims.clusterIP(s, a, false)
			}
		}
	}
	s.src = src
	if src != nil {
		for _, a := range src.ClusterIPs {
			if a.IsValid() {
				e.claims.clusterIP(s, a, true)
			}
		}
	}
	e.touchToServices()
}

// touchToServices notes that policies with toServices may mean other peers now.
func (e *Engine) touchToServices() {
	for o, p := range e.policies {
		if p.usesServices {
			e.dirty.again[o] = struct{}{}
		}
	}
}

func (e *Engine) takeSlice(o Object, sl *EndpointSlice) {
	if old := e.slices[o]; old != nil {
		s := e.serviceOf(old.Namespace, old.Service)
		delete(s.slices, o)
		e.claimBackends(s, old, false)
	}
	delete(e.slices, o)
	if sl != nil {
		e.slices[o] = sl
		s := e.serviceOf(sl.Namespace, sl.Service)
		s.slices[o] = sl
		e.claimBackends(s, sl, true)
	}
	e.touchToServices()
}

func (e *Engine) claimBackends(s *service, sl *EndpointSlice, add bool) {
	for _, a := range sl.Addresses {
		a = a.Unmap()
		if s.object.Namespace == "default" && s.object.Name == "kubernetes" {
			e.claims.apiServer(a, add)
		}
		if add {
			addTo(e.claims.backends, a, s)
			continue
		}
		still := false
		for _, other := range s.slices {
			still = still || slices.Contains(other.Addresses, a)
		}
		if !still {
			takeFrom(e.claims.backends, a, s)
		}
	}
}

func (e *Engine) takeGroup(o Object, g *api.CIDRGroup) {
	e.groupsSeen++
	if g == nil {
		delete(e.groups, o.Name)
	} else {
		e.groups[o.Name] = newCIDRGroup(g)
	}
	for o, p := range e.policies {
		if p.usesGroups {
			e.dirty.again[o] = struct{}{}
		}
	}
}
