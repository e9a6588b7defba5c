package http

import (
	"bufio"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/policy/httprules"
)

// upgraded is a connection after an upgrade, with its server's end.
type upgraded struct {
	*client
	server *net.TCPConn
}

// upgrading returns a server that agrees to every upgrade, and what opens
// connections to it with a request for /ok; fields end with a line's end.
func upgrading(t *testing.T) (addr string, open func(r *rig, fields string) upgraded) {
	conns := make(chan *net.TCPConn)
	over := make(chan struct{})
	addr = script(t, func(c *net.TCPConn, in *bufio.Reader) {
		head, _ := readHead(in)
		if strings.HasPrefix(head, "CONNECT ") {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
		} else {
			_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		}
		select {
		case conns <- c:
		case <-over:
		}
		<-over
	})
	t.Cleanup(func() { close(over) })
	return addr, func(r *rig, fields string) upgraded {
		t.Helper()
		c := r.dial()
		c.send("GET /ok?q HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" + fields + "\r\n")
		if res := c.begin("GET"); res.status != 101 {
			t.Fatal(res.status)
		}
		return upgraded{c, <-conns}
	}
}

// pass checks that bytes go both ways.
func (u upgraded) pass() {
	u.t.Helper()
	u.send("ping")
	got := make([]byte, 4)
	if _, err := io.ReadFull(u.server, got); err != nil || string(got) != "ping" {
		u.t.Fatalf("%q, %v", got, err)
	}
	_, _ = io.WriteString(u.server, "pong")
	if _, err := io.ReadFull(u.in, got); err != nil || string(got) != "pong" {
		u.t.Fatalf("%q, %v", got, err)
	}
}

// cut checks that both ends are reset, and that the server got nothing more.
func (u upgraded) cut() {
	u.t.Helper()
	u.reset()
	if rest, err := io.ReadAll(u.server); err == nil || len(rest) > 0 {
		u.t.Fatalf("the server got %q and %v, want a reset", rest, err)
	}
}

func TestTunnelFollowsRules(t *testing.T) {
	header := func(value string) *RuleSet {
		return rules(t, httprules.Rule{Headers: []string{"X-Key: " + value}})
	}
	all, err := NewRuleSet(&policy.RuleSet{AllowAll: true, AllowRule: 77})
	if err != nil {
		t.Fatal(err)
	}
	fine, other := paths(t, "/ok.*"), paths(t, "/other")
	for name, tt := range map[string]struct {
		first, then Rules
		fields      string
		cut         bool
		direction   policy.Direction
	}{
		"the same":                     {first: Rules{Ingress: fine}, then: Rules{Ingress: fine}},
		"others that allow it":         {first: Rules{Ingress: fine}, then: Rules{Ingress: paths(t, "/ok.q")}},
		"none":                         {first: Rules{Ingress: fine}, then: Rules{}},
		"all":                          {first: Rules{Ingress: fine}, then: Rules{Ingress: all, Egress: all}},
		"another path":                 {first: Rules{Ingress: fine}, then: Rules{Ingress: other}, cut: true, direction: policy.Ingress},
		"on the other side":            {first: Rules{Ingress: fine}, then: Rules{Egress: other, Ingress: fine}, cut: true, direction: policy.Egress},
		"not known":                    {first: Rules{Ingress: fine}, then: Rules{Ingress: Closed()}, cut: true, direction: policy.Ingress},
		"from none at all":             {first: Rules{}, then: Rules{Egress: other}, cut: true, direction: policy.Egress},
		"a header that was there":      {first: Rules{Ingress: fine}, then: Rules{Ingress: header("v")}, fields: "X-Key: v\r\n"},
		"a header of another value":    {first: Rules{Ingress: header("v")}, then: Rules{Ingress: header("w")}, fields: "X-Key: v\r\n", cut: true, direction: policy.Ingress},
		"a head that is too long":      {first: Rules{Ingress: fine}, then: Rules{Ingress: paths(t, "/ok.q")}, fields: "A: " + strings.Repeat("a", maxOpening) + "\r\n", cut: true, direction: policy.Ingress},
		"a head that is long, no rule": {first: Rules{Ingress: fine}, then: Rules{}, fields: "A: " + strings.Repeat("a", maxOpening) + "\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			addr, open := upgrading(t)
			r := newRig(t, addr)
			r.rules.Store(&tt.first)
			u := open(r, tt.fields)
			u.pass()
			r.rules.Store(&tt.then)
			if !tt.cut {
				u.pass()
				time.Sleep(3 * r.server.times.sweep)
				u.pass()
				r.wait("no second record", func() bool { return len(r.records) == 1 })
				return
			}
			u.cut() // though nothing moves
			rec := r.record(1)
			if rec.Verdict != Denied || rec.Reason != ReasonPolicyChanged || !rec.Again || rec.Open || rec.Direction != tt.direction ||
				string(rec.Path) != "/ok?q" || string(rec.Method) != "GET" || rec.Status != 101 || rec.EgressRule+rec.IngressRule != 0 {
				t.Errorf("told as %+v", rec)
			}
			if first := r.record(0); !rec.Start.After(first.Start) || rec.RequestBytes <= first.RequestBytes {
				t.Errorf("told as %+v after %+v", rec, first)
			}
			r.ended(1)
		})
	}
}

