package test

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weirnet/weir/test/node"
)

// otherBinary is the program under test as another build of it.
func otherBinary(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	id := f.Section(".note.go.buildid")
	if id == nil {
		t.Fatal("the program has no build ID")
	}
	b[id.Offset+id.Size-4] ^= 1
	// Where nobody may go: the proxy runs as that.
	dir, err := os.MkdirTemp("", prefix)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "weir")
	if err := os.WriteFile(path, b, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// proxyView is what status says of the proxies.
type proxyView struct {
	Up          bool
	Generation  uint32
	Place       int
	Connections uint64
	Replaced    []struct {
		Generation              uint32
		Connections, HandedOver uint64
	}
	Held []struct {
		Generation  uint32
		Connections uint64
	}
}

// proxies asks for it.
func (s *story) proxies() (v proxyView) {
	s.t.Helper()
	out, err := s.nodes[0].Weir().Command(s.t.Context(), "status", "-o", "json")
	var st struct{ Proxy proxyView }
	if err == nil {
		err = json.Unmarshal([]byte(out), &st)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return st.Proxy
}

// until waits for something.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not in time", what)
		}
	}
}

// gone waits for the end of processes.
func gone(t *testing.T, w *node.Weir, pids []int) {
	t.Helper()
	until(t, fmt.Sprintf("the end of processes %v", pids), func() bool {
		now := w.ProxyPids()
		return !slices.ContainsFunc(pids, func(pid int) bool { return slices.Contains(now, pid) })
	})
}

// idles opens a connection from each client in each family, to be used now and
// then.
func (s *story) idles() (all []*staying) {
	s.t.Helper()
	for _, names := range [][2]string{{"shop/client", "shop/web"}, {"shop/client2", "shop/web2"}} {
		for family := range 2 {
			c := &staying{from: s.places[names[0]], to: s.places[names[1]].addrs[family]}
			s.t.Cleanup(c.close)
			if err := c.ask(); err != nil {
				s.t.Fatal(err)
			}
			all = append(all, c)
		}
	}
	return all
}

// askAll uses each of them.
func (s *story) askAll(all []*staying, when string) {
	s.t.Helper()
	for n, c := range all {
		if err := c.ask(); err != nil {
			s.t.Errorf("idle connection %d, %s: %v", n, when, err)
		}
	}
}

// stopped ends a load, of which nothing must have failed.
func (s *story) stopped(l *load) {
	s.t.Helper()
	for i, err := range l.end() {
		if i == 5 {
			s.t.Error("...")
			break
		}
		s.t.Error(err)
	}
	s.t.Logf("%d done, %d failed: %v", l.count.Load(), len(l.errors), l.counts)
}

