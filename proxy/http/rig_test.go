package http

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	nethttp "net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/policy/httprules"
)

// rig is a proxy between clients and one server, on loopback.
type rig struct {
	t        testing.TB
	addr     string
	upstream string
	rules    atomic.Pointer[Rules]
	server   *Server

	mu      sync.Mutex
	told    *sync.Cond
	records []Record
	pairs   []*Pair
	done    int
	heir    *rig   // takes what is offered
	spoil   string // its opening instead of the right one
}

// rules makes a rule set of paths.
func rules(t testing.TB, rules ...httprules.Rule) *RuleSet {
	t.Helper()
	for i := range rules {
		rules[i].Rule = uint32(i) + 1
	}
	rs, err := NewRuleSet(&policy.RuleSet{HTTP: rules})
	if err != nil {
		t.Fatal(err)
	}
	return rs
}

func paths(t testing.TB, paths ...string) *RuleSet {
	var all []httprules.Rule
	for _, p := range paths {
		all = append(all, httprules.Rule{Path: p})
	}
	return rules(t, all...)
}

// newRig proxies to upstream. Without rules, everything under /ok passes.
func newRig(t testing.TB, upstream string, rs ...*RuleSet) *rig {
	t.Helper()
	return newTimedRig(t, upstream, func(*timeouts) {}, rs...)
}

func newTimedRig(t testing.TB, upstream string, times func(*timeouts), rs ...*RuleSet) *rig {
	t.Helper()
	r := &rig{t: t, upstream: upstream}
	r.told = sync.NewCond(&r.mu)
	var force Rules
	switch len(rs) {
	case 0:
		force.Ingress = paths(t, "/ok.*")
	case 1:
		force.Ingress = rs[0]
	default:
		force.Egress, force.Ingress = rs[0], rs[1]
	}
	r.rules.Store(&force)
	server, err := New(Options{Loops: 2, DialTimeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	r.server = server
	server.times.sweep = 20 * time.Millisecond
	server.times.open = time.Minute
	times(&server.times)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.addr = ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := server.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			r.start(c.(*net.TCPConn))
		}
	})
	t.Cleanup(func() {
		ln.Close()
		cancel()
		wg.Wait()
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(r.pairs) != r.done {
			t.Errorf("%d connections were started, %d ended", len(r.pairs), r.done)
		}
	})
	return r
}

func (r *rig) start(c *net.TCPConn) { r.started(r.server.Start(r.conn(c))) }

func (r *rig) started(p *Pair) {
	r.mu.Lock()
	r.pairs = append(r.pairs, p)
	r.told.Broadcast()
	r.mu.Unlock()
}

func (r *rig) conn(c *net.TCPConn) Conn {
	return Conn{
		Client: c,
		Dial: func(ctx context.Context) (*net.TCPConn, error) {
			var d net.Dialer
			c, err := d.DialContext(ctx, "tcp", r.upstream)
			if err != nil {
				return nil, err
			}
			return c.(*net.TCPConn), nil
		},
		Rules: func() Rules { return *r.rules.Load() },
		Observe: func(rec *Record) {
			k := *rec
			k.Method, k.Host, k.Path = []byte(string(k.Method)), []byte(string(k.Host)), []byte(string(k.Path))
			k.Changes = append([]httprules.Change(nil), k.Changes...)
			r.mu.Lock()
			r.records = append(r.records, k)
			r.told.Broadcast()
			r.mu.Unlock()
		},
		Done:  r.ends,
		Offer: r.offer,
	}
}

// began counts the connections so far.
func (r *rig) began() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.pairs)
}

// ends counts the end of a connection.
func (r *rig) ends() {
	r.mu.Lock()
	r.done++
	r.told.Broadcast()
	r.mu.Unlock()
}

// offer gives a connection to the heir; here it has ended then.
func (r *rig) offer() func(Idle) {
	r.mu.Lock()
	heir, spoil := r.heir, r.spoil
	r.mu.Unlock()
	if heir == nil {
		return nil
	}
	return func(i Idle) {
		if spoil != "" {
			i.Opening = []byte(spoil)
		}
		heir.started(heir.server.Adopt(heir.conn(nil), i))
		r.ends()
	}
}

// yieldTo makes the server yield to that of another rig, or to nobody.
func (r *rig) yieldTo(heir *rig) {
	r.mu.Lock()
	r.heir = heir
	r.mu.Unlock()
	r.server.Yield()
}

