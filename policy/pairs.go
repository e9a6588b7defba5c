package policy

import (
	"fmt"
	"slices"

	"github.com/weirnet/weir/identity"
)

// pairKey is an outside address: what it is, and what its names make of it.
type pairKey struct{ outside, named *peer }

// pair is a pairPeer that some policy has something of its own to say about.
// Of other pairs, what is said about the one and about the other is enough.
type pair struct {
	peer  *peer
	key   Pair
	users int // enforcements
	told  bool
}

// newPairPeer stands for the addresses that are both.
func newPairPeer(k pairKey) *peer {
	return &peer{kind: pairPeer, pair: k,
		digest: identity.DigestOf(slices.Concat([]byte("pair\x00"), k.outside.digest[:], k.named.digest[:]))}
}

// judgePairs brings the templates of pairs up to date with those of their
// parts, which are current.
func (e *Engine) judgePairs(f *enforcement, ed *edit) error {
	wanted := f.disagreeing()
	if len(wanted)+len(f.pairs) == 0 {
		return nil
	}
	now := make(map[*pair]template, len(wanted))
	for _, k := range wanted {
		p, err := e.pairOf(k)
		if err != nil {
			return err
		}
		grants := slices.Concat(f.own[k.outside], f.own[k.named])
		slices.SortFunc(grants, (*grant).compare)
		if now[p], err = f.templateFor(p.peer, slices.Compact(grants)); err != nil {
			return err
		}
		old, had := f.pairs[p]
		if ed.replace(f.direction, p.peer.id, old, now[p]); !had {
			p.users++
		}
	}
	for p, t := range f.pairs {
		if _, still := now[p]; !still {
			ed.replace(f.direction, p.peer.id, t, nil)
			p.users--
		}
	}
	f.pairs = now
	return nil
}

// maxPairs is the most pairs of one policy. With more it has none: where rules
// for addresses and rules for names meet, the L7 rules of either then hold, and
// nothing that the others allow lifts them.
const maxPairs = 4096

// disagreeing lists the pairs of which rules for the one and rules for the
// other are about the same ports, and L7 rules have a say there: then neither
// side's entries tell what they say together.
func (f *enforcement) disagreeing() (out []pairKey) {
	if !f.compiler.observes || f.l7 == 0 || f.closed != nil {
		return nil
	}
	anyDNS := slices.ContainsFunc(f.any, func(g *grant) bool { return g.l7() == l7DNS })
	// Those with L7 rules of their own first.
	var outside, named [2][]*peer
	for p, grants := range f.own {
		plain := 1
		if anyDNS || slices.ContainsFunc(grants, func(g *grant) bool { return g.l7() != 0 }) {
			plain = 0
		}
		switch p.kind {
		case worldPeer:
			outside[plain] = append(outside[plain], p)
		case namesPeer:
			named[plain] = append(named[plain], p)
		}
	}
	for i, os := range outside {
		for j, ns := range named {
			if i+j == 2 {
				continue // nothing looks into what they allow
			}
			for _, o := range os {
				for _, n := range ns {
					if !slices.ContainsFunc(f.own[o], func(g *grant) bool {
						return slices.ContainsFunc(f.own[n], func(h *grant) bool { return disagree(g, h, anyDNS) })
					}) {
						continue
					}
					if out = append(out, pairKey{o, n}); len(out) > maxPairs {
						return nil
					}
				}
			}
		}
	}
	return out
}

// disagree tells whether two grants may say other than they do together, at
// some port.
func disagree(g, h *grant, l7 bool) bool {
	if g.denies() || h.denies() || !l7 && g.l7() == 0 && h.l7() == 0 {
		return false
	}
	return slices.ContainsFunc(g.ports, func(p ports) bool {
		return slices.ContainsFunc(h.ports, func(q ports) bool { return p.covers(q) || q.covers(p) })
	})
}

// pairOf returns the pair, made if need be.
func (e *Engine) pairOf(k pairKey) (*pair, error) {
	if p, ok := e.pairs[k]; ok {
		return p, nil
	}
	p := &pair{peer: newPairPeer(k), key: Pair{k.outside.id, k.named.id}}
	n, err := e.peers.numbers.get(p.peer.digest)
	if err != nil {
		return nil, fmt.Errorf("number an identity: %w", err)
	}
	p.peer.id = identity.ID(n)
	e.pairs[k], e.peers.byID[p.peer.id] = p, p.peer
	return p, nil
}

// settlePairs tells what pairs came and went.
func (e *Engine) settlePairs() {
	for k, p := range e.pairs {
		switch {
		case p.users == 0:
			if p.told {
				e.delta.Pairs[p.key] = 0
			}
			delete(e.pairs, k)
			delete(e.peers.byID, p.peer.id)
			e.peers.numbers.release(uint32(p.peer.id))
		case !p.told:
			p.told = true
			e.delta.Pairs[p.key] = p.peer.id
		}
	}
}
