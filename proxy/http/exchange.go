package http

import (
	"github.com/weirnet/weir/policy/httprules"
)

// exchange is a request and its response, while they are on their way.
type exchange struct {
	rec     Record
	text    []byte // what rec.Method, Host and Path are
	changes []httprules.Change
	told    bool

	isHead, connect, upgrade bool

	// What judged the request last, and, if it may become a tunnel, its head as
	// the client sent it, to be judged again.
	rules   Rules
	opening []byte
}

// begin starts the exchange for a request as far as it could be read.
func (p *pair) begin(h *head, b []byte, t *target) *exchange {
	ex := p.loop.takeExchange()
	method, path := h.first.method.of(b), t.path
	if path == nil {
		path = h.first.target.of(b)
	}
	ex.text = append(ex.text[:0], method...)
	ex.text = append(ex.text, t.host...)
	ex.text = append(ex.text, path...)
	m, n := len(method), len(method)+len(t.host)
	ex.rec = Record{
		Method: ex.text[:m:m], Host: ex.text[m:n:n], Path: ex.text[n:len(ex.text):len(ex.text)],
		Protocol: "HTTP/1.1", Start: p.loop.wall,
	}
	if h.first.minor == 0 {
		ex.rec.Protocol = "HTTP/1.0"
	}
	ex.changes = ex.changes[:0]
	ex.told = false
	ex.isHead, ex.connect, ex.upgrade = string(method) == "HEAD", t.connect, false
	p.ex = ex
	return ex
}

// tell tells the observer of the exchange, unless that was done already, and
// keeps it only while it is open.
func (p *pair) tell() {
	ex := p.ex
	if !ex.told {
		ex.told = true
		ex.rec.Changes = ex.changes
		if p.conn.Observe != nil {
			p.conn.Observe(&ex.rec)
		}
	}
	if !ex.rec.Open || p.closed {
		p.ex = nil
		p.loop.freeExchange(ex)
	}
}

// note tells of something that is no exchange.
func (p *pair) note(v Verdict, r Reason) {
	if p.conn.Observe != nil {
		p.conn.Observe(&Record{Verdict: v, Reason: r, Start: p.loop.wall})
	}
}
