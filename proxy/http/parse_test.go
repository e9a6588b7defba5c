package http

import (
	"bufio"
	"bytes"
	"io"
	nethttp "net/http"
	"strings"
	"testing"

	"github.com/weirnet/weir/policy/httprules"
)

// verdict is what the parsers say of the bytes of one request.
type parsedRequest struct {
	reason Reason
	done   bool // the head is complete and fine
	head   int  // its length
	method string
	path   string
	host   string
	body   bodyKind
	length int64
	sent   string // the head as it is passed on
}

// parseRequest feeds raw to the parsers, in portions that end at cuts.
func parseRequest(raw []byte, cuts []int) (p parsedRequest) {
	h := new(head)
	h.reset(false)
	done, r := false, ReasonNone
	for _, cut := range append(cuts, len(raw)) {
		if done, r = h.parse(raw[:cut:cut]); done || r != 0 {
			break
		}
	}
	if r != 0 || !done {
		return parsedRequest{reason: r}
	}
	in := incoming{h: h, b: raw[:h.pos]}
	if r := in.read(make([]byte, 0, maxTarget)); r != 0 {
		return parsedRequest{reason: r}
	}
	p = parsedRequest{
		done: true, head: int(h.pos), method: string(h.first.method.of(raw)), path: string(in.t.path), host: string(in.t.host),
		body: in.m.body, length: in.m.length, sent: string(raw[h.from:h.pos]),
	}
	if in.t.changed || in.m.hops() {
		p.sent = string(appendRequest(nil, h, &in.m, &in.t, in.b, nil))
	}
	return p
}

// every splits raw into single bytes.
func every(raw []byte) (cuts []int) {
	for i := range raw {
		cuts = append(cuts, i)
	}
	return cuts
}

const good = "GET /a HTTP/1.1\r\nHost: h\r\n\r\n"

