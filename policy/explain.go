package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/weirnet/weir/identity"
)

// Explain answers a question about the objects applied so far. Each pod is
// judged as on its own node, whatever Options.NodeName says: by the templates
// that fill the tables there, searched by Lookup.
func (e *Engine) Explain(q Question) Answer {
	// Which of both is a pod of another node is not known before.
	here := func(o end) bool { return o.pod == nil || o.node == e.nodeName }
	from, err := e.end(q.From, false, true)
	if err != nil {
		return failed(q, fmt.Errorf("from: %w", err))
	}
	to, err := e.end(q.To, true, here(from))
	if err != nil {
		return failed(q, fmt.Errorf("to: %w", err))
	}
	if !here(to) {
		if from, err = e.end(q.From, false, false); err != nil {
			return failed(q, fmt.Errorf("from: %w", err))
		}
	}
	if from.four && to.six || from.six && to.four {
		return failed(q, fmt.Errorf("from %s to %s: one is IPv4, the other IPv6", q.From, q.To))
	}
	proto, err := q.protocol(from.six || to.six)
	if err != nil {
		return failed(q, err)
	}
	settleAddresses(&from, &to, proto)
	port, err := e.portNumber(&q, proto, to)
	if err != nil {
		return failed(q, err)
	}
	if err := q.check(); err != nil {
		return failed(q, err)
	}
	if to.other != nil && to.other.isWorld() && len(q.Names) > 0 {
		to.names = e.namesPeer(q.Names, q.NamesIn)
	}
	x := &explanation{engine: e, q: &q, from: from, to: to, proto: proto, port: port}
	a := Answer{ID: q.ID}
	if f, ok := e.frontOf(from, to, proto, port); ok {
		a.Egress, a.Ingress, err = x.front(f)
	} else if to.service != nil {
		a.Egress, a.Ingress, err = x.service()
	} else {
		a.Egress, err = x.egress(to, port)
		if err == nil {
			a.Ingress, err = x.ingress(to, port)
		}
	}
	if err != nil {
		return failed(q, err)
	}
	a.Verdict = Allowed
	for _, s := range [...]*Side{a.Egress, a.Ingress} {
		if s.Verdict == Denied || s.Verdict == NeedsRequest && a.Verdict == Allowed {
			a.Verdict = s.Verdict
		}
	}
	return a
}

// explanation is the work on one question.
type explanation struct {
	engine   *Engine
	q        *Question
	from, to end
	proto    uint8
	port     uint16
}

// egress says what the source's policies make of a flow to one destination.
func (x *explanation) egress(to end, port uint16) (*Side, error) {
	if node, ok := x.nodeAt(x.from, to); ok {
		return x.nodeSide(node, x.from, to, Egress, port)
	}
	if x.from.pod == nil {
		return x.noPolicy(x.from), nil
	}
	f, err := x.engine.asked(x.from, Egress)
	if err != nil {
		return nil, err
	}
	peer := x.engine.seenFrom(to, x.from.node)
	if to.names != nil {
		peer = newPairPeer(pairKey{peer, to.names})
	}
	return x.side(f, x.from, to, peer, port)
}

// ingress says what the destination's policies make of it.
func (x *explanation) ingress(to end, port uint16) (*Side, error) {
	if node, ok := x.nodeAt(to, x.from); ok {
		return x.nodeSide(node, to, x.from, Ingress, port)
	}
	if to.pod == nil {
		return x.noPolicy(to), nil
	}
	p := x.engine.seenFrom(x.from, to.node)
	if p != nil && p.kind == hostPeer {
		return &Side{Verdict: Allowed, Reason: "host: the node always reaches its own pods"}, nil
	}
	f, err := x.engine.asked(to, Ingress)
	if err != nil {
		return nil, err
	}
	return x.side(f, to, x.from, p, port)
}

// noPolicy is the answer for an end that no policy is enforced at.
func (x *explanation) noPolicy(at end) *Side {
	if at.isNode {
		return &Side{Verdict: NotApplicable, Reason: "another node, no policy is enforced there"}
	}
	if at.other != nil && at.other.kind == unknownPeer {
		return &Side{Verdict: NotApplicable, Reason: at.name + " is not known, nor are its policies"}
	}
	return &Side{Verdict: NotApplicable, Reason: at.name + " is no pod, no policy is enforced there"}
}

