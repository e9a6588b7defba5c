package http

import (
	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/policy/httprules"
)

// decision is what one rule set says of a request.
type decision struct {
	allowed bool
	reason  Reason
	rule    uint32
	changes []httprules.Change
}

// decide asks a rule set about req; nil lets everything pass.
func (rs *RuleSet) decide(req *httprules.Request, connect bool) decision {
	if rs == nil {
		return decision{allowed: true, reason: ReasonAllowAll}
	}
	if rs.set == nil {
		return decision{reason: ReasonClosed}
	}
	if connect {
		// What goes through the tunnel can't be judged.
		if rs.allowAll {
			return decision{allowed: true, reason: ReasonAllowAll, rule: rs.allowRule}
		}
		return decision{reason: ReasonConnect}
	}
	res := rs.set.Match(req)
	switch {
	case res.Matched():
		return decision{true, ReasonRule, res.Rule, res.Changes}
	case rs.allowAll:
		return decision{allowed: true, reason: ReasonAllowAll, rule: rs.allowRule}
	}
	if res.Exceeded {
		return decision{reason: ReasonCost}
	}
	return decision{reason: ReasonNoRule}
}

func (rs *RuleSet) needsHeaders() bool { return rs != nil && rs.set != nil && rs.set.NeedsHeaders() }

// incoming is a complete request head while it is judged.
type incoming struct {
	h *head
	m message
	t target
	b []byte // the head alone
	// made: b is not what the client sent.
	made bool
}

// read judges what the head says apart from the rules.
func (in *incoming) read(norm []byte) Reason {
	if r := readRequest(in.h, &in.m, in.b); r != 0 {
		return r
	}
	var r Reason
	in.t, r = readTarget(in.h, &in.m, in.b, norm)
	return r
}

// view fills req with what rules see of the request.
func (in *incoming) view(req *httprules.Request, headers bool) {
	req.Method = in.h.first.method.of(in.b)
	req.Path, req.Host = in.t.path, in.t.host
	req.Headers = req.Headers[:0]
	if headers {
		for i := range in.h.fields[:in.h.n] {
			f := &in.h.fields[i]
			req.Headers = append(req.Headers, httprules.Header{Name: f.name.of(in.b), Value: f.value.of(in.b)})
		}
	}
}

// judge asks the rules of both ends, the client's first, and makes the changes
// they want. The other end judges the request with the changes of the first,
// as it would if it stood behind it.
func (p *pair) judge(in *incoming) (verdict Verdict, r Reason) {
	rules, ex, l := p.conn.Rules(), p.ex, p.loop
	rec := &ex.rec
	ex.rules, rec.Reason = rules, ReasonAllowAll
	in.view(&l.req, rules.Egress.needsHeaders() || rules.Ingress.needsHeaders())
	for _, side := range [...]struct {
		direction policy.Direction
		set       *RuleSet
		rule      *uint32
	}{{policy.Egress, rules.Egress, &rec.EgressRule}, {policy.Ingress, rules.Ingress, &rec.IngressRule}} {
		d := side.set.decide(&l.req, in.t.connect)
		if !d.allowed {
			rec.Direction = side.direction
			return Denied, d.reason
		}
		*side.rule = d.rule
		if d.reason == ReasonRule {
			rec.Reason = ReasonRule
		}
		if len(d.changes) == 0 {
			continue
		}
		ex.changes = append(ex.changes, d.changes...)
		if r := p.change(in, d.changes, side.direction); r != 0 {
			return Refused, r
		}
		in.view(&l.req, rules.Ingress.needsHeaders())
	}
	return Allowed, rec.Reason
}

// change makes changes to the request and reads what came of it.
func (p *pair) change(in *incoming, changes []httprules.Change, d policy.Direction) Reason {
	only := true
	for i := range changes {
		only = only && changes[i].Action == httprules.ActionLog
	}
	if only {
		return 0
	}
	l := p.loop
	out := appendRequest(l.out[d][:0], in.h, &in.m, &in.t, in.b, changes)
	l.out[d] = out[:0]
	h := &l.changed[d]
	h.reset(false)
	done, r := h.parse(out)
	if r != 0 || !done {
		return r
	}
	in.h, in.b, in.made = h, out, true
	return in.read(l.norm)
}
