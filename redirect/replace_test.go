package redirect

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/proxy/control"
)

// testCommand starts a launcher of this test.
func testCommand(dir string) []string {
	return []string{"/proc/self/exe", "proxy", "launch", dir, "proxy", "confine", "serve"}
}

// alone waits until there is one proxy, of that generation, and nothing left of
// others.
func alone(t *testing.T, dir string, d *bpf.Datapath, g uint8) {
	t.Helper()
	waitFor(t, "the end of all proxies but one", patience, func() bool {
		live, err := livePlaces(dir)
		attached, attachedErr := d.AttachedProxies()
		if err := errors.Join(err, attachedErr); err != nil {
			t.Fatal(err)
		}
		return len(live) == 1 && slices.Equal(attached, []uint8{g})
	})
	links, err := netlink.LinkList()
	if err != nil || len(links) != 2 {
		t.Errorf("%d interfaces, %v", len(links), err)
	}
	var failed error
	for n, p := range d.Proxies.All(&failed) {
		if (p.Alive != 0) != (n == uint32(g)) {
			t.Errorf("generation %d: %+v", n, p)
		}
	}
	if failed != nil {
		t.Error(failed)
	}
}

// TestReplacement: a proxy that is started beside another one takes its place.
func TestReplacement(t *testing.T) {
	inNamespace(t, func() {
		dir, d := setUpAgent(t)
		a := startAgent(t, dir, d)
		if err := a.SetRuleSets(t.Context(), []*policy.RuleSet{{ID: 1}, {ID: 2}}, nil); err != nil {
			t.Fatal(err)
		}
		if err := a.Synced(t.Context()); err != nil {
			t.Fatal(err)
		}
		g := current(t, d, 0)
		for round := range 3 {
			before := a.status()
			// What it has not accepted yet keeps it from ending.
			if err := d.Conns.Update(bpf.Tuple{Sport: 1, Proto: unix.IPPROTO_TCP}, bpf.Conn{Id: now(t), Generation: g}); err != nil {
				t.Fatal(err)
			}
			n, err := Start(dir, testCommand(dir))
			if err != nil {
				t.Fatal(err)
			}
			if n != round+2 {
				t.Errorf("round %d: place %d", round, n)
			}
			old := g
			g = current(t, d, old)
			waitFor(t, "the new one's answer", patience, func() bool {
				place, s, err := a.Current(t.Context())
				return err == nil && place == n && s.Boot != before.Boot && s.Generation == uint32(g) && s.RuleSets == 2
			})
			waitFor(t, "the old one's drain", patience, func() bool {
				replaced := a.Replaced(t.Context())
				return len(replaced) == 1 && replaced[0].Boot == before.Boot && replaced[0].Draining && replaced[0].DrainUntil > time.Now().Add(50*time.Minute).UnixNano()
			})
			// Both hear of rule sets.
			if err := a.SetRuleSets(t.Context(), []*policy.RuleSet{{ID: uint32(round) + 10}}, []uint32{uint32(round) + 9}); err != nil {
				t.Fatal(err)
			}
			if err := a.SetRuleSets(t.Context(), nil, []uint32{uint32(round) + 10}); err != nil {
				t.Fatal(err)
			}
			if s := a.Replaced(t.Context()); len(s) != 1 || s[0].RuleSets != 2 {
				t.Errorf("round %d: the old one has %v", round, s)
			}
			if p, _, err := d.Proxies.Lookup(uint32(old)); err != nil || p.Alive == 0 {
				t.Errorf("round %d: generation %d is gone while it drains: %+v, %v", round, old, p, err)
			}
			if err := d.Conns.Delete(bpf.Tuple{Sport: 1, Proto: unix.IPPROTO_TCP}); err != nil {
				t.Fatal(err)
			}
			alone(t, dir, d, g)
		}
	})
}

// now is the kernel's clock.
func now(t *testing.T) uint64 {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		t.Fatal(err)
	}
	return uint64(ts.Nano())
}

// TestManyReplacements at once, and one by an agent that comes later: the last
// one stays, and those in between are not needed.
func TestManyReplacements(t *testing.T) {
	inNamespace(t, func() {
		dir, d := setUpAgent(t)
		a := startAgent(t, dir, d)
		if err := a.Synced(t.Context()); err != nil {
			t.Fatal(err)
		}
		current(t, d, 0)
		last := 0
		for range 3 {
			n, err := Start(dir, testCommand(dir))
			if err != nil {
				t.Fatal(err)
			}
			last = n
		}
		settled := func(a *agent) uint8 {
			t.Helper()
			waitFor(t, "the last one", patience, func() bool {
				place, _, err := a.Current(t.Context())
				return err == nil && place == last
			})
			g := d.Generation()
			alone(t, dir, d, g)
			return g
		}
		g := settled(a)
		a.stop()
		// Nobody wires them, and the old one goes on.
		for range 2 {
			n, err := Start(dir, testCommand(dir))
			if err != nil {
				t.Fatal(err)
			}
			last = n
		}
		time.Sleep(200 * time.Millisecond)
		if p, _, err := d.Proxies.Lookup(uint32(g)); d.Generation() != g || p.Alive == 0 || err != nil {
			t.Errorf("generation %d is current, %+v, %v", d.Generation(), p, err)
		}
		b := startAgent(t, dir, d)
		if err := b.Synced(t.Context()); err != nil {
			t.Fatal(err)
		}
		settled(b)
	})
}

