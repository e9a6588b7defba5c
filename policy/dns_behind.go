package policy

import (
	"slices"

	"github.com/weirnet/weir/identity"
)

// dnsBehind is where backends of services, and pods with host ports, answer that are
// asked at port 53, where that is another port of theirs: pods' questions come there,
// since services are translated before there is a packet.
type dnsBehind struct {
	at map[identity.Digest][]ports // by peer, ordered
	// peers are those of this engine's tables; left those that were, until now.
	peers, left map[*peer]struct{}
}

func newDNSBehind() *dnsBehind { return &dnsBehind{peers: map[*peer]struct{}{}} }

// settleDNSBehind finds them anew where services have changed.
func (e *Engine) settleDNSBehind() {
	d := e.dnsBehind
	d.left = nil
	if !e.dirty.dns {
		return
	}
	was := d.peers
	d.at, d.peers, d.left = map[identity.Digest][]ports{}, map[*peer]struct{}{}, map[*peer]struct{}{}
	see := func(p *peer, at ports) {
		if at.isDNS() || !p.isFew() {
			return
		}
		d.peers[p] = struct{}{}
		if list := d.at[p.digest]; !slices.Contains(list, at) {
			d.at[p.digest] = sortPorts(append(list, at))
		}
	}
	e.seeHostPorts(see)
	for _, s := range e.services {
		if !s.dns {
			continue
		}
		for _, t := range s.targets {
			for _, b := range t.backends {
				if t.isDNS() {
					see(b.peer, onePort(t.proto, b.port))
				}
			}
		}
	}
	for p := range was {
		if _, still := d.peers[p]; !still {
			d.left[p] = struct{}{}
		}
	}
}

func (t *target) isDNS() bool { return onePort(t.proto, t.port).isDNS() }

// leadsToDNS tells whether some backend of the service is asked for names at
// another port than 53.
func (s *service) leadsToDNS() bool {
	return slices.ContainsFunc(s.targets, func(t target) bool {
		return t.isDNS() && slices.ContainsFunc(t.backends, func(b backend) bool { return b.port != portDNS })
	})
}

// isFew tells that a peer does not stand for addresses that nobody spoke of: what
// those have at such a port is something else.
func (p *peer) isFew() bool {
	return p != nil && p.kind != unknownPeer && (!p.isWorld() || p.prefix.IsSingleIP())
}

// touch adds the peers of which an egress policy has to be asked anew.
func (d *dnsBehind) touch(f *enforcement, peers map[*peer]struct{}) {
	if f.direction != Egress || !f.compiler.observes {
		return // nothing was seen, or update has found what was
	}
	for p := range d.peers {
		peers[p] = struct{}{}
	}
	for p := range d.left {
		if _, ok := f.perPeer[p]; ok {
			peers[p] = struct{}{}
		}
	}
}

// seeBehind adds to what a policy says about a peer that DNS goes to the proxy
// also where the peer answers as a service's backend, as observe does at port 53.
func (f *enforcement) seeBehind(p *peer, at []ports, t template) (template, error) {
	table := f.forAny.entries(f.direction)
	t.write(table, f.direction, askedPeer)
	t = slices.Clone(t) // it may be another peer's as well
	for _, at := range at {
		found, ok := Lookup(table, f.direction, []identity.ID{askedPeer}, at.proto, at.port)
		if !ok || found.Action != Allow {
			continue
		}
		e, err := f.compiler.seen(found.Rule)
		if err != nil {
			return nil, err
		}
		if i := slices.IndexFunc(t, func(o entryFor) bool { return o.ports == at }); i >= 0 {
			t[i].entry = e
		} else {
			t = append(t, entryFor{at, e})
		}
	}
	slices.SortFunc(t, entryFor.compare)
	return t, nil
}

func (e entryFor) compare(o entryFor) int { return e.ports.compare(o.ports) }
