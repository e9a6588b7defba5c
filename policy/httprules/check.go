package httprules

import (
	"errors"
	"fmt"
	"regexp/syntax"
	"strings"
)

// Limits on what rules may ask for, so that one rule can't make every request
// of a pod slow. A regular expression that people write has tens of
// instructions.
const (
	// maxRegexSteps bounds the compiled length of one regular expression:
	// the automaton may have to follow all of them for every byte.
	maxRegexSteps = 10_000
	// maxSetSteps bounds their sum over the rules of one set and dimension.
	maxSetSteps = 500_000
	// maxRegexBytes bounds its text, since the parser is asked first.
	maxRegexBytes = 64 << 10
)

// CheckRule tells why a rule can't be enforced as it is written; nil: it can.
// Compile refuses the same rules.
func CheckRule(r Rule) error {
	_, err := parseRule(r)
	return err
}

// parsed is a rule in the form Compile works with.
type parsed struct {
	dims  [dimensions]*syntax.Prog // nil: anything matches
	conds []cond
}

// cond is one demand on a header.
type cond struct {
	name     string // lower case
	value    string
	present  bool // any value will do
	optional bool // the rule matches all the same, action is what is done then
	action   Action
	spelling string // name as it was written, for changes
}

func parseRule(r Rule) (parsed, error) {
	var p parsed
	for d, expr := range [dimensions]string{r.Path, r.Method, r.Host} {
		if expr == "" {
			continue
		}
		prog, err := parseRegex(expr)
		if err != nil {
			return p, fmt.Errorf("%s: %w", dimensionNames[d], err)
		}
		p.dims[d] = prog
	}
	for i, h := range r.Headers {
		c, err := parseHeader(h)
		if err != nil {
			return p, fmt.Errorf("headers[%d]: %w", i, err)
		}
		p.conds = append(p.conds, c)
	}
	for i, m := range r.HeaderMatches {
		c, err := parseHeaderMatch(m)
		if err != nil {
			return p, fmt.Errorf("headerMatches[%d]: %w", i, err)
		}
		p.conds = append(p.conds, c)
	}
	return p, nil
}

func parseRegex(expr string) (*syntax.Prog, error) {
	if len(expr) > maxRegexBytes {
		return nil, fmt.Errorf("regular expression of %d bytes, more than %d", len(expr), maxRegexBytes)
	}
	re, err := syntax.Parse(expr, syntax.Perl)
	if err != nil {
		return nil, fmt.Errorf("not a regular expression: %w", err)
	}
	re = re.Simplify()
	if n := steps(re, maxRegexSteps); n > maxRegexSteps {
		return nil, fmt.Errorf("regular expression is too large (more than %d steps)", maxRegexSteps)
	}
	prog, err := syntax.Compile(re)
	if err != nil {
		return nil, fmt.Errorf("not a regular expression: %w", err)
	}
	if len(prog.Inst) > maxRegexSteps {
		return nil, fmt.Errorf("regular expression is too large (%d steps, more than %d)", len(prog.Inst), maxRegexSteps)
	}
	return prog, nil
}

// steps counts what re compiles to, less than it or about; it stops counting
// beyond limit. Simplify shares what it repeats, so a small tree may stand for
// a very large program, which must not be built to be measured.
func steps(re *syntax.Regexp, limit int) int {
	n := 1
	if re.Op == syntax.OpLiteral {
		n = len(re.Rune)
	}
	for _, sub := range re.Sub {
		if n > limit {
			return n
		}
		n += steps(sub, limit-n)
	}
	return n
}

// parseHeader reads an element of Rule.Headers. What stands before the first
// space is the name, colons at its end dropped, and all behind it the value.
func parseHeader(h string) (cond, error) {
	name, value, hasValue := strings.Cut(h, " ")
	if hasValue {
		name = strings.TrimRight(name, ":")
	}
	c := cond{name: strings.ToLower(name), spelling: name, value: value, present: !hasValue}
	switch {
	case name == "":
		return c, fmt.Errorf("%q has no name", h)
	case !hasValue && strings.Contains(name, ":"):
		return c, fmt.Errorf(`%q asks for a header of that whole name, which no request can have; write "Name: value"`, h)
	case !token(name):
		return c, fmt.Errorf("%q is not a header name", name)
	}
	return c, checkValue(value)
}

func parseHeaderMatch(m HeaderMatch) (cond, error) {
	c := cond{name: strings.ToLower(m.Name), spelling: m.Name, value: m.Value, present: m.Value == ""}
	switch m.Mismatch {
	case "":
	case "LOG":
		c.optional, c.action = true, ActionLog
	case "ADD":
		c.optional, c.action = true, ActionAdd
	case "DELETE":
		c.optional, c.action = true, ActionDelete
	case "REPLACE":
		c.optional, c.action = true, ActionReplace
	default:
		return c, fmt.Errorf("mismatch %q is none of LOG, ADD, DELETE, REPLACE", m.Mismatch)
	}
	switch {
	case m.Name == "":
		return c, errors.New("no name")
	case !token(m.Name):
		return c, fmt.Errorf("%q is not a header name", m.Name)
	case c.optional && c.action != ActionLog && framing(c.name):
		return c, fmt.Errorf("header %s frames the message or names its host and can't be changed", m.Name)
	}
	return c, checkValue(m.Value)
}

// framing tells of headers that say where a message ends, where it goes, or
// what the connection becomes: a change would be another message than the one
// that was judged.
func framing(name string) bool {
	switch name {
	case "host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer",
		"keep-alive", "proxy-connection", "expect", "http2-settings":
		return true
	}
	return false
}

// checkValue refuses values that would break the head they are written into.
func checkValue(v string) error {
	for i := 0; i < len(v); i++ {
		if c := v[i]; c < ' ' && c != '\t' || c == 0x7f {
			return fmt.Errorf("control character in the value %q", v)
		}
	}
	return nil
}

// token tells whether s may be a header's name.
func token(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c <= ' ' || c >= 0x7f || strings.IndexByte(`"(),/:;<=>?@[\]{}`, c) >= 0 {
			return false
		}
	}
	return s != ""
}
