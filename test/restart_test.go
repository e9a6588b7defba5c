package test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/weirnet/weir/test/node"
)

// load is traffic that goes on while something is killed.
type load struct {
	stop  context.CancelFunc
	done  sync.WaitGroup
	count atomic.Int64

	mu     sync.Mutex
	errors []error
}

// repeat does f again and again until the load is stopped.
func (l *load) repeat(ctx context.Context, name string, pause time.Duration, f func() error) {
	l.done.Go(func() {
		for ctx.Err() == nil {
			if err := f(); err != nil {
				l.mu.Lock()
				l.errors = append(l.errors, fmt.Errorf("%s: %w", name, err))
				l.mu.Unlock()
			}
			l.count.Add(1)
			time.Sleep(pause)
		}
	})
}

// end stops the load and returns what failed.
func (l *load) end() []error {
	l.stop()
	l.done.Wait()
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
			open := from.HTTPClient(patience)
			open.Transport.(*http.Transport).DisableKeepAlives = false
			conn := int64(0)
			l.repeat(ctx, "a connection that stays", 5*time.Millisecond, func() error {
				status, seen, err := get(open, to, 8080, "/a")
				switch {
				case err != nil:
					return err
				case status != 200:
					return fmt.Errorf("status %d", status)
				case conn == 0:
					conn = seen.Conn
				case conn != seen.Conn:
					return errors.New("the server sees another connection")
				}
				return nil
			})
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

// TestAgentKilled kills the agent in the middle of everything: nothing stops,
// nothing that was closed opens, and the next agent takes over what is there.
func TestAgentKilled(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/http.txtar")
	w := s.nodes[0].Weir()
	proxy := w.ProxyPids()
	download := s.download(3 * time.Second)
	l := s.allow()
	attempts, reached := s.unchecked()
	time.Sleep(500 * time.Millisecond)
	w.Agent().Kill()
	time.Sleep(1500 * time.Millisecond)
	s.check("shop/client GET shop/web:8080/a => 200")
	s.check("shop/client2 GET shop/web2:8080/b => 403")
	// No agent, no records: that a stranger is left out must be seen here.
	if err := s.mustTimeOut("shop/stranger", "shop/db", 5432); err != nil {
		t.Error(err)
	}
	if err := s.mustTimeOut("shop/stranger", "shop/web", 8080); err != nil {
		t.Error(err)
	}
	if err := w.Start(); err != nil {
		t.Fatal(err)
	}
	if err := w.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond)
	if err := <-download; err != nil {
		t.Errorf("the download: %v", err)
	}
	attempts.end()
	for i, err := range l.end() {
		if i == 5 {
			t.Error("...")
			break
		}
		t.Error(err)
	}
	t.Logf("%d requests and flows that are allowed, %d that are not", l.count.Load(), attempts.count.Load())
	if n := reached(); n != 0 {
		t.Errorf("%d flows passed that no rule allows", n)
	}
	if now := w.ProxyPids(); !slices.Equal(now, proxy) || len(now) == 0 {
		t.Errorf("the proxy is %v, was %v", now, proxy)
	}
	// The new one is in charge.
	if err := s.follow(s.nodes[0]); err != nil {
		t.Fatal(err)
	}
	s.check("shop/stranger tcp shop/db:5432 => dropped")
	s.must("apply db-closed.yaml as=db.yaml")
	s.must("apply web-b.yaml as=web.yaml")
	s.must("wait")
	s.check("shop/client tcp shop/db:5432 => dropped")
	s.check("shop/client GET shop/web:8080/b => 200 records=1")
	s.check("shop/client GET shop/web:8080/a => 403 records=1")
}

// TestPolicyChangedWhileAgentWasDead: the next agent enforces what it finds.
func TestPolicyChangedWhileAgentWasDead(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/http.txtar")
	w := s.nodes[0].Weir()
	w.Agent().Kill()
	s.must("apply db-closed.yaml as=db.yaml")
	s.must("apply web-b.yaml as=web.yaml")
	s.must("delete shop/stranger")
	if err := w.Start(); err != nil {
		t.Fatal(err)
	}
	s.must("wait")
	if err := s.follow(s.nodes[0]); err != nil {
		t.Fatal(err)
	}
	s.check("shop/client tcp shop/db:5432 => dropped")
	s.check("shop/client GET shop/web:8080/b => 200")
	s.check("shop/client2 GET shop/web2:8080/a => 403")
}

