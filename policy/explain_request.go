package policy

import (
	"errors"
	"fmt"

	"github.com/weirnet/weir/policy/dnsrules"
	"github.com/weirnet/weir/policy/httprules"
)

// check tells what is wrong with the requests and names in question.
func (q *Question) check() error {
	if q.HTTP != nil && q.DNS != nil {
		return errors.New("http and dns: a flow carries one of them")
	}
	if q.DNS != nil && q.DNS.Name == "" {
		return errors.New("dns: name is missing")
	}
	if q.NamesIn != "" && len(q.Names) == 0 {
		return errors.New("namesIn: names are missing")
	}
	for _, n := range q.Names {
		if dnsrules.Normalize(n) == "" {
			return fmt.Errorf("names: %q is no name of an address", n)
		}
	}
	return nil
}

// redirected judges the request, if there is one.
func (x *explanation) redirected(s *Side, entry Entry) (*Side, error) {
	set, err := x.engine.ruleSets.compiled(entry.RuleSet)
	if err != nil {
		return nil, err
	}
	if set.rules.Protocol == ProtocolDNS {
		return x.redirectedDNS(s, set), nil
	}
	if x.q.DNS != nil {
		s.Reason = "the flow goes through HTTP rules, where DNS is refused"
		return s, nil
	}
	if x.q.HTTP == nil {
		if set.rules.AllowAll {
			s.Verdict = Allowed
			s.Reason = "a rule allows every request; they pass the proxy and are seen"
			x.decidedBy(s, set.rules.AllowRule)
		} else {
			s.Verdict = NeedsRequest
			s.Reason = fmt.Sprintf("each request is judged by %s", count1(len(set.rules.HTTP), "HTTP rule"))
		}
		return s, nil
	}
	req, err := requestOf(x.q.HTTP)
	if err != nil {
		s.Reason = "the request is refused: " + err.Error()
		return s, nil
	}
	switch r := set.match.Match(req); {
	case r.Matched():
		s.Verdict = Allowed
		s.Reason = "an HTTP rule allows the request"
		x.decidedBy(s, set.rules.HTTP[r.Index].Rule)
	case set.rules.AllowAll:
		s.Verdict = Allowed
		s.Reason = "a rule allows every request"
		x.decidedBy(s, set.rules.AllowRule)
	default:
		s.Reason = fmt.Sprintf("no HTTP rule of %d allows %s %s", len(set.rules.HTTP), req.Method, req.Path)
	}
	return s, nil
}

// redirectedDNS judges the DNS question, if there is one.
func (x *explanation) redirectedDNS(s *Side, set *compiledSet) *Side {
	rules := set.rules
	switch {
	case x.q.HTTP != nil:
		s.Reason = "the flow goes through DNS rules, where HTTP is refused"
		return s
	case x.q.DNS == nil && rules.AllowAll && (rules.AllowRule != 0 || len(rules.DNS) == 0):
		s.Verdict = Allowed
		s.Reason = "a rule allows every DNS question; they pass the proxy, and what the answers say is learned"
		x.decidedBy(s, rules.AllowRule)
		return s
	case x.q.DNS == nil:
		s.Verdict = NeedsRequest
		s.Reason = "each question is judged by " + count1(len(rules.DNS), "DNS rule")
		return s
	}
	name := dnsrules.Normalize(x.q.DNS.Name)
	if rule, ok := set.dns.MatchString(name); ok {
		s.Verdict = Allowed
		s.Reason = "a DNS rule allows the question"
		x.decidedBy(s, rule)
	} else if rules.AllowAll {
		s.Verdict = Allowed
		s.Reason = "a rule allows every DNS question"
		x.decidedBy(s, rules.AllowRule)
	} else {
		s.Reason = fmt.Sprintf("no DNS rule of %d allows %s", len(rules.DNS), name)
	}
	return s
}

func (x *explanation) decidedBy(s *Side, rule uint32) {
	if ref := x.engine.Rule(rule); ref != nil {
		s.Policy, s.Rule, s.File, s.Line = ref.Policy, ref.Rule, ref.File, ref.Line
	}
}

func count1(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// compiledSet is a rule set ready to match.
type compiledSet struct {
	rules *RuleSet
	match *httprules.Set
	dns   *dnsrules.Set
}

// compiled returns a rule set in a form that matches, made once.
func (t *ruleSetTable) compiled(id uint32) (*compiledSet, error) {
	u := t.byID[id]
	if u == nil {
		return nil, fmt.Errorf("rule set %d is not known", id)
	}
	if u.compiled == nil {
		m, err := httprules.Compile(u.set.HTTP)
		if err != nil {
			return nil, fmt.Errorf("compile rule set %d: %w", id, err)
		}
		u.compiled = &compiledSet{u.set, m, dnsrules.Compile(u.set.DNS)}
	}
	return u.compiled, nil
}
