package policy

import (
	"cmp"
	"slices"

	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy/dnsrules"
	"github.com/weirnet/weir/policy/httprules"
)

// grant is a port list of a rule as it holds for one subject.
type grant struct {
	rule *rule
	from *portGrant
	// any: for every peer. Else for the members of peers.
	any   bool
	peers []*selector
	// teaching tells of each of the peers whether it is particular.
	teaching []bool
	ports    []ports
	// names are ports whose number depends on the peer (egress only).
	names  []portName
	number uint32 // of the rule
	http   []httprules.Rule
	dns    []dnsrules.Rule
	serial uint32 // tells it apart in its enforcement
	place  int    // among the grants of its policy
}

func (g *grant) l7() l7Kind {
	if g.from == nil || g.from.l7 == nil {
		return 0
	}
	return g.from.l7.kind
}

func (g *grant) denies() bool { return g.rule != nil && g.rule.deny }

// portsFor returns the ports the grant is about where p is the other end.
func (g *grant) portsFor(p *peer) []ports {
	if len(g.names) == 0 || p == nil {
		return g.ports
	}
	out := slices.Clone(g.ports)
	for _, n := range g.names {
		for _, proto := range n.protos {
			for _, port := range p.named(n.name, proto) {
				out = append(out, onePort(proto, port))
			}
		}
	}
	return sortPorts(out)
}

// portGrantFor is a grant with its ports for one peer, or for every peer.
type portGrantFor struct {
	*grant
	ports []ports
}

func (g *portGrantFor) covers(p ports) bool {
	for _, q := range g.ports {
		if q.covers(p) {
			return true
		}
	}
	return false
}

// entryFor is an entry of the policy map less direction and identity.
type entryFor struct {
	ports ports
	entry Entry
}

// template is what a policy map says about one peer, or about every peer.
type template []entryFor

// compiler makes templates. It is where rules are combined, and the only place.
type compiler struct {
	ruleSets *ruleSetTable
	used     map[uint32]struct{} // rule sets of its templates
	// noProxy: a node's traffic does not go there, so what L7 rules are about is
	// refused.
	noProxy bool
	dnsView
}

// template combines rules: own are those that name the peer in question, any
// those for every peer; without a peer in question own is empty and the result
// is for every peer. All are in the order of their rules.
//
// What Lookup finds must be what the rules say together. A deny is found
// wherever it stands. Among the others, the entry with the fewest ports is
// found first: at the ports of each rule that names the peer, and at those of
// each rule for everybody that lies within one of them, there is an entry that
// says what all rules for these ports say together. Ports of a flow are a
// chain of ever larger sets, so the rules for the smallest set of the chain
// are all the rules for the flow.
func (c *compiler) template(p *peer, own, any []portGrantFor) (template, error) {
	about := own
	if len(own) == 0 {
		about = any
	}
	entries := map[ports]Entry{}
	l7 := false
	for _, g := range about {
		if g.denies() {
			for _, p := range g.ports {
				if e, ok := entries[p]; !ok || e.Action != Deny {
					entries[p] = Entry{Action: Deny, Rule: g.number}
				}
			}
			continue
		}
		l7 = l7 || g.l7() != 0
		for _, p := range g.ports {
			if _, ok := entries[p]; !ok {
				entries[p] = Entry{Action: Allow, Rule: g.number}
			}
		}
	}
	if len(own) > 0 {
		l7 = l7 || slices.ContainsFunc(any, func(g portGrantFor) bool { return g.l7() != 0 })
	}
	if l7 {
		if err := c.combine(p, entries, own, any); err != nil {
			return nil, err
		}
	}
	if c.observes {
		if err := c.observe(p, entries); err != nil {
			return nil, err
		}
	}
	out := make(template, 0, len(entries))
	for p, e := range entries {
		out = append(out, entryFor{p, e})
	}
	slices.SortFunc(out, entryFor.compare)
	return out, nil
}