// TestClsactAndBack: an agent that attaches in another way than the one before
// takes over without a gap.
func TestClsactAndBack(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/http.txtar")
	w := s.nodes[0].Weir()
	l := s.allow()
	attempts, reached := s.unchecked()
	for _, args := range [][]string{{"--clsact"}, nil} {
		time.Sleep(200 * time.Millisecond)
		w.Agent().Stop()
		if err := w.Start(args...); err != nil {
			t.Fatal(err)
		}
		if err := w.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(200 * time.Millisecond)
	attempts.end()
	for _, err := range l.end() {
		t.Error(err)
	}
	if n := reached(); n != 0 {
		t.Errorf("%d flows passed that no rule allows", n)
	}
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

// download takes about so long; the channel tells how it ended.
func (s *story) download(duration time.Duration) <-chan error {
	const size = 20_000_000
	done := make(chan error, 1)
	resp, err := s.places["shop/client"].HTTPClient(0).Get("http://" + node.To(s.places["shop/web"].addrs[1], 8080) + fmt.Sprintf("/a?bytes=%d", size))
	if err != nil {
		done <- err
		return done
	}
	go func() {
		defer resp.Body.Close()
		sum, total := sha256.New(), int64(0)
		const steps = 100
		for range steps {
			n, err := io.CopyN(sum, resp.Body, size/steps)
			if total += n; err != nil {
				done <- fmt.Errorf("after %d bytes: %w", total, err)
				return
			}
			time.Sleep(duration / steps)
		}
		want := sha256.New()
		io.CopyN(want, zeros{}, size)
		if got := hex.EncodeToString(sum.Sum(nil)); got != hex.EncodeToString(want.Sum(nil)) {
			done <- errors.New("other bytes came than were sent")
			return
		}
		done <- nil
	}()
	return done
}

// TestProxyKilled kills the proxy (its worker; then with its supervisor):
// nothing passes unchecked, flows that need no proxy go on, and requests are
// answered again within a second.
func TestProxyKilled(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/http.txtar")
	w := s.nodes[0].Weir()
	client, to := s.places["shop/client"], s.places["shop/web"].addrs[0]
	for _, victim := range []string{"worker", "supervisor and worker", "supervisor", "the rest"} {
		pids := w.ProxyPids()
		if len(pids) == 0 {
			t.Fatal("there is no process of the proxy")
		}
		switch victim {
		case "worker":
			pids = pids[len(pids)-1:]
		case "supervisor":
			pids = pids[:1]
		}
		attempts, reached := s.unchecked()
		direct := s.connectPair(client, s.places["shop/db"], 0, 9000)
		time.Sleep(50 * time.Millisecond)
		killed := time.Now()
		for _, pid := range pids {
			kill(pid)
		}
		if err := direct.both(patience); err != nil {
			t.Errorf("%s: a direct flow: %v", victim, err)
		}
		back := time.Duration(0)
		for time.Since(killed) < 2*patience {
			c := client.HTTPClient(200 * time.Millisecond)
			status, _, err := get(c, to, 8080, "/a")
			c.CloseIdleConnections()
			if err == nil && status == 200 {
				back = time.Since(killed)
				break
			}
		}
		t.Logf("%s: back after %v", victim, back)
		if back == 0 || back > time.Second {
			t.Errorf("%s: requests are answered again after %v", victim, back)
		}
		s.check("shop/client2 GET shop/web2:8080/a => 200")
		s.check("shop/client2 GET shop/web2:8080/b => 403 records=1")
		attempts.end()
		if n := reached(); n != 0 {
			t.Errorf("%s: %d flows passed that no rule allows", victim, n)
		}
	}
}

// TestAgentAndProxyKilled: what needs the proxy waits, the rest goes on, and
// the next agent mends all of it.
func TestAgentAndProxyKilled(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/http.txtar")
	w := s.nodes[0].Weir()
	attempts, reached := s.unchecked()
	w.Agent().Kill()
	for _, pid := range w.ProxyPids() {
		kill(pid)
	}
	s.check("shop/client tcp shop/db:5432 => ok")
	if err := errors.Join(s.mustTimeOut("shop/stranger", "shop/db", 5432), s.mustTimeOut("shop/stranger", "shop/web", 8080)); err != nil {
		t.Error(err)
	}
	c := s.places["shop/client"].HTTPClient(silence)
	if status, _, err := get(c, s.places["shop/web"].addrs[0], 8080, "/a"); err == nil {
		t.Errorf("without a proxy a request was answered: %d", status)
	}
	if err := w.Start(); err != nil {
		t.Fatal(err)
	}
	s.must("wait")
	if err := s.follow(s.nodes[0]); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"shop/client GET shop/web:8080/a => 200 records=1",
		"shop/client2 GET shop/web2:8080/b => 403 records=1",
		"shop/stranger tcp shop/db:5432 => dropped",
		"shop/client tcp shop/db:5432 => ok",
	} {
		s.check(line)
	}
	attempts.end()
	if n := reached(); n != 0 {
		t.Errorf("%d flows passed that no rule allows", n)
	}
}

// TestIPNetnsExec starts the agent with `ip netns exec`, whose mount namespace
// ends with it: what is pinned must not.
func TestIPNetnsExec(t *testing.T) {
	t.Parallel()
	needRoot(t)
	ip, err := exec.LookPath("ip")
	if err != nil {
		t.Fatalf("needs iproute2: %v", err)
	}
	s := tell(t, "setups/not-started.txtar")
	n := s.nodes[0]
	w := n.NewWeir(program, s.objects, s)
	s.started[n.Name] = true
	start := func() {
		t.Helper()
		cmd := exec.Command(ip, append([]string{"netns", "exec", n.Host.Name, program}, w.AgentArgs()...)...)
		if err := w.StartCommand(cmd); err != nil {
			t.Fatal(err)
		}
		s.must("wait")
	}
	start()
	if err := s.follow(n); err != nil {
		t.Fatal(err)
	}
	s.check("shop/client GET shop/web:8080/a => 200")
	s.check("shop/client GET shop/web:8080/b => 403")
	s.check("shop/stranger GET shop/web:8080/a => dropped")
	proxy := w.ProxyPids()
	w.Agent().Kill()
	s.check("shop/client GET shop/web:8080/a => 200")
	s.check("shop/client GET shop/web:8080/b => 403")
	if err := s.mustTimeOut("shop/stranger", "shop/web", 8080); err != nil {
		t.Error(err)
	}
	start()
	if now := w.ProxyPids(); !slices.Equal(now, proxy) {
		t.Errorf("the proxy is %v, was %v", now, proxy)
	}
	s.check("shop/client GET shop/web:8080/a => 200")
}

func kill(pid int) { syscall.Kill(pid, syscall.SIGKILL) }
