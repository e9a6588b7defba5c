package policy

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"
)

// Frontend is where pods reach a service, or a pod by a host port; in
// Delta.Services TCP and UDP only.
type Frontend struct {
	// Addr, if unspecified, is every address of that family of a node: in
	// Delta.NodeAddresses, or for Delta.Fronts of a Peer.Node. In Delta.Fronts fe80::
	// is every address on a pod's own link, before the unspecified one.
	Addr     netip.Addr
	Port     uint16
	Protocol uint8
}

// Compare orders frontends.
func (f Frontend) Compare(o Frontend) int {
	return cmp.Or(f.Addr.Compare(o.Addr), cmp.Compare(f.Port, o.Port), cmp.Compare(f.Protocol, o.Protocol))
}

// BackendsKey names the backends of one port of a service: frontends with the
// same key have the same ones.
type BackendsKey struct {
	Service  Object // or the pod that has a host port
	Port     string // its name
	Number   uint16 // of the service's port; of a host port the pod's
	Protocol uint8
	Six      bool
	// Internal: as seen by the cluster IPs; internalTrafficPolicy counts.
	Internal bool
}

// Backends are who serves, as kube-proxy chooses among a service's endpoints.
// Who was given them does not change them.
type Backends struct {
	Key BackendsKey
	// Ready take whoever comes; none: connections are refused. Those that
	// terminate and serve are among them where no other endpoint is ready.
	Ready []netip.AddrPort
	// Draining terminate and serve on: nobody new is sent to them.
	Draining []netip.AddrPort
	// Affinity is how long a client stays with a backend after it used it last;
	// 0: each connection is for itself.
	Affinity time.Duration
}

func (b *Backends) equal(o *Backends) bool {
	return b == o || b != nil && o != nil && b.Key == o.Key && b.Affinity == o.Affinity &&
		slices.Equal(b.Ready, o.Ready) && slices.Equal(b.Draining, o.Draining)
}

// frontends are all of them, with who claims them: of two services with one
// address and port the first by name counts.
type frontends struct {
	claims map[Frontend][]*service
	told   map[Frontend]*Backends
	nodes  map[netip.Addr]struct{} // NodeAddresses
}

func newFrontends() *frontends {
	return &frontends{map[Frontend][]*service{}, map[Frontend]*Backends{}, map[netip.Addr]struct{}{}}
}

// settleNodeAddresses tells which addresses serve node ports now, from the
// claims that changed.
func (e *Engine) settleNodeAddresses() {
	tell := func(a netip.Addr, serves bool) {
		if e.delta.NodeAddresses == nil {
			e.delta.NodeAddresses = map[netip.Addr]bool{}
		}
		e.delta.NodeAddresses[a] = serves
	}
	for p := range e.claims.dirty {
		if !p.IsSingleIP() {
			continue
		}
		a := p.Addr()
		_, told := e.frontends.nodes[a]
		switch serves := e.servesNodePorts(a); {
		case serves && !told:
			e.frontends.nodes[a] = struct{}{}
			tell(a, true)
		case !serves && told:
			delete(e.frontends.nodes, a)
			tell(a, false)
		}
	}
}

// servesNodePorts: what a pod finds at its own loopback or link is its own.
func (e *Engine) servesNodePorts(a netip.Addr) bool {
	if a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified() {
		return false
	}
	return len(e.claims.nodes[a]) > 0 || e.onHost(a)
}

// settleFrontends brings what is told of a service up to date.
func (e *Engine) settleFrontends(s *service) {
	want := e.frontendsOf(s)
	t := e.frontends
	for f := range s.frontends {
		if want[f] != nil {
			continue
		}
		t.claims[f] = slices.DeleteFunc(t.claims[f], func(o *service) bool { return o == s })
		if len(t.claims[f]) == 0 {
			delete(t.claims, f)
		}
	}
	touched := slices.Collect(maps.Keys(s.frontends))
	for f := range want {
		if s.frontends[f] != nil {
			continue
		}
		touched = append(touched, f)
		i, _ := slices.BinarySearchFunc(t.claims[f], s, func(a, b *service) int { return compareObjects(a.object, b.object) })
		t.claims[f] = slices.Insert(t.claims[f], i, s)
	}
	s.frontends = want
	for _, f := range touched {
		e.tellFrontend(f)
	}
}

