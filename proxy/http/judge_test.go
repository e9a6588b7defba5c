package http

import (
	"bufio"
	"fmt"
	"io"
	"net"
	nethttp "net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/policy/httprules"
)

func TestKeepAlive(t *testing.T) {
	r := newRig(t, backend(t, echoPath))
	c := r.dial()
	for i := range 5 {
		c.get(fmt.Sprintf("/ok/%d?x", i), 200, fmt.Sprintf("GET /ok/%d?x ", i))
		c.get("/no", 403, denied)
	}
	c.send("POST /ok HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello")
	c.expect("POST", 200, "POST /ok hello")
	_ = c.Close()
	r.ended(1)
	rec := r.record(0)
	if string(rec.Method) != "GET" || string(rec.Host) != "h" || string(rec.Path) != "/ok/0?x" || rec.Protocol != "HTTP/1.1" ||
		rec.Verdict != Allowed || rec.Reason != ReasonRule || rec.IngressRule != 1 || rec.EgressRule != 0 || rec.Status != 200 ||
		rec.Latency <= 0 || rec.RequestBytes != int64(len("GET /ok/0?x HTTP/1.1\r\nHost: h\r\n\r\n")) || rec.ResponseBytes < 100 || rec.Failure != 0 || rec.Open {
		t.Errorf("told as %+v", rec)
	}
	rec = r.record(1)
	if string(rec.Path) != "/no" || rec.Verdict != Denied || rec.Reason != ReasonNoRule || rec.Direction != policy.Ingress || rec.Status != 403 || rec.RequestBytes != 0 {
		t.Errorf("told as %+v", rec)
	}
}

// Responses come in the order of the requests, the proxy's own among them, and
// what was denied never reaches the server.
func TestPipelining(t *testing.T) {
	var mu sync.Mutex
	var served []string
	r := newRig(t, backend(t, func(w nethttp.ResponseWriter, req *nethttp.Request) {
		mu.Lock()
		served = append(served, req.RequestURI)
		mu.Unlock()
		if req.RequestURI == "/ok/1" {
			time.Sleep(30 * time.Millisecond)
		}
		echoPath(w, req)
	}))
	for _, portion := range []int{1 << 20, 7, 1} {
		served = nil
		all := "GET /ok/1 HTTP/1.1\r\nHost: h\r\n\r\n" +
			"POST /no HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nGET " +
			"POST /ok/2 HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc" +
			"HEAD /ok/3 HTTP/1.1\r\nHost: h\r\n\r\n" +
			"POST /no HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n" +
			"HEAD /no HTTP/1.1\r\nHost: h\r\n\r\n" +
			"POST /ok/4 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n" +
			"GET /ok/5 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n" +
			"GET /ok/6 HTTP/1.1\r\nHost: h\r\n\r\n"
		c := r.dial()
		go func() {
			for len(all) > 0 {
				n := min(portion, len(all))
				_, _ = io.WriteString(c, all[:n])
				all = all[n:]
			}
		}()
		c.expect("GET", 200, "GET /ok/1 ")
		c.expect("POST", 403, denied)
		c.expect("POST", 200, "POST /ok/2 abc")
		c.expect("HEAD", 200, "")
		c.expect("POST", 403, denied)
		c.expect("HEAD", 403, "")
		c.expect("POST", 200, "POST /ok/4 abc")
		c.expect("GET", 200, "GET /ok/5 ")
		c.end()
		mu.Lock()
		if d := cmp.Diff([]string{"/ok/1", "/ok/2", "/ok/3", "/ok/4", "/ok/5"}, served); d != "" {
			t.Errorf("in portions of %d: %s", portion, d)
		}
		mu.Unlock()
	}
}

