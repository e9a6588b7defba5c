package policy

import (
	"reflect"
	"slices"
)

// updated is what an update of an enforcement left to be done.
type updated struct {
	peers  map[*peer]struct{} // whose templates may be others
	forAny bool               // the template for every peer may be another
	// restricts: it changed whether some rule takes away from what others allow.
	restricts bool
}

// update takes policies out of a registered enforcement and puts others in.
// The cost is that of the peers those name, but where L7 rules come or go:
// then the rules of every peer are combined anew.
func (e *Engine) update(f *enforcement, olds, news []*policyObject) (updated, error) {
	u := updated{peers: f.pending, restricts: f.restricts()}
	f.pending = map[*peer]struct{}{}
	anyChanged, l7Changed := false, false
	var released []*selector
	coming := make([]*contribution, 0, len(news))
	for _, p := range news {
		c, err := e.contribution(f, p)
		if err != nil {
			return u, err
		}
		if c != nil {
			coming = append(coming, c)
		}
	}
	kept := map[*grant]struct{}{}
	for _, p := range olds {
		i := slices.IndexFunc(f.list, func(c *contribution) bool { return c.policy == p })
		if i < 0 {
			continue
		}
		f.list[i].keep(coming, kept)
		for _, g := range f.list[i].grants {
			if _, ok := kept[g]; ok {
				continue
			}
			f.count(g, -1)
			anyChanged = anyChanged || g.any
			l7Changed = l7Changed || g.l7() != 0
			f.remove(g, u.peers)
			released = append(released, g.peers...)
		}
		f.list = slices.Delete(f.list, i, i+1)
	}
	for _, c := range coming {
		i, _ := slices.BinarySearchFunc(f.list, c, func(a, b *contribution) int { return a.policy.compare(b.policy) })
		f.list = slices.Insert(f.list, i, c)
		for _, g := range c.grants {
			if _, ok := kept[g]; ok {
				continue
			}
			f.count(g, 1)
			anyChanged = anyChanged || g.any
			l7Changed = l7Changed || g.l7() != 0
			e.register(f, g, u.peers)
		}
	}
	for _, sel := range released { // not before: the new grants may need them
		e.selectors.release(sel)
	}
	u.restricts = u.restricts != f.restricts()
	wasClosed, wasOpen, wasEnforced, view := f.closed != nil, f.open, f.enforced, f.compiler.dnsView
	f.weigh()
	anyChanged = anyChanged || f.open != wasOpen
	closed := f.closed != nil
	l7Changed = l7Changed || f.compiler.dnsView != view
	if l7Changed || anyChanged && f.l7 > 0 || closed != wasClosed || len(f.memo) > 4*len(f.own)+64 {
		// What is kept by signature may not hold any more, and keeps rule sets.
		f.memo, f.compiler.used = map[string]template{}, map[uint32]struct{}{}
		for p := range f.own {
			u.peers[p] = struct{}{}
		}
		for p := range f.perPeer {
			u.peers[p] = struct{}{}
		}
		u.forAny = true
	}
	u.forAny = u.forAny || anyChanged || closed || f.enforced != wasEnforced
	if u.forAny {
		if err := e.judgeAny(f); err != nil {
			return u, err
		}
	}
	return u, nil
}

// keep leaves in place the grants that another version of the policy has at
// the same place, so that peers they name need not be looked at.
func (c *contribution) keep(coming []*contribution, kept map[*grant]struct{}) {
	for _, n := range coming {
		if n.policy.object != c.policy.object {
			continue
		}
		for i := range min(len(c.grants), len(n.grants)) {
			if g, o := c.grants[i], n.grants[i]; g.same(o) {
				g.rule, g.from = o.rule, o.from
				n.grants[i] = g
				kept[g] = struct{}{}
			}
		}
	}
}

// same tells whether two grants, at one place of two versions of a policy, say
// the same and stand in the same order among others.
func (g *grant) same(o *grant) bool {
	return g.rule.index == o.rule.index && g.rule.deny == o.rule.deny && g.any == o.any && g.number == o.number && g.l7() == o.l7() &&
		slices.EqualFunc(g.peers, o.peers, func(a, b *selector) bool { return a.key == b.key }) &&
		slices.Equal(g.teaching, o.teaching) && slices.Equal(g.ports, o.ports) && slices.Equal(g.from.spans, o.from.spans) &&
		slices.EqualFunc(g.names, o.names, func(a, b portName) bool { return a.name == b.name && slices.Equal(a.protos, b.protos) }) &&
		reflect.DeepEqual(g.http, o.http) && slices.Equal(g.dns, o.dns)
}

// register enters a grant for the peers it names, now and as they come.
func (e *Engine) register(f *enforcement, g *grant, touched map[*peer]struct{}) {
	if g.any {
		i, _ := slices.BinarySearchFunc(f.any, g, (*grant).compare)
		f.any = slices.Insert(f.any, i, g)
		return
	}
	for i, sel := range g.peers {
		g.peers[i] = e.selectors.acquire(sel, e.peers)
		g.peers[i].uses[g] = f
		for p := range g.peers[i].members {
			f.name(g, p)
			touched[p] = struct{}{}
		}
	}
}

// name notes that a grant names a peer.
func (f *enforcement) name(g *grant, p *peer) {
	i, there := slices.BinarySearchFunc(f.own[p], g, (*grant).compare)
	if !there {
		f.own[p] = slices.Insert(f.own[p], i, g)
	}
}

// remove takes a grant out again.
func (f *enforcement) remove(g *grant, touched map[*peer]struct{}) {
	if g.any {
		f.any = slices.DeleteFunc(f.any, func(o *grant) bool { return o == g })
		return
	}
	for _, sel := range g.peers {
		delete(sel.uses, g)
		for p := range sel.members {
			touched[p] = struct{}{}
			i, there := slices.BinarySearchFunc(f.own[p], g, (*grant).compare)
			if !there {
				continue // another of its selectors had it, too
			}
			if f.own[p] = slices.Delete(f.own[p], i, i+1); len(f.own[p]) == 0 {
				delete(f.own, p)
			}
		}
	}
}

// holdUsed keeps the rule sets that the templates name, and lets others go.
func (e *Engine) holdUsed(f *enforcement) {
	for id := range f.compiler.used {
		if _, ok := f.held[id]; !ok {
			f.held[id] = struct{}{}
			e.ruleSets.hold(id)
		}
	}
	for id := range f.held {
		if _, ok := f.compiler.used[id]; !ok {
			delete(f.held, id)
			e.ruleSets.release(id)
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
	for p := range f.pairs {
		p.users--
	}
	for _, c := range f.list {
		for _, g := range c.grants {
			for _, sel := range g.peers {
				delete(sel.uses, g)
				e.selectors.release(sel)
			}
		}
	}
}
