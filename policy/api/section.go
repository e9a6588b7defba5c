package api

import "bytes"

// Section is the text of one YAML document of a file, its marker included.
type Section struct {
	// Number and Line, where it begins, count from 1.
	Number, Line int
	Text         []byte
}

// Sections cuts a file where YAML documents begin and end, so that one broken
// document leaves the others readable, and one that did not change need not be
// decoded again. A marker at the start of a line is one wherever it stands.
// Documents of nothing but comments are left out and not counted. A file that
// begins with a bracket, JSON mostly, is one section.
//
// Documents reads a section as it would within its file, but for the places it
// tells, which count from the section's beginning.
func Sections(data []byte) []Section {
	if bracketed(data) {
		return []Section{{1, 1, data}}
	}
	return sections(data)
}

// bracketed tells whether a file may be JSON.
func bracketed(data []byte) bool {
	t := bytes.TrimLeft(data, " \t\r\n")
	return bytes.HasPrefix(t, []byte("{")) || bytes.HasPrefix(t, []byte("["))
}

func sections(data []byte) []Section {
	var out []Section
	line, start, startLine := 1, 0, 1
	cut := func(end int) {
		if doc := data[start:end]; !blank(doc) {
			out = append(out, Section{len(out) + 1, startLine, doc})
		}
	}
	for pos := 0; pos < len(data); line++ {
		end := len(data)
		if i := bytes.IndexByte(data[pos:], '\n'); i >= 0 {
			end = pos + i + 1
		}
		switch l := data[pos:end]; {
		case isMarker(l, "---"):
			cut(pos)
			start, startLine = pos, line
		case isMarker(l, "..."):
			cut(pos)
			start, startLine = end, line+1
		}
		pos = end
	}
	cut(len(data))
	return out
}

func isMarker(line []byte, marker string) bool {
	rest, ok := bytes.CutPrefix(line, []byte(marker))
	return ok && (len(rest) == 0 || bytes.IndexByte([]byte(" \t\r\n"), rest[0]) >= 0)
}

// blank tells whether nothing but comments, markers and directives is there.
func blank(doc []byte) bool {
	for l := range bytes.Lines(doc) {
		l = bytes.TrimSpace(bytes.TrimPrefix(l, []byte("---")))
		if len(l) > 0 && l[0] != '#' && l[0] != '%' {
			return false
		}
	}
	return true
}
