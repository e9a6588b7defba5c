package fqdn

import "strings"

// scopes are what names count for: a number for each namespace whose servers
// taught some, and 0 for all namespaces.
type scopes struct {
	byName map[string]uint16
	list   []scopeEntry
	vacant []uint16
}

type scopeEntry struct {
	namespace string
	names     uint32 // that have it
}

const (
	// maxScopes is how many there can be; what would need another is not learned.
	maxScopes = 1 << 16
	// maxNamespace is the most bytes the name of a namespace has, and then some: it
	// is a label of DNS.
	maxNamespace = 253
)

func newScopes() scopes { return scopes{byName: map[string]uint16{"": 0}, list: make([]scopeEntry, 1)} }

// number is that of a namespace; false: there is no room for another. Who does not
// use it calls tidy.
func (s *scopes) number(namespace string) (uint16, bool) {
	if namespace == "" {
		return 0, true
	}
	if i, ok := s.byName[namespace]; ok {
		return i, true
	}
	var i uint16
	switch n := len(s.vacant); {
	case len(namespace) > maxNamespace:
		return 0, false
	case n > 0:
		i, s.vacant = s.vacant[n-1], s.vacant[:n-1]
	case len(s.list) == maxScopes:
		return 0, false
	default:
		i = uint16(len(s.list))
		s.list = append(s.list, scopeEntry{})
	}
	s.list[i].namespace = strings.Clone(namespace)
	s.byName[s.list[i].namespace] = i
	return i, true
}

// tidy forgets a namespace that no name has.
func (s *scopes) tidy(i uint16) {
	if e := &s.list[i]; e.namespace != "" && e.names == 0 {
		delete(s.byName, e.namespace)
		e.namespace = ""
		s.vacant = append(s.vacant, i)
	}
}
