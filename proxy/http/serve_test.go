package http

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	nethttp "net/http"
	"strings"
	"sync"
	"syscall"
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
	c.Close()
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
				io.WriteString(c, all[:n])
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
		go io.WriteString(client, c.request)
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
		if !res.Close && c.name != "too many chunks" {
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
			io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
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
		client.Close()
	}
}

func sum(r io.Reader) (string, int64, error) {
	h := sha256.New()
	n, err := io.Copy(h, r)
	return fmt.Sprintf("%x", h.Sum(nil)), n, err
}

// noise is n bytes that don't repeat, the same for one seed.
func noise(seed uint64, n int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{byte(seed)}), n)
}

// Large bodies pass whole, both ways at once, sized and chunked.
func TestLargeBodies(t *testing.T) {
	const size = 64 << 20
	r := newRig(t, backend(t, func(w nethttp.ResponseWriter, req *nethttp.Request) {
		got, n, err := sum(req.Body)
		if err != nil {
			t.Errorf("the server read %d: %v", n, err)
		}
		w.Header().Set("X-Sum", got)
		if req.URL.Query().Get("sized") != "" {
			w.Header().Set("Content-Length", fmt.Sprint(size))
		}
		io.Copy(w, noise(2, size))
	}))
	up, _, _ := sum(noise(1, size))
	down, _, _ := sum(noise(2, size))
	client := &nethttp.Client{Transport: &nethttp.Transport{}}
	defer client.CloseIdleConnections()
	for _, sized := range []bool{true, false} {
		url := "http://" + r.addr + "/ok"
		if sized {
			url += "?sized=1"
		}
		req, _ := nethttp.NewRequest("POST", url, noise(1, size))
		if sized {
			req.ContentLength = size
		}
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		got, n, err := sum(res.Body)
		if err != nil || got != down || res.Header.Get("X-Sum") != up {
			t.Errorf("sized %v: %d bytes, %v; sums %s %s", sized, n, err, res.Header.Get("X-Sum"), got)
		}
		res.Body.Close()
	}
	rec := r.record(1)
	if rec.RequestBytes < size || rec.ResponseBytes < size {
		t.Errorf("told as %d bytes up, %d down", rec.RequestBytes, rec.ResponseBytes)
	}
}

// Random streams of requests, in random portions, with bodies of all sizes
// around the limits of buffers: every one arrives whole and in order.
func TestRandomStreams(t *testing.T) {
	upstream := backend(t, func(w nethttp.ResponseWriter, req *nethttp.Request) {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			t.Error(err)
		}
		if strings.Contains(req.RequestURI, "flush") {
			for len(body) > 0 {
				n := min(len(body), 30000)
				w.Write(body[:n])
				w.(nethttp.Flusher).Flush()
				body = body[n:]
			}
		}
		w.Write(body)
	})
	r := newRig(t, upstream)
	sizes := []int{0, 1, 100, 4096, 65535, 65536, 65537, spliceMin - 1, spliceMin, spliceMin + 1, 300000, 2<<20 + 3}
	for seed := range uint64(6) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		var stream bytes.Buffer
		type want struct {
			status int
			body   []byte
		}
		var wants []want
		for range 30 {
			body := make([]byte, sizes[rnd.IntN(len(sizes))])
			for i := range body {
				body[i] = byte(rnd.Uint32())
			}
			path := []string{"/ok", "/ok/flush", "/no"}[rnd.IntN(3)]
			w := want{200, body}
			if path == "/no" {
				body = body[:min(len(body), 60000)]
				w = want{403, []byte(denied)}
			}
			wants = append(wants, w)
			fmt.Fprintf(&stream, "POST %s HTTP/1.1\r\nHost: h\r\n", path)
			if rnd.IntN(2) == 0 {
				fmt.Fprintf(&stream, "Content-Length: %d\r\n\r\n%s", len(body), body)
				continue
			}
			stream.WriteString("Transfer-Encoding: chunked\r\n\r\n")
			for len(body) > 0 {
				n := min(len(body), 1+rnd.IntN(1<<18))
				fmt.Fprintf(&stream, "%x\r\n%s\r\n", n, body[:n])
				body = body[n:]
			}
			stream.WriteString("0\r\n\r\n")
		}
		c := r.dial()
		go func() {
			rnd := rand.New(rand.NewPCG(seed, 2))
			all := stream.Bytes()
			for len(all) > 0 {
				n := min(len(all), 1+rnd.IntN(100000))
				if rnd.IntN(3) == 0 {
					n = min(len(all), 1+rnd.IntN(40))
				}
				c.Write(all[:n])
				all = all[n:]
			}
		}()
		for i, w := range wants {
			res, body := c.response("POST")
			if res.StatusCode != w.status || body != string(w.body) {
				t.Fatalf("seed %d, response %d: %d with %d bytes, want %d with %d", seed, i, res.StatusCode, len(body), w.status, len(w.body))
			}
		}
		c.Close()
	}
}

