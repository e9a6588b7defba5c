package http

import (
	"bytes"
	"errors"

	"github.com/weirnet/weir/policy/httprules"
)

// target is a request's target as it is judged and sent on.
type target struct {
	path []byte // origin form, normalised; "*"; the authority for CONNECT
	host []byte
	// changed: path is not what stands in the head.
	changed bool
	connect bool
}

// readTarget judges the target of a complete request head. norm is memory for
// the normalised path.
func readTarget(h *head, m *message, b, norm []byte) (t target, r Reason) {
	if r := readHost(h, m, b, &t); r != 0 {
		return t, r
	}
	method, raw := h.first.method.of(b), h.first.target.of(b)
	if string(method) == "CONNECT" {
		t.connect, t.path = true, raw
		return t, authority(raw, true)
	}
	path := raw
	if raw[0] != '/' && raw[0] != '*' {
		var r Reason
		if path, r = absolute(raw, t.host); r != 0 {
			return t, r
		}
		if len(path) == 0 {
			path = rootPath
			if string(method) == "OPTIONS" {
				path = starPath
			}
		}
		if path[0] == '?' {
			n := append(norm[:0], '/')
			n = append(n, path...)
			path, norm = n, n[len(n):]
		}
	}
	if path[0] == '*' && (len(path) > 1 || string(method) != "OPTIONS") {
		return t, ReasonTargetForm
	}
	normal, err := httprules.NormalizePath(norm[:0], path)
	if err != nil {
		return t, pathReason(err)
	}
	t.path = normal
	t.changed = len(normal) != len(raw) || &normal[0] != &raw[0]
	return t, 0
}

var (
	rootPath = []byte("/")
	starPath = []byte("*")
)

func pathReason(err error) Reason {
	var e httprules.PathError
	if errors.As(err, &e) && e >= httprules.PathForm && e <= httprules.PathDotParameter {
		return ReasonPathForm + Reason(e-httprules.PathForm)
	}
	return ReasonPathForm
}

// readHost judges the Host field: one, and a host; HTTP/1.0 may do without.
func readHost(h *head, m *message, b []byte, t *target) Reason {
	switch {
	case m.hosts > 1:
		return ReasonHostRepeated
	case m.hosts == 1:
		t.host = m.host.of(b)
		return authority(t.host, false)
	case h.first.minor == 0:
		return 0
	}
	return ReasonHostMissing
}

// absolute returns what stands behind the authority of a target in absolute
// form, which must be host's.
func absolute(raw, host []byte) ([]byte, Reason) {
	i := bytes.Index(raw, []byte("://"))
	if i < 0 {
		return nil, ReasonTargetForm
	}
	if !lower(raw[:i], "http") {
		return nil, ReasonTargetScheme
	}
	rest := raw[i+3:]
	end := bytes.IndexAny(rest, "/?#")
	if end < 0 {
		end = len(rest)
	}
	if end == 0 || !fold(rest[:end], host) {
		return nil, ReasonTargetHost
	}
	return rest[end:], 0
}

// authority judges host[:port]. User names, and characters that no host's
// name has, are refused; so is a missing port where it is needed.
func authority(a []byte, port bool) Reason {
	i := 0
	if len(a) > 0 && a[0] == '[' {
		for i = 1; i < len(a) && (isHex(a[i]) || a[i] == ':' || a[i] == '.'); i++ {
		}
		if i < 4-1 || i >= len(a) || a[i] != ']' {
			return ReasonHostInvalid
		}
		i++
	} else {
		for i < len(a) && headByte[a[i]]&hostByte != 0 {
			i++
		}
	}
	if i == 0 {
		return ReasonHostInvalid
	}
	if i == len(a) {
		if port {
			return ReasonHostInvalid
		}
		return 0
	}
	digits := a[i+1:]
	if a[i] != ':' || len(digits) == 0 || len(digits) > 5 {
		return ReasonHostInvalid
	}
	n := 0
	for _, c := range digits {
		if c < '0' || c > '9' {
			return ReasonHostInvalid
		}
		n = n*10 + int(c-'0')
	}
	if n > 65535 {
		return ReasonHostInvalid
	}
	return 0
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'f'
}

