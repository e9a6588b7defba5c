package test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/flow"
	"github.com/weirnet/weir/test/node"
)

// upgrade asks a place for a websocket and returns the connection, what is read
// from it behind the response's head, and that head's first line.
func (s *story) upgrade(from, to *place, family int, path string) (net.Conn, *bufio.Reader, string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	conn, err := from.DialContext(ctx, "tcp", node.To(to.addrs[family], 8080))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", path)
	r := bufio.NewReader(conn)
	first, err := r.ReadString('\n')
	for line := first; line != "\r\n" && err == nil; {
		line, err = r.ReadString('\n')
	}
	if err != nil {
		s.t.Fatalf("%s: %q, %v", path, first, err)
	}
	return conn, r, first
}

// TestUpgradeFollowsPolicy: a websocket whose request rules would not let pass
// any more is reset, though its connection stays allowed; others go on.
func TestUpgradeFollowsPolicy(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/http.txtar")
	from, to := s.places["shop/client"], s.places["shop/web"]
	say := func(conn net.Conn, r io.Reader) error {
		_ = conn.SetDeadline(time.Now().Add(patience))
		if _, err := io.WriteString(conn, "on"); err != nil {
			return err
		}
		_, err := io.ReadFull(r, make([]byte, 2))
		return err
	}
	for family := range 2 {
		conn, r, _ := s.upgrade(from, to, family, "/a/ws")
		if err := say(conn, r); err != nil {
			t.Fatal(err)
		}
		// Another policy changes nothing.
		s.must("apply db-closed.yaml as=db.yaml")
		s.must("wait")
		if err := say(conn, r); err != nil {
			t.Errorf("family %d: after another policy's change: %v", family, err)
		}
		s.must("apply web-b.yaml as=web.yaml")
		s.must("wait")
		if err := say(conn, r); outcome(err) != "reset" {
			t.Errorf("family %d: a websocket that may not be: %v", family, err)
		}
		record, err := s.awaitRecord(func(r flow.Record) bool {
			return r.Layer == "L7" && r.Reason == "policy-changed" && r.Dest.Addr == to.addrs[family]
		})
		if err != nil || record.Verdict != flow.Dropped || record.HTTP == nil || record.HTTP.Path != "/a/ws" || record.Dest.Pod != "web" {
			t.Errorf("family %d: recorded as %+v, %v", family, record, err)
		}
		s.check("shop/client GET shop/web:8080/b => 200")
		s.must("apply web.yaml")
		s.must("apply db.yaml")
		s.must("wait")
	}
}

// TestUpgrade lets a websocket through once its request is allowed, and no
// other.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/http.txtar")
	from, to := s.places["shop/client"], s.places["shop/web"]
	// The story's own server answers upgrades, too: one on a port of its own
	// would need a rule.
	for family := range 2 {
		for path, want := range map[string]string{"/a/ws": "101", "/b/ws": "403"} {
			conn, r, line := s.upgrade(from, to, family, path)
			if !strings.HasPrefix(line, "HTTP/1.1 "+want) {
				t.Errorf("%s: %q", path, line)
			}
			if want != "101" {
				continue
			}
			// Bytes that are no HTTP, and look like a request that is refused.
			for _, text := range []string{"\x81\x05hello", "GET /b HTTP/1.1\r\n\r\n", strings.Repeat("z", 100_000)} {
				if _, err := io.WriteString(conn, text); err != nil {
					t.Fatal(err)
				}
				back := make([]byte, len(text))
				if _, err := io.ReadFull(r, back); err != nil || string(back) != text {
					t.Fatalf("after the upgrade %d bytes did not come back: %v", len(text), err)
				}
			}
		}
	}
}
