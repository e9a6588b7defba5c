package main

import (
	"context"
	"net/netip"
	"strings"
	"time"
)

// askUnseen asks while no agent runs that could tell what decided.
func (d *demo) askUnseen(ctx context.Context, a demoAsk) error {
	from, to := d.places[a.from], d.places[a.to]
	patience := 5 * time.Second
	if a.want == demoNothing {
		patience = 700 * time.Millisecond
	}
	ask, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	target := netip.AddrPortFrom(to.addrs[0], to.port)
	r := demoResult{demoAsk: a}
	var saw nginxSaw
	if a.verb == demoResolve {
		var err error
		r.got, _, err = a.resolveFor(ask, from, target.Addr())
		r.got = demoOutcome(err, r.got)
	} else if a.isHTTP() {
		client := from.HTTPClient(0)
		defer client.CloseIdleConnections()
		var err error
		r.got, saw, err = a.request(ask, client, target)
		r.got = demoOutcome(err, r.got)
	} else {
		c, err := from.DialContext(ask, "tcp", target.String())
		if err == nil {
			c.Close()
		}
		r.got = demoOutcome(err, demoConnected)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	d.judge(&r, saw, 0)
	d.showAsk(&r, to.port)
	for _, p := range r.problems {
		d.screen.say("      " + d.screen.paint(paintRed, p))
	}
	r.unseen = true
	d.results = append(d.results, r)
	return nil
}

// verdict is an outcome in a word.
func (r *demoResult) verdict() (word, color string) {
	switch r.got {
	case "200", demoConnected, demoAnswered, demoResolved:
		return "allowed", paintGreen
	case "403", demoRefused:
		return "refused", paintRed
	case demoNothing:
		return "dropped", paintRed
	}
	return "failed", paintRed
}

// showAsk writes an ask and its answer as a line.
func (d *demo) showAsk(r *demoResult, port uint16) {
	s := d.screen
	word, color := r.verdict()
	mark := s.paint(paintGreen, "✓")
	if len(r.problems) > 0 {
		mark = s.paint(paintRed, "✗")
	}
	s.say("  " + mark + " " + s.paint(paintBold, fit(d.places[r.from].title+" → "+d.places[r.to].title, 26)) + " " +
		fit(r.text(port), 41) + s.paint(color, fit(word, 9)) + s.paint(paintDim, strings.TrimRight(fit(r.got, 18), " ")))
}

// table shows all results and returns how many are not as expected.
func (d *demo) table() (wrong int) {
	s := d.screen
	s.heading("What happened")
	row := func(mark, from, to, what, verdict, answer, by string) string {
		return "  " + mark + " " + fit(from, 11) + fit(to, 10) + " " + fit(what, 33) + verdict + answer + strings.TrimRight(fit(by, 21), " ")
	}
	s.say(s.paint(paintDim, row(" ", "WHO", "ASKED WHOM", "FOR WHAT", fit("VERDICT", 9), fit("ANSWER", 10), "DECIDED BY")))
	for i := range d.results {
		r := &d.results[i]
		word, color := r.verdict()
		mark := s.paint(paintGreen, "✓")
		if len(r.problems) > 0 {
			wrong++
			mark = s.paint(paintRed, "✗")
		}
		by := "(no agent to say)"
		if !r.unseen {
			by = deciding(r.record)
		}
		s.say(row(mark, d.places[r.from].title, d.places[r.to].title, r.text(d.places[r.to].port), s.paint(color, fit(word, 9)), fit(r.got, 10), by))
		for _, p := range r.problems {
			s.say("      " + s.paint(paintRed, p))
		}
	}
	s.say("")
	return wrong
}
