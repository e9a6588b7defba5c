package http

import (
	"bufio"
	"fmt"
	"io"
	"net"
	nethttp "net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestYieldIdle: connections between requests go to the other server, which
// judges by its own rules; the first one can go then.
func TestYieldIdle(t *testing.T) {
	upstream := backend(t, echoPath)
	a, b := newRig(t, upstream), newRig(t, upstream, paths(t, "/new.*"))
	used, unused := a.dial(), a.dial()
	used.get("/ok", 200, "GET /ok ")
	a.wait("both connections", func() bool { return len(a.pairs) == 2 })
	a.yieldTo(b)
	a.ended(2)
	for _, p := range a.pairs {
		p.Abort() // returns
	}
	for _, c := range []*client{used, unused} {
		c.get("/new", 200, "GET /new ")
		c.get("/ok", 403, denied)
		c.get("/new/again", 200, "GET /new/again ")
	}
	b.wait("records", func() bool { return len(b.records) == 6 })
	if len(a.records) != 1 {
		t.Errorf("%d records of the first server", len(a.records))
	}
	// A new one, that comes to the first server still, goes over as soon as it
	// stands.
	late := a.dial()
	b.wait("the late one", func() bool { return len(b.pairs) == 3 })
	late.get("/new", 200, "GET /new ")
	// And on to a third.
	c := newRig(t, upstream)
	b.yieldTo(c)
	c.wait("all", func() bool { return len(c.pairs) == 3 })
	late.get("/ok", 200, "GET /ok ")
	_ = late.Close()
	c.ended(1)
}

// TestYieldBusy: what is under way is finished where it began, however long it
// takes; the connection goes over then.
func TestYieldBusy(t *testing.T) {
	step := make(chan struct{})
	upstream := backend(t, func(w nethttp.ResponseWriter, r *nethttp.Request) {
		if r.URL.Path != "/ok/long" {
			echoPath(w, r)
			return
		}
		w.Header().Set("Content-Length", "4")
		for i := range 4 {
			<-step
			fmt.Fprint(w, i)
			w.(nethttp.Flusher).Flush()
		}
	})
	a, b := newRig(t, upstream), newRig(t, upstream, paths(t, "/new"))
	c := a.dial()
	c.send("GET /ok/long HTTP/1.1\r\nHost: h\r\n\r\n")
	step <- struct{}{}
	body := c.begin("GET").body
	a.yieldTo(b)
	ping(t, a)
	var got [4]byte
	for i := range got {
		if i > 0 {
			if b.began() > 0 {
				t.Fatal("it went over in the midst of a response")
			}
			step <- struct{}{}
		}
		if _, err := io.ReadFull(body, got[i:i+1]); err != nil {
			t.Fatal(err)
		}
	}
	if string(got[:]) != "0123" {
		t.Errorf("body %q", got)
	}
	a.ended(1)
	if r := a.record(0); r.Verdict != Allowed || r.Failure != ReasonNone {
		t.Errorf("record %+v", r)
	}
	c.get("/new", 200, "GET /new ")
}

// TestYieldBusyRequest: nor does a connection go over in the midst of a request.
func TestYieldBusyRequest(t *testing.T) {
	begun := make(chan struct{})
	upstream := backend(t, func(w nethttp.ResponseWriter, r *nethttp.Request) {
		if r.Method == "POST" {
			begun <- struct{}{}
		}
		echoPath(w, r)
	})
	a, b := newRig(t, upstream), newRig(t, upstream, paths(t, "/new"))
	c := a.dial()
	c.send("POST /ok HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nab")
	<-begun
	a.yieldTo(b)
	ping(t, a)
	c.send("cd")
	c.expect("POST", 200, "POST /ok abcd")
	a.ended(1)
	c.get("/new", 200, "GET /new ")
}

// TestYieldInTheMidstOfAHead: the part of a head that was read goes along,
// wherever it is cut.
func TestYieldInTheMidstOfAHead(t *testing.T) {
	upstream := backend(t, echoPath)
	a, b := newRig(t, upstream), newRig(t, upstream, paths(t, "/new/.*"))
	request := "POST /new/x HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc"
	head := strings.Index(request, "abc")
	for cut := range head {
		a.yieldTo(nil)
		c := a.dial()
		c.send(request[:cut])
		a.wait("the connection", func() bool { return len(a.pairs) == cut+1 })
		if cut > 0 && cut%8 == 0 {
			time.Sleep(5 * time.Millisecond) // it has been read for sure
		}
		a.yieldTo(b)
		a.ended(cut + 1)
		c.send(request[cut:])
		c.expect("POST", 200, "POST /new/x abc")
		_ = c.Close()
	}
	b.ended(head)
	if n := len(a.records); n > 0 {
		t.Errorf("%d records of the first server", n)
	}
}

// TestYieldUnderLoad: connections that are used all the time go to and fro
// between two servers, and no request fails.
func TestYieldUnderLoad(t *testing.T) {
	upstream := backend(t, func(w nethttp.ResponseWriter, r *nethttp.Request) {
		body, _ := io.ReadAll(r.Body)
		_, _ = w.Write(body)
	})
	a, b := newRig(t, upstream), newRig(t, upstream)
	const clients = 16
	stop := make(chan struct{})
	var asked atomic.Int64
	var all sync.WaitGroup
	for n := range clients {
		c := a.dial()
		all.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				// Two at a time now and then, and bodies that need some reads.
				body := strings.Repeat(fmt.Sprintf("%d/%d ", n, i), 1+i%7*200)
				for range 1 + i%2 {
					fmt.Fprintf(c, "POST /ok HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
				}
				for range 1 + i%2 {
					res, err := nethttp.ReadResponse(c.in, nil)
					if err != nil {
						t.Errorf("client %d, request %d: %v", n, i, err)
						return
					}
					got, err := io.ReadAll(res.Body)
					if err != nil || string(got) != body || res.Close {
						t.Errorf("client %d, request %d: %d %q, %v", n, i, res.StatusCode, got, err)
						return
					}
					asked.Add(1)
				}
			}
		})
	}
	a.wait("the connections", func() bool { return len(a.pairs) == clients })
	from, to := a, b
	for range 20 {
		to.yieldTo(nil)
		from.yieldTo(to)
		time.Sleep(20 * time.Millisecond)
		from, to = to, from
	}
	close(stop)
	all.Wait()
	handed := a.began() + b.began() - clients
	t.Logf("%d requests, %d hand-overs", asked.Load(), handed)
	if handed < 5*clients {
		t.Error("too few of them for a test")
	}
}

