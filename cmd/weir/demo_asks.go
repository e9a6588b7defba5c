package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/weirnet/weir/flow"
)

// demoAsk is something that somebody asks of somebody, and what the policies
// say to it.
type demoAsk struct {
	from, to string
	ipv6     bool
	verb     string // a method, "connect", "ping" or "resolve"
	path     string
	session  bool // with the header X-Session
	want     string
	by       string // the policy that decides; "" where none does
}

// Outcomes beside HTTP statuses.
const (
	demoConnected = "connected"
	demoAnswered  = "answered"
	demoNothing   = "no answer"
	demoResolved  = "NOERROR"
	demoRefused   = "REFUSED"
)

// demoResolve is the verb of a question to DNS; its path is the name.
const demoResolve = "resolve"

// demoAsks is the first act: a reader of examples/shop should expect each.
func demoAsks() []demoAsk {
	const front, api, db, world = "CiliumNetworkPolicy shop/frontend", "CiliumNetworkPolicy shop/api", "NetworkPolicy shop/db", "CiliumClusterwideNetworkPolicy no-world"
	return []demoAsk{
		{from: "world", to: "frontend", verb: "GET", path: "/", want: "200", by: front},
		{from: "world", to: "frontend", verb: "GET", path: "/admin", want: "403", by: front},
		{from: "frontend", to: "api", verb: "GET", path: "/products", want: "200", by: api},
		{from: "frontend", to: "api", verb: "GET", path: "/products/42?lang=en", ipv6: true, want: "200", by: api},
		{from: "frontend", to: "api", verb: "DELETE", path: "/products/42", want: "403", by: api},
		{from: "frontend", to: "api", verb: "POST", path: "/orders", session: true, want: "200", by: api},
		{from: "frontend", to: "api", verb: "POST", path: "/orders", want: "403", by: api},
		{from: "frontend", to: "api", verb: "GET", path: "/products/../metrics", ipv6: true, want: "403", by: api},
		{from: "prometheus", to: "api", verb: "GET", path: "/metrics", want: "200", by: api},
		{from: "prometheus", to: "api", verb: "GET", path: "/products", want: "403", by: api},
		{from: "api", to: "db", verb: "connect", want: demoConnected, by: db},
		{from: "frontend", to: "db", verb: "connect", want: demoNothing, by: db},
		{from: "prometheus", to: "db", verb: "ping", ipv6: true, want: demoNothing, by: db},
		{from: "node", to: "db", verb: "connect", want: demoConnected},
		{from: "frontend", to: "prometheus", verb: "connect", ipv6: true, want: demoConnected},
		{from: "api", to: "world", verb: "POST", path: "/v1/charges", want: "200", by: api},
		{from: "api", to: "world", verb: "GET", path: "/v1/customers", ipv6: true, want: "403", by: api},
		{from: "db", to: "world", verb: "GET", path: "/", want: demoNothing, by: world},
		{from: "prometheus", to: "world", verb: "ping", ipv6: true, want: demoNothing, by: world},
	}
}

// demoResult is what came of an ask.
type demoResult struct {
	demoAsk
	got      string
	fresh    bool // on a new connection
	unseen   bool // no agent ran that could tell
	record   flow.Record
	problems []string // what is not as it should be
}

// text is what is asked for.
func (a demoAsk) text(port uint16) string {
	text := a.verb
	switch {
	case a.verb == "connect":
		text = fmt.Sprintf("connect to port %d", port)
	case a.verb == demoResolve && a.ipv6:
		return text + " " + a.path + " AAAA"
	case a.session:
		text += " " + a.path + ", X-Session"
	case a.path != "":
		text += " " + a.path
	}
	if a.ipv6 {
		text += " (IPv6)"
	}
	return text
}

// isHTTP tells whether the ask is an HTTP request.
func (a demoAsk) isHTTP() bool {
	return a.verb != "connect" && a.verb != "ping" && a.verb != demoResolve
}

// isRead tells whether the proxy reads the ask.
func (a demoAsk) isRead() bool { return a.isHTTP() || a.verb == demoResolve }

// nginxSaw is what the servers answer.
type nginxSaw struct {
	Server     string `json:"server"`
	Client     string `json:"client"`
	Connection int    `json:"connection"`
}

