package test

import (
	"errors"
	"syscall"
	"testing"
	"time"
)

// TestRedirectedFlowIsRevoked: a connection that goes through the proxy is
// reset when its L4 rule goes.
func TestRedirectedFlowIsRevoked(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/http.txtar")
	for family := range 2 {
		c := s.places["shop/client"].HTTPClient(patience)
		defer c.CloseIdleConnections()
		to := s.places["shop/web"].addrs[family]
		if status, _, err := get(c, to, 8080, "/a"); err != nil || status != 200 {
			t.Fatalf("%d, %v", status, err)
		}
		s.must("apply web-closed.yaml as=web.yaml")
		s.must("wait")
		// POST is not sent again on another connection by the client itself.
		resp, err := c.Post("http://"+addrPort(s.places["shop/web"], family, 8080).String()+"/a", "", nil)
		if err == nil {
			resp.Body.Close()
			t.Errorf("IPv%d: a revoked connection answered %s", 4+2*family, resp.Status)
		} else if !errors.Is(err, syscall.ECONNRESET) && outcome(err) != "reset" {
			t.Errorf("IPv%d: not reset: %v", 4+2*family, err)
		}
		s.check("shop/client GET shop/web:8080/a => dropped reason=policy-denied")
		s.must("apply web.yaml")
		s.must("wait")
	}
}

// TestRedirectedFlowLosesItsRules: it stays in the proxy until it closes, and
// every request passes.
func TestRedirectedFlowLosesItsRules(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/http.txtar")
	for family := range 2 {
		c := s.places["shop/client2"].HTTPClient(patience)
		defer c.CloseIdleConnections()
		to := s.places["shop/web2"].addrs[family]
		_, first, err := get(c, to, 8080, "/a")
		if err != nil {
			t.Fatal(err)
		}
		s.must("remove web.yaml")
		s.must("wait")
		status, second, err := get(c, to, 8080, "/b")
		if err != nil || status != 200 || second.Conn != first.Conn {
			t.Errorf("IPv%d: %d, %+v after %+v, %v", 4+2*family, status, second, first, err)
		}
		s.must("apply web.yaml")
		s.must("wait")
		if status, _, err := get(c, to, 8080, "/b"); err != nil || status != 403 {
			t.Errorf("IPv%d: with its rules again: %d, %v", 4+2*family, status, err)
		}
	}
}

// TestConnectionsOfADeadProxy end with a reset, on both sides, as soon as there
// is another proxy to say so.
func TestConnectionsOfADeadProxy(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/http.txtar")
	w := s.nodes[0].Weir()
	for family := range 2 {
		c := s.places["shop/client"].HTTPClient(patience)
		defer c.CloseIdleConnections()
		to := s.places["shop/web"].addrs[family]
		if status, _, err := get(c, to, 8080, "/a"); err != nil || status != 200 {
			t.Fatalf("%d, %v", status, err)
		}
		for _, pid := range w.ProxyPids() {
			kill(pid)
		}
		s.must("wait")
		began := time.Now()
		resp, err := c.Post("http://"+addrPort(s.places["shop/web"], family, 8080).String()+"/a", "", nil)
		if err == nil {
			resp.Body.Close()
			// The reset may have come before the client wrote: then it took
			// another connection.
		} else if outcome(err) != "reset" {
			t.Errorf("IPv%d: after %v: %v", 4+2*family, time.Since(began), err)
		}
		s.check("shop/client GET shop/web:8080/a => 200")
	}
}
