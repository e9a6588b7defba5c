package http

import (
	"bufio"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// Everything that is refused is answered and closed, told with its reason, and
// not a byte of it reaches the server: whole and byte by byte.
func TestBadRequests(t *testing.T) {
	var got atomic.Int64
	upstream := script(t, func(c *net.TCPConn, in *bufio.Reader) {
		n, _ := io.Copy(io.Discard, in)
		got.Add(n)
	})
	r := newRig(t, upstream, nil)
	records := 0
	for _, c := range requests {
		if c.want == 0 {
			continue
		}
		for _, split := range []bool{false, true} {
			if split && len(c.raw) > 1000 {
				continue
			}
			client := r.dial()
			if split {
				for i := range len(c.raw) {
					if _, err := client.Write([]byte{c.raw[i]}); err != nil {
						break // it was refused before its end
					}
				}
			} else {
				_, _ = client.Write([]byte(c.raw))
			}
			res := client.begin("GET")
			if want := c.want.status(); res.status != want || !res.close {
				t.Errorf("%s: %d, close %v, want %d", c.name, res.status, res.close, want)
			}
			_, _ = io.Copy(io.Discard, res.body)
			client.end()
			rec := r.record(records)
			records++
			if rec.Verdict != Refused || rec.Reason != c.want || rec.Status != res.status {
				t.Errorf("%s: told as %d, %s, %d, want %s", c.name, rec.Verdict, rec.Reason, rec.Status, c.want)
			}
			_ = client.Close()
		}
	}
	r.ended(records)
	if n := got.Load(); n > 0 {
		t.Errorf("%d bytes reached the server", n)
	}
}

// A head that never ends is given up; a connection on which none began is not.
func TestHeadTimeout(t *testing.T) {
	r := newTimedRig(t, backend(t, echoPath), func(times *timeouts) { times.head = 100 * time.Millisecond })
	idle, slow, second := r.dial(), r.dial(), r.dial()
	second.get("/ok", 200, "GET /ok ")
	slow.send("GET /ok HTTP/1.1\r\nHost: h\r\n")
	second.send("G")
	for _, c := range []*client{slow, second} {
		c.expect("GET", 408, "Request timeout\r\n")
		c.end()
	}
	idle.get("/ok", 200, "GET /ok ")
	if rec := r.record(1); rec.Reason != ReasonHeadTimeout || rec.Verdict != Refused {
		t.Errorf("told as %d, %s", rec.Verdict, rec.Reason)
	}
}

// A client that ends in the middle of a head is answered and closed.
func TestHeadTruncated(t *testing.T) {
	r := newRig(t, backend(t, echoPath))
	c := r.dial()
	c.send("GET /ok HTTP/1.1\r\nHo")
	_ = c.CloseWrite()
	c.expect("GET", 400, "Bad request\r\n")
	c.end()
	if rec := r.record(0); rec.Reason != ReasonHeadTruncated || string(rec.Path) != "/ok" {
		t.Errorf("told as %s of %s", rec.Reason, rec.Path)
	}
}

// A body that turns out bad after its request was passed on ends both sides:
// the server is not left with what looks whole.
func TestBadChunkLater(t *testing.T) {
	begun, end := make(chan bool, 1), make(chan error, 1)
	upstream := script(t, func(c *net.TCPConn, in *bufio.Reader) {
		_, _ = readHead(in)
		begun <- true
		_, err := io.ReadAll(in)
		end <- err
	})
	r := newRig(t, upstream)
	for _, c := range chunkedBodies {
		if c.want == 0 || len(c.raw) > 2000 {
			continue
		}
		client := r.dial()
		client.send("POST /ok HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n")
		<-begun
		client.send("x\r\n" + c.raw)
		res, _ := client.response("POST")
		if res.status != 400 || !res.close {
			t.Errorf("%s: %d, close %v", c.name, res.status, res.close)
		}
		if err := <-end; err == nil {
			t.Errorf("%s: the server saw an end in good order", c.name)
		}
	}
}

// Responses that can be read in two ways are not passed on.
func TestBadResponses(t *testing.T) {
	var response atomic.Pointer[string]
	upstream := script(t, func(c *net.TCPConn, in *bufio.Reader) {
		if _, err := readHead(in); err == nil {
			_, _ = io.WriteString(c, *response.Load())
			_, _ = io.Copy(io.Discard, in)
		}
	})
	r := newRig(t, upstream)
	n := 0
	for _, c := range responses {
		if c.want == 0 {
			continue
		}
		response.Store(&c.raw)
		client := r.dial()
		client.send(c.method + " /ok HTTP/1.1\r\nHost: h\r\n\r\n")
		client.expect(c.method, 502, "Bad response\r\n")
		client.end()
		if rec := r.record(n); rec.Verdict != Refused || !rec.Response || rec.Reason != c.want || rec.Status != 502 {
			t.Errorf("%s: told as %d, %s, %d", c.name, rec.Verdict, rec.Reason, rec.Status)
		}
		n++
	}
	// The end of the server in the middle of a head.
	short := "HTTP/1.1 200 OK\r\nConte"
	upstream = script(t, func(c *net.TCPConn, in *bufio.Reader) {
		_, _ = readHead(in)
		_, _ = io.WriteString(c, short)
	})
	r = newRig(t, upstream)
	client := r.dial()
	client.send("GET /ok HTTP/1.1\r\nHost: h\r\n\r\n")
	client.expect("GET", 502, "Bad response\r\n")
}

// What a server sends without being asked answers no request.
func TestUnsolicited(t *testing.T) {
	good := "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na"
	evil := "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nb"
	for name, send := range map[string][]string{
		"in one":     {good + evil},
		"later":      {good, evil},
		"behind 204": {"HTTP/1.1 204 No Content\r\n\r\n" + evil},
		"chunked":    {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n" + evil},
	} {
		t.Run(name, func(t *testing.T) {
			upstream := script(t, func(c *net.TCPConn, in *bufio.Reader) {
				_, _ = readHead(in)
				for i, s := range send {
					if i > 0 {
						time.Sleep(20 * time.Millisecond)
					}
					_, _ = io.WriteString(c, s)
				}
				_, _ = io.Copy(io.Discard, in)
			})
			r := newRig(t, upstream)
			c := r.dial()
			c.send("GET /ok HTTP/1.1\r\nHost: h\r\n\r\n")
			if _, body := c.response("GET"); strings.Contains(body, "b") {
				t.Errorf("body %q", body)
			}
			c.end()
			if rec := r.record(1); rec.Verdict != Refused || rec.Reason != ReasonUnsolicited {
				t.Errorf("told as %d, %s", rec.Verdict, rec.Reason)
			}
		})
	}
}

// A server that floods interim responses is cut off.
func TestInterimFlood(t *testing.T) {
	upstream := script(t, func(c *net.TCPConn, in *bufio.Reader) {
		_, _ = readHead(in)
		for range maxInterim + 1 {
			_, _ = io.WriteString(c, "HTTP/1.1 102 Processing\r\n\r\n")
		}
		_, _ = io.Copy(io.Discard, in)
	})
	r := newRig(t, upstream)
	c := r.dial()
	c.send("GET /ok HTTP/1.1\r\nHost: h\r\n\r\n")
	rest, _ := io.ReadAll(c.in)
	if n := strings.Count(string(rest), "102 Processing"); n != maxInterim || !strings.Contains(string(rest), "HTTP/1.1 502 ") {
		t.Errorf("%d interim responses, then %q", n, rest[len(rest)-60:])
	}
}
