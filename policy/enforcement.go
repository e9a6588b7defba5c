package policy

import (
	"encoding/binary"
	"slices"
)

// enforcement is the policy of a subject in one direction: the rules that
// select it, and what they say of each peer they name.
type enforcement struct {
	direction  Direction
	subject    *peer
	alwaysDeny bool // under default deny even where no rule selects it

	list      []*contribution // by policy, in order
	selecting []string        // policies that put it under default deny
	adding    []string        // the others whose rules count
	enforced  bool
	closed    *rule // of a refused policy
	open      bool  // not under default deny: what no rule denies is allowed

	any        []*grant           // for every peer, in order
	own        map[*peer][]*grant // that name a peer, in order
	serial     uint32             // of the latest grant
	l7, denies int                // grants of these kinds

	forAny   template
	perPeer  map[*peer]template
	pairs    map[*pair]template
	memo     map[string]template // by signature
	compiler compiler
	behind   *dnsBehind
	held     map[uint32]struct{} // rule sets
	// pending are peers that selectors came to select since the last update.
	pending map[*peer]struct{}

	// For questions: tables by signature, and memory for signatures.
	tables  map[string]map[Key]Entry
	scratch []byte
}

// contribution is what one policy brings.
type contribution struct {
	policy *policyObject
	rules  []*rule
	grants []*grant
}

func (e *Engine) newEnforcement(s *subject, d Direction) *enforcement {
	return &enforcement{direction: d, subject: s.peer, alwaysDeny: s.alwaysDeny,
		own: map[*peer][]*grant{}, perPeer: map[*peer]template{}, pairs: map[*pair]template{}, memo: map[string]template{},
		held: map[uint32]struct{}{}, pending: map[*peer]struct{}{}, behind: e.dnsBehind,
		compiler: compiler{ruleSets: e.ruleSets, used: map[uint32]struct{}{}, noProxy: s.peer.kind == hostPeer}}
}

// contribution makes the grants of a policy; nil if it does not select the
// subject in this direction.
func (e *Engine) contribution(f *enforcement, p *policyObject) (*contribution, error) {
	c := &contribution{policy: p}
	for _, r := range p.rules {
		if r.direction != f.direction || !r.selects(f.subject) {
			continue
		}
		c.rules = append(c.rules, r)
		if !r.any && len(r.peers) == 0 {
			continue
		}
		for _, pg := range r.grants {
			grants, err := e.grantsOf(r, pg, f.subject)
			if err != nil {
				return nil, err
			}
			for _, g := range grants {
				f.serial++
				g.serial, g.place = f.serial, len(c.grants)
				c.grants = append(c.grants, g)
			}
		}
	}
	if len(c.rules) == 0 {
		return nil, nil
	}
	return c, nil
}

// grantsOf makes the grants of a port list for a subject.
func (e *Engine) grantsOf(r *rule, pg *portGrant, subject *peer) ([]*grant, error) {
	number, err := e.rules.number(r.policy, pg.path)
	if err != nil {
		return nil, err
	}
	g := grant{rule: r, from: pg, any: r.any, peers: slices.Clone(r.peers), ports: pg.ports, number: number}
	if pg.all {
		g.ports = []ports{{}}
	}
	for _, sel := range r.peers {
		g.teaching = append(g.teaching, sel.particular)
	}
	if pg.l7 != nil {
		g.http, g.dns = slices.Clone(pg.l7.http), slices.Clone(pg.l7.dns)
		for i, path := range pg.l7.path {
			number, err := e.rules.number(r.policy, path)
			if err != nil {
				return nil, err
			}
			if pg.l7.kind == l7DNS {
				g.dns[i].Rule = number
			} else {
				g.http[i].Rule = number
			}
		}
	}
	switch {
	case len(pg.names) == 0:
		return []*grant{&g}, nil
	case r.direction == Ingress:
		g.ports = slices.Clone(pg.ports)
		for _, n := range pg.names {
			for _, proto := range n.protos {
				for _, port := range subject.named(n.name, proto) {
					g.ports = appendRange(g.ports, proto, port, max(port, n.end))
				}
			}
		}
		g.ports = sortPorts(g.ports)
		return []*grant{&g}, nil
	case !r.any:
		g.names = pg.names
		return []*grant{&g}, nil
	}
	// For everybody, by name: the numbers hold for everybody, the names for
	// those that have such a port.
	var out []*grant
	if len(g.ports) > 0 {
		out = append(out, &g)
	}
	for _, n := range pg.names {
		named := g
		named.any, named.ports, named.names = false, nil, []portName{n}
		named.peers, named.teaching = []*selector{portNameSelector(n.name, n.protos)}, []bool{false}
		out = append(out, &named)
	}
	return out, nil
}

