package fqdn

import "net/netip"

// pods are those that asked. They are few beside names, so a number stands for
// each there.
type pods struct {
	byAddr map[netip.Addr]uint32
	list   []podEntry
	nobody podEntry // owns what was learned for no pod
	vacant []uint32
	// round counts sweeps: a pod that no name knows at the end of one is
	// forgotten.
	round uint32
}

type podEntry struct {
	addr    netip.Addr
	seen    uint32 // round it was last used in, or met in a name
	waiting int32  // answers of it that wait for room
	wants   int32  // what the combinations cost that are wanted for it
	// pairs are how many addresses the names have that are its own, text is how
	// many bytes these names take.
	pairs, text int32
}

// of is a pod's entry, or nobody's; it is valid until there is another pod.
func (p *pods) of(pod uint32) *podEntry {
	if pod == none {
		return &p.nobody
	}
	return &p.list[pod]
}

// known is a pod's number, or none where another may have it by now.
func (p *pods) known(pod uint32) uint32 {
	if pod >= uint32(len(p.list)) || !p.list[pod].addr.IsValid() {
		return none
	}
	return pod
}

func (p *pods) number(a netip.Addr) uint32 {
	if !a.IsValid() {
		return none
	}
	if i, ok := p.byAddr[a]; ok {
		p.list[i].seen = p.round
		return i
	}
	var i uint32
	if n := len(p.vacant); n > 0 {
		i, p.vacant = p.vacant[n-1], p.vacant[:n-1]
	} else {
		i = uint32(len(p.list))
		p.list = append(p.list, podEntry{})
	}
	p.list[i] = podEntry{addr: a, seen: p.round}
	p.byAddr[a] = i
	return i
}

// met says that a name knows these pods.
func (p *pods) met(n *name) {
	for _, i := range n.pods {
		if i != none {
			p.list[i].seen = p.round
		}
	}
}

// endRound forgets pods that were not met since the last one, and own nothing.
func (p *pods) endRound() {
	for i := range p.list {
		e := &p.list[i]
		if e.addr.IsValid() && e.seen != p.round && e.pairs == 0 && e.waiting == 0 && e.wants == 0 {
			delete(p.byAddr, e.addr)
			*e = podEntry{}
			p.vacant = append(p.vacant, uint32(i))
		}
	}
	p.round++
}