// combine replaces the entries whose ports have L7 rules, and adds those that
// are needed where rules for everybody lie within rules for the peer.
func (c *compiler) combine(who *peer, entries map[ports]Entry, own, any []portGrantFor) error {
	if len(own) > 0 {
		for _, g := range any {
			if g.denies() {
				continue
			}
			for _, p := range g.ports {
				if _, ok := entries[p]; ok {
					continue
				}
				if slices.ContainsFunc(own, func(o portGrantFor) bool { return !o.denies() && o.covers(p) }) {
					entries[p] = Entry{} // kept only if the rules together need L7
				}
			}
		}
	}
	for p, e := range entries {
		if e.Action == Deny {
			continue
		}
		var plain, looked []*grant
		for _, list := range [...][]portGrantFor{own, any} {
			for i := range list {
				g := &list[i]
				if g.denies() || !g.covers(p) {
					continue
				}
				if g.l7() == 0 {
					plain = append(plain, g.grant)
				} else {
					looked = append(looked, g.grant)
				}
			}
		}
		if len(looked) == 0 {
			if e.Action == 0 {
				delete(entries, p)
			}
			continue
		}
		u, err := c.union(who, p, plain, looked)
		if err != nil {
			return err
		}
		entries[p] = u
	}
	return nil
}

// union is what rules for one peer and port say together, where some of them
// have L7 rules.
func (c *compiler) union(who *peer, at ports, plain, looked []*grant) (Entry, error) {
	slices.SortFunc(looked, (*grant).compare)
	slices.SortFunc(plain, (*grant).compare)
	if c.noProxy {
		return Entry{Action: Refuse, Reason: RefusedL7Unsupported, Rule: looked[0].number}, nil
	}
	kind := looked[0].l7()
	for _, g := range looked {
		if g.l7() != kind {
			return Entry{Action: Refuse, Reason: RefusedL7Conflict, Rule: g.number}, nil
		}
	}
	switch kind {
	case l7HTTP:
	case l7DNS:
		return c.dns(who, at, plain, looked)
	default:
		return Entry{Action: Refuse, Reason: RefusedL7Unsupported, Rule: looked[0].number}, nil
	}
	set := RuleSet{}
	if len(plain) > 0 {
		set.AllowAll, set.AllowRule = true, plain[0].number
	}
	for _, g := range looked {
		set.HTTP = append(set.HTTP, g.http...)
	}
	for i := range set.HTTP {
		if h := &set.HTTP[i]; !set.AllowAll && h.Path+h.Method+h.Host == "" && len(h.Headers)+len(h.HeaderMatches) == 0 {
			set.AllowAll, set.AllowRule = true, h.Rule // it asks nothing
		}
	}
	set.HTTP = distinct(set.HTTP, func(r *httprules.Rule) *uint32 { return &r.Rule })
	return c.redirect(set, looked[0].number)
}

// redirect makes the entry that leads to a rule set.
func (c *compiler) redirect(set RuleSet, rule uint32) (Entry, error) {
	id, err := c.ruleSets.get(set)
	if err != nil {
		return Entry{}, err
	}
	c.used[id] = struct{}{}
	return Entry{Action: Redirect, RuleSet: id, Rule: rule}, nil
}

// compare orders grants by their rules, and those of no rule last.
func (g *grant) compare(o *grant) int {
	switch {
	case g == o:
		return 0
	case g.rule == nil:
		return 1
	case o.rule == nil:
		return -1
	}
	return cmp.Or(g.rule.compare(o.rule), cmp.Compare(g.place, o.place))
}

// distinct leaves out rules that ask the same as an earlier one, whatever their
// number.
func distinct[R any](rules []R, numberOf func(*R) *uint32) []R {
	seen := map[identity.Digest]struct{}{}
	out := rules[:0:0]
	for _, r := range rules {
		number := *numberOf(&r)
		*numberOf(&r) = 0
		d := digestOf(r)
		if _, ok := seen[d]; ok {
			continue
		}
		seen[d] = struct{}{}
		*numberOf(&r) = number
		out = append(out, r)
	}
	return out
}
