package http

import "bytes"

// span is a part of a head: offsets from its first byte.
type span struct{ from, to uint32 }

func (s span) of(b []byte) []byte { return b[s.from:s.to] }

// field is one header field; value is without the white space around it.
type field struct{ name, value span }

// head reads the lines of a request's or response's head as they arrive.
// Feeding the same bytes in other portions gives the same result: a line is
// judged when its end is there, in the order of its bytes, and the first thing
// wrong decides.
type head struct {
	response bool
	gotFirst bool // the first line was read
	skipped  bool // an empty line in front of it was

	from  uint32 // where the head begins: behind an empty line
	pos   uint32 // the line to read next
	scan  uint32 // no line end between pos and here
	first firstLine

	n      int
	fields [maxFields]field
}

// firstLine is the request line or the status line.
type firstLine struct {
	method, target span // request
	status         int  // response
	minor          uint8
}

func (h *head) reset(response bool) {
	h.response, h.gotFirst, h.skipped = response, false, false
	h.from, h.pos, h.scan, h.n = 0, 0, 0, 0
	h.first = firstLine{}
}

// What a byte may be in a head.
const (
	tokenByte = 1 << iota // in a method or a field's name
	valueByte             // in a field's value
	hostByte              // in a host name
)

var headByte = func() (t [256]uint8) {
	for c := range t {
		if c >= ' ' && c != 0x7f || c == '\t' {
			t[c] |= valueByte
		}
		letter := c|0x20 >= 'a' && c|0x20 <= 'z' || c >= '0' && c <= '9'
		if letter || c < 0x80 && bytes.IndexByte([]byte("!#$%&'*+-.^_`|~"), byte(c)) >= 0 {
			t[c] |= tokenByte
		}
		if letter || c == '-' || c == '.' || c == '_' || c == '~' {
			t[c] |= hostByte
		}
	}
	return t
}()

// parse reads on in b, which begins with the head's first byte and holds at
// least what it held before. done: the head is complete, its end is h.pos.
func (h *head) parse(b []byte) (done bool, r Reason) {
	for {
		i := bytes.IndexByte(b[h.scan:], '\n')
		if i < 0 {
			h.scan = uint32(len(b))
			return false, h.partial(b)
		}
		end := h.scan + uint32(i)
		if r := h.tooLong(end); r != 0 {
			return false, r
		}
		line := b[h.pos : end+1]
		switch {
		case len(line) == 2 && line[0] == '\r':
			if h.gotFirst {
				h.pos, h.scan = end+1, end+1
				return true, 0
			}
			// Clients are known to send one too many behind a body.
			switch {
			case h.response:
				return false, ReasonStatusLine
			case h.skipped:
				return false, ReasonMethod
			}
			h.skipped, h.from = true, end+1
		case !h.gotFirst:
			if h.response {
				r = h.statusLine(line)
			} else {
				r = h.requestLine(line)
			}
			h.gotFirst = true
		default:
			r = h.fieldLine(line)
		}
		if r != 0 {
			return false, r
		}
		h.pos, h.scan = end+1, end+1
	}
}

// tooLong judges a line that ends at or behind end.
func (h *head) tooLong(end uint32) Reason {
	if !h.gotFirst && !h.response && end-h.pos >= maxMethod+maxTarget+16 {
		return ReasonTargetLong
	}
	if end >= maxHead {
		return ReasonHeadLong
	}
	return 0
}

// partial judges the start of a line: what no further byte can mend.
func (h *head) partial(b []byte) Reason {
	if r := h.tooLong(uint32(len(b))); r != 0 {
		return r
	}
	if h.gotFirst || h.response {
		return 0
	}
	start := b[h.pos:]
	if len(start) == 1 && start[0] == '\r' && !h.skipped {
		return 0 // perhaps an empty line
	}
	// What is no HTTP at all mostly has no line ends either.
	_, r := method(start)
	return r
}

// method returns the length of the method that line begins with; its space may
// not be there yet.
func method(line []byte) (int, Reason) {
	for i, c := range line {
		switch {
		case c == ' ' && i > 0:
			return i, 0
		case i == maxMethod || headByte[c]&tokenByte == 0:
			return i, ReasonMethod
		}
	}
	return len(line), 0
}

