package dns

import (
	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/policy/dnsrules"
)

// RuleSet is a policy.RuleSet made ready. It is immutable, and safe for
// concurrent use.
type RuleSet struct {
	set       *dnsrules.Set // nil: closed
	allowAll  bool
	allowRule uint32
	teaches   bool
	// teachesFor is the namespace for whose policies alone; "": for all.
	teachesFor string
}

// NewRuleSet makes a rule set ready.
func NewRuleSet(rs *policy.RuleSet) *RuleSet {
	return &RuleSet{
		set: dnsrules.Compile(rs.DNS), allowAll: rs.AllowAll, allowRule: rs.AllowRule,
		teaches: rs.Teaches, teachesFor: rs.TeachesFor,
	}
}

// Closed is a rule set that lets nothing pass: for numbers that stand for no
// known rule set, and for sets of another protocol.
func Closed() *RuleSet { return &RuleSet{} }

// Teaches tells whether the servers the set leads to are believed, and for which
// namespace's policies alone what they say counts; "": for all.
func (rs *RuleSet) Teaches() (namespace string, ok bool) {
	if rs == nil || !rs.teaches {
		return "", false
	}
	return rs.teachesFor, true
}

// Rules are what a question must pass: the rule sets of both directions. A nil
// set lets everything pass.
type Rules struct {
	Egress, Ingress *RuleSet
	// Believed: what the server answers is learned.
	Believed bool
	// BelievedFor is the namespace for whose policies alone; "": for all.
	BelievedFor string
}

// judgement is what rules say of a question.
type judgement struct {
	reason                  Reason // of the verdict; allowed unless it denies
	direction               policy.Direction
	egressRule, ingressRule uint32
}

func (j *judgement) allowed() bool { return j.reason.verdict() == Allowed }

// judge asks the rules of both ends, the client's first.
func (r *Rules) judge(m []byte, q *question) (j judgement) {
	j.reason, j.direction = ReasonAllowAll, policy.Egress
	for _, side := range [...]struct {
		direction policy.Direction
		set       *RuleSet
		rule      *uint32
	}{{policy.Egress, r.Egress, &j.egressRule}, {policy.Ingress, r.Ingress, &j.ingressRule}} {
		reason, rule := side.set.decide(m, q)
		if reason.verdict() != Allowed {
			j.reason, j.direction = reason, side.direction
			return j
		}
		*side.rule = rule
		if reason == ReasonRule {
			j.reason = reason
		}
	}
	return j
}

// decide asks one rule set about a question; nil lets everything pass. Rules
// are about questions: an update or a notification of the same name is none.
func (rs *RuleSet) decide(m []byte, q *question) (Reason, uint32) {
	switch {
	case rs == nil:
		return ReasonAllowAll, 0
	case rs.set == nil:
		return ReasonClosed, 0
	}
	if opcode(m) == opcodeQuery {
		if rule, ok := rs.set.Match(q.name); ok {
			return ReasonRule, rule
		}
	}
	switch {
	case rs.allowAll:
		return ReasonAllowAll, rs.allowRule
	case opcode(m) != opcodeQuery:
		return ReasonOpcode, 0
	}
	return ReasonNoRule, 0
}