// requests is every kind of request head, and what becomes of it.
var requests = []struct {
	name, raw string
	want      Reason
	sent      string // where it is not passed on as it is
}{
	{"plain", good, 0, ""},
	{"lower-case names", "GET / HTTP/1.1\r\nhost:h\r\n\r\n", 0, ""},
	{"white space around values", "GET / HTTP/1.1\r\nHost: \t h \t\r\nX:\r\nY: \r\n\r\n", 0, ""},
	{"an empty line in front", "\r\n" + good, 0, good},
	{"two empty lines in front", "\r\n\r\n" + good, ReasonMethod, ""},
	{"HTTP/1.0", "GET / HTTP/1.0\r\n\r\n", 0, ""},
	{"HTTP/1.0 with a host", "GET / HTTP/1.0\r\nHost: h:80\r\n\r\n", 0, ""},
	{"host with port", "GET / HTTP/1.1\r\nHost: h.example:8080\r\n\r\n", 0, ""},
	{"IPv6 host", "GET / HTTP/1.1\r\nHost: [fd00::1]:80\r\n\r\n", 0, ""},
	{"underscores", "GET / HTTP/1.1\r\nHost: a_b\r\nX_y: 1\r\n\r\n", 0, ""},
	{"bytes beyond ASCII in a value", "GET / HTTP/1.1\r\nHost: h\r\nX: \xc3\xa9\r\n\r\n", 0, ""},
	{"sized", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n", 0, ""},
	{"sized with zeros", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0005\r\n\r\n", 0, ""},
	{"chunked", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: Chunked\r\n\r\n", 0, ""},
	{"expect", "POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-Continue\r\nContent-Length: 5\r\n\r\n", 0, ""},
	{"unknown method", "PURGE / HTTP/1.1\r\nHost: h\r\n\r\n", 0, ""},
	{"asterisk", "OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", 0, ""},
	{"connect", "CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n", 0, ""},

	// What is passed on otherwise than it came.
	{"dot segments", "GET /a/../b?x=.. HTTP/1.1\r\nHost: h\r\nX:  1\r\n\r\n", 0, "GET /b?x=.. HTTP/1.1\r\nHost: h\r\nX: 1\r\n\r\n"},
	{"absolute form", "GET http://h/a HTTP/1.1\r\nHost: h\r\n\r\n", 0, "GET /a HTTP/1.1\r\nHost: h\r\n\r\n"},
	{"absolute form, other case", "GET HTTP://H:80/a HTTP/1.1\r\nHost: h:80\r\n\r\n", 0, "GET /a HTTP/1.1\r\nHost: h:80\r\n\r\n"},
	{"absolute form without path", "GET http://h HTTP/1.1\r\nHost: h\r\n\r\n", 0, "GET / HTTP/1.1\r\nHost: h\r\n\r\n"},
	{"absolute form, query only", "GET http://h?x=1 HTTP/1.1\r\nHost: h\r\n\r\n", 0, "GET /?x=1 HTTP/1.1\r\nHost: h\r\n\r\n"},
	{"absolute form, dot segments", "GET http://h/a/%2e%2e//b HTTP/1.1\r\nHost: h\r\n\r\n", 0, "GET /b HTTP/1.1\r\nHost: h\r\n\r\n"},
	{"absolute form of OPTIONS", "OPTIONS http://h HTTP/1.1\r\nHost: h\r\n\r\n", 0, "OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n"},
	{"websocket", "GET / HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n", 0, ""},
	{"upgrade to h2c", "GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n\r\n", 0, "GET / HTTP/1.1\r\nHost: h\r\n\r\n"},
	{"upgrade to h2c or websocket", "GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade, close\r\nUpgrade: h2c, websocket\r\n\r\n", 0, "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"},
	{"two upgrades", "GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n\r\n", 0, "GET / HTTP/1.1\r\nHost: h\r\n\r\n"},
	{"upgrade to TLS", "OPTIONS * HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: TLS/1.0\r\n\r\n", 0, "OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n"},
	{"upgrade that Connection does not name", "GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n\r\n", 0, "GET / HTTP/1.1\r\nHost: h\r\n\r\n"},
	{"HTTP2-Settings alone", "GET / HTTP/1.1\r\nHost: h\r\nHTTP2-Settings: AAMA\r\n\r\n", 0, "GET / HTTP/1.1\r\nHost: h\r\n\r\n"},
	{"TE", "GET / HTTP/1.1\r\nHost: h\r\nTE: deflate\r\nConnection: TE, close\r\n\r\n", 0, "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"},
	{"TE for trailers", "GET / HTTP/1.1\r\nHost: h\r\nTE: trailers\r\nConnection: TE\r\n\r\n", 0, ""},

	{"no method", " / HTTP/1.1\r\nHost: h\r\n\r\n", ReasonMethod, ""},
	{"bad method", "GE(T / HTTP/1.1\r\nHost: h\r\n\r\n", ReasonMethod, ""},
	{"long method", strings.Repeat("G", maxMethod+1) + " / HTTP/1.1\r\nHost: h\r\n\r\n", ReasonMethod, ""},
	{"TLS", "\x16\x03\x01\x00\xa5\x01\x00\x00\xa1", ReasonMethod, ""},
	{"NUL first", "\x00" + good, ReasonMethod, ""},
	{"HTTP/0.9", "GET /\r\n", ReasonRequestLine, ""},
	{"HTTP/0.9 with a bare LF", "GET /\n", ReasonRequestLine, ""},
	{"method alone", "GET\r\n", ReasonMethod, ""},
	{"CR first", "\r" + good, ReasonMethod, ""},
	{"two spaces", "GET  / HTTP/1.1\r\nHost: h\r\n\r\n", ReasonRequestLine, ""},
	{"space behind the version", "GET / HTTP/1.1 \r\nHost: h\r\n\r\n", ReasonVersion, ""},
	{"space in the target", "GET /a b HTTP/1.1\r\nHost: h\r\n\r\n", ReasonRequestLine, ""},
	{"tab in the request line", "GET\t/ HTTP/1.1\r\nHost: h\r\n\r\n", ReasonMethod, ""},
	{"no version", "GET / HTTP\r\nHost: h\r\n\r\n", ReasonRequestLine, ""},
	{"HTTP/1.2", "GET / HTTP/1.2\r\nHost: h\r\n\r\n", ReasonVersion, ""},
	{"HTTP/11", "GET / HTTP/1.11\r\nHost: h\r\n\r\n", ReasonVersion, ""},
	{"HTTP/2.0", "GET / HTTP/2.0\r\nHost: h\r\n\r\n", ReasonVersion, ""},
	{"lower-case version", "GET / http/1.1\r\nHost: h\r\n\r\n", ReasonRequestLine, ""},
	{"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", ReasonHTTP2, ""},
	{"bare CR in the target", "GET /a\rb HTTP/1.1\r\nHost: h\r\n\r\n", ReasonBareCR, ""},
	{"NUL in the target", "GET /a\x00 HTTP/1.1\r\nHost: h\r\n\r\n", ReasonNUL, ""},
	{"long target", "GET /" + strings.Repeat("a", maxTarget) + " HTTP/1.1\r\nHost: h\r\n\r\n", ReasonTargetLong, ""},
	{"endless target", "GET /" + strings.Repeat("a", 2*maxTarget), ReasonTargetLong, ""},

	{"relative path", "GET a HTTP/1.1\r\nHost: h\r\n\r\n", ReasonTargetForm, ""},
	{"authority form", "GET h:80 HTTP/1.1\r\nHost: h:80\r\n\r\n", ReasonTargetForm, ""},
	{"asterisk of GET", "GET * HTTP/1.1\r\nHost: h\r\n\r\n", ReasonTargetForm, ""},
	{"asterisk and more", "OPTIONS *a HTTP/1.1\r\nHost: h\r\n\r\n", ReasonTargetForm, ""},
	{"https", "GET https://h/ HTTP/1.1\r\nHost: h\r\n\r\n", ReasonTargetScheme, ""},
	{"ftp", "GET ftp://h/ HTTP/1.1\r\nHost: h\r\n\r\n", ReasonTargetScheme, ""},
	{"absolute form of another host", "GET http://i/ HTTP/1.1\r\nHost: h\r\n\r\n", ReasonTargetHost, ""},
	{"absolute form of another port", "GET http://h:80/ HTTP/1.1\r\nHost: h\r\n\r\n", ReasonTargetHost, ""},
	{"absolute form with a user", "GET http://u@h/ HTTP/1.1\r\nHost: h\r\n\r\n", ReasonTargetHost, ""},
	{"absolute form without host", "GET http:///a HTTP/1.1\r\nHost: h\r\n\r\n", ReasonTargetHost, ""},
	{"connect without port", "CONNECT h HTTP/1.1\r\nHost: h\r\n\r\n", ReasonHostInvalid, ""},
	{"connect to a path", "CONNECT /a HTTP/1.1\r\nHost: h\r\n\r\n", ReasonHostInvalid, ""},
	{"connect with a body", "CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\nContent-Length: 1\r\n\r\n", ReasonUpgrade, ""},
	{"encoded slash", "GET /a%2fb HTTP/1.1\r\nHost: h\r\n\r\n", ReasonPathEncodedSlash, ""},
	{"encoded backslash", "GET /a%5Cb HTTP/1.1\r\nHost: h\r\n\r\n", ReasonPathBackslash, ""},
	{"backslash", "GET /a\\b HTTP/1.1\r\nHost: h\r\n\r\n", ReasonPathBackslash, ""},
	{"encoded NUL", "GET /a%00 HTTP/1.1\r\nHost: h\r\n\r\n", ReasonPathNUL, ""},
	{"bad escape", "GET /a%zz HTTP/1.1\r\nHost: h\r\n\r\n", ReasonPathEscape, ""},
	{"fragment", "GET /a#b HTTP/1.1\r\nHost: h\r\n\r\n", ReasonPathFragment, ""},
	{"target beyond ASCII", "GET /\xc3\xa9 HTTP/1.1\r\nHost: h\r\n\r\n", ReasonPathNonASCII, ""},
	{"control character in the target", "GET /\x01 HTTP/1.1\r\nHost: h\r\n\r\n", ReasonPathControl, ""},
	{"overlong dot", "GET /%c0%ae%c0%ae/ HTTP/1.1\r\nHost: h\r\n\r\n", ReasonPathOverlong, ""},
	{"dot segment with parameter", "GET /a/..;/b HTTP/1.1\r\nHost: h\r\n\r\n", ReasonPathDotParameter, ""},

	{"bare LF behind the request line", "GET / HTTP/1.1\nHost: h\r\n\r\n", ReasonBareLF, ""},
	{"bare LF behind a field", "GET / HTTP/1.1\r\nHost: h\nX: y\r\n\r\n", ReasonBareLF, ""},
	{"bare LF as the last line", "GET / HTTP/1.1\r\nHost: h\r\n\n", ReasonBareLF, ""},
	{"bare LF first", "\n" + good, ReasonMethod, ""},
	{"bare CR in a value", "GET / HTTP/1.1\r\nHost: h\r\nX: a\rb\r\n\r\n", ReasonBareCR, ""},
	{"two CRs", "GET / HTTP/1.1\r\nHost: h\r\r\n\r\n", ReasonBareCR, ""},
	{"bare CR in a name", "GET / HTTP/1.1\r\nHost: h\r\nX\rY: a\r\n\r\n", ReasonBareCR, ""},
	{"bare CR as a line", "GET / HTTP/1.1\r\nHost: h\r\n\rX: y\r\n\r\n", ReasonBareCR, ""},
	{"NUL in a value", "GET / HTTP/1.1\r\nHost: h\r\nX: a\x00b\r\n\r\n", ReasonNUL, ""},
	{"NUL in a name", "GET / HTTP/1.1\r\nHost: h\r\nX\x00: b\r\n\r\n", ReasonNUL, ""},
	{"control character in a value", "GET / HTTP/1.1\r\nHost: h\r\nX: a\x0bb\r\n\r\n", ReasonFieldValue, ""},
	{"DEL in a value", "GET / HTTP/1.1\r\nHost: h\r\nX: a\x7fb\r\n\r\n", ReasonFieldValue, ""},
	{"folded line", "GET / HTTP/1.1\r\nHost: h\r\nX: a\r\n b\r\n\r\n", ReasonObsFold, ""},
	{"folded line with a tab", "GET / HTTP/1.1\r\nHost: h\r\nX: a\r\n\tb\r\n\r\n", ReasonObsFold, ""},
	{"folded first line", "GET / HTTP/1.1\r\n Host: h\r\n\r\n", ReasonObsFold, ""},
	{"space before colon", "GET / HTTP/1.1\r\nHost : h\r\n\r\n", ReasonSpaceBeforeColon, ""},
	{"tab before colon", "GET / HTTP/1.1\r\nHost\t: h\r\n\r\n", ReasonSpaceBeforeColon, ""},
	{"no colon", "GET / HTTP/1.1\r\nHost: h\r\nX\r\n\r\n", ReasonFieldName, ""},
	{"no name", "GET / HTTP/1.1\r\nHost: h\r\n: x\r\n\r\n", ReasonFieldName, ""},
	{"bad name", "GET / HTTP/1.1\r\nHost: h\r\nX(: x\r\n\r\n", ReasonFieldName, ""},
	{"name beyond ASCII", "GET / HTTP/1.1\r\nHost: h\r\nX\xc3\xa9: x\r\n\r\n", ReasonFieldName, ""},
	{"many fields", "GET / HTTP/1.1\r\nHost: h\r\n" + strings.Repeat("X: y\r\n", maxFields) + "\r\n", ReasonTooManyFields, ""},
	{"most fields", "GET / HTTP/1.1\r\nHost: h\r\n" + strings.Repeat("X: y\r\n", maxFields-1) + "\r\n", 0, ""},
	{"long head", "GET / HTTP/1.1\r\nHost: h\r\nX: " + strings.Repeat("y", maxHead) + "\r\n\r\n", ReasonHeadLong, ""},
	{"endless head", "GET / HTTP/1.1\r\nHost: h\r\nX: " + strings.Repeat("y", maxHead), ReasonHeadLong, ""},

	{"no host", "GET / HTTP/1.1\r\n\r\n", ReasonHostMissing, ""},
	{"two hosts", "GET / HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n", ReasonHostRepeated, ""},
	{"empty host", "GET / HTTP/1.1\r\nHost:\r\n\r\n", ReasonHostInvalid, ""},
	{"list of hosts", "GET / HTTP/1.1\r\nHost: h, i\r\n\r\n", ReasonHostInvalid, ""},
	{"host with a user", "GET / HTTP/1.1\r\nHost: u@h\r\n\r\n", ReasonHostInvalid, ""},
	{"host with a path", "GET / HTTP/1.1\r\nHost: h/a\r\n\r\n", ReasonHostInvalid, ""},
	{"host with a bad port", "GET / HTTP/1.1\r\nHost: h:8x\r\n\r\n", ReasonHostInvalid, ""},
	{"host with an empty port", "GET / HTTP/1.1\r\nHost: h:\r\n\r\n", ReasonHostInvalid, ""},
	{"host with a large port", "GET / HTTP/1.1\r\nHost: h:65536\r\n\r\n", ReasonHostInvalid, ""},
	{"host beyond ASCII", "GET / HTTP/1.1\r\nHost: h\xc3\xa9\r\n\r\n", ReasonHostInvalid, ""},
	{"open bracket", "GET / HTTP/1.1\r\nHost: [fd00::1\r\n\r\n", ReasonHostInvalid, ""},

	{"two lengths", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", ReasonContentLengthRepeated, ""},
	{"two equal lengths", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", ReasonContentLengthRepeated, ""},
	{"list of lengths", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5, 5\r\n\r\n", ReasonContentLengthRepeated, ""},
	{"signed length", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: +5\r\n\r\n", ReasonContentLength, ""},
	{"negative length", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: -5\r\n\r\n", ReasonContentLength, ""},
	{"hexadecimal length", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0x5\r\n\r\n", ReasonContentLength, ""},
	{"spaced length", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5 0\r\n\r\n", ReasonContentLength, ""},
	{"empty length", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length:\r\n\r\n", ReasonContentLength, ""},
	{"large length", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9223372036854775808\r\n\r\n", ReasonContentLength, ""},
	{"length and encoding", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", ReasonLengthAndEncoding, ""},
	{"encoding and length", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", ReasonLengthAndEncoding, ""},
	{"two encodings", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", ReasonTransferEncoding, ""},
	{"list of encodings", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", ReasonTransferEncoding, ""},
	{"identity", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: identity\r\n\r\n", ReasonTransferEncoding, ""},
	{"misspelt encoding", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n", ReasonTransferEncoding, ""},
	{"encoding with a control character", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: \x0bchunked\r\n\r\n", ReasonFieldValue, ""},
	{"empty encoding", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding:\r\n\r\n", ReasonTransferEncoding, ""},
	{"chunked HTTP/1.0", "POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", ReasonTransferEncoding, ""},
	{"expectation", "POST / HTTP/1.1\r\nHost: h\r\nExpect: 200-ok\r\n\r\n", ReasonExpect, ""},
	{"Connection names Host", "GET / HTTP/1.1\r\nHost: h\r\nConnection: close, host\r\n\r\n", ReasonConnectionOption, ""},
	{"Connection names a field that is there", "GET / HTTP/1.1\r\nHost: h\r\nX-Role: user\r\nConnection: x-role\r\n\r\n", ReasonConnectionOption, ""},
	{"Connection names a field that is not there", "GET / HTTP/1.1\r\nHost: h\r\nConnection: x-role\r\n\r\n", 0, ""},
	{"Connection is no list of names", "GET / HTTP/1.1\r\nHost: h\r\nConnection: a=b\r\n\r\n", ReasonConnectionOption, ""},
	{"many options", "GET / HTTP/1.1\r\nHost: h\r\nConnection: close" + strings.Repeat(",te", maxOptions) + "\r\n\r\n", ReasonConnectionOption, ""},
	{"websocket with a body", "GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n\r\n", ReasonUpgrade, ""},
	{"websocket of POST", "POST / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", ReasonUpgrade, ""},
	{"websocket of HTTP/1.0", "GET / HTTP/1.0\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", ReasonUpgrade, ""},
}

func TestParseRequest(t *testing.T) {
	for _, c := range requests {
		raw := []byte(c.raw)
		whole := parseRequest(raw, nil)
		if whole.reason != c.want {
			t.Errorf("%s: %s, want %s", c.name, whole.reason, c.want)
			continue
		}
		if c.want == 0 {
			want := c.sent
			if want == "" {
				want = c.raw
			}
			if whole.sent != want {
				t.Errorf("%s: sent on as %q, want %q", c.name, whole.sent, want)
			}
			checkAgainstNetHTTP(t, whole)
		}
		if split := parseRequest(raw, every(raw)); split != whole {
			t.Errorf("%s: byte by byte %+v, else %+v", c.name, split, whole)
		}
		// A head goes on to be judged the same with more behind it.
		if whole.done {
			if more := parseRequest(append(raw[:len(raw):len(raw)], "GET /x\n"...), []int{len(raw) - 1}); more != whole {
				t.Errorf("%s: with more behind %+v, else %+v", c.name, more, whole)
			}
		}
	}
}

// checkAgainstNetHTTP holds what is passed on against another parser: method,
// path, host and framing must be the ones that were judged.
func checkAgainstNetHTTP(t testing.TB, p parsedRequest) {
	t.Helper()
	req, err := nethttp.ReadRequest(bufio.NewReader(strings.NewReader(p.sent)))
	if err != nil {
		// net/http refuses some that are fine: an underscore in a host it
		// takes, but not all of a token's characters as a method, say.
		t.Errorf("net/http can't read %q: %v", p.sent, err)
		return
	}
	uri := req.RequestURI
	if req.Method != p.method || uri != p.path || p.method != "CONNECT" && req.Host != p.host {
		t.Errorf("net/http reads %s %s of %s, judged was %s %s of %s: %q", req.Method, uri, req.Host, p.method, p.path, p.host, p.sent)
	}
	want := int64(0)
	switch p.body {
	case bodyChunked:
		want = -1
	case bodySized:
		want = p.length
	}
	if req.ContentLength != want || (p.body == bodyChunked) != (len(req.TransferEncoding) == 1 && req.TransferEncoding[0] == "chunked") {
		t.Errorf("net/http reads a body of %d, encoded %q, judged was %d, %d: %q", req.ContentLength, req.TransferEncoding, p.body, p.length, p.sent)
	}
}

// A head with changes made to it is still the same request.
func TestAppendRequest(t *testing.T) {
	changes := []httprules.Change{
		{Action: httprules.ActionLog, Name: "Host"},
		{Action: httprules.ActionAdd, Name: "X-New", Value: "a b"},
		{Action: httprules.ActionDelete, Name: "x"},
		{Action: httprules.ActionReplace, Name: "X-ROLE", Value: ""},
	}
	for _, c := range requests {
		whole := parseRequest([]byte(c.raw), nil)
		if !whole.done {
			continue
		}
		h := new(head)
		h.reset(false)
		h.parse([]byte(c.raw))
		in := incoming{h: h, b: []byte(c.raw)[:h.pos]}
		in.read(make([]byte, 0, maxTarget))
		out := appendRequest(nil, h, &in.m, &in.t, in.b, changes)
		again := parseRequest(out, nil)
		if strings.HasPrefix(c.name, "Connection names") {
			// The client had asked for just this field to be dropped.
			if again.reason != ReasonConnectionOption {
				t.Errorf("%s: %+v", c.name, again)
			}
			continue
		}
		if !again.done || again.method != whole.method || again.path != whole.path || again.host != whole.host || again.body != whole.body || again.length != whole.length {
			t.Errorf("%s: %+v became %+v", c.name, whole, again)
		}
		checkAgainstNetHTTP(t, again)
		if s := string(out); !strings.Contains(s, "\r\nX-New: a b\r\n") || strings.Count(s, "\r\nX-ROLE: \r\n") != 1 || strings.Contains(s, "\r\nX:") || strings.Contains(s, "\r\nX-Role: u") {
			t.Errorf("%s: changed to %q", c.name, s)
		}
	}
}

func FuzzParseRequest(f *testing.F) {
	for _, c := range requests {
		if len(c.raw) < 1000 {
			f.Add([]byte(c.raw), uint16(7), uint16(20))
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte, a, b uint16) {
		before := bytes.Clone(raw)
		whole := parseRequest(raw, nil)
		if !bytes.Equal(before, raw) {
			t.Fatal("the input was written to")
		}
		if whole.head > len(raw) {
			t.Fatalf("consumed %d of %d", whole.head, len(raw))
		}
		if len(raw) > 0 {
			cuts := []int{int(a) % len(raw), int(b) % len(raw)}
			if cuts[0] > cuts[1] {
				cuts[0], cuts[1] = cuts[1], cuts[0]
			}
			if split := parseRequest(raw, cuts); split != whole {
				t.Fatalf("cut at %d: %+v, else %+v", cuts, split, whole)
			}
		}
		if len(raw) < 2000 {
			if split := parseRequest(raw, every(raw)); split != whole {
				t.Fatalf("byte by byte: %+v, else %+v", split, whole)
			}
		}
		if whole.done {
			checkAgainstNetHTTP(t, whole)
		}
	})
}

var chunkedBodies = []struct {
	name, raw string
	want      Reason
	rest      int // bytes behind the body
}{
	{"empty", "0\r\n\r\n", 0, 0},
	{"one", "5\r\nhello\r\n0\r\n\r\n", 0, 0},
	{"two, and a request", "5\r\nhello\r\n00a\r\n0123456789\r\n0\r\n\r\nGET", 0, 3},
	{"upper case", "A\r\n0123456789\r\n0\r\n\r\n", 0, 0},
	{"extension", "1;a=b;c=\"d\"\r\nx\r\n0;e\r\n\r\n", 0, 0},
	{"trailer", "0\r\nX-Sum: 1\r\nY:\r\n\r\n", 0, 0},
	{"not complete", "5\r\nhel", 0, 0},
	{"data that looks like an end", "7\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n", 0, 0},
	{"no size", "\r\nhello", ReasonChunkSize, 0},
	{"no digit", "g\r\n", ReasonChunkSize, 0},
	{"signed", "+5\r\nhello", ReasonChunkSize, 0},
	{"0x", "0x5\r\nhello", ReasonChunkSize, 0},
	{"space before", " 5\r\nhello", ReasonChunkSize, 0},
	{"space behind", "5 \r\nhello", ReasonChunkSize, 0},
	{"space before extension", "5 ;a\r\nhello", ReasonChunkSize, 0},
	{"overflow", "10000000000000005\r\nhello", ReasonChunkSize, 0},
	{"many zeros", "0000000000000005\r\nhello", ReasonChunkSize, 0},
	{"bare LF behind the size", "5\nhello\r\n", ReasonChunkSize, 0},
	{"bare CR behind the size", "5\rhello\r\n", ReasonBareCR, 0},
	{"bare LF in an extension", "5;a\nhello\r\n0\r\n\r\n", ReasonChunkExtension, 0},
	{"NUL in an extension", "5;\x00\r\nhello", ReasonChunkExtension, 0},
	{"extension beyond ASCII", "5;\xff\r\nhello", ReasonChunkExtension, 0},
	{"long extension", "5;" + strings.Repeat("a", maxChunkLine) + "\r\nhello\r\n", ReasonChunkExtension, 0},
	{"many extensions", strings.Repeat("1;"+strings.Repeat("a", 200)+"\r\nx\r\n", 100), ReasonChunkExtension, 0},
	{"data too long", "5\r\nhello!\r\n0\r\n\r\n", ReasonChunkEnd, 0},
	{"data without CR", "5\r\nhello\n0\r\n\r\n", ReasonChunkEnd, 0},
	{"data with CR alone", "5\r\nhello\r0\r\n\r\n", ReasonChunkEnd, 0},
	{"last line with LF alone", "0\r\n\n", ReasonTrailer, 0},
	{"last line with CR alone", "0\r\n\rX", ReasonTrailer, 0},
	{"folded trailer", "0\r\nX: y\r\n z\r\n\r\n", ReasonTrailer, 0},
	{"trailer with space before colon", "0\r\nX : y\r\n\r\n", ReasonTrailer, 0},
	{"trailer without colon", "0\r\nX\r\n\r\n", ReasonTrailer, 0},
	{"trailer without name", "0\r\n: y\r\n\r\n", ReasonTrailer, 0},
	{"trailer with bare LF", "0\r\nX: y\n\r\n", ReasonTrailer, 0},
	{"trailer with NUL", "0\r\nX: \x00\r\n\r\n", ReasonTrailer, 0},
	{"framing in the trailer", "0\r\nContent-Length: 5\r\n\r\n", ReasonTrailer, 0},
	{"encoding in the trailer", "0\r\ntransfer-encoding: chunked\r\n\r\n", ReasonTrailer, 0},
	{"host in the trailer", "0\r\nX: y\r\nHOST: h\r\n\r\n", ReasonTrailer, 0},
	{"long trailer", "0\r\nX: " + strings.Repeat("y", maxTrailer) + "\r\n\r\n", ReasonTrailer, 0},
}

// parseChunks feeds raw in portions; n is how much was taken before the end or
// what is wrong.
func parseChunks(raw []byte, cuts []int) (n int, done bool, r Reason) {
	var c chunked
	from := 0
	for _, cut := range append(cuts, len(raw)) {
		if cut < from {
			continue
		}
		var k int
		k, done, r = c.next(raw[from:cut])
		n += k
		if done || r != 0 {
			return n, done, r
		}
		from = cut
	}
	return n, done, r
}

func TestChunked(t *testing.T) {
	for _, c := range chunkedBodies {
		raw := []byte(c.raw)
		n, done, r := parseChunks(raw, nil)
		if r != c.want || r == 0 && c.name != "not complete" && (!done || n != len(raw)-c.rest) {
			t.Errorf("%s: took %d of %d, done %v, %s, want %s", c.name, n, len(raw), done, r, c.want)
		}
		if n2, done2, r2 := parseChunks(raw, every(raw)); n2 != n || done2 != done || r2 != r {
			t.Errorf("%s: byte by byte %d, %v, %s; else %d, %v, %s", c.name, n2, done2, r2, n, done, r)
		}
	}
	// A body of chunks of one byte is all overhead, and fine.
	small := []byte(strings.Repeat("1\r\nx\r\n", 50_000) + "0\r\n\r\n")
	if n, done, r := parseChunks(small, nil); !done || n != len(small) || r != 0 {
		t.Errorf("chunks of one byte: took %d of %d, done %v, %s", n, len(small), done, r)
	}
}

func FuzzChunked(f *testing.F) {
	for _, c := range chunkedBodies {
		if len(c.raw) < 500 {
			f.Add([]byte(c.raw), uint16(3))
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte, cut uint16) {
		n, done, r := parseChunks(raw, nil)
		if n > len(raw) {
			t.Fatalf("consumed %d of %d", n, len(raw))
		}
		cuts := every(raw)
		if len(raw) > 0 && cut%2 == 0 {
			cuts = []int{int(cut) % len(raw)}
		}
		if n2, done2, r2 := parseChunks(raw, cuts); n2 != n || done2 != done || r2 != r {
			t.Fatalf("cut: %d, %v, %s; else %d, %v, %s", n2, done2, r2, n, done, r)
		}
		if !done {
			return
		}
		// Another parser finds the same data and the same end.
		head := "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
		in := bufio.NewReader(io.MultiReader(strings.NewReader(head), bytes.NewReader(raw)))
		req, err := nethttp.ReadRequest(in)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, req.Body); err != nil {
			t.Fatalf("net/http can't read %q: %v", raw[:n], err)
		}
		rest, _ := io.ReadAll(in)
		if len(rest) != len(raw)-n {
			t.Fatalf("net/http leaves %d bytes of %q, not %d", len(rest), raw, len(raw)-n)
		}
	})
}

var responses = []struct {
	name, raw string
	method    string
	want      Reason
	body      bodyKind
}{
	{"sized", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "GET", 0, bodySized},
	{"chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "GET", 0, bodyChunked},
	{"to the end", "HTTP/1.1 200 OK\r\n\r\n", "GET", 0, bodyToEnd},
	{"HTTP/1.0", "HTTP/1.0 200 OK\r\n\r\n", "GET", 0, bodyToEnd},
	{"no reason phrase", "HTTP/1.1 200 \r\nContent-Length: 5\r\n\r\n", "GET", 0, bodySized},
	{"nothing behind the status", "HTTP/1.1 200\r\nContent-Length: 5\r\n\r\n", "GET", 0, bodySized},
	{"to HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "HEAD", 0, bodyNone},
	{"chunked to HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "HEAD", 0, bodyNone},
	{"204", "HTTP/1.1 204 No Content\r\n\r\n", "GET", 0, bodyNone},
	{"204 with zero length", "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", "GET", 0, bodyNone},
	{"304", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", "GET", 0, bodyNone},
	{"100", "HTTP/1.1 100 Continue\r\n\r\n", "GET", 0, bodyNone},
	{"unknown status", "HTTP/1.1 799 Hm\r\nContent-Length: 0\r\n\r\n", "GET", 0, bodySized},
	{"Connection names a field", "HTTP/1.1 200 OK\r\nX: y\r\nConnection: x\r\nContent-Length: 0\r\n\r\n", "GET", 0, bodySized},

	{"HTTP/2", "HTTP/2 200 OK\r\n\r\n", "GET", ReasonStatusLine, 0},
	{"not HTTP", "SSH-2.0-OpenSSH_9.2p1 Debian\r\n", "GET", ReasonStatusLine, 0},
	{"status of two digits", "HTTP/1.1 20 OK\r\n\r\n", "GET", ReasonStatusLine, 0},
	{"status of four digits", "HTTP/1.1 2000 OK\r\n\r\n", "GET", ReasonStatusLine, 0},
	{"status below 100", "HTTP/1.1 099 OK\r\n\r\n", "GET", ReasonStatusLine, 0},
	{"empty line in front", "\r\nHTTP/1.1 200 OK\r\n\r\n", "GET", ReasonStatusLine, 0},
	{"bare LF", "HTTP/1.1 200 OK\nX: y\r\n\r\n", "GET", ReasonBareLF, 0},
	{"bare CR", "HTTP/1.1 200 O\rK\r\n\r\n", "GET", ReasonBareCR, 0},
	{"NUL", "HTTP/1.1 200 O\x00K\r\n\r\n", "GET", ReasonNUL, 0},
	{"folded line", "HTTP/1.1 200 OK\r\nX: y\r\n z\r\n\r\n", "GET", ReasonObsFold, 0},
	{"space before colon", "HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\n", "GET", ReasonSpaceBeforeColon, 0},
	{"two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", "GET", ReasonContentLengthRepeated, 0},
	{"length and encoding", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", "GET", ReasonLengthAndEncoding, 0},
	{"unknown encoding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", "GET", ReasonTransferEncoding, 0},
	{"chunked HTTP/1.0", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "GET", ReasonTransferEncoding, 0},
	{"204 with a length", "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", "GET", ReasonContentLength, 0},
	{"204 with an encoding", "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", "GET", ReasonContentLength, 0},
	{"100 with a length", "HTTP/1.1 100 Continue\r\nContent-Length: 5\r\n\r\n", "GET", ReasonInterim, 0},
	{"101 that nobody asked for", "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", "GET", ReasonInterim, 0},
	{"endless head", "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("y", maxHead), "GET", ReasonHeadLong, 0},
}

func TestParseResponse(t *testing.T) {
	parse := func(raw []byte, method string, cuts []int) (message, Reason) {
		h, m := new(head), message{}
		h.reset(true)
		for _, cut := range append(cuts, len(raw)) {
			done, r := h.parse(raw[:cut:cut])
			if r != 0 {
				return m, r
			}
			if done {
				return m, readResponse(h, &m, raw, method == "HEAD", method == "CONNECT", false)
			}
		}
		return m, ReasonNone
	}
	for _, c := range responses {
		m, r := parse([]byte(c.raw), c.method, nil)
		if r != c.want || r == 0 && m.body != c.body {
			t.Errorf("%s: body %d, %s, want %d, %s", c.name, m.body, r, c.body, c.want)
		}
		if _, split := parse([]byte(c.raw), c.method, every([]byte(c.raw))); split != r {
			t.Errorf("%s: byte by byte %s, else %s", c.name, split, r)
		}
	}
}

func TestReasons(t *testing.T) {
	seen := map[string]Reason{}
	for r := range reasons {
		s := r.String()
		if other, ok := seen[s]; ok || s == "" {
			t.Errorf("reason %d is called %q, as %d is", r, s, other)
		}
		seen[s] = r
		if strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			t.Errorf("%q is no label", s)
		}
	}
	if got, want := ReasonPathDotParameter.String(), httprules.PathDotParameter.String(); got != want {
		t.Errorf("the paths' reasons are out of step: %q, want %q", got, want)
	}
	for _, status := range []int{400, 403, 408, 414, 417, 431, 502, 505} {
		if text, _ := reply(status); text != nethttp.StatusText(status) && status != 414 {
			t.Errorf("%d is called %s", status, text)
		}
	}
}