// TestProxyReplaced replaces the proxy under load, twice in a row, in the middle
// of a download and of a websocket: nothing fails, what is idle goes over, and
// what was under way ends where it began.
func TestProxyReplaced(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/http.txtar")
	w := s.nodes[0].Weir()
	first := w.ProxyPids()
	idles := s.idles()
	socket, in, _ := s.upgrade(s.places["shop/client"], s.places["shop/web"], 0, "/a/ws")
	echo := func(when string) {
		t.Helper()
		_ = socket.SetDeadline(time.Now().Add(patience))
		back := make([]byte, 4)
		if _, err := socket.Write([]byte("echo")); err != nil {
			t.Errorf("a websocket, %s: %v", when, err)
		} else if _, err := io.ReadFull(in, back); err != nil || string(back) != "echo" {
			t.Errorf("a websocket, %s: %q, %v", when, back, err)
		}
	}
	echo("at first")
	download, finish := s.download()
	defer finish()
	l := s.allow()
	attempts, reached := s.unchecked()
	time.Sleep(300 * time.Millisecond)
	began := s.proxies()
	for range 2 {
		out, err := w.Command(t.Context(), "proxy", "replace")
		if err != nil {
			t.Fatal(err)
		}
		t.Log(strings.TrimSpace(out))
	}
	v := s.proxies()
	if v.Generation != began.Generation+2 || v.Place != began.Place+2 {
		t.Errorf("after two replacements: %+v, before: %+v", v, began)
	}
	if !slices.ContainsFunc(v.Replaced, func(r struct {
		Generation              uint32
		Connections, HandedOver uint64
	}) bool {
		return r.Generation == began.Generation && r.Connections > 0 && r.HandedOver >= 4
	}) {
		t.Errorf("the first proxy is not told to have the download: %+v", v.Replaced)
	}
	// Its processes are there as long as the download is.
	if now := w.ProxyPids(); !slices.Contains(now, first[len(first)-1]) {
		t.Errorf("processes %v; the download's are %v", now, first)
	}
	s.askAll(idles, "while the first proxy lives")
	echo("while the first proxy lives")
	s.check("shop/client2 GET shop/web2:8080/b => 403 records=1")
	finish()
	if err := <-download; err != nil {
		t.Errorf("the download: %v", err)
	}
	gone(t, w, first)
	until(t, "the end of all old proxies", func() bool { return len(s.proxies().Replaced) == 0 })
	s.askAll(idles, "with another process")
	echo("with another process")
	attempts.end()
	if n := reached(); n != 0 {
		t.Errorf("%d flows passed that no rule allows", n)
	}
	s.stopped(l)
	// New rules reach connections that were handed over.
	s.must("apply web-b.yaml as=web.yaml")
	s.must("wait")
	for n, c := range idles {
		if err := c.ask(); err == nil || err.Error() != "status 403" {
			t.Errorf("idle connection %d: %v, and its rule is gone", n, err)
		}
	}
	_ = socket.SetDeadline(time.Now().Add(patience))
	if _, err := in.ReadByte(); outcome(err) != "reset" {
		t.Errorf("a websocket whose rule is gone: %v", err)
	}
	s.must("apply web.yaml")
	s.must("wait")
	s.askAll(idles, "with the old rule")
	if v := s.proxies(); len(v.Held) == 0 || v.Held[0].Generation != began.Generation {
		t.Errorf("nobody holds the idle connections: %+v", v)
	}
	// And so does the kernel's verdict.
	s.must("apply web-closed.yaml as=web.yaml")
	s.must("wait")
	if err := idles[0].ask(); err == nil || strings.HasPrefix(err.Error(), "status") {
		t.Errorf("a connection that is allowed no more: %v", err)
	}
	for _, c := range idles {
		c.close()
	}
	// What the kernel kept for them goes with them.
	defer func() { t.Logf("in the end: %+v", s.proxies()) }()
	until(t, "the end of the first generation", func() bool {
		links, err := s.nodes[0].Host.Links()
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, name := range links {
			if strings.HasPrefix(name, "weir") {
				n++
			}
		}
		return n == 1 && len(s.proxies().Held) == 0
	})
	if now := w.ProxyPids(); len(now) != 2 {
		t.Errorf("processes %v", now)
	}
}

// TestProxyUpgrade: an agent of another binary adopts the running proxy, starts
// one of its own and hands over to it, under load; the next agent of that binary
// leaves it at that.
func TestProxyUpgrade(t *testing.T) {
	t.Parallel()
	other := otherBinary(t)
	s := tell(t, "setups/http.txtar")
	w := s.nodes[0].Weir()
	first, began := w.ProxyPids(), s.proxies()
	idles := s.idles()
	l := s.allow()
	attempts, reached := s.unchecked()
	w.Agent().Kill()
	before := w.Binary
	w.Binary = other
	for range 2 {
		if err := w.Start(); err != nil {
			t.Fatal(err)
		}
		s.must("wait")
		gone(t, w, first)
		until(t, "the new proxy", func() bool { return s.proxies().Generation == began.Generation+1 })
		for _, pid := range w.ProxyPids() {
			exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
			if err != nil || exe != w.Binary {
				t.Errorf("process %d is %s, %v; it was %s", pid, exe, err, before)
			}
		}
		s.askAll(idles, "after the agent's upgrade")
		w.Agent().Stop()
	}
	attempts.end()
	s.stopped(l)
	if n := reached(); n != 0 {
		t.Errorf("%d flows passed that no rule allows", n)
	}
	if err := w.Start(); err != nil {
		t.Fatal(err)
	}
	s.must("wait")
}