// The body of a denied request is thrown away if it is short, else the
// connection ends.
func TestDenyBodies(t *testing.T) {
	r := newRig(t, backend(t, echoPath))
	for _, c := range []struct {
		name, request string
		keep          bool
	}{
		{"sized", "POST /no HTTP/1.1\r\nHost: h\r\nContent-Length: 60000\r\n\r\n" + strings.Repeat("x", 60000), true},
		{"chunked", "POST /no HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + strings.Repeat("3\r\nabc\r\n", 5000) + "0\r\n\r\n", true},
		{"too long", "POST /no HTTP/1.1\r\nHost: h\r\nContent-Length: 200000\r\n\r\n" + strings.Repeat("x", 200000), false},
		{"too many chunks", "POST /no HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + strings.Repeat("3\r\nabc\r\n", 20000) + "0\r\n\r\n", false},
		{"bad chunk", "POST /no HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nx", false},
		{"expecting", "POST /no HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n", false},
		{"closing", "GET /no HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", false},
		{"HTTP/1.0", "GET /no HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", false},
		{"CONNECT", "CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\n\r\n", false},
	} {
		client := r.dial()
		go func() { _, _ = io.WriteString(client, c.request) }()
		if c.name == "bad chunk" {
			client.expect("POST", 400, "Bad request\r\n")
			client.end()
			continue
		}
		res := client.expect("POST", 403, denied)
		if c.keep {
			client.get("/ok", 200, "GET /ok ")
			continue
		}
		if !res.close && c.name != "too many chunks" {
			t.Errorf("%s: the end was not announced", c.name)
		}
		client.end()
	}
}

// New rules hold for open connections from their next request on; without
// known rules nothing passes, without any rules everything does.
func TestRulesChange(t *testing.T) {
	r := newRig(t, backend(t, echoPath))
	c := r.dial()
	set := func(egress, ingress *RuleSet) { r.rules.Store(&Rules{Egress: egress, Ingress: ingress}) }
	c.get("/ok", 200, "GET /ok ")
	set(nil, paths(t, "/new"))
	c.get("/ok", 403, denied)
	c.get("/new", 200, "GET /new ")
	set(paths(t, "/a", "/b"), paths(t, "/b", "/c"))
	c.get("/a", 403, denied)
	c.get("/b", 200, "GET /b ")
	c.get("/c", 403, denied)
	set(nil, Closed())
	c.get("/b", 403, denied)
	set(nil, nil)
	c.get("/b", 200, "GET /b ")
	all, err := NewRuleSet(&policy.RuleSet{AllowAll: true, AllowRule: 77, HTTP: []httprules.Rule{{Path: "/b", Rule: 5}}})
	if err != nil {
		t.Fatal(err)
	}
	set(all, nil)
	c.get("/b", 200, "GET /b ")
	c.get("/x", 200, "GET /x ")
	for i, want := range []Record{
		3: {Reason: ReasonNoRule, Direction: policy.Ingress, Verdict: Denied, EgressRule: 1},
		4: {Reason: ReasonRule, Verdict: Allowed, EgressRule: 2, IngressRule: 1},
		5: {Reason: ReasonNoRule, Direction: policy.Egress, Verdict: Denied},
		6: {Reason: ReasonClosed, Direction: policy.Ingress, Verdict: Denied},
		7: {Reason: ReasonAllowAll, Verdict: Allowed},
		8: {Reason: ReasonRule, Verdict: Allowed, EgressRule: 5},
		9: {Reason: ReasonAllowAll, Verdict: Allowed, EgressRule: 77},
	} {
		if i < 3 {
			continue
		}
		got := r.record(i)
		if got.Reason != want.Reason || got.Direction != want.Direction || got.Verdict != want.Verdict || got.EgressRule != want.EgressRule || got.IngressRule != want.IngressRule {
			t.Errorf("record %d: %+v, want %+v", i, got, want)
		}
	}
}

// Changes that rules make are in what the server gets; the server's end judges
// the request with them.
func TestHeaderChanges(t *testing.T) {
	heads := make(chan string, 1)
	upstream := script(t, func(c *net.TCPConn, in *bufio.Reader) {
		for {
			head, err := readHead(in)
			if err != nil {
				return
			}
			heads <- head
			_, _ = io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
		}
	})
	match := func(mismatch, name, value string) httprules.Rule {
		return httprules.Rule{HeaderMatches: []httprules.HeaderMatch{{Mismatch: mismatch, Name: name, Value: value}}}
	}
	for _, c := range []struct {
		egress, ingress *RuleSet
		fields, want    string
	}{
		{nil, rules(t, match("ADD", "X-A", "one")), "X-A: two\r\n", "X-A: two\r\nX-A: one\r\n"},
		{nil, rules(t, match("REPLACE", "X-A", "one")), "x-a: two\r\nY: z\r\nX-A: three\r\n", "Y: z\r\nX-A: one\r\n"},
		{nil, rules(t, match("DELETE", "X-A", "one")), "x-a: two\r\nY: z\r\n", "Y: z\r\n"},
		{nil, rules(t, match("LOG", "X-A", "one")), "x-a:two\r\n", "x-a: two\r\n"},
		{rules(t, match("ADD", "X-A", "one")), rules(t, httprules.Rule{Headers: []string{"X-A: one"}}), "", "X-A: one\r\n"},
		{rules(t, match("ADD", "X-A", "one")), rules(t, match("REPLACE", "X-A", "two")), "", "X-A: two\r\n"},
	} {
		r := newRig(t, upstream, c.egress, c.ingress)
		client := r.dial()
		client.send("POST /%61/../b HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n" + c.fields + "\r\nbody")
		client.expect("POST", 204, "")
		path := "/b"
		want := "POST " + path + " HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n" + c.want + "\r\n"
		if got := <-heads; got != want {
			t.Errorf("%q, want %q", got, want)
		}
		if rec := r.record(0); len(rec.Changes) == 0 || rec.Changes[0].Rule != 1 {
			t.Errorf("changes told: %+v", rec.Changes)
		}
		_ = client.Close()
	}
}

// CONNECT makes a tunnel only where no HTTP rule applies.
func TestConnect(t *testing.T) {
	upstream := script(t, func(c *net.TCPConn, in *bufio.Reader) {
		_, _ = readHead(in)
		_, _ = io.WriteString(c, "HTTP/1.1 200 Connected\r\n\r\n")
		_, _ = io.Copy(c, in)
	})
	for _, rs := range []*RuleSet{paths(t, ".*"), Closed()} {
		c := newRig(t, upstream, nil, rs).dial()
		c.send("CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\n\r\n")
		c.expect("CONNECT", 403, denied)
		c.end()
	}
	c := newRig(t, upstream, nil, nil).dial()
	c.send("CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\n\r\n")
	if res := c.begin("CONNECT"); res.status != 200 {
		t.Fatal(res.status)
	}
	c.send("raw")
	_ = c.CloseWrite()
	if rest, err := io.ReadAll(c.in); err != nil || string(rest) != "raw" {
		t.Errorf("%q, %v", rest, err)
	}
}