func (h *head) requestLine(line []byte) Reason {
	i, r := method(line)
	if r != 0 {
		return r
	}
	h.first.method = span{h.pos, h.pos + uint32(i)}
	i++
	from := i
	for ; line[i] != ' '; i++ {
		switch line[i] {
		case '\n':
			return ReasonRequestLine
		case '\r':
			if line[i+1] == '\n' {
				return ReasonRequestLine // HTTP/0.9, at best
			}
			return ReasonBareCR
		case 0:
			return ReasonNUL
		}
	}
	switch {
	case i == from:
		return ReasonRequestLine
	case i-from > maxTarget:
		return ReasonTargetLong
	}
	h.first.target = span{h.pos + uint32(from), h.pos + uint32(i)}
	version := line[i+1:]
	switch {
	case len(version) == 10 && string(version[:7]) == "HTTP/1." && (version[7] == '0' || version[7] == '1') && version[8] == '\r':
		h.first.minor = version[7] - '0'
		return 0
	case len(version) == 9 && string(version[:7]) == "HTTP/1.":
		return ReasonBareLF
	case string(version) == "HTTP/2.0\r\n" && string(line[:from]) == "PRI ":
		return ReasonHTTP2
	case len(version) > 5 && string(version[:5]) == "HTTP/":
		return ReasonVersion
	}
	return ReasonRequestLine
}

func (h *head) statusLine(line []byte) Reason {
	// HTTP/1.x SP 3DIGIT [SP reason] CRLF
	if len(line) < 14 || string(line[:7]) != "HTTP/1." || line[7] != '0' && line[7] != '1' || line[8] != ' ' {
		return ReasonStatusLine
	}
	h.first.minor = line[7] - '0'
	for _, c := range line[9:12] {
		if c < '0' || c > '9' {
			return ReasonStatusLine
		}
		h.first.status = h.first.status*10 + int(c-'0')
	}
	if h.first.status < 100 {
		return ReasonStatusLine
	}
	rest := line[12:]
	if rest[0] != ' ' && rest[0] != '\r' {
		return ReasonStatusLine
	}
	for i, c := range rest {
		if headByte[c]&valueByte == 0 {
			return lineEnd(rest, i, ReasonStatusLine)
		}
	}
	return ReasonStatusLine // not reached: a line ends with LF
}

// lineEnd judges byte i of line, which is no text: fine if the line ends
// there, in CRLF; else what it is, or other.
func lineEnd(line []byte, i int, other Reason) Reason {
	switch line[i] {
	case '\r':
		if i+2 == len(line) {
			return 0
		}
		return ReasonBareCR
	case '\n':
		return ReasonBareLF
	case 0:
		return ReasonNUL
	}
	return other
}

func (h *head) fieldLine(line []byte) Reason {
	if line[0] == ' ' || line[0] == '\t' {
		return ReasonObsFold
	}
	i := 0
	for headByte[line[i]]&tokenByte != 0 {
		i++
	}
	if line[i] != ':' {
		switch c := line[i]; {
		case c == ' ' || c == '\t':
			return ReasonSpaceBeforeColon
		case c == '\r' && line[i+1] != '\n':
			return ReasonBareCR
		case c == '\n' && i == 0:
			return ReasonBareLF
		case c == 0:
			return ReasonNUL
		}
		return ReasonFieldName
	}
	if i == 0 {
		return ReasonFieldName
	}
	if h.n == maxFields {
		return ReasonTooManyFields
	}
	f := &h.fields[h.n]
	f.name = span{h.pos, h.pos + uint32(i)}
	i++
	for line[i] == ' ' || line[i] == '\t' {
		i++
	}
	from := i
	for headByte[line[i]]&valueByte != 0 {
		i++
	}
	if r := lineEnd(line, i, ReasonFieldValue); r != 0 {
		return r
	}
	for i > from && (line[i-1] == ' ' || line[i-1] == '\t') {
		i--
	}
	f.value = span{h.pos + uint32(from), h.pos + uint32(i)}
	h.n++
	return 0
}

// lower compares b with s, which is in lower case, without regard to case.
func lower(b []byte, s string) bool {
	if len(b) != len(s) {
		return false
	}
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != s[i] {
			return false
		}
	}
	return true
}
