package dnsrules

import "strings"

// anything is the pattern that is for every name.
const anything = "*"

// Normalize returns a name in the form in which names are matched: ASCII
// letters in lower case, no final dot.
func Normalize(name string) string {
	return lower(withoutFinalDot(name))
}

// NewSelector makes the selector of a rule's matchName or matchPattern, in
// normal form: a pattern without "*" is a name, and "*" is not repeated where
// once says the same. Selectors that are for the same names by Cilium's
// definition of the wildcards are equal then.
func NewSelector(matchName, matchPattern string) Selector {
	if matchName != "" && matchPattern != "" {
		return Selector{}
	}
	if !strings.Contains(matchPattern, "*") {
		return Selector{Name: Normalize(matchName + matchPattern)}
	}
	p := Normalize(matchPattern)
	if strings.Trim(p, "*") == "" {
		return Selector{Pattern: anything}
	}
	prefix := ""
	if rest, ok := cutLabels(p); ok {
		prefix, p = "**.", rest
	}
	var b strings.Builder
	b.WriteString(prefix)
	for i := range len(p) {
		if p[i] != '*' || i == 0 || p[i-1] != '*' {
			b.WriteByte(p[i])
		}
	}
	return Selector{Pattern: b.String()}
}

// String spells the selector as a policy does, for people; behind its namespace
// and a slash, where it has one.
func (s Selector) String() string {
	text := s.Name
	if s.Pattern != "" {
		text = s.Pattern
	}
	if s.Namespace != "" {
		return s.Namespace + "/" + text
	}
	return text
}

// valid tells whether the selector selects names at all: exactly one of its
// Name and Pattern must be set.
func (s Selector) valid() bool { return (s.Name == "") != (s.Pattern == "") }

// cutLabels cuts off the "**." that stands for one or more labels.
func cutLabels(pattern string) (rest string, ok bool) {
	stars := len(pattern) - len(strings.TrimLeft(pattern, "*"))
	if stars < 2 || stars == len(pattern) || pattern[stars] != '.' {
		return pattern, false
	}
	return pattern[stars+1:], true
}

func withoutFinalDot(s string) string {
	if s == "" || s[len(s)-1] != '.' {
		return s
	}
	slashes := 0
	for i := len(s) - 2; i >= 0 && s[i] == '\\'; i-- {
		slashes++
	}
	if slashes%2 == 1 { // the dot is part of a label
		return s
	}
	return s[:len(s)-1]
}

// lower is for ASCII only: other letters have no case in DNS.
func lower(s string) string {
	for i := range len(s) {
		if c := s[i]; 'A' <= c && c <= 'Z' {
			b := []byte(s)
			for ; i < len(b); i++ {
				if 'A' <= b[i] && b[i] <= 'Z' {
					b[i] += 'a' - 'A'
				}
			}
			return string(b)
		}
	}
	return s
}
