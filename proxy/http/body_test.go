package http

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	nethttp "net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

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
		_, _ = io.Copy(w, noise(2, size))
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
				_, _ = w.Write(body[:n])
				w.(nethttp.Flusher).Flush()
				body = body[n:]
			}
		}
		_, _ = w.Write(body)
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
				_, _ = c.Write(all[:n])
				all = all[n:]
			}
		}()
		for i, w := range wants {
			res, body := c.response("POST")
			if res.status != w.status || body != string(w.body) {
				t.Fatalf("seed %d, response %d: %d with %d bytes, want %d with %d", seed, i, res.status, len(body), w.status, len(w.body))
			}
		}
		_ = c.Close()
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
	_, _ = c.in.ReadString('\n')
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
			_, _ = io.WriteString(c, answer)
		}
		_, _ = readHead(in)
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
		if w.body == "hi" && len(res.trailer) > 0 && res.trailer.Get("X-Sum") != "1" {
			t.Errorf("trailer %v", res.trailer)
		}
	}
}

// A response may end with the connection.
func TestToTheEnd(t *testing.T) {
	for _, version := range []string{"1.0", "1.1"} {
		upstream := script(t, func(c *net.TCPConn, in *bufio.Reader) {
			_, _ = readHead(in)
			_, _ = io.WriteString(c, "HTTP/"+version+" 200 OK\r\n\r\n")
			_, _ = io.Copy(c, noise(3, 1<<20))
		})
		r := newRig(t, upstream)
		c := r.dial()
		c.send("GET /ok HTTP/" + version + "\r\nHost: h\r\n\r\nGET /ok/2 HTTP/1.1\r\nHost: h\r\n\r\n")
		res := c.begin("GET")
		want, _, _ := sum(noise(3, 1<<20))
		if got, n, err := sum(res.body); err != nil || got != want {
			t.Errorf("HTTP/%s: %d bytes, %v", version, n, err)
		}
		r.ended(0)
	}
}

// A response cut short stays so.
func TestTruncatedResponse(t *testing.T) {
	for _, framing := range []string{"Content-Length: 10\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\na\r\nhello"} {
		upstream := script(t, func(c *net.TCPConn, in *bufio.Reader) {
			_, _ = readHead(in)
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n"+framing)
		})
		r := newRig(t, upstream)
		c := r.dial()
		c.send("GET /ok HTTP/1.1\r\nHost: h\r\n\r\n")
		res := c.begin("GET")
		if body, err := io.ReadAll(res.body); !errors.Is(err, io.ErrUnexpectedEOF) || string(body) != "hello" {
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
		_, _ = readHead(in)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nearly")
		got := make([]byte, 10)
		_, _ = io.ReadFull(in, got)
		body <- string(got)
		_, _ = readHead(in)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext")
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
		_, _ = readHead(in)
		_, _ = io.WriteString(c, "HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\ntoo")
		_ = c.CloseWrite()
		time.Sleep(50 * time.Millisecond)
	})
	r := newRig(t, upstream)
	c := r.dial()
	c.send("POST /ok HTTP/1.1\r\nHost: h\r\nContent-Length: 10000000\r\n\r\n")
	go func() { _, _ = io.Copy(c, noise(4, 10000000)) }()
	time.Sleep(20 * time.Millisecond)
	c.expect("POST", 413, "too")
}

// Both bodies at once: a server that answers as it reads.
func TestBothWays(t *testing.T) {
	r := newRig(t, backend(t, func(w nethttp.ResponseWriter, req *nethttp.Request) {
		_ = nethttp.NewResponseController(w).EnableFullDuplex()
		w.WriteHeader(200)
		_, _ = io.Copy(w, req.Body)
	}))
	c := r.dial()
	c.send("POST /ok HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
	go func() {
		for i := range 100 {
			fmt.Fprintf(c, "3e8\r\n%01000d\r\n", i)
		}
		_, _ = io.WriteString(c, "0\r\n\r\n")
	}()
	_, got := c.response("POST")
	if len(got) != 100_000 || !strings.HasSuffix(got, "099") {
		t.Errorf("%d bytes came back", len(got))
	}
	c.get("/ok", 200, "")
}

// A reader that does not read stops the writer, not the proxy's memory.
func TestSlowReader(t *testing.T) {
	for _, framing := range []string{"Content-Length: 1000000000\r\n\r\n", "Connection: close\r\n\r\n"} {
		var mu sync.Mutex
		var written int64
		upstream := script(t, func(c *net.TCPConn, in *bufio.Reader) {
			_, _ = readHead(in)
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n"+framing)
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
		_ = c.SetReadBuffer(1 << 16)
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
		_ = c.SetLinger(0)
		_ = c.Close()
	}
}
