package policy

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/weirnet/weir/identity"
)

// prefixTable is what the ipcache holds: who the addresses of a prefix are.
// The longest prefix of an address counts.
type prefixTable struct {
	peers   map[netip.Prefix]*peer
	lengths [2][129]int // prefixes of each length, by family
}

func newPrefixTable() *prefixTable { return &prefixTable{peers: map[netip.Prefix]*peer{}} }

func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

func (t *prefixTable) set(p netip.Prefix, to *peer) {
	if _, ok := t.peers[p]; !ok {
		t.lengths[family(p.Addr())][p.Bits()]++
	}
	t.peers[p] = to
}

func (t *prefixTable) remove(p netip.Prefix) {
	if _, ok := t.peers[p]; ok {
		t.lengths[family(p.Addr())][p.Bits()]--
		delete(t.peers, p)
	}
}

// lookup finds who an address is; exact if the address itself is in the table.
func (t *prefixTable) lookup(a netip.Addr) (who *peer, exact bool) {
	a = a.Unmap().WithZone("")
	lengths := &t.lengths[family(a)]
	for bits := a.BitLen(); bits >= 0; bits-- {
		if lengths[bits] == 0 {
			continue
		}
		p, err := a.Prefix(bits)
		if err != nil {
			continue // bits is in range
		}
		if who, ok := t.peers[p]; ok {
			return who, bits == a.BitLen()
		}
	}
	return nil, false
}

// claims is who says what about addresses.
type claims struct {
	pods       map[netip.Addr][]*pod
	nodes      map[netip.Addr]map[string]int // by node name, how often
	host       map[netip.Addr]struct{}       // this node was found to have them
	services   map[netip.Addr][]*service     // cluster IPs
	backends   map[netip.Addr]map[*service]struct{}
	apiServers map[netip.Addr]int
	cidrs      map[netip.Prefix]int // prefixes that policies tell apart
	blocks     map[netip.Prefix]int // of those, what IP blocks and their exceptions are
	podCIDRs   map[netip.Prefix]int
	podLengths [2][129]int // distinct podCIDRs of each length
	dirty      map[netip.Prefix]struct{}
}

func newClaims() *claims {
	c := &claims{
		pods: map[netip.Addr][]*pod{}, nodes: map[netip.Addr]map[string]int{}, services: map[netip.Addr][]*service{},
		backends: map[netip.Addr]map[*service]struct{}{}, apiServers: map[netip.Addr]int{},
		cidrs: map[netip.Prefix]int{}, blocks: map[netip.Prefix]int{}, podCIDRs: map[netip.Prefix]int{}, dirty: map[netip.Prefix]struct{}{},
	}
	for _, world := range [...]string{"0.0.0.0/0", "::/0"} {
		c.dirty[netip.MustParsePrefix(world)] = struct{}{}
	}
	c.podCIDR(linkLocal6, true)
	return c
}

// linkLocal6 is handled as a range of pods: who answers there is on the pod's own
// link, another pod or the node, and never the world.
var linkLocal6 = netip.MustParsePrefix("fe80::/10")

func (c *claims) touch(a netip.Addr) {
	if a.IsValid() {
		c.dirty[hostPrefix(a)] = struct{}{}
	}
}

func (c *claims) pod(p *pod, a netip.Addr, add bool) {
	c.touch(a)
	a = a.Unmap()
	if add {
		c.pods[a] = append(c.pods[a], p)
		return
	}
	c.pods[a] = slices.DeleteFunc(c.pods[a], func(q *pod) bool { return q == p })
	if len(c.pods[a]) == 0 {
		delete(c.pods, a)
	}
}

func (c *claims) node(name string, a netip.Addr, add bool) {
	c.touch(a)
	a = a.Unmap()
	if !add {
		if c.nodes[a][name]--; c.nodes[a][name] == 0 {
			delete(c.nodes[a], name)
		}
		if len(c.nodes[a]) == 0 {
			delete(c.nodes, a)
		}
		return
	}
	if c.nodes[a] == nil {
		c.nodes[a] = map[string]int{}
	}
	c.nodes[a][name]++
}

func (c *claims) clusterIP(s *service, a netip.Addr, add bool) {
	c.touch(a)
	a = a.Unmap()
	if add {
		c.services[a] = append(c.services[a], s)
		return
	}
	c.services[a] = slices.DeleteFunc(c.services[a], func(q *service) bool { return q == s })
	if len(c.services[a]) == 0 {
		delete(c.services, a)
	}
}

func (c *claims) apiServer(a netip.Addr, add bool) {
	c.touch(a)
	count(c.apiServers, a.Unmap(), add)
}

func (c *claims) cidr(p netip.Prefix, add bool) {
	count(c.cidrs, p, add)
	c.dirty[p] = struct{}{}
}

// block comes beside cidr.
func (c *claims) block(b *ipBlock, add bool) {
	count(c.blocks, b.prefix, add)
	for _, p := range b.except {
		count(c.blocks, p, add)
	}
}

// podCIDR also touches the prefixes of policies that lie in it.
func (c *claims) podCIDR(p netip.Prefix, add bool) {
	before := len(c.podCIDRs)
	count(c.podCIDRs, p, add)
	c.podLengths[family(p.Addr())][p.Bits()] += len(c.podCIDRs) - before
	c.dirty[p] = struct{}{}
	for q := range c.cidrs {
		if q.Bits() >= p.Bits() && p.Contains(q.Addr()) {
			c.dirty[q] = struct{}{}
		}
	}
}

