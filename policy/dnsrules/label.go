package dnsrules

import "strings"

// text is a name, or part of one.
type text interface{ string | []byte }

// labelMatches tells whether one label of a pattern is for a label of a name.
// Patterns consist of characters that wildcards can stand for, and wildcards,
// so a label with others in it is only matched by what is exactly that.
func labelMatches[T text](pattern string, label T) bool {
	if !strings.Contains(pattern, "*") {
		return string(label) == pattern
	}
	for i := range len(label) {
		if !inWildcard(label[i]) {
			return false
		}
	}
	// Behind the last wildcard met, the leftmost fit leaves the most for those
	// to come; where it turns out not to fit, the wildcard takes one more.
	p, i, star, resume := 0, 0, -1, 0
	for i < len(label) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, resume = p, i
			p++
		case p < len(pattern) && pattern[p] == label[i]:
			p++
			i++
		case star >= 0:
			resume++
			p, i = star+1, resume
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}

// inWildcard tells whether "*" can stand for a character. Names are in lower
// case.
func inWildcard(c byte) bool {
	return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_'
}

// cleanPart is the length of the longest beginning of a name that is no more
// than labels of characters that wildcards can stand for, none of them empty
// but perhaps the last.
func cleanPart[T text](name T) int {
	for i := range len(name) {
		if c := name[i]; c == '.' && (i == 0 || name[i-1] == '.') || c != '.' && !inWildcard(c) {
			return i
		}
	}
	return len(name)
}

// lastLabel splits off the last label before end: it begins at begin.
func lastLabel[T text](name T, end int) (begin int) {
	for begin = end; begin > 0 && name[begin-1] != '.'; begin-- {
	}
	return begin
}

// ordinary tells whether a name is one that a lone "*" of a toFQDNs selector
// is for: labels of letters, digits, hyphens and underscores, or the root.
func ordinary[T text](name T) bool {
	return cleanPart(name) == len(name) && (len(name) == 0 || name[len(name)-1] != '.')
}
