package policy

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy/dnsrules"
)

// peerKind tells what an identity stands for.
type peerKind uint8

const (
	podPeer     peerKind = iota
	hostPeer             // this node
	nodePeer             // another node
	worldPeer            // outside addresses; with the label kube-apiserver: the API server there
	unknownPeer          // an address in a pod range that no known pod has
	servicePeer          // a cluster IP
	entityPeer           // a reserved identity that nothing has (health, init, ...)
	namesPeer            // an outside address, as its names make it known; worldPeer, what it is else
	pairPeer             // both at once
)

// peer is one identity: what rules can tell apart about the other end of a
// flow. Pods with equal labels and named ports share one.
type peer struct {
	kind      peerKind
	id        identity.ID // 0 if it is not in the tables
	fixed     bool        // id is a reserved number
	digest    identity.Digest
	labels    identity.Labels
	namespace string              // of a podPeer
	ports     []NamedPort         // of a podPeer, ordered
	prefix    netip.Prefix        // of a worldPeer
	service   Object              // of a servicePeer
	fqdns     []dnsrules.Selector // of a namesPeer: those that match its names, ordered
	pair      pairKey             // of a pairPeer
	blocks    []string            // of NetworkPolicies that its addresses lie in, ordered; not of a worldPeer
	base      *peer               // it without blocks; nil if it has none
	refs      int
}

func (p *peer) isWorld() bool { return p.kind == worldPeer }

// told is what is told of an address prefix that it stands for.
func (p *peer) told() Peer {
	return Peer{Identity: p.id, World: p.isWorld(), Host: p.kind == hostPeer, Node: p.kind == hostPeer || p.kind == nodePeer}
}

// named returns the numbers of the peer's ports of that name and protocol.
func (p *peer) named(name string, proto uint8) []uint16 {
	var out []uint16
	for _, np := range p.ports {
		if np.Protocol == proto && np.Name == name {
			out = append(out, np.Port)
		}
	}
	return out
}

func newPodPeer(namespace string, labels identity.Labels, ports []NamedPort) *peer {
	p := &peer{kind: podPeer, namespace: namespace, labels: labels, ports: normalPorts(ports)}
	b := labels.AppendCanonical([]byte("pod\x00"))
	for _, np := range p.ports {
		b = append(b, np.Name...)
		b = append(b, 0, np.Protocol)
		b = binary.BigEndian.AppendUint16(b, np.Port)
	}
	p.digest = identity.DigestOf(b)
	return p
}

// normalPorts orders named ports and spells their names as rules do.
func normalPorts(ports []NamedPort) []NamedPort {
	var out []NamedPort
	for _, np := range ports {
		if np.Name != "" && np.Port != 0 {
			np.Name = strings.ToLower(np.Name)
			out = append(out, np)
		}
	}
	slices.SortFunc(out, func(a, b NamedPort) int {
		if c := strings.Compare(a.Name, b.Name); c != 0 {
			return c
		}
		if a.Protocol != b.Protocol {
			return int(a.Protocol) - int(b.Protocol)
		}
		return int(a.Port) - int(b.Port)
	})
	return slices.Compact(out)
}

func newHostPeer(apiServer bool) *peer {
	names := []string{identity.ReservedHost}
	if apiServer {
		names = append(names, identity.ReservedKubeAPIServer)
	}
	return newFixedPeer(hostPeer, identity.Host, identity.Reserved(names...))
}

// newNodePeer is another node; labels are those that some rule asks for.
func newNodePeer(apiServer bool, labels []identity.Label) *peer {
	all := append(identity.Reserved(identity.ReservedRemoteNode), labels...)
	if apiServer {
		all = append(all, identity.Label{Source: identity.SourceReserved, Key: identity.ReservedKubeAPIServer})
	}
	if len(all) == 1 {
		return newFixedPeer(nodePeer, identity.RemoteNode, all)
	}
	p := &peer{kind: nodePeer, labels: identity.NewLabels(all...)}
	p.digest = identity.DigestOf(p.labels.AppendCanonical([]byte("node\x00")))
	return p
}

