package kube

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/policy/api"
)

// problem is a Problem of an object, whose key may be known.
type problem struct {
	Problem
	key policy.Object
}

// decodeFile decodes what changed against the documents of the last valid
// contents. broken tells why the text as a whole is not taken.
func decodeFile(path string, text []byte, last []*document) (docs []*document, broken []Problem) {
	if len(text) > api.MaxFileSize {
		return nil, []Problem{{Kind: BrokenFile, File: path, Message: fmt.Sprintf("is larger than %d MiB", api.MaxFileSize>>20)}}
	}
	text = bytes.TrimPrefix(text, []byte("\ufeff"))
	known := make(map[[sha256.Size]byte]*document, len(last))
	for _, d := range last {
		known[d.sum] = d
	}
	for _, s := range api.Sections(text) {
		sum := sha256.Sum256(s.Text)
		d := known[sum]
		if d == nil {
			var errs []*api.Error
			if d, errs = decodeSection(path, s.Text); len(errs) > 0 {
				for _, e := range errs {
					e = shiftError(e, s.Number-1, s.Line-1)
					broken = append(broken, Problem{Kind: BrokenFile, File: path, Document: e.Document, Line: e.Line, Message: message(e)})
				}
			} else {
				d.sum = sum // only what is right is known again
			}
		}
		if d.number != s.Number || d.line != s.Line {
			d = d.moveTo(s.Number, s.Line)
		}
		docs = append(docs, d)
	}
	return docs, broken
}

// decodeSection decodes a document as if it stood at the start of a file.
func decodeSection(path string, text []byte) (*document, []*api.Error) {
	d := &document{number: 1, line: 1}
	objects, errs := api.Documents(path, text)
	for i := range objects {
		d.add(&objects[i])
	}
	return d, errs
}

func (d *document) add(o *api.Document) {
	key := policy.Object{Kind: o.Kind, Namespace: o.Namespace, Name: o.Name}
	if o.IsPolicy() {
		d.addPolicy(key, o)
		return
	}
	kind, ok := coreKinds[typeKey{o.APIVersion, o.Kind}]
	if !ok {
		d.unknown++
		return
	}
	switch {
	case !kind.namespaced:
		key.Namespace = ""
	case key.Namespace == "":
		key.Namespace = "default"
	}
	value, err := any(nil), error(nil)
	if key.Name == "" {
		err = errors.New("metadata.name is missing")
	} else {
		var text []byte
		if text, err = o.JSON(); err == nil {
			value, err = kind.decode(key, text)
		}
	}
	if err != nil {
		p := problem{key: key, Problem: Problem{
			Kind: BrokenObject, File: o.Source.File, Document: o.Source.Document, Line: o.Source.Line,
			Object: Name(key), Message: err.Error(),
		}}
		if e := (*api.Error)(nil); errors.As(err, &e) {
			p.Line, p.Message = e.Line, message(e)
		}
		d.problems = append(d.problems, p)
		if key.Name == "" {
			return
		}
	}
	d.objects = append(d.objects, object{key: key, value: value, line: o.Source.Line, broken: err != nil})
}

// message is what an error says besides its place.
func message(e *api.Error) string {
	if e.Field == "" {
		return e.Message
	}
	return e.Field + ": " + e.Message
}

// moveTo is the same document at another place of its file. What does not
// know its place stays the same value, so it does not count as changed.
func (d *document) moveTo(number, line int) *document {
	docs, lines := number-d.number, line-d.line
	out := *d
	out.number, out.line = number, line
	out.objects = slices.Clone(d.objects)
	for i := range out.objects {
		o := &out.objects[i]
		o.line += lines
		switch v := o.value.(type) {
		case *api.Policy:
			o.value = shiftPolicy(v, docs, lines)
		case *api.CIDRGroup:
			o.value = shiftGroup(v, docs, lines)
		}
	}
	out.problems = slices.Clone(d.problems)
	for i := range out.problems {
		p := &out.problems[i]
		p.Document += docs
		if p.Line > 0 {
			p.Line += lines
		}
	}
	return &out
}

func shiftPosition(p api.Position, docs, lines int) api.Position {
	p.Document += docs
	p.Line += lines
	return p
}

func shiftError(e *api.Error, docs, lines int) *api.Error {
	out := *e
	if out.Document > 0 {
		out.Document += docs
	}
	if out.Line > 0 {
		out.Line += lines
	}
	return &out
}

func shiftErrors(in []*api.Error, docs, lines int) []*api.Error {
	out := slices.Clone(in)
	for i, e := range out {
		out[i] = shiftError(e, docs, lines)
	}
	return out
}

func shiftPolicy(p *api.Policy, docs, lines int) *api.Policy {
	out := *p
	out.Source = shiftPosition(p.Source, docs, lines)
	out.Refused = shiftErrors(p.Refused, docs, lines)
	out.Warnings = shiftErrors(p.Warnings, docs, lines)
	out.Lines = maps.Clone(p.Lines)
	for field := range out.Lines {
		out.Lines[field] += lines
	}
	return &out
}

func shiftGroup(g *api.CIDRGroup, docs, lines int) *api.CIDRGroup {
	out := *g
	out.Source = shiftPosition(g.Source, docs, lines)
	out.Refused = shiftErrors(g.Refused, docs, lines)
	return &out
}
