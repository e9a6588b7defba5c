package policy

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy/api"
)

// end is one end of a flow in question.
type end struct {
	name      string
	pod       *peer  // a pod, or a reserved identity that has a policy
	node      string // of a pod: where it runs; of a node: its name
	isNode    bool
	apiServer bool     // of a node: it answers there
	init      bool     // entity init: always under default deny
	service   *service // judged by its backends
	other     *peer    // anything else
	names     *peer    // of an outside address: what its names make of it
	six       bool     // has an IPv6 address
	four      bool
	addrs     []netip.Addr // that it may have in the flow
	addr      netip.Addr   // the one it has; not valid: not known
}

// settleAddresses finds the addresses that a flow of a protocol has. Of ends that
// have several it is the first one of a family that both ends have.
func settleAddresses(from, to *end, proto uint8) {
	ends := [...]*end{from, to}
	var families []bool
	switch {
	case from.six || to.six || proto == protoICMPv6:
		families = []bool{true}
	case from.four || to.four || proto == protoICMP:
		families = []bool{false}
	default:
		for _, o := range ends {
			for _, a := range o.addrs {
				families = append(families, a.Is6())
			}
		}
	}
	for _, six := range families {
		found := [2]netip.Addr{}
		fits := true
		for i, o := range ends {
			at := slices.IndexFunc(o.addrs, func(a netip.Addr) bool { return a.Is6() == six })
			if at >= 0 {
				found[i] = o.addrs[at]
			}
			fits = fits && (at >= 0 || len(o.addrs) == 0)
		}
		if fits || len(families) == 1 {
			from.addr, to.addr = found[0], found[1]
			return
		}
	}
}

// validAddresses are the addresses of an object, in its order.
func validAddresses(in []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range in {
		if a.IsValid() {
			out = append(out, a.Unmap())
		}
	}
	return out
}

// resolve finds out who one end of a question is. here: as seen from this node,
// which knows its own addresses, but not those that others have beside what
// objects say.
func (e *Engine) end(name string, destination, here bool) (end, error) {
	kind, rest, ok := strings.Cut(name, ":")
	if ok {
		switch kind {
		case "pod":
			return e.podEnd(rest)
		case "ip":
			return e.addressEnd(rest, here)
		case "node":
			return e.nodeEnd(rest)
		case "entity":
			return e.entityEnd(rest, here)
		case "service":
			if !destination {
				return end{}, fmt.Errorf("%q: flows don't come from a service", name)
			}
			ns, n, ok := strings.Cut(rest, "/")
			s := e.services[Object{KindService, ns, n}]
			if !ok || s == nil || s.src == nil {
				return end{}, fmt.Errorf("service %q is not known", rest)
			}
			return end{name: name, service: s}, nil
		}
	}
	if _, err := netip.ParseAddr(name); err == nil {
		return e.addressEnd(name, here)
	}
	return e.podEnd(name)
}

func (e *Engine) podEnd(name string) (end, error) {
	ns, n, ok := strings.Cut(name, "/")
	if !ok {
		return end{}, fmt.Errorf("%q is neither namespace/pod, an address, entity:NAME nor service:namespace/name", name)
	}
	p := e.pods[Object{KindPod, ns, n}]
	if p == nil {
		return end{}, fmt.Errorf("pod %s is not known", name)
	}
	return e.endOf(p), nil
}

func (e *Engine) endOf(p *pod) end {
	out := end{name: "pod " + p.src.Namespace + "/" + p.src.Name, node: p.src.Node, addrs: validAddresses(p.src.Addresses)}
	if out.node == "" {
		out.node = e.nodeName
	}
	if p.src.HostNetwork {
		out.isNode, out.apiServer = true, e.runsAPIServer(out.node)
		out.name += " on the network of node " + out.node
		return out
	}
	if out.pod = p.peer; out.pod == nil { // it has no address yet
		out.pod = e.podPeer(p.src)
	}
	return out
}

func (e *Engine) nodeEnd(name string) (end, error) {
	if _, ok := e.nodes[name]; !ok && name != e.nodeName {
		return end{}, fmt.Errorf("node %q is not known", name)
	}
	out := end{name: "node " + name, node: name, isNode: true, apiServer: e.runsAPIServer(name)}
	if n := e.nodes[name]; n != nil {
		out.addrs = validAddresses(n.Addresses)
	}
	return out, nil
}

func (e *Engine) addressEnd(text string, here bool) (end, error) {
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" {
		return end{}, fmt.Errorf("%q is not an address", text)
	}
	a = a.Unmap()
	out := end{name: a.String(), six: a.Is6(), four: a.Is4(), addrs: []netip.Addr{a}}
	if here && e.onHost(a) {
		out.isNode, out.node, out.name = true, e.nodeName, "node "+e.nodeName
		return out, nil
	}
	if p := e.claims.owner(a); p != nil {
		of := e.endOf(p)
		of.six, of.four, of.addrs = out.six, out.four, out.addrs
		return of, nil
	}
	if names := e.claims.nodes[a]; len(names) > 0 {
		out.isNode, out.apiServer = true, e.claims.apiServers[a] > 0
		out.node = slices.Min(slices.Collect(maps.Keys(names)))
		if _, ok := names[e.nodeName]; ok {
			out.node = e.nodeName
		}
		out.name = "node " + out.node
		return out, nil
	}
	out.other, _ = e.prefixes.lookup(a)
	if !here && e.onHost(a) {
		out.other = e.elsewhere(a)
	}
	switch {
	case out.other == nil: // no Apply yet
		out.other = newWorldPeer(hostPrefix(a), false)
	case out.other.kind == servicePeer:
		out.service = e.services[out.other.service]
		out.name = "service " + out.other.service.Namespace + "/" + out.other.service.Name
	case out.other.kind == unknownPeer:
		out.name += " (an unknown pod)"
	default:
		out.name += " (outside)"
	}
	return out, nil
}

