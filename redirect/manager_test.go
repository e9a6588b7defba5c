package redirect

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/proxy/control"
)

// agent is a running Manager.
type agent struct {
	*Manager
	t    *testing.T
	stop func()
}

// startAgent runs a Manager for dir until the test ends or it is stopped.
func startAgent(t *testing.T, dir string, d *bpf.Datapath) *agent {
	t.Helper()
	return startAgentWith(t, dir, d, func(*Options) {})
}

// startAgentWith is startAgent with other options.
func startAgentWith(t *testing.T, dir string, d *bpf.Datapath, change func(*Options)) *agent {
	t.Helper()
	o := Options{
		State: "test", RunDir: dir, Datapath: d, MTU: 1450,
		Command: testCommand(dir),
		Log:     slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	}
	change(&o)
	m := NewManager(o)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	a := &agent{Manager: m, t: t}
	a.stop = sync0(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			t.Error("Run does not end")
		}
	})
	t.Cleanup(a.stop)
	return a
}

func sync0(f func()) func() {
	called := false
	return func() {
		if !called {
			called = true
			f()
		}
	}
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	fmt.Fprintf(os.Stdout, "    %s", b) // a test that has ended must not be logged to
	return len(b), nil
}

// main is the session with the proxy that counts.
func (a *agent) main() *session {
	s, _ := a.proxies()
	return s
}

func (a *agent) status() *control.StatusResponse {
	a.t.Helper()
	var s *control.StatusResponse
	waitFor(a.t, "an answer to Status", patience, func() bool {
		var err error
		s, err = a.Status(context.Background())
		return err == nil
	})
	return s
}

// current waits until a generation other than old is the current one.
func current(t *testing.T, d *bpf.Datapath, old uint8) uint8 {
	t.Helper()
	waitFor(t, fmt.Sprintf("a proxy after generation %d", old), patience, func() bool {
		g := d.Generation()
		p, _, err := d.Proxies.Lookup(uint32(g))
		return err == nil && g != old && p.Alive == 1
	})
	return d.Generation()
}

// pids are the latest launcher of dir and its proxy.
func pids(t *testing.T, dir string) (launcher, child int) {
	t.Helper()
	waitFor(t, "the proxy's process", patience, func() bool {
		places, err := livePlaces(dir)
		if err != nil {
			t.Fatal(err)
		}
		if len(places) == 0 {
			return false
		}
		h, err := readHolders(places[len(places)-1])
		if err != nil {
			t.Fatal(err)
		}
		launcher = h.launcher
		child = childOf(launcher)
		return launcher != 0 && child != 0
	})
	return launcher, child
}

func kill(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// setUpAgent makes a datapath, and removes the proxy when the test ends.
func setUpAgent(t *testing.T) (string, *bpf.Datapath) {
	t.Helper()
	dir, pins := setUpPins(t)
	return dir, loadPinned(t, pins, false)
}

// setUpPins is setUpAgent without a datapath: where that is to have its pins.
func setUpPins(t *testing.T) (dir, pins string) {
	t.Helper()
	dir = t.TempDir()
	showLog(t, dir)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := Remove(ctx, "test", dir, 0); err != nil {
			t.Errorf("Remove: %v", err)
		}
		if entries, _ := os.ReadDir(dir); len(entries) > 0 {
			t.Errorf("left in the run directory: %v", entries)
		}
		links, err := netlink.LinkList()
		if err != nil || len(links) != 1 {
			t.Errorf("%d interfaces are left, %v", len(links), err)
		}
	})
	return dir, mountPins(t)
}