// ask asks, shows the records as they come, and keeps the result. client is
// nil for a connection of its own.
func (d *demo) ask(ctx context.Context, a demoAsk, client *http.Client) (saw nginxSaw, err error) {
	from, to := d.places[a.from], d.places[a.to]
	family := 0
	if a.ipv6 {
		family = 1
	}
	target := netip.AddrPortFrom(to.addrs[family], to.port)
	dialed := target
	if a.from == "world" { // by the node's port
		dialed = netip.AddrPortFrom(d.node.Addrs()[family], demoNodePort)
	}
	patience := 5 * time.Second
	if a.want == demoNothing {
		patience = 700 * time.Millisecond
	}
	ask, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	began := time.Now()
	r := demoResult{demoAsk: a, fresh: true}
	var port uint16 // of the source
	switch a.verb {
	case "connect":
		c, err := from.DialContext(ask, "tcp", dialed.String())
		if err == nil {
			port = c.LocalAddr().(*net.TCPAddr).AddrPort().Port()
			c.Close()
		}
		r.got = demoOutcome(err, demoConnected)
	case demoResolve:
		r.got, port, err = a.resolveFor(ask, from, dialed.Addr())
		r.got = demoOutcome(err, r.got)
	case "ping":
		r.got = demoOutcome(from.Ping(ask, dialed.Addr(), 56), demoAnswered)
		target = netip.AddrPortFrom(target.Addr(), 0)
	default:
		if client == nil {
			client = from.HTTPClient(0)
			defer client.CloseIdleConnections()
		}
		trace := &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) {
			r.fresh = !i.Reused
			port = i.Conn.LocalAddr().(*net.TCPAddr).AddrPort().Port()
		}}
		r.got, saw, err = a.request(httptrace.WithClientTrace(ask, trace), client, dialed)
		r.got = demoOutcome(err, r.got)
	}
	if ctx.Err() != nil {
		return saw, ctx.Err()
	}
	d.judge(&r, saw, family)
	d.showAsk(&r, to.port)
	source := netip.AddrPortFrom(from.addrs[family], port)
	if a.from == "node" {
		source = netip.AddrPortFrom(netip.Addr{}, port) // any of the node's
	}
	d.follow(ctx, &r, source, target, began)
	for _, p := range r.problems {
		d.screen.say("      " + d.screen.paint(paintRed, p))
	}
	d.results = append(d.results, r)
	return saw, ctx.Err()
}

func demoOutcome(err error, fine string) string {
	switch {
	case err == nil:
		return fine
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return demoNothing
	}
	return err.Error()
}

func (a demoAsk) request(ctx context.Context, client *http.Client, to netip.AddrPort) (status string, saw nginxSaw, err error) {
	var body io.Reader
	if a.verb == "POST" {
		body = strings.NewReader(`{"product":42}`)
	}
	r, err := http.NewRequestWithContext(ctx, a.verb, "http://"+to.String()+a.path, body)
	if err != nil {
		return "", saw, err
	}
	if a.session {
		r.Header.Set("X-Session", "customer")
	}
	resp, err := client.Do(r)
	if err != nil {
		return "", saw, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode == http.StatusOK {
		err = json.Unmarshal(text, &saw)
	}
	return strconv.Itoa(resp.StatusCode), saw, err
}

// judge compares with what the policies say, and with the address that the
// server should have seen.
func (d *demo) judge(r *demoResult, saw nginxSaw, family int) {
	if r.got != r.want {
		r.problems = append(r.problems, "expected: "+r.want)
	}
	if saw.Client == "" {
		return
	}
	want := d.places[r.from].addrs[family]
	if d.places[r.to].Netns == d.network.Outside {
		want = d.node.Addrs()[family] // masqueraded
	}
	if saw.Client != want.String() {
		r.problems = append(r.problems, fmt.Sprintf("the server saw %s, not %s", saw.Client, want))
	}
	if server := r.to; d.places[server].runs == "" {
		r.to = "world" // one of its other addresses
		defer func() { r.to = server }()
	}
	if saw.Server != r.to {
		r.problems = append(r.problems, "another server answered: "+saw.Server)
	}
}

// follow waits for the record of the ask that decided, and shows all there are.
func (d *demo) follow(ctx context.Context, r *demoResult, from, to netip.AddrPort, began time.Time) {
	var records []flow.Record
	for deadline := time.Now().Add(3 * time.Second); ctx.Err() == nil; time.Sleep(5 * time.Millisecond) {
		records = d.records.of(r, from, to, began)
		last, ok := decided(records)
		r.record = last
		if ok && r.decidedBy(last) && (!r.fresh || !r.isRead() || r.got == demoNothing || hasKernel(records)) {
			break
		}
		if time.Now().After(deadline) {
			r.problems = append(r.problems, "no record tells that this was decided by "+orNone(r.by))
			break
		}
	}
	for _, x := range records {
		d.showRecord(r, x)
	}
}

// hasKernel tells whether the kernel's part is among records: it may come
// after the proxy's.
func hasKernel(records []flow.Record) bool {
	return slices.ContainsFunc(records, func(r flow.Record) bool { return r.Layer != "L7" })
}

func orNone(policy string) string {
	if policy == "" {
		return "no policy"
	}
	return policy
}

// decidedBy tells whether a record is the one to wait for.
func (r *demoResult) decidedBy(x flow.Record) bool {
	if x.Layer == "L7" != r.isRead() && r.got != demoNothing {
		return false
	}
	if (x.Verdict == flow.Dropped) != (r.got == demoNothing || r.got == "403" || r.got == demoRefused) {
		return false
	}
	if r.by == "" {
		return true
	}
	if x.Rule != nil && x.Rule.Policy != "" {
		return x.Rule.Policy == r.by
	}
	for _, p := range x.Policies {
		if p == r.by {
			return true
		}
	}
	return false
}

// newKeepAlive is a client that keeps its one connection.
func (d *demo) newKeepAlive(from string) *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: d.places[from].DialContext, MaxConnsPerHost: 1}}
}

// addresses are both addresses of a place, for people.
func addresses(p *demoPlace) string {
	return fmt.Sprintf("%-14s %s", p.addrs[0], p.addrs[1])
}