// elsewhere is the peer that an address of this node alone is for other nodes.
func (e *Engine) elsewhere(a netip.Addr) *peer {
	if e.claims.inPodCIDR(hostPrefix(a)) {
		return e.at(newUnknownPeer(), a)
	}
	return newWorldPeer(hostPrefix(a), e.claims.apiServers[a] > 0)
}

func (e *Engine) entityEnd(name string, here bool) (end, error) {
	out := end{name: "entity " + name}
	reserved := func(kind peerKind, id identity.ID, label string) {
		out.other = newFixedPeer(kind, id, identity.Reserved(label))
	}
	switch api.Entity(name) {
	case api.EntityHost:
		out.isNode = true // of the other end
	case api.EntityRemoteNode:
		out.other = newNodePeer(false, nil)
	case api.EntityWorld, api.EntityWorldIPv4:
		out.other = newWorldPeer(netip.PrefixFrom(netip.IPv4Unspecified(), 0), false)
	case api.EntityWorldIPv6:
		out.other = newWorldPeer(netip.PrefixFrom(netip.IPv6Unspecified(), 0), false)
	case api.EntityHealth:
		reserved(entityPeer, identity.Health, identity.ReservedHealth)
	case api.EntityUnmanaged:
		reserved(entityPeer, identity.Unmanaged, identity.ReservedUnmanaged)
	case api.EntityIngress:
		reserved(entityPeer, identity.Ingress, identity.ReservedIngress)
	case api.EntityInit:
		out.pod, out.init = newFixedPeer(entityPeer, identity.Init, identity.Reserved(identity.ReservedInit)), true
		out.node = e.nodeName // a pod that is being started, so of this node
	case api.EntityKubeAPIServer:
		if at := slices.SortedFunc(maps.Keys(e.claims.apiServers), netip.Addr.Compare); len(at) > 0 {
			return e.addressEnd(at[0].String(), here)
		}
		reserved(entityPeer, identity.KubeAPIServer, identity.ReservedKubeAPIServer)
	case api.EntityCluster, api.EntityClusterMesh:
		out.other = newUnknownPeer()
	case api.EntityAll, api.EntityNone:
		return end{}, fmt.Errorf("entity %q stands for no particular peer: ask about a pod, an address or another entity", name)
	default:
		return end{}, fmt.Errorf("entity %q is not known", name)
	}
	return out, nil
}

// seenFrom is the peer that an end is for a pod of a node: the pod's own node
// is its host, others are remote.
func (e *Engine) seenFrom(o end, node string) *peer {
	switch {
	case o.pod != nil:
		return e.at(o.pod, o.addr)
	case !o.isNode:
		return o.other
	}
	if o.node == "" || o.node == node {
		return e.at(newHostPeer(e.runsAPIServer(node)), o.addr)
	}
	return e.at(newNodePeer(o.apiServer, e.nodeLabels(o.node)), o.addr)
}

// portNumber finds the port in question. Names are the destination's.
func (e *Engine) portNumber(q *Question, proto uint8, to end) (uint16, error) {
	if proto == protoICMP || proto == protoICMPv6 {
		switch {
		case q.ICMPType == nil:
			return 0, errors.New("icmpType is missing")
		case *q.ICMPType < 0 || *q.ICMPType > 255:
			return 0, fmt.Errorf("icmpType: %d is not between 0 and 255", *q.ICMPType)
		}
		return uint16(*q.ICMPType), nil
	}
	if q.ICMPType != nil {
		return 0, errors.New("icmpType: the protocol is not ICMP")
	}
	if !hasPorts(proto) {
		if q.Port != "" && q.Port != "0" {
			return 0, errors.New("port: the protocol has none")
		}
		return 0, nil
	}
	if q.Port == "" {
		return 0, errors.New("port is missing")
	}
	if n, err := strconv.ParseUint(q.Port, 10, 64); err == nil {
		if n < 1 || n > 65535 {
			return 0, fmt.Errorf("port: %d is not between 1 and 65535", n)
		}
		return uint16(n), nil
	}
	name := strings.ToLower(q.Port)
	if to.service != nil {
		for _, p := range to.service.src.Ports {
			if strings.EqualFold(p.Name, name) && p.Protocol == proto {
				return p.Port, nil
			}
		}
	} else if to.pod != nil {
		if ports := to.pod.named(name, proto); len(ports) > 0 {
			return ports[0], nil
		}
	}
	return 0, fmt.Errorf("port: %s has no port named %q of that protocol", to.name, q.Port)
}
