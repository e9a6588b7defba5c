package policy

import (
	"slices"

	"github.com/weirnet/weir/policy/dnsrules"
)

// portDNS is where DNS is looked at without being asked to.
const portDNS = 53

// dns is what rules for one peer and port say together, where some of them
// have DNS rules and none rules of another kind.
//
// A rule without DNS rules lifts those of others only where it is for the same
// ports, as they were written, as one of them. It would be another matter if it
// was for all ports, or a range: "everything in the cluster" is not meant to
// say that any name may be asked for.
func (c *compiler) dns(who *peer, at ports, plain, looked []*grant) (Entry, error) {
	if looked[0].rule.direction == Ingress { // the decoder lets none pass
		return Entry{Action: Refuse, Reason: RefusedL7Unsupported, Rule: looked[0].number}, nil
	}
	set := RuleSet{Protocol: ProtocolDNS}
	for _, g := range plain {
		if g.rule == nil || slices.ContainsFunc(looked, func(l *grant) bool { return g.sameSpan(l, at, who) }) {
			set.AllowAll, set.AllowRule = true, g.number
			break
		}
	}
	if at.proto != protoTCP && at.proto != protoUDP {
		if set.AllowAll {
			return Entry{Action: Allow, Rule: set.AllowRule}, nil
		}
		return Entry{Action: Refuse, Reason: RefusedL7Unsupported, Rule: looked[0].number}, nil
	}
	for _, g := range looked {
		set.DNS = append(set.DNS, g.dns...)
		if ns := g.rule.namespace; g.teaches(who) && (!set.Teaches || ns == "") {
			// A policy selects pods of its own namespace, so it is the same in all that
			// have one.
			set.Teaches, set.TeachesFor = true, ns
		}
	}
	set.DNS = distinct(set.DNS, func(r *dnsrules.Rule) *uint32 { return &r.Rule })
	return c.redirect(set, looked[0].number)
}

// teaches tells whether the grant names the peer among particular ones.
func (g *grant) teaches(p *peer) bool {
	for i, sel := range g.peers {
		if p != nil && g.teaching[i] && sel.selects(p) {
			return true
		}
	}
	return false
}

// sameSpan tells whether two grants have an item of their port lists in common
// that holds for a port of the peer.
func (g *grant) sameSpan(o *grant, at ports, p *peer) bool {
	return slices.ContainsFunc(g.from.spans, func(s span) bool {
		return s.proto == at.proto && s.covers(at, p) && slices.Contains(o.from.spans, s)
	})
}

func (s span) covers(at ports, p *peer) bool {
	if s.name != "" {
		return p != nil && at.bits == 16 && slices.Contains(p.named(s.name, s.proto), at.port)
	}
	return s.first <= at.port && at.port|^mask(at.bits) <= s.last
}

// dnsView is how DNS is looked at that no DNS rule is about.
type dnsView struct {
	// observes: since rules are about names, the answers are seen.
	observes bool
	// strict: rules that are about names have DNS rules themselves.
	strict bool
}

// observe leads DNS that the entries let through to the proxy, where all
// questions pass and the answers are seen.
func (c *compiler) observe(who *peer, entries map[ports]Entry) error {
	if c.strict && who != nil && who.isWorld() {
		// The address may have a name, whose DNS rules would not be found behind
		// a redirect that is found here; behind an allow they are.
		return nil
	}
	for _, at := range [...]ports{onePort(protoUDP, portDNS), onePort(protoTCP, portDNS)} {
		var best ports
		found, plain := Entry{}, true
		for p, e := range entries {
			if !p.covers(at) {
				continue
			}
			plain = plain && e.Action == Allow
			if found.Action == 0 || best.covers(p) {
				best, found = p, e
			}
		}
		if found.Action == 0 || !plain {
			continue
		}
		e, err := c.seen(found.Rule)
		if err != nil {
			return err
		}
		entries[at] = e
	}
	return nil
}

// isDNS tells whether it is a port where DNS is looked at.
func (p ports) isDNS() bool {
	return p == onePort(protoUDP, portDNS) || p == onePort(protoTCP, portDNS)
}

// seen is the entry for DNS that a rule lets through, all of it.
func (c *compiler) seen(rule uint32) (Entry, error) {
	return c.redirect(RuleSet{Protocol: ProtocolDNS, AllowAll: true, AllowRule: rule}, rule)
}

// passesAll tells whether an entry lets everything pass, seen or not.
func (c *compiler) passesAll(e Entry) bool {
	switch e.Action {
	case Allow:
		return true
	case Redirect:
		return c.ruleSets.byID[e.RuleSet].set.passesAll()
	}
	return false
}

// passOver makes of an entry that allows one that is found before the entry
// for everybody, which does not: a redirect that lets everything pass.
func (c *compiler) passOver(byAll, allow Entry, at ports) (Entry, error) {
	set := RuleSet{AllowAll: true, AllowRule: allow.Rule}
	switch {
	case byAll.Action == Redirect:
		set.Protocol = c.ruleSets.byID[byAll.RuleSet].set.Protocol
	case at.proto != protoTCP:
		return byAll, nil // nothing else can be looked at; it stays refused
	}
	return c.redirect(set, allow.Rule)
}