// TestReplacementWaitsForRuleSets: a proxy takes nothing before it knows them
// all; the one before keeps the new flows.
func TestReplacementWaitsForRuleSets(t *testing.T) {
	inNamespace(t, func() {
		dir, d := setUpAgent(t)
		a := startAgent(t, dir, d)
		if err := a.Synced(t.Context()); err != nil {
			t.Fatal(err)
		}
		g := current(t, d, 0)
		a.stop()
		if _, err := Start(dir, testCommand(dir)); err != nil {
			t.Fatal(err)
		}
		b := startAgent(t, dir, d)
		waitFor(t, "the new one to be wired", patience, func() bool {
			attached, err := d.AttachedProxies()
			return err == nil && len(attached) == 2
		})
		time.Sleep(2 * watchEvery)
		old := b.Replaced(t.Context())
		if d.Generation() != g || slices.ContainsFunc(old, (*control.StatusResponse).GetDraining) {
			t.Errorf("generation %d is current, and the agent does not know all rule sets: %v", d.Generation(), old)
		}
		if err := b.Synced(t.Context()); err != nil {
			t.Fatal(err)
		}
		alone(t, dir, d, current(t, d, g))
	})
}

// TestUpgrade: a running proxy of another binary is replaced, once; one of the
// same is not, nor one that no agent started.
func TestUpgrade(t *testing.T) {
	build, err := BuildOf("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	inNamespace(t, func() {
		dir, d := setUpAgent(t)
		start := func(build string) *agent {
			a := startAgentWith(t, dir, d, func(o *Options) { o.Build = build })
			if err := a.Synced(t.Context()); err != nil {
				t.Fatal(err)
			}
			return a
		}
		a := start(build)
		g := current(t, d, 0)
		a.stop()
		a = start("another one")
		g = current(t, d, g)
		alone(t, dir, d, g)
		// It is of this binary still, which is not the one that was asked for.
		time.Sleep(3 * watchEvery)
		if d.Generation() != g {
			t.Error("it was replaced again")
		}
		a.stop()
		a = start(build)
		time.Sleep(2 * watchEvery)
		if d.Generation() != g {
			t.Error("one of the same binary was replaced")
		}
		a.stop()
	})
}

func TestWhatIsUpgraded(t *testing.T) {
	m := NewManager(Options{RunDir: filepath.Join(t.TempDir(), "no", "where"), Build: "a", Command: []string{"/bin/false"}})
	for name, w := range map[string]*control.Welcome{
		"of the same binary":        {Build: "a", Managed: true},
		"that nobody else replaces": {Build: "b"},
	} {
		if m.upgrade(&session{welcome: w}); m.upgraded {
			t.Errorf("one %s is replaced", name)
		}
	}
	if m.upgrade(&session{welcome: &control.Welcome{Build: "b", Managed: true}}); !m.upgraded {
		t.Error("one of another binary is not replaced")
	}
}

// TestForeignProxy: one that speaks another protocol loses the new flows to one
// that does not, and is told to finish what it has.
func TestForeignProxy(t *testing.T) {
	inNamespace(t, func() {
		dir, d := setUpAgent(t)
		p, lock, err := takePlace(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		defer lock.Close()
		f, err := listen(p.socket())
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		l, err := net.FileListener(f)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if err := d.Proxies.Update(7, bpf.Proxy{Ifindex: 1, Alive: 1}); err != nil {
			t.Fatal(err)
		}
		d.SetGeneration(7)
		told := make(chan *control.Wiring, 16)
		go func() {
			netns, err := os.Open("/proc/self/ns/net")
			if err != nil {
				t.Error(err)
				return
			}
			defer netns.Close()
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				w := &control.Wiring{}
				if err := control.Send(c.(*net.UnixConn), &control.Welcome{Protocol: control.Protocol + 1, Generation: 7}, netns); err == nil {
					if files, err := control.Receive(c.(*net.UnixConn), w); err == nil {
						control.Close(files)
						told <- w
						_ = control.Send(c.(*net.UnixConn), &control.Wired{})
					}
				}
				c.Close()
			}
		}()
		a := startAgent(t, dir, d)
		time.Sleep(200 * time.Millisecond)
		if p, _, err := d.Proxies.Lookup(7); d.Generation() != 7 || p.Alive == 0 || err != nil {
			t.Errorf("before there is another one: generation %d, %+v, %v", d.Generation(), p, err)
		}
		if err := a.Synced(t.Context()); err != nil {
			t.Fatal(err)
		}
		if g := current(t, d, 7); g != 8 {
			t.Errorf("generation %d", g)
		}
		select {
		case w := <-told:
			if !w.Stop || w.Restart || time.Duration(w.Drain) != time.Hour {
				t.Errorf("it is asked for %v", w)
			}
		case <-time.After(patience):
			t.Fatal("it is told nothing")
		}
		if p, _, err := d.Proxies.Lookup(7); p.Alive == 0 || err != nil {
			t.Errorf("it is given up: %+v, %v", p, err)
		}
		l.Close()
		lock.Close()
		waitFor(t, "its end", patience, func() bool {
			p, _, err := d.Proxies.Lookup(7)
			live, liveErr := livePlaces(dir)
			return err == nil && liveErr == nil && len(live) == 1 && p.Ifindex == 1
		})
		if len(told) > 0 {
			t.Error("it is told again and again")
		}
	})
}