// wait waits until cond holds; it is called with the lock.
func (r *rig) wait(what string, cond func() bool) {
	r.t.Helper()
	timer := time.AfterFunc(10*time.Second, func() {
		r.mu.Lock()
		r.told.Broadcast()
		r.mu.Unlock()
	})
	defer timer.Stop()
	end := time.Now().Add(10 * time.Second)
	r.mu.Lock()
	defer r.mu.Unlock()
	for !cond() {
		if time.Now().After(end) {
			r.t.Fatalf("%s did not come: %d records, %d of %d connections ended", what, len(r.records), r.done, len(r.pairs))
		}
		r.told.Wait()
	}
}

// record waits for record i.
func (r *rig) record(i int) Record {
	r.t.Helper()
	r.wait("a record", func() bool { return len(r.records) > i })
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.records[i]
}

// ended waits until n connections ended.
func (r *rig) ended(n int) {
	r.t.Helper()
	r.wait("the end of the connection", func() bool { return r.done >= n })
}

// dial connects a client to the proxy.
func (r *rig) dial() *client {
	r.t.Helper()
	c, err := net.Dial("tcp", r.addr)
	if err != nil {
		r.t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	r.t.Cleanup(func() { c.Close() })
	return &client{t: r.t, TCPConn: c.(*net.TCPConn), in: bufio.NewReader(c)}
}

// client speaks HTTP byte by byte.
type client struct {
	t testing.TB
	*net.TCPConn
	in *bufio.Reader
}

func (c *client) send(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		c.t.Fatalf("send: %v", err)
	}
}

// answer is a response as a client saw it.
type answer struct {
	status          int
	close           bool // it says that the connection ends
	header, trailer nethttp.Header
	body            io.Reader
}

// begin reads the head of a response to a request of that method.
func (c *client) begin(method string) answer {
	c.t.Helper()
	res, err := nethttp.ReadResponse(c.in, &nethttp.Request{Method: method})
	if err != nil {
		c.t.Fatalf("read the response: %v", err)
	}
	c.t.Cleanup(func() { res.Body.Close() })
	return answer{status: res.StatusCode, close: res.Close, header: res.Header, body: res.Body}
}

// response reads one response, to a request of that method.
func (c *client) response(method string) (answer, string) {
	c.t.Helper()
	res, err := nethttp.ReadResponse(c.in, &nethttp.Request{Method: method})
	if err != nil {
		c.t.Fatalf("read the response: %v", err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		c.t.Fatalf("read the response's body: %v", err)
	}
	return answer{status: res.StatusCode, close: res.Close, header: res.Header, trailer: res.Trailer}, string(body)
}

// expect reads one response and checks it.
func (c *client) expect(method string, status int, body string) answer {
	c.t.Helper()
	res, got := c.response(method)
	if res.status != status || got != body {
		c.t.Fatalf("%d %q, want %d %q", res.status, got, status, body)
	}
	return res
}

// get makes a request and checks the response.
func (c *client) get(path string, status int, body string) {
	c.t.Helper()
	c.send("GET " + path + " HTTP/1.1\r\nHost: h\r\n\r\n")
	c.expect("GET", status, body)
}

// end checks that the connection ends in good order.
func (c *client) end() {
	c.t.Helper()
	if rest, err := io.ReadAll(c.in); err != nil || len(rest) > 0 {
		c.t.Fatalf("%q and %v, want the end", rest, err)
	}
}

// reset checks that the connection is reset.
func (c *client) reset() {
	c.t.Helper()
	if rest, err := io.ReadAll(c.in); !errors.Is(err, syscall.ECONNRESET) {
		c.t.Fatalf("%q and %v, want a reset", rest, err)
	}
}

const denied = "Access denied\r\n"

// backend serves with net/http.
func backend(t testing.TB, h nethttp.HandlerFunc) string {
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = nil
	s.Start()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// echoPath answers with method, path and body.
func echoPath(w nethttp.ResponseWriter, r *nethttp.Request) {
	body, _ := io.ReadAll(r.Body)
	_, _ = io.WriteString(w, r.Method+" "+r.RequestURI+" "+string(body))
}

// script serves each connection with a function.
func script(t testing.TB, serve func(c *net.TCPConn, in *bufio.Reader)) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			_ = c.SetDeadline(time.Now().Add(30 * time.Second))
			wg.Go(func() {
				defer c.Close()
				serve(c.(*net.TCPConn), bufio.NewReader(c))
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return ln.Addr().String()
}

// readHead reads a head with its empty line.
func readHead(in *bufio.Reader) (string, error) {
	var head strings.Builder
	for {
		line, err := in.ReadString('\n')
		head.WriteString(line)
		if err != nil || line == "\r\n" {
			return head.String(), err
		}
	}
}
