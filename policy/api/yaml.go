package api

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// yamlReader turns YAML's tree into nodes. Scalars mean what they mean to
// kubectl and the API server, which read YAML 1.1: an unquoted `on` is true.
type yamlReader struct {
	line   int // added to the parser's lines
	budget int // values that may still be made
}

// yamlLimit is an error of size: the document is given up.
type yamlLimit struct {
	line    int
	message string
}

func (e *yamlLimit) Error() string { return fmt.Sprintf("line %d: %s", e.line, e.message) }

func (r *yamlReader) read(y *yaml.Node, depth int) (*node, error) {
	line := y.Line + r.line
	if depth > maxDepth {
		return nil, &yamlLimit{line, fmt.Sprintf("nested deeper than %d levels", maxDepth)}
	}
	if r.budget--; r.budget < 0 {
		return nil, &yamlLimit{line, fmt.Sprintf("aliases expand it to more than %d values", maxValues)}
	}
	switch y.Kind {
	case yaml.AliasNode:
		n, err := r.read(y.Alias, depth+1)
		if err != nil {
			return nil, err
		}
		n.line = line
		return n, nil
	case yaml.ScalarNode:
		return scalar(y, line), nil
	case yaml.SequenceNode:
		n := &node{kind: listNode, line: line}
		r.checkTag(n, y, "!!seq")
		for _, item := range y.Content {
			v, err := r.read(item, depth+1)
			if err != nil {
				return nil, err
			}
			n.items = append(n.items, v)
		}
		return n, nil
	case yaml.MappingNode:
		n := &node{kind: objectNode, line: line}
		r.checkTag(n, y, "!!map")
		return n, r.mapping(n, y, depth)
	}
	return nil, &yamlLimit{line, "unknown kind of YAML value"}
}

func (r *yamlReader) checkTag(n *node, y *yaml.Node, want string) {
	if y.Style&yaml.TaggedStyle != 0 && y.ShortTag() != want {
		n.faultf(n.line, "", "YAML tag %s is not supported", y.Tag)
	}
}

func (r *yamlReader) mapping(n *node, y *yaml.Node, depth int) error {
	var merges []*yaml.Node
	for i := 0; i+1 < len(y.Content); i += 2 {
		key, value := y.Content[i], y.Content[i+1]
		line := key.Line + r.line
		for hops := 0; key.Kind == yaml.AliasNode && hops < maxDepth; hops++ {
			key = key.Alias
		}
		if key.Kind == yaml.ScalarNode && key.Style == 0 && key.Value == "<<" {
			merges = append(merges, value)
			continue
		}
		v, err := r.read(value, depth+1)
		if err != nil {
			return err
		}
		k := &node{kind: objectNode}
		if key.Kind == yaml.ScalarNode {
			k = scalar(key, line)
		}
		if k.kind != stringNode {
			n.faultf(line, "", "key %q is %s, not a string: quote it", key.Value, k.kind)
			continue
		}
		n.add(k.text, line, v)
	}
	for _, m := range merges {
		if err := r.merge(n, m, depth); err != nil {
			return err
		}
	}
	return nil
}

// merge adds what `<<` refers to, where the mapping does not say otherwise.
func (r *yamlReader) merge(n *node, y *yaml.Node, depth int) error {
	v, err := r.read(y, depth+1)
	if err != nil {
		return err
	}
	sources := []*node{v}
	if v.kind == listNode {
		sources = v.items
	}
	for _, s := range sources {
		if s.kind != objectNode {
			n.faultf(s.line, "<<", "must refer to an object, not %s", s.kind)
			continue
		}
		n.faults = append(n.faults, s.faults...)
		for _, m := range s.fields {
			if n.get(m.key) == nil {
				n.add(m.key, m.line, m.value)
			}
		}
	}
	return nil
}

// scalar resolves a scalar's type.
func scalar(y *yaml.Node, line int) *node {
	n := &node{kind: stringNode, line: line, text: y.Value, raw: y.Value}
	quoted := y.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) != 0
	if y.Style&yaml.TaggedStyle == 0 {
		if !quoted {
			n.resolve()
		}
		return n
	}
	tag := y.ShortTag()
	switch tag {
	case "!!str":
		return n
	case "!!null", "!!bool", "!!int", "!!float":
		n.resolve()
		if tag == "!!float" && n.kind == intNode {
			n.kind = floatNode
		}
		is := map[nodeKind]string{nullNode: "!!null", boolNode: "!!bool", intNode: "!!int", floatNode: "!!float"}[n.kind]
		if is == tag {
			return n
		}
	}
	n.faultf(line, "", "YAML tag %s does not fit or is not supported", y.Tag)
	return n
}

// resolve gives an unquoted scalar the type YAML 1.1 gives it. Dates stay
// strings.
func (n *node) resolve() {
	switch n.text {
	case "", "~", "null", "Null", "NULL":
		n.kind, n.text = nullNode, ""
		return
	case "y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON":
		n.kind, n.text = boolNode, "true"
		return
	case "n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF":
		n.kind, n.text = boolNode, "false"
		return
	case ".nan", ".NaN", ".NAN", ".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF", "-.inf", "-.Inf", "-.INF":
		n.kind = floatNode
		n.faultf(n.line, "", "%s is no number JSON has", n.text)
		return
	}
	if c := n.text[0]; c != '+' && c != '-' && c != '.' && (c < '0' || c > '9') {
		return
	}
	plain := strings.ReplaceAll(n.text, "_", "")
	if n.text[0] == '.' {
		plain = n.text
	}
	if i, err := strconv.ParseInt(plain, 0, 64); err == nil {
		n.kind, n.text = intNode, strconv.FormatInt(i, 10)
	} else if u, err := strconv.ParseUint(plain, 0, 64); err == nil {
		n.kind, n.text = intNode, strconv.FormatUint(u, 10)
	} else if floatPattern.MatchString(plain) {
		if f, err := strconv.ParseFloat(plain, 64); err == nil && !math.IsInf(f, 0) {
			n.kind, n.text = floatNode, strconv.FormatFloat(f, 'g', -1, 64)
		}
	}
}

var floatPattern = regexp.MustCompile(`^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$`)
