package http

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/weirnet/weir/policy/httprules"
)

// After an upgrade bytes pass as they are, both ways, until each side ends.
func TestWebsocket(t *testing.T) {
	upstream := script(t, func(c *net.TCPConn, in *bufio.Reader) {
		head, _ := readHead(in)
		if !strings.Contains(head, "Upgrade: websocket\r\n") {
			_, _ = io.WriteString(c, "HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n")
			_, _ = readHead(in)
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nfirst")
		n, _ := io.Copy(c, in) // echo to the end
		fmt.Fprintf(c, "read %d", n)
	})
	r := newRig(t, upstream)
	ask := " HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"

	c := r.dial()
	c.send("GET /no" + ask)
	c.expect("GET", 403, denied)
	c.send("GET /ok" + ask + "GET /no HTTP/1.1\r\n\x00\xff")
	res := c.begin("GET")
	if res.status != 101 {
		t.Fatal(res.status)
	}
	if rec := r.record(1); rec.Status != 101 || !rec.Open || rec.Verdict != Allowed {
		t.Errorf("told as %+v", rec)
	}
	const size = 8 << 20
	go func() {
		_, _ = io.Copy(c, noise(5, size))
		_ = c.CloseWrite()
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

// A client may end its input behind a request and still get the response; the
// server sees the end.
func TestHalfClose(t *testing.T) {
	upstream := script(t, func(c *net.TCPConn, in *bufio.Reader) {
		_, _ = readHead(in)
		rest, err := io.ReadAll(in)
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n%q %v", rest, err == nil)
		if err != nil {
			t.Error(err)
		}
	})
	r := newRig(t, upstream)
	c := r.dial()
	c.send("GET /ok HTTP/1.1\r\nHost: h\r\n\r\n")
	_ = c.CloseWrite()
	res := c.begin("GET")
	if res.status != 200 {
		t.Fatal(res.status)
	}
	if body, _ := io.ReadAll(res.body); !strings.HasPrefix(string(body), `"" true`) {
		t.Errorf("%q", body)
	}
	r.ended(1)
}

// The server's end of an idle connection is passed on.
func TestServerEnd(t *testing.T) {
	upstream := script(t, func(c *net.TCPConn, in *bufio.Reader) {
		_, _ = readHead(in)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
		time.Sleep(20 * time.Millisecond)
	})
	r := newRig(t, upstream)
	c := r.dial()
	c.get("/ok", 200, "hi")
	c.end()
	_ = c.Close()
	r.ended(1)
	// Before any answer.
	upstream = script(t, func(c *net.TCPConn, in *bufio.Reader) { _, _ = readHead(in) })
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
	var rst = func(c *net.TCPConn) { _ = c.SetLinger(0); _ = c.Close() }
	for _, when := range []string{"idle", "asked", "head", "body"} {
		upstream := script(t, func(c *net.TCPConn, in *bufio.Reader) {
			switch when {
			case "asked", "head", "body":
				_, _ = readHead(in)
			}
			if when == "head" {
				_, _ = io.WriteString(c, "HTTP/1.1 200 O")
			}
			if when == "body" {
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
			}
			time.Sleep(20 * time.Millisecond)
			rst(c)
		})
		c := newRig(t, upstream).dial()
		if when != "idle" {
			c.send("GET /ok HTTP/1.1\r\nHost: h\r\n\r\n")
		}
		if when == "body" {
			_, _ = io.CopyN(io.Discard, c.in, 40)
		}
		c.reset()
	}
	for _, when := range []string{"idle", "asked", "body"} {
		end := make(chan error, 1)
		upstream := script(t, func(c *net.TCPConn, in *bufio.Reader) {
			if when != "idle" {
				_, _ = readHead(in)
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

// Abort resets both sides and waits for it.
func TestAbort(t *testing.T) {
	end := make(chan error, 1)
	upstream := script(t, func(c *net.TCPConn, in *bufio.Reader) {
		_, _ = readHead(in)
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
		_, _ = readHead(in)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na")
		<-release
		_, _ = io.WriteString(c, "b")
		_, _ = readHead(in)
		_, _ = io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
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
			_, _ = c.Write(answer)
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
	wg.Go(func() { _ = server.Run(ctx) })
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
			_, _ = c.Write(raw)
			if _, err := c.Read(buf); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations per request", name, n)
		}
	}
}
