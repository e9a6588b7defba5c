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
	scope uint16 // who it counts for: see scopes
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
	names  slab[name]
	addrs  slab[address]
	pairs  slab[pair]
	texts  texts
	pods   pods
	scopes scopes

	byName, byAddr, byPair index
	seed                   maphash.Seed
}

func newStore() *store {
	return &store{seed: maphash.MakeSeed(), scopes: newScopes(), pods: pods{byAddr: map[netip.Addr]uint32{}}}
}

func (s *store) text(n *name) []byte { return s.texts.get(n.text, n.size) }

func (s *store) hashName(place uint32) uint64 {
	n := s.names.at(place)
	return maphash.Bytes(s.seed, s.text(n)) ^ hashPair(0, uint32(n.scope))
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

func (s *store) findName(text string, scope uint16) (uint32, bool) {
	return s.byName.find(maphash.String(s.seed, text)^hashPair(0, uint32(scope)), func(place uint32) bool {
		n := s.names.at(place)
		return n.scope == scope && string(s.text(n)) == text
	})
}

func (s *store) addName(text string, scope uint16, owner uint32) uint32 {
	place := s.names.take()
	s.scopes.list[scope].names++
	*s.names.at(place) = name{text: s.texts.add(text), size: uint16(len(text)), scope: scope, first: none,
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
	s.scopes.list[n.scope].names--
	s.scopes.tidy(n.scope)
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