// TestYieldDeclined: connections nobody takes are served on, and are offered
// again.
func TestYieldDeclined(t *testing.T) {
	upstream := backend(t, echoPath)
	a, b := newRig(t, upstream), newRig(t, upstream)
	c := a.dial()
	c.get("/ok", 200, "GET /ok ")
	a.server.Drain()
	a.yieldTo(nil)
	c.get("/ok/1", 200, "GET /ok/1 ")
	c.get("/ok/2", 200, "GET /ok/2 ")
	a.mu.Lock()
	a.heir = b // is asked by the sweep
	a.mu.Unlock()
	a.ended(1)
	c.get("/ok/3", 200, "GET /ok/3 ")
	b.record(0)
}

// TestYieldKeepsWhatEnds: a connection whose end has begun stays where it is.
func TestYieldKeepsWhatEnds(t *testing.T) {
	asked, answer := make(chan struct{}), make(chan struct{})
	upstream := script(t, func(c *net.TCPConn, in *bufio.Reader) {
		if _, err := readHead(in); err == nil {
			asked <- struct{}{}
			<-answer
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
			_, _ = io.Copy(io.Discard, in)
		}
	})
	a, b := newRig(t, upstream), newRig(t, upstream)
	half, last := a.dial(), a.dial()
	half.send("GET /ok HTTP/1.1\r\nHost: h\r\n\r\n")
	_ = half.CloseWrite()
	last.send("GET /ok HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
	<-asked
	<-asked
	a.yieldTo(b)
	close(answer)
	for _, c := range []*client{half, last} {
		c.expect("GET", 200, "hi")
		c.end()
		_ = c.Close()
	}
	a.ended(2)
	if n := b.began(); n > 0 {
		t.Errorf("%d went over", n)
	}
}

// TestEnd: one connection ends where it next may, and the others go on.
func TestEnd(t *testing.T) {
	r := newTimedRig(t, backend(t, echoPath), func(times *timeouts) { times.pause = 50 * time.Millisecond })
	idle, busy, other := r.dial(), r.dial(), r.dial()
	for i, c := range []*client{idle, busy, other} {
		c.get("/ok", 200, "GET /ok ")
		r.record(i)
	}
	r.wait("all", func() bool { return len(r.pairs) == 3 })
	time.Sleep(2 * r.server.times.pause)
	busy.get("/ok", 200, "GET /ok ")
	for _, p := range r.pairs[:2] {
		p.End()
	}
	idle.end()
	busy.send("GET /ok HTTP/1.1\r\nHost: h\r\n\r\n")
	if res := busy.expect("GET", 200, "GET /ok "); !res.close {
		t.Error("the last response does not say so")
	}
	busy.end()
	other.get("/ok", 200, "GET /ok ")
}

// TestAdoptAfterTheEnd: a server that has ended closes what it is given.
func TestAdoptAfterTheEnd(t *testing.T) {
	upstream := backend(t, echoPath)
	a, b := newRig(t, upstream), newRig(t, upstream)
	c := a.dial()
	c.get("/ok", 200, "GET /ok ")
	for _, l := range b.server.loops {
		l.mu.Lock()
		l.stopping = true
		l.mu.Unlock()
	}
	a.yieldTo(b)
	a.ended(1)
	c.reset()
	b.ended(1)
}

// TestYieldTunnel: an upgraded connection goes over when nothing is on its way,
// and the rules there hold for it: those of its first request.
func TestYieldTunnel(t *testing.T) {
	upstream, open := upgrading(t)
	a := newRig(t, upstream)
	b := newTimedRig(t, upstream, func(times *timeouts) { times.sweep = time.Hour }, paths(t, "/ok.*"), paths(t, "/.*"))
	u, half := open(a, ""), open(a, "X-Long: "+strings.Repeat("x", 9000)+"\r\n")
	u.pass()
	half.pass()
	_ = half.CloseWrite() // what ends stays
	if _, err := half.server.Read(make([]byte, 1)); err != io.EOF {
		t.Fatal(err)
	}
	a.yieldTo(b)
	a.ended(1)
	for range 3 {
		u.pass()
	}
	if n := b.began(); n != 1 {
		t.Errorf("%d went over", n)
	}
	b.mu.Lock()
	if len(b.records) > 0 {
		t.Errorf("it is told as new: %+v", b.records)
	}
	b.mu.Unlock()
	// And on, to where it may not be.
	c := newRig(t, upstream, paths(t, "/no"))
	b.yieldTo(c)
	u.reset()
	c.ended(1)
	if r := c.record(0); r.Verdict != Denied || r.Reason != ReasonPolicyChanged || !r.Again || string(r.Path) != "/ok?q" || string(r.Method) != "GET" || string(r.Host) != "h" {
		t.Errorf("%+v", r)
	}
	_ = half.server.Close()
	_ = half.Close()
	a.ended(2)
}

// TestAdoptBadTunnel: one that did not begin with a request ends.
func TestAdoptBadTunnel(t *testing.T) {
	upstream, open := upgrading(t)
	for _, opening := range []string{"x", "GET /ok HTTP/1.1\r\n", "GET /ok HTTP/1.1\r\nHost: h\r\nHost: i\r\n\r\n"} {
		a, b := newRig(t, upstream), newRig(t, upstream)
		u := open(a, "")
		a.mu.Lock()
		a.heir = b
		a.spoil = opening
		a.mu.Unlock()
		a.server.Yield()
		a.ended(1)
		b.ended(1)
		u.reset()
	}
}