// Nothing passes from the moment on that the rules are others, in either
// direction, be one of them at its end or not.
func TestTunnelIsCutBeforeBytesPass(t *testing.T) {
	for name, use := range map[string]func(u upgraded){
		"client speaks": func(u upgraded) { u.send("late") },
		"server speaks": func(u upgraded) { _, _ = io.WriteString(u.server, "late") },
		"client ends":   func(u upgraded) { _ = u.CloseWrite() },
		"server ends":   func(u upgraded) { _ = u.server.CloseWrite() },
	} {
		t.Run(name, func(t *testing.T) {
			addr, open := upgrading(t)
			r := newTimedRig(t, addr, func(times *timeouts) { times.sweep = time.Hour })
			u := open(r, "")
			u.pass()
			r.rules.Store(&Rules{Ingress: paths(t, "/other")})
			use(u)
			u.cut()
		})
	}
	t.Run("half of it", func(t *testing.T) {
		addr, open := upgrading(t)
		r := newTimedRig(t, addr, func(times *timeouts) { times.sweep = time.Hour })
		u := open(r, "")
		_ = u.CloseWrite()
		if rest, err := io.ReadAll(u.server); err != nil || len(rest) > 0 {
			t.Fatalf("%q, %v", rest, err)
		}
		_, _ = io.WriteString(u.server, "on")
		if _, err := io.ReadFull(u.in, make([]byte, 2)); err != nil {
			t.Fatal(err)
		}
		r.rules.Store(&Rules{Ingress: paths(t, "/other")})
		_, _ = io.WriteString(u.server, "late")
		u.reset()
	})
}

// A tunnel that CONNECT made ends where HTTP rules come to apply.
func TestConnectFollowsRules(t *testing.T) {
	addr, _ := upgrading(t)
	r := newRig(t, addr)
	r.rules.Store(&Rules{})
	c := r.dial()
	c.send("CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\n\r\n")
	if res := c.begin("CONNECT"); res.status != 200 {
		t.Fatal(res.status)
	}
	r.rules.Store(&Rules{Ingress: paths(t, ".*")})
	c.reset()
	if rec := r.record(1); rec.Reason != ReasonPolicyChanged || string(rec.Method) != "CONNECT" {
		t.Errorf("told as %+v", rec)
	}
}

// What is kept of heads has a bound for all of a loop, and is given back.
func TestOpeningsAreBounded(t *testing.T) {
	var m memory
	head := make([]byte, maxOpening)
	var kept []*exchange
	for range maxOpenings / maxOpening {
		ex := m.takeExchange()
		if m.keepOpening(ex, head); len(ex.opening) != len(head) {
			t.Fatalf("after %d bytes one is not kept", m.openings)
		}
		kept = append(kept, ex)
	}
	ex := m.takeExchange()
	if m.keepOpening(ex, head[:1]); ex.opening != nil {
		t.Error("one more is kept")
	}
	m.freeExchange(ex)
	for _, ex := range kept {
		m.freeExchange(ex)
	}
	if m.openings != 0 {
		t.Errorf("%d bytes are left", m.openings)
	}
}
