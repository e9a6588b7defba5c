package api

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// Document is one Kubernetes object of a file, of any kind.
type Document struct {
	APIVersion, Kind string
	// Namespace is as written; empty where none is.
	Namespace, Name string
	Source          Position

	root *node
}

// Documents splits a file of YAML documents (or JSON values) into objects. A
// list (kind List, or any kind that ends in List and has items) is replaced by
// its items, which keep the document's number and have lines of their own.
// Empty documents are passed over and not counted.
//
// Each error is a document that could not be read as an object: it is not YAML
// or JSON, exceeds a bound, or names no kind. What could be read is returned
// beside it.
func Documents(file string, data []byte) ([]Document, []*Error) {
	fail := func(doc, line int, format string, args ...any) []*Error {
		return []*Error{{File: file, Document: doc, Line: line, Message: fmt.Sprintf(format, args...)}}
	}
	if len(data) > MaxFileSize {
		return nil, fail(0, 0, "is larger than %d MiB", MaxFileSize>>20)
	}
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	if !utf8.Valid(data) {
		return nil, fail(0, 0, "is not UTF-8 text")
	}
	s := &splitter{file: file}
	if !bracketed(data) {
		s.yaml(data)
		return s.docs, s.errs
	}
	roots, err := readJSON(data, 1)
	if err != nil {
		// YAML may begin with a bracket, too.
		if s.yaml(data); len(s.errs) == 0 {
			return s.docs, nil
		}
		*s = splitter{file: file}
	}
	for _, root := range roots {
		s.document++
		s.object(root, "", "", 0)
	}
	if err != nil {
		s.document++
		s.limit(err)
	}
	return s.docs, s.errs
}

// splitter collects objects and errors of a file.
type splitter struct {
	file     string
	document int
	docs     []Document
	errs     []*Error
}

func (s *splitter) errorf(line int, field, format string, args ...any) {
	s.errs = append(s.errs, &Error{File: s.file, Document: s.document, Line: line, Field: field, Message: fmt.Sprintf(format, args...)})
}

func (s *splitter) limit(err error) {
	var l *yamlLimit
	if errors.As(err, &l) {
		s.errorf(l.line, "", "%s", l.message)
		return
	}
	s.errorf(0, "", "%v", err)
}

var yamlErrorLine = regexp.MustCompile(`^line (\d+): `)

func (s *splitter) yaml(data []byte) {
	for _, sec := range sections(data) {
		s.section(sec)
	}
}

func (s *splitter) section(sec Section) {
	s.document++
	dec := yaml.NewDecoder(bytes.NewReader(sec.Text))
	var y yaml.Node
	err := dec.Decode(&y)
	if errors.Is(err, io.EOF) {
		s.document--
		return
	}
	if err == nil {
		// What stands behind the document's end is not YAML either.
		if err = dec.Decode(new(yaml.Node)); errors.Is(err, io.EOF) {
			err = nil
		} else if err == nil {
			err = errors.New("a second document begins without a marker")
		}
	}
	if err != nil {
		text, line := strings.TrimPrefix(err.Error(), "yaml: "), sec.Line
		if m := yamlErrorLine.FindStringSubmatch(text); m != nil {
			n, _ := strconv.Atoi(m[1]) // digits by the pattern
			text, line = text[len(m[0]):], sec.Line-1+n
		}
		s.errorf(line, "", "not YAML: %s", text)
		return
	}
	if y.Kind != yaml.DocumentNode || len(y.Content) != 1 {
		s.errorf(sec.Line, "", "not an object")
		return
	}
	r := &yamlReader{line: sec.Line - 1, budget: maxValues + len(sec.Text)}
	var root *node
	root, err = r.read(y.Content[0], 0)
	if err != nil {
		s.limit(err)
		return
	}
	if root.kind == nullNode {
		s.document--
		return
	}
	s.object(root, "", "", 0)
}

// object adds an object, or the items of a list. Items of a typed list may
// leave out what the list's kind says already.
func (s *splitter) object(root *node, apiVersion, kind string, depth int) {
	if root.kind != objectNode {
		s.errorf(root.line, "", "not an object but %s", root.kind)
		return
	}
	if v := root.str("apiVersion"); v != "" {
		apiVersion = v
	}
	if v := root.str("kind"); v != "" {
		kind = v
	}
	if apiVersion == "" || kind == "" {
		s.errorf(root.line, "", "not a Kubernetes object: apiVersion and kind are needed")
		return
	}
	if items := root.get("items"); strings.HasSuffix(kind, "List") && items != nil && depth < 4 {
		s.list(root, items, apiVersion, kind, depth)
		return
	}
	meta := root.get("metadata")
	s.docs = append(s.docs, Document{
		APIVersion: apiVersion, Kind: kind,
		Namespace: meta.str("namespace"), Name: meta.str("name"),
		Source: Position{File: s.file, Document: s.document, Line: root.line},
		root:   root,
	})
}

func (s *splitter) list(root, items *node, apiVersion, kind string, depth int) {
	switch items.kind {
	case nullNode:
		return
	case listNode:
	default:
		s.errorf(items.line, "items", "must be a list, not %s", items.kind)
		return
	}
	// A list of List has no type of its own.
	itemVersion, itemKind := apiVersion, strings.TrimSuffix(kind, "List")
	if itemKind == "" {
		itemVersion = ""
	}
	if f, found := root.ownFault(); found {
		s.errorf(f.line, f.field, "%s", f.message)
		return
	}
	for _, item := range items.items {
		s.object(item, itemVersion, itemKind, depth+1)
	}
}

// JSON returns the object as JSON, for decoding kinds this package does not
// know. apiVersion and kind are as Document has them, also for items of a list
// that left them out. A key written twice, or another fault of the syntax, is
// an error (*Error).
func (doc *Document) JSON() ([]byte, error) {
	if f, found := doc.root.firstFault(""); found {
		return nil, &Error{File: doc.Source.File, Document: doc.Source.Document, Line: f.line, Field: f.field, Message: f.message}
	}
	root := *doc.root
	root.fields = nil
	root.byKey = nil
	root.add("apiVersion", doc.Source.Line, &node{kind: stringNode, text: doc.APIVersion})
	root.add("kind", doc.Source.Line, &node{kind: stringNode, text: doc.Kind})
	for _, m := range doc.root.fields {
		if m.key != "apiVersion" && m.key != "kind" {
			root.add(m.key, m.line, m.value)
		}
	}
	return root.appendJSON(nil), nil
}

// IsPolicy tells whether the document is of a kind that Policy or CIDRGroup
// decodes, in any version: one they do not know is refused, not passed over.
func (doc *Document) IsPolicy() bool {
	group, _, _ := strings.Cut(doc.APIVersion, "/")
	switch doc.Kind {
	case KindNetworkPolicy:
		return group == "networking.k8s.io" || group == "extensions"
	case KindCiliumPolicy, KindClusterwide, KindCiliumCIDRGroup:
		return group == "cilium.io"
	}
	return false
}
