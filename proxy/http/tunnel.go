package http

import "github.com/weirnet/weir/policy"

// tunnel moves bytes unread. Each direction ends for itself.
func (p *pair) tunnel(from, to *sock) bool {
	if (from.canRead || from.in != nil) && !p.judgeTunnel() {
		return true
	}
	body := &p.reqBody
	if from == &p.u {
		body = &p.respBody
	}
	what, _ := p.move(from, to, body)
	if p.closed {
		return true
	}
	switch what {
	case movedNothing:
		return false
	case movedEnd:
		to.fin = true
		if from == &p.c {
			p.request = requestEnd
		} else {
			p.response = responseEnd
		}
		p.flush(to)
	case movedError:
		p.fail(ReasonReset)
	}
	return true
}

// isTunnel tells whether a direction still is one.
func (p *pair) isTunnel() bool {
	return p.ex != nil && (p.request == requestTunnel || p.response == responseTunnel)
}

// judgeTunnel judges the request that opened the tunnel again, if there are
// other rules than those it passed. What may not pass any more is reset, and
// told: what goes through it is not read, so nothing else could be said of it.
func (p *pair) judgeTunnel() (may bool) {
	ex := p.ex
	rules := p.conn.Rules()
	if rules == ex.rules {
		return true
	}
	rec := &ex.rec
	verdict := Denied
	rec.Direction = policy.Ingress
	if rules.Egress != nil {
		rec.Direction = policy.Egress
	}
	rec.EgressRule, rec.IngressRule, ex.changes = 0, 0, ex.changes[:0]
	l := p.loop
	in := &l.incoming
	in.h, in.b, in.made = &l.head, ex.opening, false
	in.h.reset(false)
	switch done, r := in.h.parse(in.b); {
	case rules == Rules{}:
		ex.rules, verdict = rules, Allowed
	case done && r == 0 && in.read(l.norm) == 0: // as it was; else it was not kept
		verdict, _ = p.judge(in)
	}
	if verdict == Allowed {
		return true
	}
	rec.Verdict, rec.Reason, rec.Again, rec.Open = Denied, ReasonPolicyChanged, true, false
	rec.Start, rec.Latency = l.wall, 0
	ex.told = false
	p.tell()
	p.close(true)
	return false
}
