package redirect

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/flow"
	"github.com/weirnet/weir/identity"
)

func TestFlowThroughTheProxy(t *testing.T) {
	l := openLane(t)
	l.serveHTTP()
	for i, a := range l.server.Addrs {
		family := fmt.Sprintf("IPv%d", 4+2*i)
		web := netip.AddrPortFrom(a, webPort)
		t.Run(family+"/the server sees the client", func(t *testing.T) {
			for _, port := range []int{0, 41000 + i, 99 + i} {
				c := l.dial(t, web, port)
				for range 3 {
					if got, err := l.ask(c, "/who"); err != nil || got != c.LocalAddr().String() {
						t.Errorf("the server sees %q, the client is %v (%v)", got, c.LocalAddr(), err)
					}
				}
				_ = c.Close()
			}
			if c := l.dial(t, web, 0); c.RemoteAddr().String() != web.String() {
				t.Errorf("the client sees %v", c.RemoteAddr())
			} else {
				_ = c.Close()
			}
		})
		t.Run(family+"/every request is recorded", func(t *testing.T) {
			path := "/recorded-" + family
			c := l.dial(t, web, 0)
			defer func() { _ = c.Close() }()
			const requests = 50
			for range requests {
				if _, err := l.ask(c, path); err != nil {
					t.Fatal(err)
				}
			}
			waitFor(t, "records", 5*time.Second, func() bool { return len(l.recorded(path)) >= requests })
			for _, r := range l.recorded(path) {
				if r.Verdict != flow.Forwarded || r.HTTP.Status != 200 || r.HTTP.Method != "GET" || r.Direction != "egress" ||
					r.Source.Addr != l.client.Addrs[i] || r.Dest.Addr != a || r.Dest.Port != webPort ||
					r.Source.Identity != uint32(identity.FirstLocal) {
					t.Fatalf("%+v %+v", r, r.HTTP)
				}
			}
			if n := len(l.recorded(path)); n != requests {
				t.Errorf("%d records of %d requests", n, requests)
			}
		})
		t.Run(family+"/a half-closed client gets its answer", func(t *testing.T) {
			c := l.dial(t, web, 0)
			defer func() { _ = c.Close() }()
			const size = 1 << 20
			fmt.Fprintf(c, "POST /upload HTTP/1.1\r\nHost: web\r\nContent-Length: %d\r\nConnection: close\r\n\r\n", size)
			if _, err := c.Write(make([]byte, size)); err != nil {
				t.Fatal(err)
			}
			if err := c.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(c)
			if err != nil || !strings.HasSuffix(string(b), fmt.Sprintf("%d <nil>", size)) {
				t.Errorf("%q, %v", b, err)
			}
		})
		t.Run(family+"/nobody listens", func(t *testing.T) {
			// Connected or not yet: the reset may be that fast.
			c, err := l.tryDial(netip.AddrPortFrom(a, deadPort), 0)
			if err == nil {
				_, err = io.Copy(io.Discard, c)
				_ = c.Close()
			}
			if !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("the client gets %v, want a reset", err)
			}
		})
		t.Run(family+"/the client resets", func(t *testing.T) {
			c := l.dial(t, web, 0)
			fmt.Fprint(c, "GET /hang HTTP/1.1\r\nHost: web\r\n\r\n")
			buf := make([]byte, 4096)
			if n, err := c.Read(buf); err != nil || !strings.HasSuffix(string(buf[:n]), "hanging") {
				t.Fatalf("%q, %v", buf[:n], err)
			}
			_ = c.SetLinger(0)
			_ = c.Close()
			select {
			case how := <-l.closed:
				if !strings.Contains(how, "reset") {
					t.Errorf("at the server the connection ends with %s", how)
				}
			case <-time.After(5 * time.Second):
				t.Error("the server does not hear of it")
			}
		})
		t.Run(family+"/the server resets", func(t *testing.T) {
			c := l.dial(t, web, 0)
			if _, err := l.ask(c, "/abort"); !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("the client gets %v, want a reset", err)
			}
		})
	}
	t.Run("nothing is left", func(*testing.T) { l.noConns() })
}

// TestServerDoesNotAnswer: the client, which is connected already, is reset
// when the server's time is up.
func TestServerDoesNotAnswer(t *testing.T) {
	if testing.Short() {
		t.Skip("takes as long as a server is waited for")
	}
	l := openLane(t)
	// What comes for the server is dropped in its namespace.
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if out, err := l.server.Run(ctx, "table inet t { chain in { type filter hook input priority 0; tcp dport 8080 drop; }; }", "nft", "-f", "-"); err != nil {
		t.Fatal(err, out)
	}
	var all sync.WaitGroup
	for _, a := range l.server.Addrs {
		all.Go(func() {
			began := time.Now()
			c := l.dial(t, netip.AddrPortFrom(a, webPort), 0)
			_, err := io.Copy(io.Discard, c)
			if took := time.Since(began); !errors.Is(err, unix.ECONNRESET) || took < 5*time.Second || took > 14*time.Second {
				t.Errorf("%v: after %v: %v", a, took, err)
			}
		})
	}
	all.Wait()
	l.noConns()
}
