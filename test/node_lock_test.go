package test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weirnet/weir/test/node"
)

// hostLinks are the pinned links of programs on the interfaces of a node itself.
func hostLinks(n *node.Node) (out []string) {
	_ = filepath.WalkDir(n.Weir().RunDir, func(path string, _ fs.DirEntry, err error) error {
		base := filepath.Base(path)
		if err == nil && (strings.HasPrefix(base, "from_host-") || strings.HasPrefix(base, "to_host-")) {
			out = append(out, base)
		}
		return nil
	})
	return out
}

// TestNodeLockedOut denies a node everything, in both directions: its operators
// get in all the same, connections that are open already end or go on as what
// they are, and that holds with the agent dead, until it is taken back.
func TestNodeLockedOut(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/node-lock.txtar")
	host, outside, web := s.places["host-a"], s.places["outside"], s.places["shop/web"]
	w := s.nodes[0].Weir()
	if found := hostLinks(s.nodes[0]); len(found) != 0 {
		t.Errorf("programs for a node that no policy selects: %v", found)
	}
	type open struct {
		what string
		pair
		ends bool
	}
	var pairs []open
	for family := range 2 {
		add := func(what string, from, to *place, port uint16, ends bool) {
			p := s.connectPair(from, to, family, port)
			if err := p.both(patience); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			pairs = append(pairs, open{fmt.Sprintf("%s, family %d", what, family), p, ends})
		}
		add("in, at a port that is denied", outside, host, 9000, true)
		add("in, by SSH", outside, host, 22, false)
		add("out", host, outside, 9001, true)
		add("masqueraded", web, outside, 9002, false)
		add("of a pod to its node", web, host, 9003, true)
		add("of a pod to its node, by SSH", web, host, 10250, false)
		add("of the node to its pod", host, web, 9004, true)
	}
	check := func(when string) {
		t.Helper()
		for _, p := range pairs {
			if !p.ends {
				// The server first: what answers is to be known by itself.
				if err := errors.Join(say(p.server, p.client, patience), p.both(patience)); err != nil {
					t.Errorf("%s: %s: %v", when, p.what, err)
				}
			}
		}
		for _, from := range []string{"outside", "shop/web"} {
			if err := s.mustTimeOut(from, "host-a", 7000); err != nil {
				t.Errorf("%s: %v", when, err)
			}
			for family := range 2 {
				if _, err := s.places[from].AskTCP(t.Context(), addrPort(host, family, 5432), "x"); err != nil {
					t.Errorf("%s: %s to a fail-safe port, family %d: %v", when, from, family, err)
				}
			}
		}
		for _, to := range []string{"outside", "shop/web"} {
			if err := s.mustTimeOut("host-a", to, 7000); err != nil {
				t.Errorf("%s: %v", when, err)
			}
		}
		for family := range 2 {
			seen, err := web.AskTCP(t.Context(), addrPort(outside, family, 7000), "x")
			if err != nil || seen.Addr() != host.addrs[family] {
				t.Errorf("%s: masqueraded, family %d: %v %v", when, family, seen, err)
			}
			if _, err := web.AskUDP(t.Context(), addrPort(outside, family, 7000), "x"); err != nil {
				t.Errorf("%s: masqueraded UDP, family %d: %v", when, family, err)
			}
		}
	}
	s.must("apply lock.yaml")
	s.must("wait")
	check("locked")
	for _, p := range pairs {
		if !p.ends {
			continue
		}
		if err := say(p.client, p.server, silence); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: goes on, or ended otherwise: %v", p.what, err)
		}
	}
	w.Agent().Kill()
	check("without an agent")
	if err := errors.Join(w.Start("--host-failsafe", "default,in:tcp/5432"), w.Wait(t.Context())); err != nil {
		t.Fatal(err)
	}
	check("with the next agent")

	// An interface of its own that comes is closed as well.
	s.must("link docker0 172.18.0.1 fd00:18::1 on=a")
	s.must("wait")
	s.must("status docker0")
	s.must("link docker0 gone")

	s.must("remove lock.yaml")
	s.must("wait")
	if found := hostLinks(s.nodes[0]); len(found) != 0 {
		t.Errorf("left: %v", found)
	}
	for family := range 2 {
		if _, err := outside.AskTCP(t.Context(), addrPort(host, family, 7000), "x"); err != nil {
			t.Errorf("opened again, family %d: %v", family, err)
		}
	}

	// Uninstalling takes a lock away as well.
	s.must("apply lock.yaml")
	s.must("wait")
	if found := hostLinks(s.nodes[0]); len(found) == 0 {
		t.Error("locked again, without programs")
	}
	w.Agent().Kill()
	if out, err := w.Command(t.Context(), "uninstall"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for family := range 2 {
		if _, err := outside.AskTCP(t.Context(), addrPort(host, family, 7000), "x"); err != nil {
			t.Errorf("uninstalled, family %d: %v", family, err)
		}
	}
}