// tellFrontend tells where a frontend leads, if that is new.
func (e *Engine) tellFrontend(f Frontend) {
	t := e.frontends
	var now *Backends
	if by := t.claims[f]; len(by) > 0 {
		now = by[0].frontends[f]
	} else {
		now = e.hostPortBackends(f)
	}
	if now.equal(t.told[f]) {
		return
	}
	if now == nil {
		delete(t.told, f)
	} else {
		t.told[f] = now
	}
	if e.delta.Services == nil {
		e.delta.Services = map[Frontend]*Backends{}
	}
	e.delta.Services[f] = now
}

// frontendsOf computes the frontends of a service. kube-proxy leaves services
// alone that have no cluster IP, or that somebody else is to serve.
func (e *Engine) frontendsOf(s *service) map[Frontend]*Backends {
	if s.src == nil || len(s.src.ClusterIPs) == 0 || s.src.OtherProxy {
		return nil
	}
	out := map[Frontend]*Backends{}
	for i := range s.src.Ports {
		sp := &s.src.Ports[i]
		if sp.Protocol != protoTCP && sp.Protocol != protoUDP {
			continue
		}
		serving := e.serving(s, sp)
		sets := map[BackendsKey]*Backends{}
		lead := func(a netip.Addr, port uint16, internal bool) {
			a = a.Unmap()
			key := BackendsKey{s.object, sp.Name, sp.Port, sp.Protocol, a.Is6(), internal}
			if sets[key] == nil {
				sets[key] = e.choose(key, serving, s.src)
			}
			if f := (Frontend{a, port, sp.Protocol}); out[f] == nil { // the first port that says so
				out[f] = sets[key]
			}
		}
		for _, a := range s.src.ClusterIPs {
			lead(a, sp.Port, true)
		}
		for _, a := range s.src.ExternalIPs {
			if !slices.Contains(s.src.ProxiedIPs, a) {
				lead(a, sp.Port, false)
			}
		}
		if sp.NodePort == 0 {
			continue
		}
		if hasFamily(s.src.ClusterIPs, false) {
			lead(netip.IPv4Unspecified(), sp.NodePort, false)
		}
		if hasFamily(s.src.ClusterIPs, true) {
			lead(netip.IPv6Unspecified(), sp.NodePort, false)
		}
	}
	return out
}

func hasFamily(addrs []netip.Addr, six bool) bool {
	return slices.ContainsFunc(addrs, func(a netip.Addr) bool { return a.Unmap().Is6() == six })
}

// servant is an endpoint that serves, at a port.
type servant struct {
	at          netip.AddrPort
	local       bool
	terminating bool
}

// serving lists the endpoints of a service's port, each once.
func (e *Engine) serving(s *service, sp *ServicePort) []servant {
	var out []servant
	seen := map[netip.AddrPort]int{}
	add := func(a netip.Addr, port uint16, node string, terminating bool) {
		if !a.IsValid() || port == 0 { // every port is no port to connect to
			return
		}
		v := servant{netip.AddrPortFrom(a.Unmap(), port), node != "" && node == e.nodeName, terminating}
		if i, again := seen[v.at]; again { // while it moves from slice to slice
			out[i].terminating = out[i].terminating && terminating
			return
		}
		seen[v.at] = len(out)
		out = append(out, v)
	}
	for _, name := range slices.SortedFunc(maps.Keys(s.slices), compareObjects) {
		sl := s.slices[name]
		for _, p := range sl.Ports {
			alone := len(s.src.Ports) == 1 && sp.Name == "" // as in behind
			if p.Protocol != sp.Protocol || p.Name != sp.Name && !alone {
				continue
			}
			for _, b := range sl.Backends {
				add(b.Addr, p.Port, b.Node, b.Terminating)
			}
		}
	}
	if s.bySelector() {
		for _, p := range e.selectedBy(s) {
			for _, a := range p.src.Addresses {
				for _, port := range sp.in(p.src) {
					add(a, port, p.src.Node, false)
				}
			}
		}
	}
	slices.SortFunc(out, func(a, b servant) int { return a.at.Compare(b.at) })
	return out
}

// choose picks those that connections go to.
func (e *Engine) choose(key BackendsKey, serving []servant, src *Service) *Backends {
	b := &Backends{Key: key, Affinity: src.Affinity}
	for _, v := range serving {
		switch {
		case v.at.Addr().Is6() != key.Six || key.Internal && src.InternalLocal && !v.local:
		case v.terminating:
			b.Draining = append(b.Draining, v.at)
		default:
			b.Ready = append(b.Ready, v.at)
		}
	}
	if len(b.Ready) == 0 { // KEP-1669
		b.Ready, b.Draining = b.Draining, nil
	}
	return b
}
