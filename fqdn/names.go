package fqdn

import (
	"hash/maphash"
	"net/netip"
)

// maxName is the most bytes a name in normal form has: 255 on the wire, each of
// which may be spelled \DDD.
const maxName = 1016

// keptPods is how many of the pods that asked for a name are remembered.
const keptPods = 4

// name is a name that stands for some address.
type name struct {
	text  uint32
	size  uint16
	_     uint16
	first uint32 // pair
	pairs uint32
	// set are the selectors that match it, as of that epoch.
	set, epoch uint32
	pods       [keptPods]uint32 // latest first
	owner      uint32           // pod whose share it takes: who asked first, see Cache.share
}

// address is one that some name stands for, or that a predecessor left in the
// table.
type address struct {
	ip    [16]byte
	first uint32 // pair; none: a predecessor's
	// set are the selectors that match one of its names, as of that epoch.
	set, epoch uint32
	written    uint32 // identity in the table; 0: it is not there
	alive      uint32 // when a flow was last looked for and seen
	inherited  uint32 // when it was found in the table, if it is a predecessor's
	used       bool
}

// pair is one address of one name. Times are seconds of the cache's clock.
type pair struct {
	name, addr         uint32
	nextName, prevName uint32 // pairs of the same name
	nextAddr, prevAddr uint32 // of the same address
	expires            uint32
	learned            uint32 // the last time; 0: the place is vacant
}

// store is what is known, without judgement. Its indexes agree with its slabs.
type store struct {
	names slab[name]
	addrs slab[address]
	pairs slab[pair]
	texts texts
	pods  pods

	byName, byAddr, byPair index
	seed                   maphash.Seed
}

func newStore() *store {
	return &store{seed: maphash.MakeSeed(), pods: pods{byAddr: map[netip.Addr]uint32{}}}
}

func (s *store) text(n *name) []byte { return s.texts.get(n.text, n.size) }

func (s *store) hashName(place uint32) uint64 {
	return maphash.Bytes(s.seed, s.text(s.names.at(place)))
}

func (s *store) hashAddr(place uint32) uint64 {
	return maphash.Bytes(s.seed, s.addrs.at(place).ip[:])
}

func (s *store) hashPair(place uint32) uint64 {
	p := s.pairs.at(place)
	return hashPair(p.name, p.addr)
}

// hashPair mixes two places (the finalizer of SplitMix64, public domain): they
// are small numbers of ours, which nobody outside chooses.
func hashPair(name, addr uint32) uint64 {
	h := uint64(name)<<32 | uint64(addr)
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}

func (s *store) findName(text string) (uint32, bool) {
	return s.byName.find(maphash.String(s.seed, text), func(place uint32) bool {
		return string(s.text(s.names.at(place))) == text
	})
}

func (s *store) addName(text string, owner uint32) uint32 {
	place := s.names.take()
	*s.names.at(place) = name{text: s.texts.add(text), size: uint16(len(text)), first: none,
		pods: [keptPods]uint32{none, none, none, none}, owner: owner}
	s.byName.add(s.hashName(place), place, s.hashName)
	s.pods.of(owner).text += roomFor(len(text))
	return place
}

// hand makes a name another pod's.
func (s *store) hand(n *name, pod uint32) {
	for _, to := range []struct {
		pod  uint32
		sign int32
	}{{n.owner, -1}, {pod, 1}} {
		e := s.pods.of(to.pod)
		e.pairs += to.sign * int32(n.pairs)
		e.text += to.sign * roomFor(int(n.size))
	}
	n.owner = pod
}

func (s *store) removeName(place uint32) {
	s.byName.remove(s.hashName(place), place)
	n := s.names.at(place)
	s.texts.remove(n.text, n.size)
	s.pods.of(n.owner).text -= roomFor(int(n.size))
	n.first, n.pairs = none, 0
	s.names.give(place)
}

func (s *store) findAddr(ip [16]byte) (uint32, bool) {
	return s.byAddr.find(maphash.Bytes(s.seed, ip[:]), func(place uint32) bool { return s.addrs.at(place).ip == ip })
}

func (s *store) addAddr(ip [16]byte) uint32 {
	place := s.addrs.take()
	*s.addrs.at(place) = address{ip: ip, first: none, used: true}
	s.byAddr.add(s.hashAddr(place), place, s.hashAddr)
	return place
}

func (s *store) removeAddr(place uint32) {
	s.byAddr.remove(s.hashAddr(place), place)
	s.addrs.at(place).used = false
	s.addrs.give(place)
}

func (s *store) findPair(name, addr uint32) (uint32, bool) {
	return s.byPair.find(hashPair(name, addr), func(place uint32) bool {
		p := s.pairs.at(place)
		return p.name == name && p.addr == addr
	})
}

func (s *store) addPair(nameAt, addrAt, now uint32) uint32 {
	n, a := s.names.at(nameAt), s.addrs.at(addrAt)
	place := s.pairs.take()
	*s.pairs.at(place) = pair{
		name: nameAt, addr: addrAt, learned: now,
		nextName: n.first, prevName: none, nextAddr: a.first, prevAddr: none,
	}
	if n.first != none {
		s.pairs.at(n.first).prevName = place
	}
	if a.first != none {
		s.pairs.at(a.first).prevAddr = place
	}
	n.first, a.first = place, place
	n.pairs++
	s.pods.of(n.owner).pairs++
	s.byPair.add(hashPair(nameAt, addrAt), place, s.hashPair)
	return place
}

// removePair leaves a name or an address that has no other pair.
func (s *store) removePair(place uint32) {
	p := s.pairs.at(place)
	s.byPair.remove(hashPair(p.name, p.addr), place)
	n, a := s.names.at(p.name), s.addrs.at(p.addr)
	if p.prevName == none {
		n.first = p.nextName
	} else {
		s.pairs.at(p.prevName).nextName = p.nextName
	}
	if p.nextName != none {
		s.pairs.at(p.nextName).prevName = p.prevName
	}
	if p.prevAddr == none {
		a.first = p.nextAddr
	} else {
		s.pairs.at(p.prevAddr).nextAddr = p.nextAddr
	}
	if p.nextAddr != none {
		s.pairs.at(p.nextAddr).prevAddr = p.prevAddr
	}
	n.pairs--
	s.pods.of(n.owner).pairs--
	p.learned = 0
	s.pairs.give(place)
}

// asked notes that a pod asked for a name.
func (n *name) asked(pod uint32) {
	if n.pods[0] == pod {
		return
	}
	at := keptPods - 1
	for i, p := range n.pods {
		if p == pod {
			at = i
			break
		}
	}
	copy(n.pods[1:at+1], n.pods[:at])
	n.pods[0] = pod
}

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
		if e.addr.IsValid() && e.seen != p.round && e.pairs == 0 && e.waiting == 0 {
			delete(p.byAddr, e.addr)
			*e = podEntry{}
			p.vacant = append(p.vacant, uint32(i))
		}
	}
	p.round++
}
