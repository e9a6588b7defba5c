package policy

import (
	"maps"
	"net/netip"
	"slices"
)

// HostPort is a port of a pod at which the pod's node is reached: what comes there
// goes on to the pod, by the CNI plugin portmap or what stands in for it.
type HostPort struct {
	// HostIP: at this address of the node only. The unspecified address stands for
	// all of its family, one that is not valid for all.
	HostIP   netip.Addr
	HostPort uint16
	Port     uint16 // of the pod
	Protocol uint8
}

// hostPortTable holds what host ports lead to.
//
// A host port leads to the pod whether that is ready or not, as long as it has an
// address. Where a service has the same address and port that is what counts for
// pods' sockets: kube-proxy in iptables mode puts its rules first, and portmap its
// own behind them. In other modes nobody can tell, so what was not translated at a
// socket is denied there. Of two pods the newer one has the port. An address that
// is not known to be the node's leads nowhere, whatever HostIP says: otherwise a pod
// could have itself sent what is meant for others.
type hostPortTable struct {
	nodes  map[netip.Addr][]string            // which nodes are reached at an address, ordered
	addrs  map[string]map[netip.Addr]struct{} // the same by node
	pods   map[*pod]hostPortPod               // those with host ports
	byNode map[string]map[*pod]struct{}
	claims map[Frontend][]hostPortClaim
	// under are the frontends of claims by the node port that they would be.
	under   map[Frontend]map[Frontend]struct{}
	touched map[Frontend]struct{} // in this batch of changes
}

type hostPortPod struct {
	node  string
	leads map[Frontend]netip.AddrPort
}

type hostPortClaim struct {
	pod *pod
	to  netip.AddrPort
}

func newHostPortTable() *hostPortTable {
	return &hostPortTable{
		nodes: map[netip.Addr][]string{}, addrs: map[string]map[netip.Addr]struct{}{}, pods: map[*pod]hostPortPod{},
		byNode: map[string]map[*pod]struct{}{}, claims: map[Frontend][]hostPortClaim{},
		under: map[Frontend]map[Frontend]struct{}{}, touched: map[Frontend]struct{}{},
	}
}

// settleHostPorts brings the claims up to date with pods and addresses of nodes.
// It comes before settlePrefixes, which forgets what changed.
func (e *Engine) settleHostPorts() {
	t := e.hostPorts
	again := map[*pod]struct{}{}
	note := func(p *pod) {
		if _, had := t.pods[p]; had || !p.gone && len(p.src.HostPorts) > 0 {
			again[p] = struct{}{}
		}
	}
	for p := range e.dirty.pods {
		note(p)
	}
	for p := range e.claims.dirty {
		if !p.IsSingleIP() {
			continue
		}
		a := p.Addr()
		for _, q := range e.claims.pods[a] { // another one may own it now
			note(q)
		}
		was, now := t.nodes[a], e.nodesAt(a)
		if slices.Equal(was, now) {
			continue
		}
		t.move(a, now)
		for _, name := range slices.Concat(was, now) {
			for q := range t.byNode[name] {
				again[q] = struct{}{}
			}
		}
	}
	for p := range again {
		t.remove(p)
	}
	for p := range again {
		if !p.gone && len(p.src.HostPorts) > 0 && !p.src.HostNetwork && p.src.Node != "" {
			t.add(p, e.hostPortsOf(p))
		}
	}
}

// nodesAt tells which nodes are reached at an address.
func (e *Engine) nodesAt(a netip.Addr) []string {
	if !e.servesNodePorts(a) {
		return nil
	}
	names := e.claims.nodes[a]
	if _, own := names[e.nodeName]; own || e.onHost(a) {
		return []string{e.nodeName}
	}
	return slices.Sorted(maps.Keys(names))
}

// move notes the nodes that are reached at an address now.
func (t *hostPortTable) move(a netip.Addr, now []string) {
	for _, name := range t.nodes[a] {
		takeFrom(t.addrs, name, a)
	}
	delete(t.nodes, a)
	for _, name := range now {
		t.nodes[a] = now
		addTo(t.addrs, name, a)
	}
}

// hostPortsOf finds where a pod's host ports are, and where they lead.
func (e *Engine) hostPortsOf(p *pod) map[Frontend]netip.AddrPort {
	t, out := e.hostPorts, map[Frontend]netip.AddrPort{}
	for _, a := range p.src.Addresses {
		if a = a.Unmap(); !a.IsValid() || e.claims.owner(a) != p {
			continue
		}
		for _, hp := range p.src.HostPorts {
			lead := func(at netip.Addr) {
				if f := (Frontend{at, hp.HostPort, hp.Protocol}); !out[f].IsValid() {
					out[f] = netip.AddrPortFrom(a, hp.Port)
				}
			}
			only := hp.HostIP.Unmap()
			switch {
			case hp.HostPort == 0 || hp.Port == 0:
			case only.IsValid() && only.Is6() != a.Is6():
			case only.IsValid() && !only.IsUnspecified():
				if slices.Contains(t.nodes[only], p.src.Node) {
					lead(only)
				}
			default:
				for at := range t.addrs[p.src.Node] {
					if at.Is6() == a.Is6() {
						lead(at)
					}
				}
				if a.Is6() && e.isLocal(p.src) { // on other pods' links, too
					lead(linkLocal6.Addr())
				}
			}
		}
	}
	return out
}