// count notes that a grant came (1) or went (-1).
func (f *enforcement) count(g *grant, by int) {
	if g.l7() != 0 {
		f.l7 += by
	}
	if g.rule.deny {
		f.denies += by
	}
}

// weigh works out what the rules that are there say as a whole.
func (f *enforcement) weigh() {
	f.enforced, f.closed, f.selecting, f.adding = f.alwaysDeny, nil, nil, nil
	defaultDeny := f.alwaysDeny
	for _, c := range f.list {
		selects := false
		for _, r := range c.rules {
			f.enforced = true
			selects = selects || r.defaultDeny
			if r.closed && f.closed == nil {
				f.closed = r
			}
		}
		if selects {
			defaultDeny = true
			f.selecting = append(f.selecting, c.policy.name)
		} else if len(c.rules) > 0 {
			f.adding = append(f.adding, c.policy.name)
		}
	}
	f.open = f.enforced && !defaultDeny
	f.compiler.dnsView = dnsView{}
	if f.compiler.noProxy {
		return
	}
	for _, c := range f.list {
		for _, r := range c.rules {
			if r.fqdns {
				f.compiler.observes = true
				f.compiler.strict = f.compiler.strict || slices.ContainsFunc(r.grants, func(g *portGrant) bool { return g.l7 != nil && g.l7.kind == l7DNS })
			}
		}
	}
}

// anyGrants are the grants for every peer with their ports.
func (f *enforcement) anyGrants() []portGrantFor {
	out := make([]portGrantFor, 0, len(f.any)+1)
	for _, g := range f.any {
		out = append(out, portGrantFor{g, g.ports})
	}
	if f.open {
		g := &grant{any: true, ports: []ports{{}}}
		out = append(out, portGrantFor{g, g.ports})
	}
	return out
}

// judgeAny makes the template for every peer.
func (e *Engine) judgeAny(f *enforcement) (err error) {
	if f.closed == nil {
		f.forAny, err = f.compiler.template(nil, nil, f.anyGrants())
		return err
	}
	// Closed beats whatever other policies allow: the refused one may have
	// held a deny, so anything let through could be wider than written.
	n, err := e.rules.number(f.closed.policy, f.closed.path)
	if err != nil {
		return err
	}
	f.forAny = template{{ports{}, Entry{Action: Refuse, Reason: RefusedPolicy, Rule: n}}}
	return nil
}

// templateFor makes what the policy says about one peer, given the grants that
// name it, in order; nil if none does, unless it answers DNS behind a service.
func (f *enforcement) templateFor(p *peer, grants []*grant) (template, error) {
	t, err := f.named(p, grants)
	if err != nil || f.closed != nil || !f.compiler.observes || f.compiler.strict && p.isWorld() {
		return t, err
	}
	behind := f.behind.at[p.digest]
	if len(behind) == 0 {
		return t, nil
	}
	for _, at := range behind {
		f.scratch = binary.BigEndian.AppendUint16(append(f.scratch, 0, 1, at.proto), at.port)
	}
	return f.seeBehind(p, behind, t)
}

// named is templateFor without regard to what is behind services.
func (f *enforcement) named(p *peer, grants []*grant) (template, error) {
	f.scratch = f.scratch[:0]
	if len(grants) == 0 || f.closed != nil {
		return nil, nil
	}
	if f.compiler.strict && p.isWorld() {
		f.scratch = append(f.scratch, 0)
	}
	for _, g := range grants {
		f.scratch = binary.AppendUvarint(f.scratch, uint64(g.serial))
		for _, n := range g.names { // what they are for this peer
			for _, proto := range n.protos {
				for _, port := range p.named(n.name, proto) {
					f.scratch = binary.BigEndian.AppendUint16(append(f.scratch, 0, proto), port)
				}
			}
		}
		if g.l7() == l7DNS && g.teaches(p) {
			f.scratch = append(f.scratch, 0, 0)
		}
	}
	if t, ok := f.memo[string(f.scratch)]; ok {
		return t, nil
	}
	sign := string(f.scratch)
	own := make([]portGrantFor, len(grants))
	for i, g := range grants {
		own[i] = portGrantFor{g, g.portsFor(p)}
	}
	t, err := f.compiler.template(p, own, f.anyGrants())
	if err == nil {
		f.memo[sign] = t
	}
	return t, err
}

// restricts tells whether some rule takes away from what others allow.
func (f *enforcement) restricts() bool { return f.closed != nil || f.l7+f.denies > 0 }
