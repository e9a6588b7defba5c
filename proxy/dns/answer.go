package dns

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"time"
	"unsafe"

	"github.com/weirnet/weir/fqdn"
)

// Bounds of what is read out of an answer. What is beyond is passed on all the
// same, but nobody learns of it.
const (
	// maxChain is how many CNAME records are followed: resolvers follow 8 to 16.
	maxChain = 16
	// maxAliases bounds the CNAME records that are looked at.
	maxAliases = 32
	// maxOwners bounds the names of address records that are read: they are the
	// same one, as a rule.
	maxOwners = 64
	// maxAddresses bounds those of one answer: far more than anybody tries, and
	// what a server puts into 64 KiB must not hold up others.
	maxAddresses = 256
)

// answer is what is read out of the answer section of a message. Its memory is
// used again by the next read.
type answer struct {
	// chain are the names that CNAME records lead to from the asked one, in
	// order, and records the addresses of that name or one of those: in class IN
	// only. Each lives as long as it and the whole chain do.
	chain   []string
	records []fqdn.Record

	text    []byte
	aliases []alias
	found   []found
}

// alias is a CNAME record. Names are ranges of answer.text.
type alias struct {
	owner, target span
	ttl           uint32
	used          bool
}

// found is an address record. owner is a name in answer.text.
type found struct {
	addr  netip.Addr
	owner span
	ttl   uint32
}

type span struct{ from, to int }

func (a *answer) of(s span) []byte { return a.text[s.from:s.to] }

// read reads the answer section of m, which repeats the question q (or asks
// nothing, and has no answers then). It fails where the section is not what it
// should be: a client might then read other addresses than those seen here.
func (a *answer) read(m []byte, q *question) bool {
	a.chain, a.records = a.chain[:0], a.records[:0]
	a.aliases, a.found = a.aliases[:0], a.found[:0]
	a.text = append(a.text[:0], q.name...)
	asked := span{0, len(q.name)}
	// The owner that was read last, by where its name ends up: of most records
	// it is a pointer to the same place.
	last, lastAt, owners := asked, headerSize, 0
	at := headerSize + len(q.wire)
	for range count(m, sectionAnswer) {
		name := at
		next, ok := skipName(m, at)
		if !ok || next+recordSize > len(m) {
			return false
		}
		kind := binary.BigEndian.Uint16(m[next:])
		class := binary.BigEndian.Uint16(m[next+2:])
		ttl := binary.BigEndian.Uint32(m[next+4:])
		data := next + recordSize
		at = data + int(binary.BigEndian.Uint16(m[next+8:]))
		if at > len(m) {
			return false
		}
		if ttl > 1<<31-1 {
			ttl = 0 // RFC 2181, 8
		}
		if class != classIN {
			continue
		}
		switch kind {
		case typeA, typeAAAA:
			addr, ok := netip.AddrFromSlice(m[data:at])
			if !ok || addr.Is4() != (kind == typeA) {
				return false
			}
			if len(a.found) == maxAddresses {
				continue
			}
			place := pointsTo(m, name)
			if place != lastAt {
				if owners == maxOwners {
					continue
				}
				owners++
				if last, ok = a.name(m, name); !ok {
					return false
				}
				lastAt = place
			}
			a.found = append(a.found, found{addr, last, ttl})
		case typeCNAME:
			if len(a.aliases) == maxAliases {
				continue
			}
			end, ok := skipName(m, data)
			if !ok || end != at {
				return false
			}
			owner, ok := a.name(m, name)
			if !ok {
				return false
			}
			target, ok := a.name(m, data)
			if !ok {
				return false
			}
			a.aliases = append(a.aliases, alias{owner: owner, target: target, ttl: ttl})
		}
	}
	if q.class == classIN {
		a.follow(asked)
	}
	return true
}

// name reads the name at an offset into a.text.
func (a *answer) name(m []byte, at int) (s span, ok bool) {
	s.from = len(a.text)
	a.text, ok = appendName(a.text, m, at)
	s.to = len(a.text)
	return s, ok
}

// pointsTo is where a name that is nothing but a pointer leads; of others, where
// they are.
func pointsTo(m []byte, at int) int {
	if m[at] >= 0xc0 {
		return int(m[at]&0x3f)<<8 | int(m[at+1])
	}
	return at
}

// follow makes the chain of aliases from the asked name, in whatever order the
// records are, and takes the addresses that belong to it.
func (a *answer) follow(asked span) {
	var links [maxChain + 1]span
	links[0] = asked
	n, least := 1, uint32(1<<31-1)
	for n <= maxChain {
		next := a.next(links[n-1])
		if next == nil {
			break
		}
		links[n] = next.target
		n++
		least = min(least, next.ttl)
		target := a.of(next.target)
		a.chain = append(a.chain, unsafe.String(unsafe.SliceData(target), len(target)))
	}
	for i := range a.found {
		f := &a.found[i]
		for _, link := range links[:n] {
			if f.owner == link || bytes.Equal(a.of(f.owner), a.of(link)) {
				ttl := time.Duration(min(f.ttl, least)) * time.Second
				a.records = append(a.records, fqdn.Record{Addr: f.addr, TTL: ttl})
				break
			}
		}
	}
}

// next is the alias of a name, once.
func (a *answer) next(name span) *alias {
	for i := range a.aliases {
		x := &a.aliases[i]
		if !x.used && bytes.Equal(a.of(x.owner), a.of(name)) {
			x.used = true
			return x
		}
	}
	return nil
}
