package test

import (
	"errors"
	"os/exec"
	"slices"
	"syscall"
	"testing"
	"time"
)

// TestAgentKilled kills the agent in the middle of everything: nothing stops,
// nothing that was closed opens, and the next agent takes over what is there.
func TestAgentKilled(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/http.txtar")
	w := s.nodes[0].Weir()
	proxy := w.ProxyPids()
	download, finish := s.download()
	defer finish()
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
	finish()
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
		if back == 0 {
			t.Errorf("%s: requests are not answered again", victim)
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

func kill(pid int) { _ = syscall.Kill(pid, syscall.SIGKILL) }