// asked returns what is enforced on a pod in one direction, made when it is
// asked for and kept until the next Apply.
func (e *Engine) asked(at end, d Direction) (*enforcement, error) {
	s, ok := e.askedOf[at.pod.digest]
	if !ok {
		s = &subject{peer: at.pod, alwaysDeny: at.init}
		e.askedOf[at.pod.digest] = s
	}
	if f := s.directions[d]; f != nil {
		return f, nil
	}
	f := e.newEnforcement(s, d)
	for _, p := range e.policiesFor(s.peer) {
		c, err := e.contribution(f, p)
		if err != nil {
			return nil, err
		}
		if c == nil {
			continue
		}
		f.list = append(f.list, c)
		for _, g := range c.grants {
			f.count(g, 1)
			if g.any {
				f.any = append(f.any, g)
			}
		}
	}
	f.weigh()
	if err := e.judgeAny(f); err != nil {
		return nil, err
	}
	s.directions[d] = f
	return f, nil
}

// askedPeer stands for the peer in question in a table made for it.
const askedPeer identity.ID = 1<<32 - 1

// judge looks a flow up in the table of the peer in question.
func (f *enforcement) judge(p *peer, proto uint8, port uint16) (Entry, bool, error) {
	var grants []*grant
	for _, c := range f.list {
		for _, g := range c.grants {
			if slices.ContainsFunc(g.peers, func(sel *selector) bool { return sel.selects(p) }) {
				grants = append(grants, g)
			}
		}
	}
	t, err := f.templateFor(p, grants)
	if err != nil {
		return Entry{}, false, err
	}
	table, ok := f.tables[string(f.scratch)]
	if !ok {
		table = make(map[Key]Entry, len(f.forAny)+len(t))
		f.forAny.write(table, f.direction, identity.Any)
		t.write(table, f.direction, askedPeer)
		if f.tables == nil {
			f.tables = map[string]map[Key]Entry{}
		}
		f.tables[string(f.scratch)] = table
	}
	e, ok := Lookup(table, f.direction, []identity.ID{askedPeer}, proto, port)
	return e, ok, nil
}

// side judges a flow at one end and says why.
func (x *explanation) side(f *enforcement, at, other end, peer *peer, port uint16) (*Side, error) {
	if !f.enforced {
		return x.notEnforced(at, f.direction), nil
	}
	entry, ok, err := f.judge(peer, x.proto, port)
	if err != nil {
		return nil, err
	}
	s, err := x.verdict(f, at, entry, ok)
	if err != nil || !x.q.Others {
		return s, err
	}
	s.Others = x.others(f, other, peer, port, s)
	return s, nil
}

func (x *explanation) notEnforced(at end, d Direction) *Side {
	return &Side{Verdict: Allowed, Reason: fmt.Sprintf("not enforced: no policy selects %s for %s", at.name, d)}
}

// verdict spells an entry.
func (x *explanation) verdict(f *enforcement, at end, entry Entry, ok bool) (*Side, error) {
	s := &Side{Verdict: Denied}
	if ref := x.engine.Rule(entry.Rule); ref != nil {
		s.Policy, s.Rule, s.File, s.Line = ref.Policy, ref.Rule, ref.File, ref.Line
	}
	switch {
	case !ok:
		s.Policy = strings.Join(f.selecting, ", ")
		s.Reason = "default deny: no rule allows it and a policy selects " + at.name
		if len(f.selecting) == 0 {
			s.Reason = "default deny: " + at.name + " has no identity yet"
		}
	case entry.Action == Deny:
		s.Reason = "a deny rule covers it"
	case entry.Action == Refuse:
		s.Reason = x.refusal(entry)
	case entry.Action == Redirect:
		return x.redirected(s, entry)
	default:
		s.Verdict = Allowed
		s.Reason = "a rule allows it"
		if entry.Rule == 0 {
			s.Policy, s.Rule = "", ""
			s.Reason = "not under default deny: no rule denies it"
		}
	}
	return s, nil
}

func (x *explanation) refusal(entry Entry) string {
	switch entry.Reason {
	case RefusedPolicy:
		reason := "the policy was refused, so what it selects is closed"
		if at, ok := x.engine.rules.at[entry.Rule]; ok && len(at.policy.src.Refused) > 0 {
			reason += ": " + at.policy.src.Refused[0].Message
		}
		return reason
	case RefusedL7Conflict:
		return "rules of two L7 kinds meet on this peer and port, so neither can be enforced"
	}
	if at, ok := x.engine.rules.at[entry.Rule]; ok {
		for _, r := range at.policy.rules {
			for _, g := range r.grants {
				if g.path == at.path && g.l7 != nil {
					if g.l7.kind == l7DNS {
						return "DNS rules are enforced on UDP and TCP only, so what else they are about is denied"
					}
					return g.l7.kind.String() + " rules are not enforced yet, so what they are about is denied"
				}
			}
		}
	}
	return "L7 rules of a kind that is not enforced yet, so what they are about is denied"
}
