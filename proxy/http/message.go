package http

import "math"

// bodyKind tells how a body's end is found.
type bodyKind uint8

const (
	bodyNone bodyKind = iota
	bodySized
	bodyChunked
	bodyToEnd // of the connection; responses only
)

// message is what the fields of a head say about framing and connection.
type message struct {
	body   bodyKind
	length int64 // of a bodySized one

	host      span
	hosts     int
	lengths   int
	encodings int

	options  option // of Connection
	named    int    // how many they are
	upgrade  bool   // there is an Upgrade field
	webs     bool   // which asks for websocket alone
	te       bool   // there is a TE field that asks for more than trailers
	expect   bool   // 100-continue
	settings bool   // there is an HTTP2-Settings field
}

// option is a set of connection options.
type option uint8

const (
	optClose option = 1 << iota
	optKeepAlive
	optUpgrade
	optTE
	optSettings
	optOther
)

// read takes in the fields of a complete head. What it refuses, two parsers
// could read in two ways.
func (m *message) read(h *head, b []byte) Reason {
	*m = message{}
	for i := range h.fields[:h.n] {
		f := &h.fields[i]
		name, value := f.name.of(b), f.value.of(b)
		switch len(name) {
		case 2:
			if lower(name, "te") {
				m.te = m.te || !lower(value, "trailers")
			}
		case 4:
			if lower(name, "host") {
				m.hosts++
				m.host = f.value
			}
		case 6:
			if lower(name, "expect") && !h.response {
				if !lower(value, "100-continue") {
					return ReasonExpect
				}
				m.expect = true
			}
		case 7:
			if lower(name, "upgrade") {
				m.webs = !m.upgrade && lower(value, "websocket")
				m.upgrade = true
			}
		case 10:
			if lower(name, "connection") {
				if r := m.connection(value); r != 0 {
					return r
				}
			}
		case 14:
			if lower(name, "content-length") {
				if r := m.contentLength(value); r != 0 {
					return r
				}
			} else if lower(name, "http2-settings") {
				m.settings = true
			}
		case 17:
			if lower(name, "transfer-encoding") {
				m.encodings++
				if m.encodings > 1 || !lower(value, "chunked") {
					return ReasonTransferEncoding
				}
			}
		}
	}
	switch {
	case m.encodings > 0 && m.lengths > 0:
		return ReasonLengthAndEncoding
	case m.encodings > 0 && h.first.minor == 0:
		// A server of HTTP/1.0 would not see the chunks.
		return ReasonTransferEncoding
	case m.encodings > 0:
		m.body = bodyChunked
	case m.lengths > 0:
		m.body = bodySized
	}
	if m.options&optOther != 0 && !h.response {
		return m.otherOptions(h, b)
	}
	return 0
}

// contentLength takes digits only, and one field only: even equal ones would
// be one list to some parsers and an error to others.
func (m *message) contentLength(v []byte) Reason {
	m.lengths++
	if m.lengths > 1 {
		return ReasonContentLengthRepeated
	}
	if len(v) == 0 {
		return ReasonContentLength
	}
	var n int64
	for _, c := range v {
		if c == ',' {
			return ReasonContentLengthRepeated
		}
		if c < '0' || c > '9' || n > (math.MaxInt64-9)/10 {
			return ReasonContentLength
		}
		n = n*10 + int64(c-'0')
	}
	m.length = n
	return 0
}

// connection reads a list of connection options.
func (m *message) connection(v []byte) Reason {
	for o := range options(v) {
		if m.named++; m.named > maxOptions {
			return ReasonConnectionOption
		}
		switch {
		case lower(o, "keep-alive"):
			m.options |= optKeepAlive
		case lower(o, "close"):
			m.options |= optClose
		case lower(o, "upgrade"):
			m.options |= optUpgrade
		case lower(o, "te"):
			m.options |= optTE
		case lower(o, "http2-settings"):
			m.options |= optSettings
		default:
			for _, c := range o {
				if headByte[c]&tokenByte == 0 {
					return ReasonConnectionOption
				}
			}
			m.options |= optOther
		}
	}
	return 0
}

// options yields the elements of a comma-separated list that are not empty.
func options(v []byte) func(func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for len(v) > 0 {
			i := 0
			for i < len(v) && v[i] != ',' {
				i++
			}
			o := v[:i]
			for len(o) > 0 && (o[0] == ' ' || o[0] == '\t') {
				o = o[1:]
			}
			for len(o) > 0 && (o[len(o)-1] == ' ' || o[len(o)-1] == '\t') {
				o = o[:len(o)-1]
			}
			if len(o) > 0 && !yield(o) {
				return
			}
			v = v[min(i+1, len(v)):]
		}
	}
}

// otherOptions refuses a Connection field that names a header which is there
// and is no hop's own: a server that is a proxy, too, would drop it, and rules
// were asked about a request that had it.
func (m *message) otherOptions(h *head, b []byte) Reason {
	for i := range h.fields[:h.n] {
		if !lower(h.fields[i].name.of(b), "connection") {
			continue
		}
		for o := range options(h.fields[i].value.of(b)) {
			for j := range h.fields[:h.n] {
				if name := h.fields[j].name.of(b); fold(name, o) && !hopByHop(name) {
					return ReasonConnectionOption
				}
			}
		}
	}
	return 0
}

func hopByHop(name []byte) bool {
	return lower(name, "upgrade") || lower(name, "te") || lower(name, "http2-settings") ||
		lower(name, "keep-alive") || lower(name, "proxy-connection") || lower(name, "trailer")
}

// fold compares without regard to case.
func fold(a, b []byte) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		x, y := a[i], b[i]
		if 'A' <= x && x <= 'Z' {
			x += 'a' - 'A'
		}
		if 'A' <= y && y <= 'Z' {
			y += 'a' - 'A'
		}
		if x != y {
			return false
		}
	}
	return true
}
