package policy

import (
	"fmt"
	"maps"
	"slices"

	"github.com/weirnet/weir/identity"
)

// subject is a set of pods with equal labels and named ports, and the policy
// they share.
type subject struct {
	peer *peer
	id   uint32 // policy id; 0: it is asked about only, and not in the tables
	pods int    // of this node
	// alwaysDeny: under default deny even where no rule selects it.
	alwaysDeny bool

	directions [2]*enforcement
	services   map[*peer]template // by cluster IP, egress
	resolved   *Resolved
}

// enforcement is a subject's policy in one direction, compiled as far as it
// was needed.
type enforcement struct {
	direction Direction
	rules     []*rule // that select the subject, in order
	selecting []string
	enforced  bool
	closed    *rule // of a refused policy

	grants    []grant
	selectors []*selector // held in the table
	forAny    template
	compiler  compiler
	memo      map[string]template // by signature
	perPeer   map[*peer]template
	held      map[uint32]struct{} // rule sets
	// For questions: tables by signature, and memory for signatures.
	tables  map[string]map[Key]Entry
	scratch []byte
}

// enforce finds the rules that select a subject and makes grants of them. With
// registered selectors their members are known; else they are asked one peer
// at a time.
func (e *Engine) enforce(s *subject, d Direction, register bool) (*enforcement, error) {
	f := &enforcement{direction: d, memo: map[string]template{}, held: map[uint32]struct{}{},
		compiler: compiler{ruleSets: e.ruleSets, used: map[uint32]struct{}{}}}
	defaultDeny := s.alwaysDeny
	for _, p := range e.policiesFor(s.peer) {
		selects := false
		for _, r := range p.rules {
			if r.direction != d || !r.selects(s.peer) {
				continue
			}
			f.rules = append(f.rules, r)
			if r.closed && f.closed == nil {
				f.closed = r
			}
			defaultDeny = defaultDeny || r.defaultDeny
			selects = selects || r.defaultDeny
		}
		if selects {
			f.selecting = append(f.selecting, p.name)
		}
	}
	f.enforced = len(f.rules) > 0 || s.alwaysDeny
	if !f.enforced {
		return f, nil
	}
	if f.closed != nil {
		// Closed beats whatever other policies allow: the refused one may have
		// held a deny, so anything let through could be wider than written.
		n, err := e.rules.number(f.closed.policy, f.closed.path)
		if err != nil {
			return nil, err
		}
		f.forAny = template{{ports{}, Entry{Action: Refuse, Reason: RefusedPolicy, Rule: n}}}
		return f, nil
	}
	if !defaultDeny {
		f.grants = append(f.grants, grant{any: true, ports: []ports{{}}})
	}
	for _, r := range f.rules {
		for _, pg := range r.grants {
			if err := e.addGrants(f, s, r, pg); err != nil {
				return nil, err
			}
		}
	}
	if register {
		for i := range f.grants {
			g := &f.grants[i]
			peers := make([]*selector, len(g.peers))
			for j, sel := range g.peers {
				peers[j] = e.selectors.acquire(sel, e.peers)
			}
			g.peers = peers
			f.selectors = append(f.selectors, peers...)
		}
	}
	var any []portGrantFor
	for i := range f.grants {
		if f.grants[i].any {
			any = append(any, portGrantFor{&f.grants[i], f.grants[i].ports})
		}
	}
	var err error
	f.forAny, err = f.compiler.template(nil, any)
	return f, err
}