// readRequest judges a complete request head apart from its target.
func readRequest(h *head, m *message, b []byte) Reason {
	if r := m.read(h, b); r != 0 {
		return r
	}
	if string(h.first.method.of(b)) == "CONNECT" && (m.body == bodyChunked || m.length > 0) {
		return ReasonUpgrade
	}
	if m.upgrade && m.webs && m.options&optUpgrade != 0 && (h.first.minor == 0 || string(h.first.method.of(b)) != "GET" || m.body == bodyChunked || m.length > 0) {
		// Where the new protocol would begin is not told in one way.
		return ReasonUpgrade
	}
	if m.expect && h.first.minor == 0 {
		m.expect = false // it means nothing there
	}
	return 0
}

// upgrades tells whether the request asks for a change of protocol that is
// passed on: websocket, and nothing else. Anything else (h2c, TLS) could carry
// requests that nobody judges.
func (m *message) upgrades() bool { return m.upgrade && m.webs && m.options&optUpgrade != 0 }

// hops tells whether fields have to go before the request is passed on.
func (m *message) hops() bool {
	return m.upgrade && !m.upgrades() || m.settings || m.te ||
		m.options&optSettings != 0 || m.options&optUpgrade != 0 && !m.upgrade
}

// last tells whether no request may follow this one.
func (m *message) last(minor uint8) bool {
	return m.options&optClose != 0 || minor == 0 && m.options&optKeepAlive == 0
}

// appendRequest appends the head as it is sent on: the target as it was
// judged, hop-by-hop fields that must not pass taken out, and with changes.
func appendRequest(dst []byte, h *head, m *message, t *target, b []byte, changes []httprules.Change) []byte {
	dst = append(dst, h.first.method.of(b)...)
	dst = append(dst, ' ')
	dst = append(dst, t.path...)
	dst = append(dst, " HTTP/1."...)
	dst = append(dst, '0'+h.first.minor, '\r', '\n')
	hops := m.hops()
	for i := range h.fields[:h.n] {
		f := &h.fields[i]
		name := f.name.of(b)
		if removed(name, changes) {
			continue
		}
		if hops {
			if lower(name, "connection") {
				dst = appendConnection(dst, m, f.value.of(b))
				continue
			}
			if lower(name, "te") && m.te || lower(name, "http2-settings") || lower(name, "upgrade") && !m.upgrades() {
				continue
			}
		}
		dst = appendField(dst, name, f.value.of(b))
	}
	for i := range changes {
		if c := &changes[i]; c.Action == httprules.ActionAdd || c.Action == httprules.ActionReplace {
			dst = append(dst, c.Name...)
			dst = append(dst, ": "...)
			dst = append(dst, c.Value...)
			dst = append(dst, '\r', '\n')
		}
	}
	return append(dst, '\r', '\n')
}

func appendField(dst, name, value []byte) []byte {
	dst = append(dst, name...)
	dst = append(dst, ": "...)
	dst = append(dst, value...)
	return append(dst, '\r', '\n')
}

// removed tells whether changes take the fields of that name away.
func removed(name []byte, changes []httprules.Change) bool {
	for i := range changes {
		c := &changes[i]
		if (c.Action == httprules.ActionDelete || c.Action == httprules.ActionReplace) && len(c.Name) == len(name) && bytes.EqualFold(name, []byte(c.Name)) {
			return true
		}
	}
	return false
}

// appendConnection appends a Connection field without the options whose fields
// are taken out; nothing if no other is left.
func appendConnection(dst []byte, m *message, value []byte) []byte {
	start, first := len(dst), true
	dst = append(dst, "Connection: "...)
	for o := range options(value) {
		if lower(o, "http2-settings") || lower(o, "te") && m.te || lower(o, "upgrade") && !m.upgrades() {
			continue
		}
		if !first {
			dst = append(dst, ", "...)
		}
		first = false
		dst = append(dst, o...)
	}
	if first {
		return dst[:start]
	}
	return append(dst, '\r', '\n')
}
