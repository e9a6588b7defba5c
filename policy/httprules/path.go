package httprules

// PathError tells why a request target can't be judged: servers would read it
// in different ways, or it is none at all.
type PathError uint8

const (
	// PathForm: neither "*" nor a path that begins with "/".
	PathForm PathError = iota + 1
	// PathControl: a control character or a space.
	PathControl
	// PathNonASCII: a byte beyond ASCII that is not percent-encoded.
	PathNonASCII
	// PathFragment: a "#".
	PathFragment
	// PathBackslash: a "\", raw or encoded; some servers read it as "/".
	PathBackslash
	// PathEncodedSlash: "%2F"; some servers read it as "/".
	PathEncodedSlash
	// PathNUL: "%00"; some servers end the path there.
	PathNUL
	// PathEscape: a "%" without two hexadecimal digits.
	PathEscape
	// PathOverlong: a percent-encoded overlong UTF-8 sequence; careless
	// decoders make an ASCII character of it.
	PathOverlong
	// PathDotParameter: a dot segment with a parameter ("/..;x/"); some
	// servers cut the parameter off and then go up.
	PathDotParameter
)

// String is the label of the reason.
func (e PathError) String() string {
	switch e {
	case PathForm:
		return "path-form"
	case PathControl:
		return "path-control"
	case PathNonASCII:
		return "path-non-ascii"
	case PathFragment:
		return "path-fragment"
	case PathBackslash:
		return "path-backslash"
	case PathEncodedSlash:
		return "path-encoded-slash"
	case PathNUL:
		return "path-nul"
	case PathEscape:
		return "path-escape"
	case PathOverlong:
		return "path-overlong"
	case PathDotParameter:
		return "path-dot-parameter"
	}
	return "path"
}

// Error implements error.
func (e PathError) Error() string {
	switch e {
	case PathForm:
		return `the target is neither a path nor "*"`
	case PathControl:
		return "control character or space in the target"
	case PathNonASCII:
		return "byte beyond ASCII in the target"
	case PathFragment:
		return `"#" in the target`
	case PathBackslash:
		return "backslash in the path"
	case PathEncodedSlash:
		return "encoded slash in the path"
	case PathNUL:
		return "encoded NUL in the path"
	case PathEscape:
		return `"%" without two hexadecimal digits in the path`
	case PathOverlong:
		return "encoded overlong UTF-8 in the path"
	case PathDotParameter:
		return "dot segment with a parameter in the path"
	}
	return "bad target"
}

// What a byte of a target means to normalPath. Every other byte is plain.
const (
	plain uint8 = iota
	slash
	dot
	percent
	question
	backslash
	refused
)

var targetByte = func() (t [256]uint8) {
	for c := range t {
		if c <= ' ' || c >= 0x7f || c == '#' {
			t[c] = refused
		}
	}
	t['/'], t['.'], t['%'], t['?'], t['\\'] = slash, dot, percent, question, backslash
	return t
}()

// NormalizePath returns the target of a request, in origin form or "*", as
// rules judge it and as it must be sent: dot segments resolved ("%2e" being a
// dot), unreserved characters decoded, then doubled slashes merged. The query
// stays as it is. It returns target itself where nothing changes, else dst
// with the result appended; it allocates only where dst has no room. An error
// is always a PathError.
//
// Empty segments count where dot segments are resolved ("/a//.." is "/a/"), as
// RFC 3986 has it; what is matched is what is sent, so how a server would have
// read the original does not matter.
func NormalizePath(dst, target []byte) ([]byte, error) {
	if len(target) == 1 && target[0] == '*' {
		return target, nil
	}
	if len(target) == 0 || target[0] != '/' {
		return target, PathForm
	}
	// One look tells whether anything is to do; mostly nothing is.
	end, clean := len(target), true
	prev := plain
scan:
	for i, c := range target {
		kind := targetByte[c]
		switch kind {
		case plain:
		case slash:
			clean = clean && prev != slash
		case dot:
			clean = clean && prev != slash
		case percent:
			clean = false
		case question:
			end = i
			break scan
		default:
			return target, refusal(c)
		}
		prev = kind
	}
	for _, c := range target[end:] {
		if targetByte[c] == refused {
			return target, refusal(c)
		}
	}
	if clean {
		return target, nil
	}
	out, err := appendNormal(dst, target[:end])
	if err != nil {
		return target, err
	}
	if n := len(out) - len(dst); n == end && string(out[len(dst):]) == string(target[:end]) {
		return target, nil
	}
	return append(out, target[end:]...), nil
}

