package test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weirnet/weir/test/node"
)

// load is traffic that goes on while something is killed.
type load struct {
	stop  context.CancelFunc
	done  sync.WaitGroup
	count atomic.Int64

	mu     sync.Mutex
	counts map[string]int
	errors []error
	closed []func() // when all has stopped
}

// repeat does f again and again until the load is stopped.
func (l *load) repeat(ctx context.Context, name string, pause time.Duration, f func() error) {
	l.done.Go(func() {
		for ctx.Err() == nil {
			err := f()
			l.mu.Lock()
			if err != nil {
				l.errors = append(l.errors, fmt.Errorf("%s: %w", name, err))
			}
			if l.counts == nil {
				l.counts = map[string]int{}
			}
			l.counts[name]++
			l.mu.Unlock()
			l.count.Add(1)
			time.Sleep(pause)
		}
	})
}

// end stops the load and returns what failed.
func (l *load) end() []error {
	l.stop()
	l.done.Wait()
	for _, closed := range l.closed {
		closed()
	}
	return l.errors
}

// allow starts what the rules of setups/http.txtar allow: requests on
// connections that stay, requests on new ones, and new flows that no proxy
// sees.
func (s *story) allow() *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{stop: cancel}
	s.t.Cleanup(cancel)
	for _, names := range [][2]string{{"shop/client", "shop/web"}, {"shop/client2", "shop/web2"}} {
		for family := range 2 {
			from, to := s.places[names[0]], s.places[names[1]].addrs[family]
			ask := func(c *http.Client, path string) error {
				status, _, err := get(c, to, 8080, path)
				if err == nil && status != 200 {
					err = fmt.Errorf("status %d", status)
				}
				return err
			}
			open := &staying{from: from, to: to}
			l.closed = append(l.closed, open.close)
			l.repeat(ctx, "a connection that stays", 5*time.Millisecond, open.ask)
			l.repeat(ctx, "a new connection", 10*time.Millisecond, func() error {
				c := from.HTTPClient(patience)
				defer c.CloseIdleConnections()
				return ask(c, "/a")
			})
		}
	}
	client, db := s.places["shop/client"], s.places["shop/db"]
	for family := range 2 {
		p := s.connectPair(client, db, family, 9000)
		l.repeat(ctx, "a direct flow", 5*time.Millisecond, func() error { return p.both(patience) })
	}
	l.repeat(ctx, "a new direct flow", 10*time.Millisecond, func() error {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		_, err := client.AskTCP(ctx, addrPort(db, 0, 5432), "x")
		if ctx.Err() != nil {
			return nil // stopped in the middle
		}
		return err
	})
	return l
}

// staying is a connection that is never given up: what the library's client would
// have closed and opened anew is an error.
type staying struct {
	from *place
	to   netip.Addr

	conn net.Conn
	in   *bufio.Reader
}

// ask makes a request that rules allow, on a new connection the first time.
func (c *staying) ask() error {
	if c.conn == nil {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		conn, err := c.from.DialContext(ctx, "tcp", node.To(c.to, 8080))
		if err != nil {
			return err
		}
		c.conn, c.in = conn, bufio.NewReader(conn)
	}
	_ = c.conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c.conn, "GET /a HTTP/1.1\r\nHost: web\r\n\r\n"); err != nil {
		return err
	}
	resp, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	switch _, err := io.Copy(io.Discard, resp.Body); {
	case err != nil:
		return err
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("status %d", resp.StatusCode)
	case resp.Close:
		return errors.New("the connection is to be closed")
	}
	return nil
}

func (c *staying) close() {
	if c.conn != nil {
		c.conn.Close()
	}
}

// unchecked counts the requests that reach a server on path: what no rule
// allows must not, whatever runs and whatever does not.
func (s *story) unchecked() (attempts *load, reached func() int64) {
	var count atomic.Int64
	ctx, cancel := context.WithCancel(context.Background())
	s.t.Cleanup(cancel)
	l := &load{stop: cancel}
	for _, names := range [][2]string{{"shop/client", "shop/web"}, {"shop/client2", "shop/web2"}} {
		for family := range 2 {
			from, to := s.places[names[0]], s.places[names[1]].addrs[family]
			l.repeat(ctx, "refused", 5*time.Millisecond, func() error {
				c := from.HTTPClient(silence)
				defer c.CloseIdleConnections()
				if status, _, err := get(c, to, 8080, "/b?unchecked"); err == nil && status != 403 {
					count.Add(1)
				}
				return nil
			})
		}
	}
	stranger, db := s.places["shop/stranger"], s.places["shop/db"]
	l.repeat(ctx, "refused", 5*time.Millisecond, func() error {
		ctx, cancel := context.WithTimeout(ctx, silence)
		defer cancel()
		if _, err := stranger.AskTCP(ctx, addrPort(db, 0, 5432), "x"); err == nil {
			count.Add(1)
		}
		return nil
	})
	return l, count.Load
}

// mustTimeOut tries a flow that must get no answer.
func (s *story) mustTimeOut(from, to string, port uint16) error {
	var errs []error
	for family := range 2 {
		ctx, cancel := context.WithTimeout(context.Background(), silence)
		defer cancel()
		_, err := s.places[from].AskTCP(ctx, addrPort(s.places[to], family, port), "x")
		if got := outcome(err); got != "dropped" {
			errs = append(errs, fmt.Errorf("%s to %s:%d, IPv%d: %s", from, to, port, 4+2*family, got))
		}
	}
	return errors.Join(errs...)
}

// download is in the middle until finish is called; the channel tells how it ended.
func (s *story) download() (done <-chan error, finish func()) {
	const size = 100_000_000 // more than all sockets on the way take in
	result := make(chan error, 1)
	begun, rest := make(chan struct{}), make(chan struct{})
	go func() {
		c := s.places["shop/client"].HTTPClient(0)
		defer c.CloseIdleConnections()
		resp, err := c.Get("http://" + node.To(s.places["shop/web"].addrs[1], 8080) + fmt.Sprintf("/a?bytes=%d", size))
		close(begun)
		if err != nil {
			result <- err
			return
		}
		defer resp.Body.Close()
		sum, total := sha256.New(), int64(0)
		const steps = 100
		for i := range steps {
			n, err := io.CopyN(sum, resp.Body, size/steps)
			if total += n; err != nil {
				result <- fmt.Errorf("after %d bytes: %w", total, err)
				return
			}
			if i == steps/10 {
				<-rest
			}
		}
		want := sha256.New()
		_, _ = io.CopyN(want, zeros{}, size)
		if got := hex.EncodeToString(sum.Sum(nil)); got != hex.EncodeToString(want.Sum(nil)) {
			result <- errors.New("other bytes came than were sent")
			return
		}
		result <- nil
	}()
	<-begun
	return result, sync.OnceFunc(func() { close(rest) })
}