// newWorldPeer stands for the outside addresses of a prefix that are in no
// longer prefix of the tables.
func newWorldPeer(prefix netip.Prefix, apiServer bool) *peer {
	id, world := identity.WorldIPv4, identity.ReservedWorldIPv4
	if prefix.Addr().Is6() {
		id, world = identity.WorldIPv6, identity.ReservedWorldIPv6
	}
	if prefix.Bits() == 0 && !apiServer {
		p := newFixedPeer(worldPeer, id, identity.Reserved(world))
		p.prefix = prefix
		return p
	}
	labels := append(identity.Reserved(world), identity.Label{Source: identity.SourceCIDR, Key: prefix.String()})
	if apiServer {
		labels = append(labels, identity.Label{Source: identity.SourceReserved, Key: identity.ReservedKubeAPIServer})
	}
	p := &peer{kind: worldPeer, labels: identity.NewLabels(labels...), prefix: prefix}
	p.digest = identity.DigestOf(p.labels.AppendCanonical([]byte("world\x00")))
	return p
}

func newServicePeer(o Object) *peer {
	return &peer{kind: servicePeer, service: o,
		digest: identity.DigestOf([]byte("service\x00" + o.Namespace + "/" + o.Name))}
}

// newNamesPeer stands for addresses with names of which these selectors, in
// order, are all that match.
func newNamesPeer(fqdns []dnsrules.Selector) *peer {
	return &peer{kind: namesPeer, fqdns: fqdns, digest: digestOf(struct{ Names []dnsrules.Selector }{fqdns})}
}

func newUnknownPeer() *peer { return newFixedPeer(unknownPeer, identity.UnknownPod, nil) }

func newFixedPeer(kind peerKind, id identity.ID, labels identity.Labels) *peer {
	return &peer{kind: kind, id: id, fixed: true, labels: labels,
		digest: identity.DigestOf(labels.AppendCanonical(fmt.Appendf(nil, "fixed %d\x00", id)))}
}

// peerTable holds the peers that the tables speak of.
type peerTable struct {
	numbers  *numbering
	byDigest map[identity.Digest]*peer
	byID     map[identity.ID]*peer
	pods     map[string]map[*peer]struct{} // by namespace
	names    map[*peer]struct{}
	others   map[*peer]struct{} // all but pods and names
	// What this batch of changes added, and what may have lost its last user.
	added   map[*peer]struct{}
	dropped map[*peer]struct{}
}

func newPeerTable(n *numbering) *peerTable {
	return &peerTable{
		numbers: n, byDigest: map[identity.Digest]*peer{}, byID: map[identity.ID]*peer{},
		pods: map[string]map[*peer]struct{}{}, names: map[*peer]struct{}{}, others: map[*peer]struct{}{},
		added: map[*peer]struct{}{}, dropped: map[*peer]struct{}{},
	}
}

// acquire returns the peer of the table that equals want, which becomes it if
// there is none, and holds it.
func (t *peerTable) acquire(want *peer) (*peer, error) {
	if p, ok := t.byDigest[want.digest]; ok {
		p.refs++
		return p, nil
	}
	if !want.fixed {
		n, err := t.numbers.get(want.digest)
		if err != nil {
			return nil, fmt.Errorf("number an identity: %w", err)
		}
		want.id = identity.ID(n)
	}
	want.refs = 1
	t.byDigest[want.digest] = want
	t.byID[want.id] = want
	switch want.kind {
	case podPeer:
		addTo(t.pods, want.namespace, want)
	case namesPeer:
		t.names[want] = struct{}{}
	default:
		t.others[want] = struct{}{}
	}
	t.added[want] = struct{}{}
	return want, nil
}

// release lets go of a peer; it stays until sweep.
func (t *peerTable) release(p *peer) {
	if p == nil {
		return
	}
	if p.refs--; p.refs == 0 {
		t.dropped[p] = struct{}{}
	}
}

// held returns the peer of the table that equals want; nil if nobody holds it.
func (t *peerTable) held(want *peer) *peer {
	if p := t.byDigest[want.digest]; p != nil && p.refs > 0 {
		return p
	}
	return nil
}

// sweep forgets the peers nobody holds and returns what came and went since
// the last call.
func (t *peerTable) sweep() (added, removed []*peer) {
	for p := range t.dropped {
		if p.refs > 0 {
			continue
		}
		delete(t.byDigest, p.digest)
		if t.byID[p.id] == p {
			delete(t.byID, p.id)
		}
		if p.kind == podPeer {
			takeFrom(t.pods, p.namespace, p)
		} else {
			delete(t.others, p)
			delete(t.names, p)
		}
		if !p.fixed {
			t.numbers.release(uint32(p.id))
		}
		if _, new := t.added[p]; new {
			delete(t.added, p)
			continue
		}
		removed = append(removed, p)
	}
	for p := range t.added {
		added = append(added, p)
	}
	clear(t.added)
	clear(t.dropped)
	return added, removed
}