// TestProxyReplacedWhileAgentDies: the agent is killed at some moment of a
// replacement, and the next one carries it out.
func TestProxyReplacedWhileAgentDies(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/http.txtar")
	w := s.nodes[0].Weir()
	idles := s.idles()
	l := s.allow()
	attempts, reached := s.unchecked()
	generation := s.proxies().Generation
	for round := range 6 {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		done := make(chan error, 1)
		go func() {
			_, err := w.Command(ctx, "proxy", "replace")
			done <- err
		}()
		// The proxy's start and hand-over take some tenths of a second.
		time.Sleep(time.Duration(round*150) * time.Millisecond)
		w.Agent().Kill()
		time.Sleep(100 * time.Millisecond)
		if err := w.Start(); err != nil {
			t.Fatal(err)
		}
		// It may have asked the agent that died.
		err := <-done
		if err != nil && !strings.Contains(err.Error(), "no agent is running") && !strings.Contains(err.Error(), "ask the agent") {
			t.Errorf("round %d: %v", round, err)
		}
		cancel()
		s.must("wait")
		until(t, "one proxy", func() bool {
			v := s.proxies()
			return v.Up && len(v.Replaced) == 0 && len(w.ProxyPids()) == 2
		})
		now := s.proxies().Generation
		t.Logf("round %d: generation %d", round, now)
		if err == nil && now == generation {
			t.Errorf("round %d: the proxy was not replaced", round)
		}
		generation = now
		s.askAll(idles, fmt.Sprintf("in round %d", round))
	}
	attempts.end()
	s.stopped(l)
	if n := reached(); n != 0 {
		t.Errorf("%d flows passed that no rule allows", n)
	}
}

// TestReplacedProxyKilled: of two proxies one is killed. What it had is lost,
// nothing else, and nothing passes unchecked; one proxy is left in the end.
func TestReplacedProxyKilled(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/http.txtar")
	w := s.nodes[0].Weir()
	for _, victim := range []string{"old", "new", "old supervisor", "all"} {
		old := w.ProxyPids()
		slow, err := s.hold()
		if err != nil {
			t.Fatal(err)
		}
		idles := s.idles()
		attempts, reached := s.unchecked()
		if _, err := w.Command(t.Context(), "proxy", "replace"); err != nil {
			t.Fatal(err)
		}
		until(t, "the hand-over", func() bool {
			v := s.proxies()
			return len(v.Replaced) == 1 && v.Replaced[0].HandedOver >= 4
		})
		all := w.ProxyPids()
		fresh := slices.DeleteFunc(slices.Clone(all), func(pid int) bool { return slices.Contains(old, pid) })
		switch victim {
		case "old":
			kill(old[1])
		case "new":
			kill(fresh[1])
		case "old supervisor":
			kill(old[0])
		case "all":
			for _, pid := range all {
				kill(pid)
			}
		}
		c := s.places["shop/client"]
		until(t, victim+" killed: requests on new connections", func() bool {
			client := c.HTTPClient(500 * time.Millisecond)
			defer client.CloseIdleConnections()
			status, _, err := get(client, s.places["shop/web"].addrs[0], 8080, "/a")
			return err == nil && status == 200
		})
		s.check("shop/client2 GET shop/web2:8080/b => 403")
		if strings.HasPrefix(victim, "old") {
			s.askAll(idles, victim+" killed")
		}
		if victim == "new" || victim == "old supervisor" {
			if err := slow(); err != nil {
				t.Errorf("%s killed: a request of the old one: %v", victim, err)
			}
		}
		for _, c := range idles {
			c.close()
		}
		_ = slow()
		until(t, victim+" killed: one proxy", func() bool { return len(s.proxies().Replaced) == 0 && len(w.ProxyPids()) == 2 })
		attempts.end()
		if n := reached(); n != 0 {
			t.Errorf("%s killed: %d flows passed that no rule allows", victim, n)
		}
		until(t, victim+" killed: one generation", func() bool { return len(s.proxies().Held) == 0 })
	}
}

