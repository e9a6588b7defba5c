package http

// readResponse judges a complete response head and sets how its body ends.
// method and upgrade are the request's.
func readResponse(h *head, m *message, b []byte, isHead, connect, upgrade bool) Reason {
	if r := m.read(h, b); r != 0 {
		return r
	}
	switch status := h.first.status; {
	case status == 101:
		if !upgrade || !m.upgrades() || m.encodings > 0 || m.length > 0 {
			return ReasonInterim
		}
		m.body = bodyNone
	case status < 200:
		if m.encodings > 0 || m.length > 0 {
			return ReasonInterim
		}
		m.body = bodyNone
	case connect && status < 300:
		if m.encodings > 0 || m.length > 0 {
			return ReasonLengthAndEncoding
		}
		m.body = bodyNone
	case isHead || status == 304:
		m.body = bodyNone
	case status == 204:
		// There is no body, whatever is said; but some would wait for one.
		if m.encodings > 0 || m.length > 0 {
			return ReasonContentLength
		}
		m.body = bodyNone
	case m.body == bodyNone:
		m.body = bodyToEnd
	}
	return 0
}
