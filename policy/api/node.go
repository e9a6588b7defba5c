package api

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
)

// Bounds on what is read. An object in a cluster is at most 1.5 MB; a
// directory may hold lists of many.
const (
	// MaxFileSize is the most bytes of one file.
	MaxFileSize = 64 << 20
	// maxDepth bounds nesting, aliases followed.
	maxDepth = 256
	// maxValues bounds the values of one document beyond those its text
	// spells out: aliases multiply what a few lines say.
	maxValues = 1 << 20
)

// nodeKind is the JSON type of a value.
type nodeKind uint8

const (
	nullNode nodeKind = iota
	boolNode
	intNode
	floatNode
	stringNode
	listNode
	objectNode
)

func (k nodeKind) String() string {
	switch k {
	case nullNode:
		return "null"
	case boolNode:
		return "a boolean"
	case intNode, floatNode:
		return "a number"
	case stringNode:
		return "a string"
	case listNode:
		return "a list"
	}
	return "an object"
}

// node is one value of a document, YAML or JSON, with the line it stands on.
type node struct {
	kind   nodeKind
	line   int
	text   string // of scalars: as JSON writes it, strings unquoted
	raw    string // of scalars: as it was written
	items  []*node
	fields []member
	byKey  map[string]int // index into fields, kept once there are many
	// faults are errors of the value's own syntax: keys twice, wrong tags.
	faults []fault
}

// member is a key of an object and its value.
type member struct {
	key   string
	line  int
	value *node
}

type fault struct {
	line    int
	field   string // below the node it is kept at; "" for the node itself
	message string
}

// get returns the value of a key; nil if the object has none, or it is no
// object. Of a key written twice it is the first.
func (n *node) get(key string) *node {
	if n == nil {
		return nil
	}
	if i := n.find(key); i >= 0 {
		return n.fields[i].value
	}
	return nil
}

func (n *node) find(key string) int {
	if n.byKey != nil {
		if i, ok := n.byKey[key]; ok {
			return i
		}
		return -1
	}
	for i := range n.fields {
		if n.fields[i].key == key {
			return i
		}
	}
	return -1
}

// str returns a scalar below key as it was written; "" if there is none.
func (n *node) str(key string) string {
	v := n.get(key)
	if v == nil || v.kind == nullNode || v.kind >= listNode {
		return ""
	}
	if v.kind != stringNode && v.raw != "" {
		return v.raw // a name that YAML takes for a number or boolean: it is refused, but known
	}
	return v.text
}

func (n *node) faultf(line int, field, format string, args ...any) {
	n.faults = append(n.faults, fault{line: line, field: field, message: fmt.Sprintf(format, args...)})
}

// add appends a member, unless the key is there already.
func (n *node) add(key string, line int, value *node) {
	if i := n.find(key); i >= 0 {
		n.faultf(line, printable(key), "is written twice, first on line %d", n.fields[i].line)
		return
	}
	n.fields = append(n.fields, member{key: key, line: line, value: value})
	switch {
	case n.byKey != nil:
		n.byKey[key] = len(n.fields) - 1
	case len(n.fields) > 16:
		n.byKey = make(map[string]int, 2*len(n.fields))
		for i := range n.fields {
			n.byKey[n.fields[i].key] = i
		}
	}
}

// firstFault returns the first syntax fault of the value, with its path.
func (n *node) firstFault(path string) (fault, bool) {
	if len(n.faults) > 0 {
		f := n.faults[0]
		f.field = join(path, f.field)
		return f, true
	}
	for i, item := range n.items {
		if f, found := item.firstFault(index(path, i)); found {
			return f, true
		}
	}
	for _, m := range n.fields {
		if f, found := m.value.firstFault(join(path, printable(m.key))); found {
			return f, true
		}
	}
	return fault{}, false
}

// appendJSON writes the value as JSON.
func (n *node) appendJSON(b []byte) []byte {
	switch n.kind {
	case nullNode:
		return append(b, "null"...)
	case stringNode:
		return appendJSONString(b, n.text)
	case listNode:
		b = append(b, '[')
		for i, item := range n.items {
			if i > 0 {
				b = append(b, ',')
			}
			b = item.appendJSON(b)
		}
		return append(b, ']')
	case objectNode:
		b = append(b, '{')
		for i, m := range n.fields {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(appendJSONString(b, m.key), ':')
			b = m.value.appendJSON(b)
		}
		return append(b, '}')
	}
	return append(b, n.text...)
}

// appendJSONString quotes s, which is valid UTF-8.
func appendJSONString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < 0x20 || c == 0x7f:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		default:
			b = append(b, c)
		}
	}
	return append(b, '"')
}

// join and index build field paths: "spec.ingress[0].fromCIDR".
func join(path, name string) string {
	switch {
	case name == "":
		return path
	case path == "":
		return name
	}
	return path + "." + name
}

func index(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

// entry is the path of a map's entry: "matchLabels[app]".
func entry(path, key string) string { return path + "[" + printable(key) + "]" }

// printable quotes a key that would not look in a path like what it is.
func printable(key string) string {
	if strings.ContainsFunc(key, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(key)
	}
	return key
}

// under tells whether field is path or lies below it.
func under(field, path string) bool {
	rest, ok := strings.CutPrefix(field, path)
	return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
}

// ownFault returns the first fault of the value itself, its members aside.
func (n *node) ownFault() (fault, bool) {
	if len(n.faults) == 0 {
		return fault{}, false
	}
	return n.faults[0], true
}