func TestNewProxyIsWired(t *testing.T) {
	inNamespace(t, func() {
		dir, d := setUpAgent(t)
		a := startAgent(t, dir, d)
		ctx := t.Context()
		if err := a.SetRuleSets(ctx, []*policy.RuleSet{{ID: 1}, {ID: 2}}, []uint32{2}); err != nil {
			t.Fatal(err)
		}
		if s := a.status(); s.Generation != 1 || s.RuleSets != 1 || len(s.Notes) != 0 || s.Rss == 0 {
			t.Errorf("status %v", s)
		}
		// Not all rule sets are known: no flow may go there.
		time.Sleep(50 * time.Millisecond)
		if p, _, err := d.Proxies.Lookup(1); d.Generation() != 0 || p.Alive != 0 || err != nil {
			t.Errorf("current before the agent has all rule sets: %d, %+v, %v", d.Generation(), p, err)
		}
		if err := a.Synced(ctx); err != nil {
			t.Fatal(err)
		}
		g := current(t, d, 0)
		if g != 1 {
			t.Errorf("generation %d", g)
		}
		entry, _, err := d.Proxies.Lookup(1)
		if err != nil {
			t.Fatal(err)
		}
		link, err := netlink.LinkByName(interfaceName("test", 1))
		if err != nil {
			t.Fatal(err)
		}
		at := link.Attrs()
		if at.Index != int(entry.Ifindex) || at.MTU != 1450 || at.Flags&net.FlagUp == 0 || at.OperState != netlink.OperUp {
			t.Errorf("interface %+v, entry %+v", at, entry)
		}
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			if addrs, err := netlink.AddrList(link, family); err != nil || len(addrs) != 0 {
				t.Errorf("addresses %v, %v", addrs, err)
			}
		}
		s := a.main()
		if mac, err := peerMAC(s.netns); err != nil || !slices.Equal(mac, entry.Mac[:]) {
			t.Errorf("the proxy's eth0 is %v, the entry says %v, %v", mac, entry.Mac, err)
		}
		maps, err := d.ProxyMaps(1)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range maps {
			f.Close()
		}
		if err := a.SetMTU(9000); err != nil {
			t.Error(err)
		}
		if link, err = netlink.LinkByName(interfaceName("test", 1)); err != nil || link.Attrs().MTU != 9000 {
			t.Errorf("MTU %d, %v", link.Attrs().MTU, err)
		}
	})
}

func TestAgentComesAndGoes(t *testing.T) {
	inNamespace(t, func() {
		dir, d := setUpAgent(t)
		ctx := t.Context()
		a := startAgent(t, dir, d)
		if err := a.SetRuleSets(ctx, []*policy.RuleSet{{ID: 1}, {ID: 2}}, nil); err != nil {
			t.Fatal(err)
		}
		if err := a.Synced(ctx); err != nil {
			t.Fatal(err)
		}
		current(t, d, 0)
		before := a.status()
		entry, _, _ := d.Proxies.Lookup(1)
		launcher, child := pids(t, dir)

		a.stop()
		if _, err := a.Status(ctx); !errors.Is(err, ErrNoProxy) {
			t.Errorf("status of an agent that ended: %v", err)
		}
		if p, _, _ := d.Proxies.Lookup(1); p != entry {
			t.Errorf("it took the proxy along: %+v", p)
		}
		b := startAgent(t, dir, d)
		if err := b.SetRuleSets(ctx, []*policy.RuleSet{{ID: 3}}, nil); err != nil {
			t.Fatal(err)
		}
		if s := b.status(); s.Boot != before.Boot || s.Generation != 1 {
			t.Errorf("another proxy: %v, was %v", s, before)
		}
		// What it does not know yet stays: the kernel speaks of it.
		waitFor(t, "rule sets of both", patience, func() bool { return b.status().RuleSets == 3 })
		if err := b.Synced(ctx); err != nil {
			t.Fatal(err)
		}
		if s := b.status(); s.RuleSets != 1 {
			t.Errorf("%d rule sets, want those of the second agent", s.RuleSets)
		}
		if p, _, _ := d.Proxies.Lookup(1); p != entry || d.Generation() != 1 {
			t.Errorf("wired anew: %+v, was %+v", p, entry)
		}
		if l, c := pids(t, dir); l != launcher || c != child {
			t.Errorf("processes %d, %d, were %d, %d", l, c, launcher, child)
		}
		// A third, while the second is there: the proxy hears the newer one.
		c := startAgent(t, dir, d)
		if s := c.status(); s.Boot != before.Boot {
			t.Errorf("another proxy: %v", s)
		}
		b.stop()
		if s := c.status(); s.Boot != before.Boot || d.Generation() != 1 {
			t.Errorf("another proxy: %v", s)
		}
	})
}