// addGrants makes the grants of a port list for a subject.
func (e *Engine) addGrants(f *enforcement, s *subject, r *rule, pg *portGrant) error {
	if !r.any && len(r.peers) == 0 {
		return nil
	}
	number, err := e.rules.number(r.policy, pg.path)
	if err != nil {
		return err
	}
	g := grant{rule: r, from: pg, any: r.any, peers: r.peers, ports: pg.ports, number: number}
	if pg.all {
		g.ports = []ports{{}}
	}
	if pg.l7 != nil {
		g.http = slices.Clone(pg.l7.http)
		for i := range g.http {
			if g.http[i].Rule, err = e.rules.number(r.policy, pg.l7.path[i]); err != nil {
				return err
			}
		}
	}
	if len(pg.names) == 0 {
		f.grants = append(f.grants, g)
		return nil
	}
	if r.direction == Ingress {
		g.ports = slices.Clone(pg.ports)
		for _, n := range pg.names {
			for _, proto := range n.protos {
				for _, port := range s.peer.named(n.name, proto) {
					g.ports = appendRange(g.ports, proto, port, max(port, n.end))
				}
			}
		}
		g.ports = sortPorts(g.ports)
		f.grants = append(f.grants, g)
		return nil
	}
	if !r.any {
		g.names = pg.names
		f.grants = append(f.grants, g)
		return nil
	}
	// For everybody, by name: the numbers hold for everybody, the names for
	// those that have such a port.
	if len(g.ports) > 0 {
		f.grants = append(f.grants, g)
	}
	for _, n := range pg.names {
		named := g
		named.any, named.ports, named.names = false, nil, []portName{n}
		named.peers = []*selector{portNameSelector(n.name, n.protos)}
		f.grants = append(f.grants, named)
	}
	return nil
}

// templateFor makes what the policy says about one peer, given the grants that
// name it (indexes, in order); nil if none does.
func (f *enforcement) templateFor(p *peer, grants []int32, scratch []byte) (template, []byte, error) {
	if len(grants) == 0 {
		return nil, scratch, nil
	}
	own := make([]portGrantFor, len(grants))
	scratch = scratch[:0]
	for i, gi := range grants {
		g := &f.grants[gi]
		own[i] = portGrantFor{g, g.portsFor(p)}
		scratch = signature(scratch, int(gi), own[i].ports, len(g.names) > 0)
	}
	if t, ok := f.memo[string(scratch)]; ok {
		return t, scratch, nil
	}
	var any []portGrantFor
	for i := range f.grants {
		if f.grants[i].any {
			any = append(any, portGrantFor{&f.grants[i], f.grants[i].ports})
		}
	}
	t, err := f.compiler.template(own, any)
	if err != nil {
		return nil, scratch, err
	}
	f.memo[string(scratch)] = t
	return t, scratch, nil
}

// compileAll makes the templates of every peer that a rule names.
func (f *enforcement) compileAll() error {
	byPeer := map[*peer][]int32{}
	for i := range f.grants {
		for _, sel := range f.grants[i].peers {
			for p := range sel.members {
				gs := byPeer[p]
				if len(gs) == 0 || gs[len(gs)-1] != int32(i) {
					byPeer[p] = append(gs, int32(i))
				}
			}
		}
	}
	f.perPeer = make(map[*peer]template, len(byPeer))
	var scratch []byte
	for p, grants := range byPeer {
		t, s, err := f.templateFor(p, grants, scratch)
		if err != nil {
			return err
		}
		scratch = s
		if len(t) > 0 {
			f.perPeer[p] = t
		}
	}
	return nil
}

// naming lists the grants that name a peer, by the members of their selectors.
func (f *enforcement) naming(p *peer) []int32 {
	var out []int32
	for i := range f.grants {
		for _, sel := range f.grants[i].peers {
			if _, ok := sel.members[p]; ok {
				out = append(out, int32(i))
				break
			}
		}
	}
	return out
}

// namingAsked is naming for a peer that is in no table.
func (f *enforcement) namingAsked(p *peer) []int32 {
	var out []int32
	for i := range f.grants {
		if slices.ContainsFunc(f.grants[i].peers, func(sel *selector) bool { return sel.matches(p) }) {
			out = append(out, int32(i))
		}
	}
	return out
}

// write puts templates into the entries of a policy map.
func (t template) write(m map[Key]Entry, d Direction, id identity.ID) {
	for _, e := range t {
		k := e.ports.key(d)
		k.Identity = id
		m[k] = e.entry
	}
}