// TestNamespaceIsKept: what remains of a generation stays as long as somebody
// has its namespace.
func TestNamespaceIsKept(t *testing.T) {
	inNamespace(t, func() {
		dir, d := setUpAgent(t)
		a := startAgent(t, dir, d)
		if err := a.Synced(t.Context()); err != nil {
			t.Fatal(err)
		}
		g := current(t, d, 0)
		a.status()
		fd, err := unix.FcntlInt(a.main().netns.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		tuple := bpf.Tuple{Sport: 9, Proto: unix.IPPROTO_TCP}
		if _, err := Start(dir, testCommand(dir)); err != nil {
			t.Fatal(err)
		}
		next := current(t, d, g)
		waitFor(t, "the end of the old process", patience, func() bool {
			live, err := livePlaces(dir)
			return err == nil && len(live) == 1
		})
		if err := d.Conns.Update(tuple, bpf.Conn{Id: now(t), Generation: g}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * watchEvery)
		p, _, err := d.Proxies.Lookup(uint32(g))
		attached, attachedErr := d.AttachedProxies()
		_, vethErr := findVeth("test", g)
		if err := errors.Join(err, attachedErr, vethErr); err != nil || p.Alive == 0 || len(attached) != 2 {
			t.Errorf("alive %d, attached %v, %v", p.Alive, attached, err)
		}
		_ = unix.Close(fd)
		alone(t, dir, d, next)
		if _, ok, err := d.Conns.Lookup(tuple); ok || err != nil {
			t.Errorf("its flows are left: %v", err)
		}
	})
}

// enders is the client of a proxy that notes which generations are to end.
type enders struct {
	control.ProxyClient
	ended []uint32
}

func (e *enders) EndGeneration(_ context.Context, r *control.EndGenerationRequest, _ ...grpc.CallOption) (*control.EndGenerationResponse, error) {
	e.ended = append(e.ended, r.Generation)
	return &control.EndGenerationResponse{}, nil
}

// TestTooManyGenerations: of too many the oldest is asked to end, and there are
// never more than so many.
func TestTooManyGenerations(t *testing.T) {
	inNamespace(t, func() {
		pins := mountPins(t)
		d := loadPinned(t, pins, false)
		m := NewManager(Options{State: "test", RunDir: t.TempDir(), Datapath: d})
		client := &enders{}
		s := &session{
			place: place{"", 1}, generation: 3, steps: steps{joined: true}, client: client,
			welcome: &control.Welcome{}, done: make(chan struct{}),
		}
		d.SetGeneration(3)
		views := []view{{place: s.place, session: s, tried: true}}
		wire := func(g uint8) {
			t.Helper()
			if err := os.MkdirAll(filepath.Join(pins, "proxies", strconv.Itoa(int(g))), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		var held []*control.Held
		g := uint8(3)
		for range maxGenerations - 1 {
			wire(g)
			if g != 3 {
				held = append(held, &control.Held{Generation: uint32(g)})
			}
			if g--; g == 0 {
				g = 255
			}
		}
		s.status.Store(&control.StatusResponse{Held: held})
		clean := func() {
			t.Helper()
			if err := m.clean(t.Context(), views); err != nil {
				t.Fatal(err)
			}
		}
		clean()
		if len(client.ended) != 0 {
			t.Errorf("ended: %v", client.ended)
		}
		oldest := g + 1
		wire(4)
		wire(5)
		s.status.Store(&control.StatusResponse{Held: append(held, &control.Held{Generation: 4}, &control.Held{Generation: 5})})
		clean()
		// After 3 come 4 and 5: those that are next in turn are the oldest.
		if !slices.Equal(client.ended, []uint32{4}) {
			t.Errorf("ended: %v; by number the first is %d", client.ended, oldest)
		}
		if next, err := m.nextGeneration(); next != 6 || err != nil {
			t.Errorf("the next one is %d, %v", next, err)
		}
		for n := uint8(6); ; n++ {
			attached, err := d.AttachedProxies()
			if err != nil {
				t.Fatal(err)
			}
			if len(attached) == 2*maxGenerations {
				break
			}
			wire(n)
		}
		if next, err := m.nextGeneration(); err == nil {
			t.Errorf("one more: %d", next)
		}
	})
}