func count[K comparable](m map[K]int, k K, add bool) {
	if add {
		m[k]++
	} else if m[k]--; m[k] <= 0 {
		delete(m, k)
	}
}

// inPodCIDR tells whether all of a prefix lies in some node's pod range.
func (c *claims) inPodCIDR(p netip.Prefix) bool {
	lengths := &c.podLengths[family(p.Addr())]
	for bits := p.Bits(); bits >= 0; bits-- {
		if lengths[bits] == 0 {
			continue
		}
		if q, err := p.Addr().Prefix(bits); err == nil && c.podCIDRs[q] > 0 {
			return true
		}
	}
	return false
}

// owner is the pod that has an address: the newest of those that claim it.
func (c *claims) owner(a netip.Addr) *pod {
	var best *pod
	for _, p := range c.pods[a] {
		if best == nil || p.newer(best) {
			best = p
		}
	}
	return best
}

// wanted is the peer that a prefix should stand for; nil: it should not be in
// the table.
func (e *Engine) wanted(p netip.Prefix) *peer {
	c := e.claims
	if p.IsSingleIP() {
		a := p.Addr()
		if e.onHost(a) {
			return e.at(newHostPeer(e.apiServerHere), a)
		}
		s := e.strangers.at[a]
		// A pod that is being deleted may have its address no more.
		if owner := c.owner(a); owner != nil && (s == nil || !owner.src.Deleting) {
			return e.at(owner.peer, a)
		}
		if names := c.nodes[a]; len(names) > 0 {
			return e.at(e.nodePeerOf(names, c.apiServers[a] > 0), a)
		}
		if of := c.services[a]; len(of) > 0 {
			return newServicePeer(slices.MinFunc(of, func(a, b *service) int { return compareObjects(a.object, b.object) }).object)
		}
		if s != nil {
			return e.at(s.claim, a)
		}
		if c.apiServers[a] > 0 {
			return newWorldPeer(p, true)
		}
	}
	if c.podCIDRs[p] > 0 || c.blocks[p] > 0 && c.inPodCIDR(p) {
		return newUnknownPeer().within(e.blocks.around(p))
	}
	if p.Bits() == 0 || c.cidrs[p] > 0 && !c.inPodCIDR(p) {
		return newWorldPeer(p, false)
	}
	return nil
}

// nodePeerOf is the peer of an address that these nodes have.
func (e *Engine) nodePeerOf(names map[string]int, apiServer bool) *peer {
	if _, ok := names[e.nodeName]; ok && e.nodeName != "" {
		return newHostPeer(e.apiServerHere)
	}
	name := slices.Min(slices.Collect(maps.Keys(names)))
	return newNodePeer(apiServer, e.nodeLabels(name))
}

// nodeLabels are the labels of a node that some rule asks for.
func (e *Engine) nodeLabels(name string) []identity.Label {
	n, ok := e.nodes[name]
	if !ok {
		return nil
	}
	var out []identity.Label
	if e.nodeKeys[identity.KeyCluster] > 0 {
		out = append(out, identity.Label{Source: identity.SourceK8s, Key: identity.KeyCluster, Value: identity.ClusterName})
	}
	for k, v := range n.Labels {
		if e.nodeKeys[k] > 0 {
			out = append(out, identity.Label{Source: identity.SourceNode, Key: k, Value: v})
		}
	}
	return out
}

// settlePrefixes brings the table up to date with the claims, and the
// endpoints with it. It returns the prefixes whose peer changed.
func (e *Engine) settlePrefixes() ([]netip.Prefix, error) {
	var changed []netip.Prefix
	for p := range e.claims.dirty {
		old, want := e.prefixes.peers[p], e.wanted(p)
		if want != nil {
			var err error
			if want, err = e.peers.acquire(want); err != nil {
				return changed, err
			}
		}
		if p.IsSingleIP() {
			e.settleEndpoint(p.Addr(), want)
		}
		if old == want {
			e.peers.release(want)
			continue
		}
		e.peers.release(old)
		changed = append(changed, p)
		if want == nil {
			e.prefixes.remove(p)
			e.delta.Prefixes[p] = Peer{}
			continue
		}
		e.prefixes.set(p, want)
		if now := want.told(); old == nil || now != old.told() {
			e.delta.Prefixes[p] = now
		}
	}
	clear(e.claims.dirty)
	return changed, nil
}

// settleEndpoint brings the endpoint of an address up to date; who is what it
// stands for.
func (e *Engine) settleEndpoint(a netip.Addr, who *peer) {
	var want *Endpoint
	if p := e.claims.owner(a); p != nil && p.subject != nil {
		want = &Endpoint{Namespace: p.src.Namespace, Name: p.src.Name, UID: p.src.UID,
			Identity: p.peer.id, Labels: p.peer.id, Policy: p.subject.id, Deleting: p.src.Deleting}
		if who != nil && who.plain().digest == p.peer.digest {
			want.Identity = who.id
		}
	}
	old := e.endpoints[a]
	switch {
	case want == nil && old == nil || want != nil && old != nil && *want == *old:
	case want == nil:
		delete(e.endpoints, a)
		e.delta.Endpoints[a] = nil
	default:
		e.endpoints[a] = want
		e.delta.Endpoints[a] = want
	}
}
