package policy

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/weirnet/weir/identity"
)

// ipBlock is an ipBlock of a NetworkPolicy: the addresses of a prefix that are in
// none of the exceptions, whoever has them. It is about outside addresses as a
// CIDR is, by their prefix; of pods and nodes, this one as well, the identity tells
// which blocks the address lies in (peer.blocks).
type ipBlock struct {
	key    string // names it in peers and selectors
	prefix netip.Prefix
	except []netip.Prefix
}

func newIPBlock(prefix netip.Prefix, except []netip.Prefix) *ipBlock {
	b := &ipBlock{key: prefix.String(), prefix: prefix, except: except}
	if len(except) > 0 {
		b.key += " except " + prefixList(except)
	}
	return b
}

// covers tells whether all of a prefix lies in the block. Prefixes that lie there
// in part are longer than the block's, or than an exception's.
func (b *ipBlock) covers(p netip.Prefix) bool {
	return anyCovers([]netip.Prefix{b.prefix}, p) && !anyCovers(b.except, p)
}

// blockSelector selects the addresses of a block.
func blockSelector(b *ipBlock, text string) *selector {
	return &selector{key: "block " + b.key, text: text, scope: anyScope, particular: b.prefix.Bits() > 0,
		matches: func(p *peer) bool {
			if p.isWorld() {
				return b.covers(p.prefix)
			}
			return slices.Contains(p.blocks, b.key)
		}}
}

// within is the peer for addresses in these blocks, ordered.
func (p *peer) within(blocks []string) *peer {
	switch p.kind {
	case podPeer, hostPeer, nodePeer, unknownPeer:
	default:
		return p // by its prefix, or not by its address
	}
	base := p.plain()
	if len(blocks) == 0 {
		return base
	}
	return &peer{kind: p.kind, labels: p.labels, namespace: p.namespace, ports: p.ports, blocks: blocks, base: base,
		digest: identity.DigestOf(append(slices.Concat([]byte("within\x00"), base.digest[:]), strings.Join(blocks, "\x00")...))}
}

// plain is the peer as it is in no block.
func (p *peer) plain() *peer {
	if p.base != nil {
		return p.base
	}
	return p
}

// blockTable holds the blocks that policies have.
type blockTable struct {
	byKey   map[string]*ipBlock
	users   map[string]int
	changed map[string]*ipBlock // came or went, or both
}

func newBlockTable() *blockTable {
	return &blockTable{map[string]*ipBlock{}, map[string]int{}, map[string]*ipBlock{}}
}

func (t *blockTable) use(b *ipBlock, add bool) {
	count(t.users, b.key, add)
	_, there := t.byKey[b.key]
	switch used := t.users[b.key] > 0; {
	case used && !there:
		t.byKey[b.key], t.changed[b.key] = b, b
	case !used && there:
		delete(t.byKey, b.key)
		t.changed[b.key] = b
	}
}

// around lists the blocks that a prefix lies in, ordered. Neighbors on a pod's own
// link are in none.
func (t *blockTable) around(p netip.Prefix) []string {
	var out []string
	if linkLocal6.Overlaps(p) {
		return nil
	}
	for key, b := range t.byKey {
		if b.covers(p) {
			out = append(out, key)
		}
	}
	slices.Sort(out)
	return out
}

// at is what a peer is where it has an address; not valid: where it is not known
// which.
func (e *Engine) at(p *peer, a netip.Addr) *peer {
	if p == nil || !a.IsValid() {
		return p
	}
	return p.within(e.blocks.around(hostPrefix(a)))
}

// settleBlocks notes the addresses that are in other blocks now.
func (e *Engine) settleBlocks() {
	c := e.claims
	for _, b := range e.blocks.changed {
		for a := range maps.Keys(c.pods) {
			c.touchWithin(b.prefix, a)
		}
		for a := range maps.Keys(c.nodes) {
			c.touchWithin(b.prefix, a)
		}
		for a := range maps.Keys(c.host) {
			c.touchWithin(b.prefix, a)
		}
		for a := range maps.Keys(e.strangers.at) {
			c.touchWithin(b.prefix, a)
		}
		for p := range c.podCIDRs {
			if p.Overlaps(b.prefix) {
				c.dirty[p] = struct{}{}
			}
		}
		for p := range c.blocks {
			if p.Overlaps(b.prefix) {
				c.dirty[p] = struct{}{}
			}
		}
	}
	clear(e.blocks.changed)
}

func (c *claims) touchWithin(p netip.Prefix, a netip.Addr) {
	if p.Contains(a) {
		c.touch(a)
	}
}