func (t template) erase(m map[Key]Entry, d Direction, id identity.ID) {
	for _, e := range t {
		k := e.ports.key(d)
		k.Identity = id
		delete(m, k)
	}
}

// compile makes a subject's policy from nothing.
func (e *Engine) compile(s *subject) error {
	old := s.directions
	size := 0
	for d := range s.directions {
		f, err := e.enforce(s, Direction(d), true)
		if err == nil {
			err = f.compileAll()
		}
		if err != nil {
			return fmt.Errorf("compile the %s policy of %v: %w", Direction(d), s.peer.labels, err)
		}
		s.directions[d] = f
		size += len(f.forAny)
		for _, t := range f.perPeer {
			size += len(t)
		}
	}
	r := &Resolved{Entries: make(map[Key]Entry, size)}
	for d, f := range s.directions {
		r.Enforced[d], r.Selecting[d] = f.enforced, f.selecting
		f.forAny.write(r.Entries, f.direction, identity.Any)
		for p, t := range f.perPeer {
			t.write(r.Entries, f.direction, p.id)
		}
	}
	s.services = map[*peer]template{}
	for _, svc := range e.services {
		if err := e.judgeCluster(s, svc, r.Entries); err != nil {
			return err
		}
	}
	for _, f := range s.directions {
		e.holdUsed(f)
	}
	for _, f := range old {
		e.letGo(f)
	}
	e.resolve(s, r)
	return nil
}

// follow brings a compiled policy up to date with peers and services that
// changed, where no rule did.
func (e *Engine) follow(s *subject, added, removed []*peer, services map[*service]struct{}) error {
	var entries map[Key]Entry
	writable := func() map[Key]Entry {
		if entries == nil {
			entries = maps.Clone(s.resolved.Entries)
		}
		return entries
	}
	for _, f := range s.directions {
		for _, p := range removed {
			if t, ok := s.services[p]; ok {
				t.erase(writable(), Egress, p.id)
				delete(s.services, p)
			}
			if t, ok := f.perPeer[p]; ok {
				t.erase(writable(), f.direction, p.id)
				delete(f.perPeer, p)
			}
		}
		for _, p := range added {
			t, _, err := f.templateFor(p, f.naming(p), nil)
			if err != nil {
				return fmt.Errorf("compile the %s policy of %v: %w", f.direction, s.peer.labels, err)
			}
			if len(t) > 0 {
				t.write(writable(), f.direction, p.id)
				f.perPeer[p] = t
			}
		}
	}
	for svc := range services {
		current := entries
		if current == nil {
			current = s.resolved.Entries
		}
		if err := e.followCluster(s, svc, current, writable); err != nil {
			return err
		}
	}
	for _, f := range s.directions {
		e.holdUsed(f)
	}
	if entries != nil {
		r := *s.resolved
		r.Entries = entries
		e.resolve(s, &r)
	}
	return nil
}

// resolve makes r the subject's policy, and tells of it if it differs.
func (e *Engine) resolve(s *subject, r *Resolved) {
	old := s.resolved
	if old != nil && old.Enforced == r.Enforced && slices.Equal(old.Selecting[0], r.Selecting[0]) &&
		slices.Equal(old.Selecting[1], r.Selecting[1]) && maps.Equal(old.Entries, r.Entries) {
		return
	}
	s.resolved = r
	e.delta.Policies[s.id] = r
}

// holdUsed keeps the rule sets that the templates name.
func (e *Engine) holdUsed(f *enforcement) {
	for id := range f.compiler.used {
		if _, ok := f.held[id]; !ok {
			f.held[id] = struct{}{}
			e.ruleSets.hold(id)
		}
	}
}

// letGo gives back what a registered enforcement holds; nil holds nothing.
func (e *Engine) letGo(f *enforcement) {
	if f == nil {
		return
	}
	for id := range f.held {
		e.ruleSets.release(id)
	}
	for _, sel := range f.selectors {
		e.selectors.release(sel)
	}
}