// hold begins a request whose body is finished by the function that is returned;
// a second call only closes the connection.
func (s *story) hold() (finish func() error, err error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	c, err := s.places["shop/client"].DialContext(ctx, "tcp", node.To(s.places["shop/web"].addrs[0], 8080))
	if err != nil {
		return nil, err
	}
	s.t.Cleanup(func() { c.Close() })
	if _, err := fmt.Fprint(c, "POST /a HTTP/1.1\r\nHost: web\r\nContent-Length: 4\r\n\r\nab"); err != nil {
		return nil, err
	}
	time.Sleep(100 * time.Millisecond) // it is on its way
	return func() error {
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		if _, err := fmt.Fprint(c, "cd"); err != nil {
			return err
		}
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		var seen node.HTTPSeen
		if err := json.NewDecoder(resp.Body).Decode(&seen); err != nil || seen.Length != 4 {
			return fmt.Errorf("%+v, %w", seen, err)
		}
		return nil
	}, nil
}

// TestProxyOfABrokenBinary: one that does not come up leaves the old one in
// place.
func TestProxyOfABrokenBinary(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/http.txtar")
	w := s.nodes[0].Weir()
	idles := s.idles()
	l := s.allow()
	began := s.proxies()
	// Nobody may execute it: a launcher starts, and no proxy.
	broken := otherBinary(t)
	if err := os.Chmod(broken, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(broken), 0o700); err != nil {
		t.Fatal(err)
	}
	out, err := s.nodes[0].Host.Run(t.Context(), "", broken, "proxy", "replace", "--state", s.nodes[0].State, "--timeout", "3s")
	if err == nil {
		t.Errorf("it is said to have replaced the proxy: %s", out)
	}
	if v := s.proxies(); v.Generation != began.Generation || !v.Up || len(v.Replaced) != 0 {
		t.Errorf("after it: %+v", v)
	}
	s.askAll(idles, "after it")
	s.stopped(l)
	until(t, "one proxy", func() bool { return len(w.ProxyPids()) == 2 })
}

// TestProxyToldToEnd: who runs the proxy ends it, and starts another before or
// after; the agent brings one where nobody does. Nothing fails.
func TestProxyToldToEnd(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/http.txtar")
	n := s.nodes[0]
	w := n.Weir()
	idles := s.idles()
	l := s.allow()
	attempts, reached := s.unchecked()
	for _, how := range []string{"another was started before", "nobody starts another", "another is started after"} {
		old, began := w.ProxyPids(), s.proxies()
		foreground := func() {
			t.Helper()
			cmd := exec.Command(w.Binary, "proxy", "--state", n.State)
			cmd.Stdout, cmd.Stderr = s, s
			if _, err := n.StartProcess(cmd); err != nil {
				t.Fatal(err)
			}
		}
		if how == "another was started before" {
			foreground()
			until(t, "the new one", func() bool { return s.proxies().Generation == began.Generation+1 })
		}
		if err := syscall.Kill(old[0], syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if how == "another is started after" {
			foreground()
		}
		gone(t, w, old)
		until(t, how+": one proxy", func() bool {
			v := s.proxies()
			return v.Up && v.Generation != began.Generation && len(v.Replaced) == 0 && len(w.ProxyPids()) == 2
		})
		s.askAll(idles, how)
	}
	attempts.end()
	s.stopped(l)
	if n := reached(); n != 0 {
		t.Errorf("%d flows passed that no rule allows", n)
	}
}

// TestManyIdleConnections go over in a moment, and none is lost.
func TestManyIdleConnections(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/http.txtar")
	const connections = 2000
	all := make([]*staying, connections)
	for i := range all {
		all[i] = &staying{from: s.places["shop/client"], to: s.places["shop/web"].addrs[i%2]}
		defer all[i].close()
		if err := all[i].ask(); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
	}
	first := s.nodes[0].Weir().ProxyPids()
	began := time.Now()
	if _, err := s.nodes[0].Weir().Command(t.Context(), "proxy", "replace"); err != nil {
		t.Fatal(err)
	}
	until(t, "the hand-over", func() bool {
		v := s.proxies()
		return len(v.Held) == 1 && v.Held[0].Connections == connections
	})
	t.Logf("%d connections went over within %v of the command", connections, time.Since(began))
	gone(t, s.nodes[0].Weir(), first)
	s.askAll(all, "with another process")
}