func refusal(c byte) PathError {
	switch {
	case c == '#':
		return PathFragment
	case c == '\\':
		return PathBackslash
	case c >= 0x80:
		return PathNonASCII
	}
	return PathControl
}

// appendNormal appends the normal form of path, which begins with a slash and
// holds no byte that is refused.
func appendNormal(dst, path []byte) ([]byte, error) {
	base := len(dst)
	// Segments are written with their slash in front. Empty ones stay until
	// the dot segments are resolved: they count as segments there.
	for i := 0; i < len(path); {
		start := len(dst)
		dst = append(dst, '/')
		i++
		for i < len(path) && path[i] != '/' {
			c := path[i]
			if c != '%' {
				dst = append(dst, c)
				i++
				continue
			}
			if i+2 >= len(path) {
				return dst, PathEscape
			}
			hi, lo := HexDigit(path[i+1]), HexDigit(path[i+2])
			if hi > 15 || lo > 15 {
				return dst, PathEscape
			}
			v := hi<<4 | lo
			switch {
			case v == 0:
				return dst, PathNUL
			case v == '/':
				return dst, PathEncodedSlash
			case v == '\\':
				return dst, PathBackslash
			case unreserved(v):
				dst = append(dst, v)
			case overlong(v, path[i+3:]):
				return dst, PathOverlong
			default:
				dst = append(dst, path[i:i+3]...)
			}
			i += 3
		}
		last := i >= len(path)
		switch dots, parameter := dotSegment(dst[start+1:]); {
		case parameter:
			return dst, PathDotParameter
		case dots == 0:
			continue
		case dots == 2:
			dst = dst[:start]
			for len(dst) > base {
				n := len(dst) - 1
				c := dst[n]
				dst = dst[:n]
				if c == '/' {
					break
				}
			}
		default:
			dst = dst[:start]
		}
		if last {
			dst = append(dst, '/')
		}
	}
	out := dst[:base]
	for i := base; i < len(dst); i++ {
		if dst[i] == '/' && len(out) > base && out[len(out)-1] == '/' {
			continue
		}
		out = append(out, dst[i])
	}
	return out, nil
}

// dotSegment tells whether a segment is "." or ".." (1, 2; else 0), and
// whether it would be one without the parameter after a ";".
func dotSegment(s []byte) (dots int, parameter bool) {
	if len(s) == 0 || s[0] != '.' {
		return 0, false
	}
	n := 1
	if len(s) > 1 && s[1] == '.' {
		n = 2
	}
	switch {
	case len(s) == n:
		return n, false
	case s[n] == ';':
		return 0, true
	case len(s) > n+2 && s[n] == '%' && s[n+1] == '3' && s[n+2]|0x20 == 'b':
		return 0, true
	}
	return 0, false
}

// overlong tells whether the escaped byte v and the escape behind it begin an
// overlong UTF-8 sequence. Bytes that are no UTF-8 at all pass: other
// encodings of a path have one reading as well.
func overlong(v byte, rest []byte) bool {
	if v != 0xc0 && v != 0xc1 && v != 0xe0 && v != 0xf0 {
		return false
	}
	if len(rest) < 3 || rest[0] != '%' {
		return false
	}
	hi, lo := HexDigit(rest[1]), HexDigit(rest[2])
	if hi > 15 || lo > 15 {
		return false // refused as an escape in its turn
	}
	next := hi<<4 | lo
	switch v {
	case 0xc0, 0xc1:
		return next >= 0x80 && next < 0xc0
	case 0xe0:
		return next >= 0x80 && next < 0xa0
	}
	return next >= 0x80 && next < 0x90
}

func unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
		c == '-' || c == '.' || c == '_' || c == '~'
}

// HexDigit is the value of a hexadecimal digit, beyond 15 for what is none.
func HexDigit(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	}
	return 255
}