func (t *hostPortTable) add(p *pod, leads map[Frontend]netip.AddrPort) {
	t.pods[p] = hostPortPod{p.src.Node, leads}
	addTo(t.byNode, p.src.Node, p)
	for f, to := range leads {
		t.touched[f] = struct{}{}
		t.claims[f] = append(t.claims[f], hostPortClaim{p, to})
		addTo(t.under, f.nodePort(), f)
	}
}

func (t *hostPortTable) remove(p *pod) {
	was := t.pods[p]
	delete(t.pods, p)
	takeFrom(t.byNode, was.node, p)
	for f := range was.leads {
		t.touched[f] = struct{}{}
		t.claims[f] = slices.DeleteFunc(t.claims[f], func(c hostPortClaim) bool { return c.pod == p })
		if len(t.claims[f]) == 0 {
			delete(t.claims, f)
			takeFrom(t.under, f.nodePort(), f)
		}
	}
}

// nodePort is the frontend of which f is one if it is at an address of a node.
func (f Frontend) nodePort() Frontend {
	return Frontend{wildcard(f.Addr.Is6()), f.Port, f.Protocol}
}

// touchBehind notes what leads to pods that are other peers now.
func (e *Engine) touchBehind(changed []netip.Prefix) {
	t := e.hostPorts
	for _, p := range changed {
		if !p.IsSingleIP() {
			for f := range t.claims {
				t.touched[f] = struct{}{}
			}
			return
		}
	}
	for _, p := range changed {
		for _, q := range e.claims.pods[p.Addr()] {
			for f := range t.pods[q].leads {
				t.touched[f] = struct{}{}
			}
		}
	}
}

// touchClaimed notes the host ports that a service may dispute, or not any more.
func (t *hostPortTable) touchClaimed(f Frontend) {
	if len(t.claims[f]) > 0 {
		t.touched[f] = struct{}{}
	}
	for of := range t.under[f] {
		t.touched[of] = struct{}{}
	}
}

// disputed tells whether services claim what is a host port.
func (e *Engine) disputed(f Frontend) bool {
	return len(e.fronts.claims[f])+len(e.fronts.claims[f.nodePort()]) > 0
}

// hostPortFront is the front that a host port is; ok is false if it is none.
func (e *Engine) hostPortFront(f Frontend) (front Front, ok bool) {
	claims := e.hostPorts.claims[f]
	if len(claims) == 0 {
		return Front{}, false
	}
	if e.disputed(f) {
		return Front{}, true
	}
	for i, c := range claims {
		who, _ := e.prefixes.lookup(c.to.Addr())
		if who == nil || who.id == 0 {
			return Front{}, true
		}
		if now := (Front{who.id, c.to.Port()}); i > 0 && now != front {
			return Front{}, true
		} else {
			front = now
		}
	}
	return front, true
}

// newest is the claim that counts; it must not be called without any.
func newest(claims []hostPortClaim) hostPortClaim {
	return slices.MaxFunc(claims, func(a, b hostPortClaim) int {
		switch {
		case a.pod == b.pod:
			return 0
		case a.pod.newer(b.pod):
			return 1
		}
		return -1
	})
}

// hostPortBackends are where sockets that name a host port go; nil: it is none, or
// not theirs.
func (e *Engine) hostPortBackends(f Frontend) *Backends {
	claims := e.hostPorts.claims[f]
	if len(claims) == 0 || f.Protocol != protoTCP && f.Protocol != protoUDP || f.Addr == linkLocal6.Addr() || e.disputed(f) {
		return nil
	}
	c := newest(claims)
	return &Backends{
		Key:   BackendsKey{Service: c.pod.object, Number: c.to.Port(), Protocol: f.Protocol, Six: c.to.Addr().Is6()},
		Ready: []netip.AddrPort{c.to},
	}
}

// seeHostPorts finds the host ports where DNS is asked for and another port of the
// pod answers.
func (e *Engine) seeHostPorts(see func(*peer, ports)) {
	for f, claims := range e.hostPorts.claims {
		if !onePort(f.Protocol, f.Port).isDNS() {
			continue
		}
		for _, c := range claims {
			who, _ := e.prefixes.lookup(c.to.Addr())
			see(who, onePort(f.Protocol, c.to.Port()))
		}
	}
}
