package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/weirnet/weir/identity"
)

// passage is one thing that a node's policies are not asked about.
type passage struct {
	direction Direction
	ports     []ports
	why       string
	// all peers, those that matches tells, or peer; if all are nil, nobody.
	anyone  bool
	matches func(*peer) bool
	peer    *peer
}

func (p *passage) concerns(other *peer) bool {
	switch {
	case p.anyone:
		return true
	case p.matches != nil:
		return p.matches(other)
	}
	return p.peer != nil && other != nil && p.peer.digest == other.digest
}

// passages lists what passes at a node whatever its policies say: what is
// fail-safe, and what comes to its node ports, which is not for the node. It
// goes on to the backends, and is judged there.
func (e *Engine) passages(node string) []passage {
	var out []passage
	for _, f := range e.failsafe {
		if f.ControlPlane && !e.isControlPlane(node) {
			continue
		}
		p := passage{direction: f.Direction, why: "fail-safe, " + f.String(), ports: appendRange(nil, f.Protocol, f.First, f.Last)}
		if f.Protocol != protoICMP && f.Protocol != protoICMPv6 && !hasPorts(f.Protocol) {
			p.ports = []ports{{proto: f.Protocol}}
		}
		switch f.Peers {
		case FailsafeAnyone:
			p.anyone = true
		case FailsafeNodes:
			p.matches = func(o *peer) bool { return o.kind == nodePeer }
		case FailsafeAPIServers:
			p.matches = func(o *peer) bool {
				return o.kind != hostPeer && o.labels.HasReserved(identity.ReservedKubeAPIServer)
			}
			p.ports = e.apiServerPorts()
		case FailsafeResolvers:
			for _, r := range e.host.resolvers {
				// An address without an identity of its own stands for too many.
				if who, exact := e.prefixes.lookup(r.Addr.Addr()); exact && r.Protocol == f.Protocol {
					p.peer, p.ports = who, []ports{onePort(r.Protocol, r.Addr.Port())}
					out = append(out, p)
				}
			}
			continue
		}
		out = append(out, p)
	}
	return append(out, e.nodePorts(node)...)
}

func (e *Engine) apiServerPorts() []ports {
	var out []ports
	for _, sl := range e.slices {
		if sl.Namespace != "default" || sl.Service != "kubernetes" {
			continue
		}
		for _, p := range sl.Ports {
			if p.Protocol == protoTCP && p.Port != 0 {
				out = append(out, onePort(protoTCP, p.Port))
			}
		}
	}
	return sortPorts(out)
}

// isControlPlane tells whether a node runs the control plane, by the labels that
// kubeadm and most others give it, or since the API server is there.
func (e *Engine) isControlPlane(node string) bool {
	if n := e.nodes[node]; n != nil {
		for _, key := range [...]string{"node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"} {
			if _, ok := n.Labels[key]; ok {
				return true
			}
		}
	}
	return e.runsAPIServer(node)
}

// nodePorts are those that lead to pods or away. One that leads to the node itself
// does not pass here: no program sees what it is translated to.
func (e *Engine) nodePorts(node string) []passage {
	type portOf struct {
		proto uint8
		port  uint16
	}
	service, home := map[portOf]Object{}, map[portOf]bool{}
	for f, b := range e.frontends.told {
		if !f.Addr.IsUnspecified() || len(b.Ready)+len(b.Draining) == 0 {
			continue
		}
		at := portOf{f.Protocol, f.Port}
		service[at] = b.Key.Service
		for _, to := range slices.Concat(b.Ready, b.Draining) {
			home[at] = home[at] || e.isOf(to.Addr(), node)
		}
	}
	var out []passage
	for at, o := range service {
		if !home[at] {
			out = append(out, passage{direction: Ingress, anyone: true, ports: []ports{onePort(at.proto, at.port)},
				why: fmt.Sprintf("a node port: it goes on to service %s/%s", o.Namespace, o.Name)})
		}
	}
	return out
}

// isOf tells whether an address is the node's own.
func (e *Engine) isOf(a netip.Addr, node string) bool {
	if p := e.claims.owner(a); p != nil && !p.src.HostNetwork {
		return false
	}
	_, has := e.claims.nodes[a][node]
	return has || node == e.nodeName && e.onHost(a)
}

// settlePassages makes the policy of what passes at this node, which the kernel
// asks before the node's own.
func (e *Engine) settlePassages() error {
	h := &e.host
	if h.subject == nil {
		if h.always != 0 {
			e.policyNumbers.release(h.always)
			e.delta.Policies[h.always] = nil
			h.always, h.passing = 0, nil
		}
		return nil
	}
	if h.always == 0 {
		id, err := e.policyNumbers.get(identity.DigestOf([]byte("node passages")))
		if err != nil {
			return fmt.Errorf("number the policy of what always passes: %w", err)
		}
		h.always = id
	}
	entries := map[Key]Entry{}
	for _, p := range e.passages(e.nodeName) {
		put := func(id identity.ID) {
			for _, at := range p.ports {
				k := at.key(p.direction)
				k.Identity = id
				entries[k] = Entry{Action: Allow}
			}
		}
		switch {
		case p.anyone:
			put(identity.Any)
		case p.matches != nil:
			for o := range e.peers.others {
				if p.matches(o) {
					put(o.id)
				}
			}
		case p.peer != nil && p.peer.id != identity.Any:
			put(p.peer.id)
		}
	}
	if h.passing == nil || !maps.Equal(h.passing, entries) {
		h.passing = entries
		e.delta.Policies[h.always] = &Resolved{Enforced: [2]bool{true, true}, Entries: maps.Clone(entries)}
	}
	return nil
}