func TestContinue(t *testing.T) {
	r := newRig(t, backend(t, echoPath))
	c := r.dial()
	c.send("POST /ok HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
	line, err := c.in.ReadString('\n')
	if err != nil || line != "HTTP/1.1 100 Continue\r\n" {
		t.Fatalf("%q, %v", line, err)
	}
	c.in.ReadString('\n')
	c.send("hello")
	c.expect("POST", 200, "POST /ok hello")
	c.get("/ok", 200, "GET /ok ")
}

// Responses without a body have none, whatever their head says.
func TestBodiless(t *testing.T) {
	upstream := script(t, func(c *net.TCPConn, in *bufio.Reader) {
		for _, answer := range []string{
			"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
			"HTTP/1.1 204 No Content\r\n\r\n",
			"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
			"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
			"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
			"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 1\r\n\r\n",
		} {
			if _, err := readHead(in); err != nil {
				return
			}
			io.WriteString(c, answer)
		}
		readHead(in)
	})
	r := newRig(t, upstream)
	c := r.dial()
	for _, w := range []struct {
		method string
		status int
		body   string
	}{{"HEAD", 200, ""}, {"GET", 204, ""}, {"GET", 304, ""}, {"GET", 103, ""}, {"", 200, "hi"}, {"HEAD", 200, ""}, {"GET", 200, "hi"}} {
		if w.method != "" {
			c.send(w.method + " /ok HTTP/1.1\r\nHost: h\r\n\r\n")
		}
		res := c.expect(w.method, w.status, w.body)
		if w.body == "hi" && len(res.Trailer) > 0 && res.Trailer.Get("X-Sum") != "1" {
			t.Errorf("trailer %v", res.Trailer)
		}
	}
}

// A response may end with the connection.
func TestToTheEnd(t *testing.T) {
	for _, version := range []string{"1.0", "1.1"} {
		upstream := script(t, func(c *net.TCPConn, in *bufio.Reader) {
			readHead(in)
			io.WriteString(c, "HTTP/"+version+" 200 OK\r\n\r\n")
			io.Copy(c, noise(3, 1<<20))
		})
		r := newRig(t, upstream)
		c := r.dial()
		c.send("GET /ok HTTP/" + version + "\r\nHost: h\r\n\r\nGET /ok/2 HTTP/1.1\r\nHost: h\r\n\r\n")
		res, err := nethttp.ReadResponse(c.in, nil)
		if err != nil {
			t.Fatal(err)
		}
		want, _, _ := sum(noise(3, 1<<20))
		if got, n, err := sum(res.Body); err != nil || got != want {
			t.Errorf("HTTP/%s: %d bytes, %v", version, n, err)
		}
		r.ended(0)
	}
}

// A response cut short stays so.
func TestTruncatedResponse(t *testing.T) {
	for _, framing := range []string{"Content-Length: 10\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\na\r\nhello"} {
		upstream := script(t, func(c *net.TCPConn, in *bufio.Reader) {
			readHead(in)
			io.WriteString(c, "HTTP/1.1 200 OK\r\n"+framing)
		})
		r := newRig(t, upstream)
		c := r.dial()
		c.send("GET /ok HTTP/1.1\r\nHost: h\r\n\r\n")
		res, err := nethttp.ReadResponse(c.in, nil)
		if err != nil {
			t.Fatal(err)
		}
		if body, err := io.ReadAll(res.Body); !errors.Is(err, io.ErrUnexpectedEOF) || string(body) != "hello" {
			t.Errorf("%q, %v", body, err)
		}
		if rec := r.record(0); rec.Failure != ReasonBodyTruncated || rec.Verdict != Allowed || rec.Status != 200 {
			t.Errorf("told as %+v", rec)
		}
	}
}

// A response may begin, and be read, while the request's body still comes;
// what is left of the body goes on to the server.
func TestEarlyResponse(t *testing.T) {
	body := make(chan string, 1)
	upstream := script(t, func(c *net.TCPConn, in *bufio.Reader) {
		readHead(in)
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nearly")
		got := make([]byte, 10)
		io.ReadFull(in, got)
		body <- string(got)
		readHead(in)
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext")
	})
	r := newRig(t, upstream)
	c := r.dial()
	c.send("POST /ok HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n01234")
	c.expect("POST", 200, "early")
	c.send("56789")
	if got := <-body; got != "0123456789" {
		t.Errorf("the server got %q", got)
	}
	c.get("/ok", 200, "next")
}

// A server that answers and closes while the body comes: the client gets the
// answer, not a reset.
func TestEarlyClose(t *testing.T) {
	upstream := script(t, func(c *net.TCPConn, in *bufio.Reader) {
		readHead(in)
		io.WriteString(c, "HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\ntoo")
		c.CloseWrite()
		time.Sleep(50 * time.Millisecond)
	})
	r := newRig(t, upstream)
	c := r.dial()
	c.send("POST /ok HTTP/1.1\r\nHost: h\r\nContent-Length: 10000000\r\n\r\n")
	go io.Copy(c, noise(4, 10000000))
	time.Sleep(20 * time.Millisecond)
	c.expect("POST", 413, "too")
}

// Both bodies at once: a server that answers as it reads.
func TestBothWays(t *testing.T) {
	r := newRig(t, backend(t, func(w nethttp.ResponseWriter, req *nethttp.Request) {
		nethttp.NewResponseController(w).EnableFullDuplex()
		w.WriteHeader(200)
		io.Copy(w, req.Body)
	}))
	c := r.dial()
	c.send("POST /ok HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
	go func() {
		for i := range 100 {
			fmt.Fprintf(c, "3e8\r\n%01000d\r\n", i)
		}
		io.WriteString(c, "0\r\n\r\n")
	}()
	_, got := c.response("POST")
	if len(got) != 100_000 || !strings.HasSuffix(got, "099") {
		t.Errorf("%d bytes came back", len(got))
	}
	c.get("/ok", 200, "")
}

// After an upgrade bytes pass as they are, both ways, until each side ends.
func TestWebsocket(t *testing.T) {
	upstream := script(t, func(c *net.TCPConn, in *bufio.Reader) {
		head, _ := readHead(in)
		if !strings.Contains(head, "Upgrade: websocket\r\n") {
			io.WriteString(c, "HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n")
			head, _ = readHead(in)
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
			return
		}
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nfirst")
		n, _ := io.Copy(c, in) // echo to the end
		fmt.Fprintf(c, "read %d", n)
	})
	r := newRig(t, upstream)
	ask := " HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"

	c := r.dial()
	c.send("GET /no" + ask)
	c.expect("GET", 403, denied)
	c.send("GET /ok" + ask + "GET /no HTTP/1.1\r\n\x00\xff")
	res, err := nethttp.ReadResponse(c.in, nil)
	if err != nil || res.StatusCode != 101 {
		t.Fatal(res, err)
	}
	if rec := r.record(1); rec.Status != 101 || !rec.Open || rec.Verdict != Allowed {
		t.Errorf("told as %+v", rec)
	}
	const size = 8 << 20
	go func() {
		io.Copy(c, noise(5, size))
		c.CloseWrite()
	}()
	first := "firstGET /no HTTP/1.1\r\n\x00\xff"
	got := make([]byte, len(first))
	if _, err := io.ReadFull(c.in, got); err != nil || string(got) != first {
		t.Fatalf("%q, %v", got, err)
	}
	want, _, _ := sum(noise(5, size))
	if s, n, err := sum(io.LimitReader(c.in, size)); err != nil || s != want {
		t.Errorf("%d bytes came back, %v", n, err)
	}
	rest, err := io.ReadAll(c.in)
	if err != nil || string(rest) != fmt.Sprintf("read %d", size+len(first)-5) {
		t.Errorf("%q, %v", rest, err)
	}
	r.ended(1)

	// Other protocols are not asked for, and the connection goes on.
	c = r.dial()
	c.send("GET /ok HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n\r\n")
	c.expect("GET", 426, "")
	c.get("/ok", 200, "hi")
}

// CONNECT makes a tunnel only where no HTTP rule applies.
func TestConnect(t *testing.T) {
	upstream := script(t, func(c *net.TCPConn, in *bufio.Reader) {
		readHead(in)
		io.WriteString(c, "HTTP/1.1 200 Connected\r\n\r\n")
		io.Copy(c, in)
	})
	for _, rs := range []*RuleSet{paths(t, ".*"), Closed()} {
		c := newRig(t, upstream, nil, rs).dial()
		c.send("CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\n\r\n")
		c.expect("CONNECT", 403, denied)
		c.end()
	}
	c := newRig(t, upstream, nil, nil).dial()
	c.send("CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\n\r\n")
	if res, err := nethttp.ReadResponse(c.in, &nethttp.Request{Method: "CONNECT"}); err != nil || res.StatusCode != 200 {
		t.Fatal(res, err)
	}
	c.send("raw")
	c.CloseWrite()
	if rest, err := io.ReadAll(c.in); err != nil || string(rest) != "raw" {
		t.Errorf("%q, %v", rest, err)
	}
}

// A client may end its input behind a request and still get the response; the
// server sees the end.
func TestHalfClose(t *testing.T) {
	upstream := script(t, func(c *net.TCPConn, in *bufio.Reader) {
		readHead(in)
		rest, err := io.ReadAll(in)
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n%q %v", rest, err == nil)
		if err != nil {
			t.Error(err)
		}
	})
	r := newRig(t, upstream)
	c := r.dial()
	c.send("GET /ok HTTP/1.1\r\nHost: h\r\n\r\n")
	c.CloseWrite()
	res, err := nethttp.ReadResponse(c.in, nil)
	if err != nil || res.StatusCode != 200 {
		t.Fatal(res, err)
	}
	if body, _ := io.ReadAll(res.Body); !strings.HasPrefix(string(body), `"" true`) {
		t.Errorf("%q", body)
	}
	r.ended(1)
}

// The server's end of an idle connection is passed on.
func TestServerEnd(t *testing.T) {
	upstream := script(t, func(c *net.TCPConn, in *bufio.Reader) {
		readHead(in)
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
		time.Sleep(20 * time.Millisecond)
	})
	r := newRig(t, upstream)
	c := r.dial()
	c.get("/ok", 200, "hi")
	c.end()
	c.Close()
	r.ended(1)
	// Before any answer.
	upstream = script(t, func(c *net.TCPConn, in *bufio.Reader) { readHead(in) })
	r = newRig(t, upstream)
	c = r.dial()
	c.send("GET /ok HTTP/1.1\r\nHost: h\r\n\r\n")
	c.end()
	if rec := r.record(0); rec.Failure != ReasonServerClosed || rec.Verdict != Allowed || rec.Status != 0 {
		t.Errorf("told as %+v", rec)
	}
}

// A reset of one side is a reset for the other.
func TestResets(t *testing.T) {
	var rst = func(c *net.TCPConn) { c.SetLinger(0); c.Close() }
	for _, when := range []string{"idle", "asked", "head", "body"} {
		upstream := script(t, func(c *net.TCPConn, in *bufio.Reader) {
			switch when {
			case "asked", "head", "body":
				readHead(in)
			}
			if when == "head" {
				io.WriteString(c, "HTTP/1.1 200 O")
			}
			if when == "body" {
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
			}
			time.Sleep(20 * time.Millisecond)
			rst(c)
		})
		c := newRig(t, upstream).dial()
		if when != "idle" {
			c.send("GET /ok HTTP/1.1\r\nHost: h\r\n\r\n")
		}
		if when == "body" {
			io.CopyN(io.Discard, c.in, 40)
		}
		c.reset()
	}
	for _, when := range []string{"idle", "asked", "body"} {
		end := make(chan error, 1)
		upstream := script(t, func(c *net.TCPConn, in *bufio.Reader) {
			if when != "idle" {
				readHead(in)
			}
			_, err := io.ReadAll(in)
			end <- err
		})
		r := newRig(t, upstream)
		c := r.dial()
		switch when {
		case "asked":
			c.send("GET /ok HTTP/1.1\r\nHost: h\r\n\r\n")
		case "body":
			c.send("POST /ok HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nhello")
		}
		time.Sleep(20 * time.Millisecond)
		rst(c.TCPConn)
		if err := <-end; !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: the server saw %v, not a reset", when, err)
		}
		r.ended(1)
	}
}

// A server that is not there is told to the client by a reset.
func TestDeadUpstream(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	r := newRig(t, ln.Addr().String())
	r.dial().reset()
	if rec := r.record(0); rec.Verdict != Failed || rec.Reason != ReasonUnreachable {
		t.Errorf("told as %+v", rec)
	}
}

// A reader that does not read stops the writer, not the proxy's memory.
func TestSlowReader(t *testing.T) {
	for _, framing := range []string{"Content-Length: 1000000000\r\n\r\n", "Connection: close\r\n\r\n"} {
		var mu sync.Mutex
		var written int64
		upstream := script(t, func(c *net.TCPConn, in *bufio.Reader) {
			readHead(in)
			io.WriteString(c, "HTTP/1.1 200 OK\r\n"+framing)
			block := make([]byte, 1<<16)
			for {
				n, err := c.Write(block)
				mu.Lock()
				written += int64(n)
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
		r := newRig(t, upstream)
		c := r.dial()
		c.SetReadBuffer(1 << 16)
		c.send("GET /ok HTTP/1.1\r\nHost: h\r\n\r\n")
		other := r.dial() // the same server, and likely the same loop
		other.get("/no", 403, denied)
		last := int64(-1)
		for deadline := time.Now().Add(10 * time.Second); ; {
			time.Sleep(100 * time.Millisecond)
			mu.Lock()
			now := written
			mu.Unlock()
			if now == last {
				break
			}
			if last = now; time.Now().After(deadline) {
				t.Fatal("the server never stopped writing")
			}
		}
		if last > 64<<20 {
			t.Errorf("%d bytes were taken for a client that reads none", last)
		}
		// It goes on where it stopped.
		if _, err := io.CopyN(io.Discard, c.in, last+10<<20); err != nil {
			t.Error(err)
		}
		c.SetLinger(0)
		c.Close()
	}
}

// Abort resets both sides and waits for it.
func TestAbort(t *testing.T) {
	end := make(chan error, 1)
	upstream := script(t, func(c *net.TCPConn, in *bufio.Reader) {
		readHead(in)
		_, err := in.ReadByte()
		end <- err
	})
	r := newRig(t, upstream)
	c := r.dial()
	c.send("GET /ok HTTP/1.1\r\nHost: h\r\n\r\n")
	time.Sleep(20 * time.Millisecond)
	r.wait("the pair", func() bool { return len(r.pairs) == 1 })
	r.pairs[0].Abort()
	if r.done != 1 {
		t.Error("Abort returned before the end")
	}
	r.pairs[0].Abort() // again does nothing
	c.reset()
	if err := <-end; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the server saw %v", err)
	}
	if rec := r.record(0); rec.Failure != ReasonAborted {
		t.Errorf("told as %+v", rec)
	}
}

// The end of Run resets what is left, connections that still dial as well.
func TestRunEnds(t *testing.T) {
	server, err := New(Options{Loops: 1})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error)
	go func() { ran <- server.Run(ctx) }()
	ln, _ := net.Listen("tcp", "127.0.0.1:0")
	defer ln.Close()
	accept := func() (net.Conn, Conn) {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		a, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		return c, Conn{
			Client: a.(*net.TCPConn),
			Dial: func(ctx context.Context) (*net.TCPConn, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			},
			Rules: func() Rules { return Rules{} },
		}
	}
	done := make(chan struct{}, 2)
	client, conn := accept()
	conn.Done = func() { done <- struct{}{} }
	server.Start(conn)
	time.Sleep(10 * time.Millisecond)
	cancel()
	if err := <-ran; err != nil {
		t.Error(err)
	}
	<-done
	for range 2 {
		if _, err := client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%v, want a reset", err)
		}
		client, conn = accept() // too late now
		conn.Done = func() { done <- struct{}{} }
		server.Start(conn).Abort()
		<-done
	}
}

// A response that takes long is told while it runs, once.
func TestOpenRecord(t *testing.T) {
	release := make(chan struct{})
	upstream := script(t, func(c *net.TCPConn, in *bufio.Reader) {
		readHead(in)
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na")
		<-release
		io.WriteString(c, "b")
		readHead(in)
		io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
	})
	r := newTimedRig(t, upstream, func(times *timeouts) { times.open = 50 * time.Millisecond })
	c := r.dial()
	c.send("GET /ok HTTP/1.1\r\nHost: h\r\n\r\n")
	if rec := r.record(0); !rec.Open || rec.Status != 200 {
		t.Errorf("told as %+v", rec)
	}
	close(release)
	c.expect("GET", 200, "ab")
	c.send("GET /ok/2 HTTP/1.1\r\nHost: h\r\n\r\n")
	c.expect("GET", 204, "")
	if rec := r.record(1); rec.Open || string(rec.Path) != "/ok/2" {
		t.Errorf("told as %+v", rec)
	}
}

// What goes through on the allow path costs no allocation.
func TestAllocations(t *testing.T) {
	upstream := script(t, func(c *net.TCPConn, in *bufio.Reader) {
		buf := make([]byte, 4096)
		answer := []byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
		for {
			if _, err := c.Read(buf); err != nil {
				return
			}
			c.Write(answer)
		}
	})
	var set []httprules.Rule
	for i := range 100 {
		set = append(set, httprules.Rule{Method: "GET", Path: fmt.Sprintf("/resource%d/[0-9]+", i)})
	}
	set = append(set, httprules.Rule{Path: "/ok", Headers: []string{"X-A: v"}})
	server, err := New(Options{Loops: 1})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { server.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	ln, _ := net.Listen("tcp", "127.0.0.1:0")
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	a, _ := ln.Accept()
	force := Rules{Egress: rules(t, set...), Ingress: rules(t, set...)}
	told := 0
	server.Start(Conn{
		Client: a.(*net.TCPConn),
		Dial: func(context.Context) (*net.TCPConn, error) {
			c, err := net.Dial("tcp", upstream)
			if err != nil {
				return nil, err
			}
			return c.(*net.TCPConn), nil
		},
		Rules:   func() Rules { return force },
		Observe: func(r *Record) { told++ },
	})
	buf := make([]byte, 4096)
	for name, request := range map[string]string{
		"as it is":   "GET /resource99/1 HTTP/1.1\r\nHost: h\r\nUser-Agent: test\r\nAccept: */*\r\n\r\n",
		"normalised": "GET /a/../resource99/1 HTTP/1.1\r\nHost: h\r\nUser-Agent: test\r\n\r\n",
		"headers":    "GET /ok HTTP/1.1\r\nHost: h\r\nX-A: v\r\nConnection: keep-alive\r\n\r\n",
		"body":       "POST /ok HTTP/1.1\r\nHost: h\r\nX-A: v\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
		"denied":     "GET /denied HTTP/1.1\r\nHost: h\r\n\r\n",
	} {
		raw := []byte(request)
		if n := testing.AllocsPerRun(200, func() {
			c.Write(raw)
			if _, err := c.Read(buf); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations per request", name, n)
		}
	}
}
