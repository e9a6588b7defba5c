package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// jsonReader turns JSON into nodes. JSON is read as such, not as YAML: tabs
// and surrogate pairs are not YAML's.
type jsonReader struct {
	dec    *json.Decoder
	data   []byte
	line   int // line of offset
	offset int
}

// readJSON reads a stream of JSON values; line is that of the first byte.
func readJSON(data []byte, line int) ([]*node, error) {
	r := &jsonReader{dec: json.NewDecoder(bytes.NewReader(data)), data: data, line: line}
	r.dec.UseNumber()
	var out []*node
	for {
		tok, err := r.dec.Token()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return out, r.at(err)
		}
		n, err := r.value(tok, 0)
		if err != nil {
			return out, r.at(err)
		}
		out = append(out, n)
	}
}

// at puts the line to an error.
func (r *jsonReader) at(err error) error {
	var limit *yamlLimit
	if errors.As(err, &limit) {
		return err
	}
	text := strings.TrimPrefix(err.Error(), "json: ")
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		text = "ends before the value does"
	}
	return &yamlLimit{r.here(), "not JSON: " + text}
}

// here returns the line of the token read last.
func (r *jsonReader) here() int {
	end := min(int(r.dec.InputOffset()), len(r.data))
	if end > r.offset {
		r.line += bytes.Count(r.data[r.offset:end], []byte{'\n'})
		r.offset = end
	}
	return r.line
}

func (r *jsonReader) value(tok json.Token, depth int) (*node, error) {
	line := r.here()
	if depth > maxDepth {
		return nil, &yamlLimit{line, fmt.Sprintf("nested deeper than %d levels", maxDepth)}
	}
	switch t := tok.(type) {
	case nil:
		return &node{kind: nullNode, line: line}, nil
	case bool:
		return &node{kind: boolNode, line: line, text: fmt.Sprint(t)}, nil
	case json.Number:
		kind := intNode
		if strings.ContainsAny(t.String(), ".eE") {
			kind = floatNode
		}
		return &node{kind: kind, line: line, text: t.String()}, nil
	case string:
		return &node{kind: stringNode, line: line, text: t}, nil
	}
	n := &node{kind: objectNode, line: line}
	if tok == json.Delim('[') {
		n.kind = listNode
	}
	for r.dec.More() {
		tok, err := r.dec.Token()
		if err != nil {
			return nil, err
		}
		if n.kind == listNode {
			v, err := r.value(tok, depth+1)
			if err != nil {
				return nil, err
			}
			n.items = append(n.items, v)
			continue
		}
		key, keyLine := tok.(string), r.here()
		if tok, err = r.dec.Token(); err != nil {
			return nil, err
		}
		v, err := r.value(tok, depth+1)
		if err != nil {
			return nil, err
		}
		n.add(key, keyLine, v)
	}
	_, err := r.dec.Token() // the closing bracket
	return n, err
}