func TestProxyDies(t *testing.T) {
	inNamespace(t, func() {
		dir, d := setUpAgent(t)
		ctx := t.Context()
		a := startAgent(t, dir, d)
		if err := a.SetRuleSets(ctx, []*policy.RuleSet{{ID: 1}}, nil); err != nil {
			t.Fatal(err)
		}
		if err := a.Synced(ctx); err != nil {
			t.Fatal(err)
		}
		g := current(t, d, 0)
		for _, who := range []string{"proxy", "proxy", "both", "launcher", "proxy without launcher"} {
			time.Sleep(100 * time.Millisecond)
			launcher, child := pids(t, dir)
			boot := a.status().Boot
			if err := d.Conns.Update(bpf.Tuple{Sport: uint16(g)}, bpf.Conn{Id: 1, Generation: g}); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			switch who {
			case "both":
				kill(t, launcher)
				kill(t, child)
			case "launcher":
				kill(t, launcher)
				time.Sleep(200 * time.Millisecond)
				if s := a.status(); s.Boot != boot || d.Generation() != g {
					t.Errorf("the proxy did not outlive its launcher: %v", s)
				}
				kill(t, child)
				began = time.Now()
			default:
				kill(t, child)
			}
			old := g
			g = current(t, d, old)
			took := time.Since(began)
			t.Logf("%s killed: generation %d after %v", who, g, took)
			if g != old+1 {
				t.Errorf("%s killed: generation %d after %v", who, g, took)
			}
			if p, _, _ := d.Proxies.Lookup(uint32(old)); p.Alive != 0 {
				t.Errorf("generation %d is still alive", old)
			}
			if s := a.status(); s.Boot == boot || s.RuleSets != 1 {
				t.Errorf("status %v", s)
			}
			waitFor(t, "the end of the old flows", patience, func() bool {
				_, ok, err := d.Conns.Lookup(bpf.Tuple{Sport: uint16(old)})
				return !ok && err == nil
			})
			waitFor(t, "the end of the old programs and interface", patience, func() bool {
				attached, err := d.AttachedProxies()
				_, gone := netlink.LinkByName(interfaceName("test", old))
				return err == nil && slices.Equal(attached, []uint8{g}) && errors.As(gone, &netlink.LinkNotFoundError{})
			})
		}
	})
}

// TestProxyWithOtherTables: a proxy that holds the tables of a datapath that is
// gone is replaced.
func TestProxyWithOtherTables(t *testing.T) {
	inNamespace(t, func() {
		dir, d := setUpAgent(t)
		a := startAgent(t, dir, d)
		if err := a.Synced(t.Context()); err != nil {
			t.Fatal(err)
		}
		current(t, d, 0)
		boot := a.status().Boot
		a.stop()
		other := loadDatapath(t)
		b := startAgent(t, dir, other)
		if err := b.Synced(t.Context()); err != nil {
			t.Fatal(err)
		}
		current(t, other, 0)
		if s := b.status(); s.Boot == boot {
			t.Errorf("the same proxy: %v", s)
		}
	})
}

// TestInterfaceGone: somebody removes the proxy's interface.
func TestInterfaceGone(t *testing.T) {
	inNamespace(t, func() {
		dir, d := setUpAgent(t)
		a := startAgent(t, dir, d)
		if err := a.Synced(t.Context()); err != nil {
			t.Fatal(err)
		}
		g := current(t, d, 0)
		if err := removeVeth("test", g); err != nil {
			t.Fatal(err)
		}
		if g = current(t, d, g); g != 2 {
			t.Errorf("generation %d", g)
		}
	})
}

func TestNames(t *testing.T) {
	seen := map[string]bool{}
	for _, state := range []string{"weir", "a", "b", strings.Repeat("x", 64)} {
		for _, g := range []uint8{1, 2, 255} {
			name := interfaceName(state, g)
			if len(name) > 15 || seen[name] {
				t.Errorf("%s, generation %d: %q", state, g, name)
			}
			seen[name] = true
		}
	}
	if interfaceName("weir", 7) != "weir7" {
		t.Error(interfaceName("weir", 7))
	}
}

// TestAgentDiedInBetween: the proxy is wired, and its agent dies before it
// says so to the kernel. The next one goes on from there. The number after the
// last is the first.
func TestAgentDiedInBetween(t *testing.T) {
	inNamespace(t, func() {
		dir, d := setUpAgent(t)
		d.SetGeneration(255)
		a := startAgent(t, dir, d)
		before := a.status()
		a.stop()
		if p, _, _ := d.Proxies.Lookup(1); p.Alive != 0 || d.Generation() != 255 {
			t.Fatalf("it was made current: %+v, %d", p, d.Generation())
		}
		b := startAgent(t, dir, d)
		if err := b.Synced(t.Context()); err != nil {
			t.Fatal(err)
		}
		if g := current(t, d, 255); g != 1 {
			t.Errorf("generation %d", g)
		}
		if s := b.status(); s.Boot != before.Boot {
			t.Errorf("another proxy: %v", s)
		}
		entry, _, _ := d.Proxies.Lookup(1)
		if mac, err := peerMAC(b.main().netns); err != nil || !slices.Equal(mac, entry.Mac[:]) {
			t.Errorf("the proxy's eth0 is %v, the entry says %v, %v", mac, entry.Mac, err)
		}
	})
}
