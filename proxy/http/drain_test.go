package http

import (
	"bufio"
	"fmt"
	"io"
	"net"
	nethttp "net/http"
	"strings"
	"testing"
	"time"
)

// newDrainRig has connections that count as unused after 50 ms.
func newDrainRig(t *testing.T, upstream string) *rig {
	return newTimedRig(t, upstream, func(times *timeouts) { times.pause = 50 * time.Millisecond })
}

// TestDrainIdle: connections between requests end in good order, whether they
// had a request or none, and so do their servers'.
func TestDrainIdle(t *testing.T) {
	ended := make(chan error, 2)
	upstream := script(t, func(c *net.TCPConn, in *bufio.Reader) {
		for {
			if _, err := readHead(in); err != nil {
				ended <- err
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	})
	r := newDrainRig(t, upstream)
	used, unused := r.dial(), r.dial()
	used.get("/ok", 200, "")
	r.wait("both connections", func() bool { return len(r.pairs) == 2 })
	time.Sleep(2 * r.server.times.pause)
	r.server.Drain()
	for _, c := range []*client{used, unused} {
		_ = c.SetReadDeadline(time.Now().Add(3 * time.Second))
		c.end()
		_ = c.Close()
	}
	for range 2 {
		if err := <-ended; err != io.EOF {
			t.Errorf("a server's connection: %v", err)
		}
	}
	r.ended(2)
	r.wait("the one record", func() bool { return len(r.records) == 1 })
}

// TestDrainBusy: a connection in use ends behind its next response, which says
// so; no request is lost.
func TestDrainBusy(t *testing.T) {
	respond := make(chan struct{})
	upstream := backend(t, func(w nethttp.ResponseWriter, r *nethttp.Request) {
		if r.URL.Path == "/ok/slow" {
			w.Header().Set("Connection", "keep-alive")
			w.(nethttp.Flusher).Flush()
			<-respond
		}
		fmt.Fprint(w, r.URL.Path)
	})
	r := newTimedRig(t, upstream, func(times *timeouts) { times.pause = time.Hour })
	quick, slow, denied := r.dial(), r.dial(), r.dial()
	for _, c := range []*client{quick, denied} {
		c.get("/ok", 200, "/ok")
	}
	slow.send("GET /ok/slow HTTP/1.1\r\nHost: h\r\n\r\n")
	res := slow.begin("GET")
	if res.close {
		t.Error("the response says that the connection ends, and no drain has begun")
	}
	r.server.Drain()
	ping(t, r)

	quick.send("GET /ok/1 HTTP/1.1\r\nHost: h\r\n\r\n")
	if last := quick.expect("GET", 200, "/ok/1"); !last.close {
		t.Errorf("the last response does not say so: %v", last.header)
	}
	quick.end()
	denied.send("GET /no HTTP/1.1\r\nHost: h\r\n\r\n")
	if last := denied.expect("GET", 403, "Access denied\r\n"); !last.close {
		t.Error("the last denial does not say so")
	}
	denied.end()

	// A response that had begun goes on, and so does the connection: its client
	// was not told.
	respond <- struct{}{}
	if body, err := io.ReadAll(res.body); err != nil || string(body) != "/ok/slow" {
		t.Errorf("%q, %v", body, err)
	}
	slow.send("GET /ok/2 HTTP/1.1\r\nHost: h\r\n\r\n")
	if last := slow.expect("GET", 200, "/ok/2"); !last.close {
		t.Error("the last response does not say so")
	}
	slow.end()
}

// TestDrainWithRequestOnItsWay: what came before the connection is ended is
// answered.
func TestDrainWithRequestOnItsWay(t *testing.T) {
	upstream := backend(t, echoPath)
	for range 20 {
		r := newDrainRig(t, upstream)
		c := r.dial()
		c.get("/ok", 200, "GET /ok ")
		time.Sleep(r.server.times.pause + 10*time.Millisecond)
		c.send("GET /ok/late HTTP/1.1\r\nHost: h\r\n\r\n")
		r.server.Drain()
		c.expect("GET", 200, "GET /ok/late ")
		c.end()
	}
}

// TestDrainLeaves tunnels as they are, and heads of which a part is there.
func TestDrainLeaves(t *testing.T) {
	addr, open := upgrading(t)
	r := newDrainRig(t, addr)
	u := open(r, "")
	c := r.dial()
	c.send("GET /ok HTT")
	r.wait("both connections", func() bool { return len(r.pairs) == 2 })
	time.Sleep(2 * r.server.times.pause)
	r.server.Drain()
	time.Sleep(2*r.server.times.pause + 2*r.server.times.sweep)
	u.pass()
	c.send("P/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	if res := c.begin("GET"); res.status != 101 || strings.Contains(fmt.Sprint(res.header), "close") {
		t.Errorf("%d, %v", res.status, res.header)
	}
}

// ping returns when every loop has dealt with what was posted.
func ping(t *testing.T, r *rig) {
	t.Helper()
	if err := r.server.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
}
