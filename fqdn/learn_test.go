package fqdn

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/policy/dnsrules"
)

// What the table says after answers and changes of selectors.
func TestLearn(t *testing.T) {
	ids := map[identity.ID]string{
		300: "api.example.test", 301: "*.example.test", 302: "api.example.test *.example.test", 303: "*.cdn.test", 304: "other.test",
	}
	t.Run("exactly the selectors that match", func(t *testing.T) {
		r := newRig(t, Settings{})
		r.names(ids)
		r.learn("api.example.test", time.Minute, "192.0.2.1", "2001:db8::1")
		r.learn("www.example.test", time.Minute, "192.0.2.2")
		r.learn("a.b.example.test", time.Minute, "192.0.2.3")
		r.want(map[string]identity.ID{"192.0.2.1": 302, "2001:db8::1": 302, "192.0.2.2": 301})
	})
	t.Run("the chain counts", func(t *testing.T) {
		r := newRig(t, Settings{})
		r.names(ids)
		r.learn("foo.test middle.test x.cdn.test", time.Minute, "192.0.2.1")
		r.want(map[string]identity.ID{"192.0.2.1": 303})
	})
	t.Run("an address of several names", func(t *testing.T) {
		r := newRig(t, Settings{})
		r.names(map[identity.ID]string{300: "a.test", 301: "b.test", 302: "a.test b.test"})
		r.learn("a.test", time.Minute, "192.0.2.1")
		r.want(map[string]identity.ID{"192.0.2.1": 300})
		r.clock.advance(30 * time.Second)
		r.learn("b.test", time.Minute, "192.0.2.1")
		r.want(map[string]identity.ID{"192.0.2.1": 302})
		r.clock.advance(31 * time.Second)
		r.sweepNow()
		r.want(map[string]identity.ID{"192.0.2.1": 301})
		r.clock.advance(31 * time.Second)
		r.sweepNow()
		r.want(nil)
		if n, a := r.Len(); n+a != 0 {
			t.Errorf("%d names and %d addresses are left", n, a)
		}
	})
	t.Run("selectors come and go", func(t *testing.T) {
		r := newRig(t, Settings{})
		r.learn("a.test", time.Minute, "192.0.2.1")
		r.learn("b.test", time.Minute, "192.0.2.2")
		r.want(nil)
		r.names(map[identity.ID]string{300: "a.test"})
		r.want(map[string]identity.ID{"192.0.2.1": 300})
		r.names(map[identity.ID]string{301: "*.test", 300: "a.test", 302: "a.test *.test"})
		r.want(map[string]identity.ID{"192.0.2.1": 302, "192.0.2.2": 301})
		r.names(map[identity.ID]string{301: "*.test"})
		r.want(map[string]identity.ID{"192.0.2.1": 301, "192.0.2.2": 301})
		r.names(map[identity.ID]string{400: "*.test"})
		r.want(map[string]identity.ID{"192.0.2.1": 400, "192.0.2.2": 400})
		r.names(nil)
		r.want(nil)
	})
	t.Run("nothing is written where nothing changes", func(t *testing.T) {
		r := newRig(t, Settings{})
		r.names(ids)
		r.learn("www.example.test", time.Minute, "192.0.2.1", "192.0.2.2")
		before := r.table.count()
		r.learn("www.example.test", time.Hour, "192.0.2.1", "192.0.2.2")
		r.learn("mail.example.test", time.Hour, "192.0.2.1")
		r.names(ids)
		r.names(map[identity.ID]string{301: "*.example.test", 999: "new.test"})
		if n := r.table.count() - before; n != 0 {
			t.Errorf("%d writes", n)
		}
	})
}

// Addresses that can't be outside peers are left out.
func TestStrangeAddresses(t *testing.T) {
	r := newRig(t, Settings{})
	r.names(map[identity.ID]string{300: "a.test"})
	bad := []string{
		"0.0.0.0", "0.1.2.3", "::", "127.0.0.1", "127.9.9.9", "::1", "224.0.0.1", "239.1.1.1", "ff02::1", "ff0e::1",
		"169.254.169.254", "fe80::1", "fe80::1%eth0", "255.255.255.255", "::ffff:192.0.2.7", "::192.0.2.7",
	}
	r.learn("a.test", time.Minute, bad...)
	r.learn("a.test", time.Minute, append(bad, "192.0.2.1")...)
	r.want(map[string]identity.ID{"192.0.2.1": 300})
	if got := r.Counts().Refused; got != uint64(2*len(bad)) {
		t.Errorf("%d addresses were refused, of %d", got, 2*len(bad))
	}
	if n, a := r.Len(); n != 1 || a != 1 {
		t.Errorf("%d names, %d addresses", n, a)
	}
	if err := r.Learn(context.Background(), Answer{Name: "a.test", Records: []Record{{}}}); err != nil {
		t.Error(err)
	}
}

// How long an address stands for its name.
func TestLife(t *testing.T) {
	alive := netip.MustParseAddr("192.0.2.1")
	for _, c := range []struct {
		name     string
		ttl      time.Duration
		settings Settings
		stays    time.Duration // at least, and a second later it is gone
	}{
		{"the floor", 0, Settings{}, time.Minute},
		{"a negative TTL", -time.Second, Settings{}, time.Minute},
		{"the TTL", 5 * time.Minute, Settings{}, 5 * time.Minute},
		{"the cap", 1000 * time.Hour, Settings{}, 24 * time.Hour},
		{"a floor of one's own", time.Second, Settings{MinTTL: 3 * time.Second}, 3 * time.Second},
		{"a cap of one's own", time.Hour, Settings{MaxTTL: 2 * time.Minute}, 2 * time.Minute},
		{"a cap below the floor", time.Hour, Settings{MinTTL: time.Minute, MaxTTL: time.Second}, time.Minute},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, c.settings)
			r.names(map[identity.ID]string{300: "a.test"})
			r.learn("a.test", c.ttl, "192.0.2.1")
			r.clock.advance(c.stays)
			r.sweepNow()
			r.want(map[string]identity.ID{"192.0.2.1": 300})
			r.clock.advance(time.Second)
			r.flows.set(alive)
			r.sweepNow()
			r.want(map[string]identity.ID{"192.0.2.1": 300})
			// As long as it is in use, however long that is.
			r.clock.advance(100 * time.Hour)
			r.sweepNow()
			r.want(map[string]identity.ID{"192.0.2.1": 300})
			r.flows.set()
			r.clock.advance(time.Second)
			r.sweepNow()
			r.want(nil)
		})
	}
	t.Run("answers prolong, and never shorten", func(t *testing.T) {
		r := newRig(t, Settings{})
		r.names(map[identity.ID]string{300: "a.test"})
		r.learn("a.test", 2*time.Minute, "192.0.2.1")
		r.clock.advance(30 * time.Second)
		r.learn("a.test", time.Minute, "192.0.2.1")
		r.clock.advance(85 * time.Second)
		r.sweepNow()
		r.want(map[string]identity.ID{"192.0.2.1": 300})
		r.learn("a.test", 2*time.Minute, "192.0.2.1")
		r.clock.advance(119 * time.Second)
		r.sweepNow()
		r.want(map[string]identity.ID{"192.0.2.1": 300})
	})
	t.Run("nobody can tell what is in use", func(t *testing.T) {
		r := newRig(t, Settings{})
		r.names(map[identity.ID]string{300: "a.test"})
		r.learn("a.test", time.Minute, "192.0.2.1")
		r.flows.fail = errors.New("not now")
		r.clock.advance(2 * time.Minute)
		_ = r.sweep(context.Background())
		r.want(map[string]identity.ID{"192.0.2.1": 300})
		r.clock.advance(2 * time.Minute)
		_ = r.sweep(context.Background())
		r.want(nil)
	})
}

// Combinations without an identity are asked for, and waited for.
func TestCombinations(t *testing.T) {
	apart := map[identity.ID]string{300: "a.test", 301: "b.test", 302: "c.test"}
	together := map[identity.ID]string{300: "a.test", 301: "b.test", 302: "c.test", 310: "a.test b.test"}

	t.Run("nobody makes one", func(t *testing.T) {
		r := newRig(t, Settings{})
		r.names(apart)
		begun := time.Now()
		r.learn("a.test b.test", time.Minute, "192.0.2.1")
		if d := time.Since(begun); d > patience/2 {
			t.Errorf("it waited %v", d)
		}
		if id := r.table.get("192.0.2.1"); id != 300 && id != 301 {
			t.Errorf("it is %d", id)
		}
		r.names(together)
		r.want(map[string]identity.ID{"192.0.2.1": 310})
	})
	t.Run("the agent makes it", func(t *testing.T) {
		r := newRig(t, Settings{})
		r.names(apart)
		watch(t, r, func(sets [][]dnsrules.Selector) {
			if len(sets) == 1 && slices.Equal(sets[0], sel("a.test b.test")) {
				r.names(together)
			}
		})
		begun := time.Now()
		r.learn("a.test b.test", time.Minute, "192.0.2.1")
		r.want(map[string]identity.ID{"192.0.2.1": 310})
		if d := time.Since(begun); d > patience/2 {
			t.Errorf("it took %v", d)
		}
	})
	t.Run("the agent does not answer", func(t *testing.T) {
		r := newRig(t, Settings{})
		r.names(apart)
		r.learn("b.test", time.Minute, "192.0.2.1")
		watch(t, r, func([][]dnsrules.Selector) {})
		begun := time.Now()
		done := make(chan error)
		go func() { done <- r.Learn(context.Background(), answer("a.test", time.Minute, "192.0.2.1")) }()
		time.Sleep(patience / 4)
		r.want(map[string]identity.ID{"192.0.2.1": 301}) // meanwhile what was right before
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if d := time.Since(begun); d < patience || d > 3*patience {
			t.Errorf("it waited %v", d)
		}
		r.want(map[string]identity.ID{"192.0.2.1": 301})
		begun = time.Now() // and not again for every answer
		r.learn("a.test", time.Minute, "192.0.2.1")
		if d := time.Since(begun); d > patience/2 {
			t.Errorf("the next one waited %v", d)
		}
	})
	t.Run("what is not right any more does not wait", func(t *testing.T) {
		r := newRig(t, Settings{})
		r.names(together)
		r.learn("a.test b.test", time.Minute, "192.0.2.1")
		r.clock.advance(30 * time.Second)
		r.learn("b.test", time.Minute, "192.0.2.1")
		r.want(map[string]identity.ID{"192.0.2.1": 310})
		watch(t, r, func([][]dnsrules.Selector) {})
		done := make(chan error)
		go func() { done <- r.Learn(context.Background(), answer("c.test", time.Hour, "192.0.2.1")) }()
		time.Sleep(patience / 10)
		r.clock.advance(31 * time.Second)
		r.sweepNow() // a.test is over, b.test and c.test have no identity yet
		if id := r.table.get("192.0.2.1"); id != 301 && id != 302 {
			t.Errorf("it is %d", id)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
	t.Run("whoever asked goes away", func(t *testing.T) {
		r := newRig(t, Settings{})
		r.names(apart)
		watch(t, r, func([][]dnsrules.Selector) {})
		ctx, cancel := context.WithTimeout(context.Background(), patience/10)
		defer cancel()
		begun := time.Now()
		if err := r.Learn(ctx, answer("a.test b.test", time.Minute, "192.0.2.1")); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(begun); d > patience/2 {
			t.Errorf("it waited %v", d)
		}
	})
	t.Run("the agent goes away", func(t *testing.T) {
		r := newRig(t, Settings{})
		r.names(apart)
		stop := watch(t, r, func([][]dnsrules.Selector) {})
		done := make(chan error)
		begun := time.Now()
		go func() { done <- r.Learn(context.Background(), answer("a.test b.test", time.Minute, "192.0.2.1")) }()
		time.Sleep(patience / 10)
		stop()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if d := time.Since(begun); d > patience/2 {
			t.Errorf("it waited %v", d)
		}
	})
	t.Run("the largest part that has one", func(t *testing.T) {
		r := newRig(t, Settings{})
		r.names(together)
		r.learn("c.test", time.Minute, "192.0.2.1")
		r.learn("a.test b.test", time.Minute, "192.0.2.1")
		r.want(map[string]identity.ID{"192.0.2.1": 310})
	})
	t.Run("wants are told, kept for a while, and taken back", func(t *testing.T) {
		r := newRig(t, Settings{})
		r.names(together)
		r.learn("a.test b.test", time.Minute, "192.0.2.1")
		wants := func(want ...string) {
			t.Helper()
			r.mu.Lock()
			defer r.mu.Unlock()
			var got []string
			for _, list := range r.wanted() {
				var names []string
				for _, s := range list {
					names = append(names, s.String())
				}
				got = append(got, strings.Join(names, " "))
			}
			if slices.Sort(got); !slices.Equal(got, want) {
				t.Fatalf("%q are wanted, not %q", got, want)
			}
		}
		wants("a.test b.test")
		r.clock.advance(61 * time.Second)
		r.sweepNow()
		r.want(nil)
		r.tendWants(r.clockNow())
		wants("a.test b.test")
		r.names(map[identity.ID]string{300: "a.test", 301: "b.test", 305: "d.test"})
		wants("a.test b.test")
		r.clock.advance((wantedIdle + 1) * time.Second)
		r.tendWants(r.clockNow())
		wants()
	})
}

func (r *rig) clockNow() uint32 { return r.Cache.clock() }

// watch answers what is told until the test ends, or the returned function is
// called.
func watch(t *testing.T, r *rig, each func([][]dnsrules.Selector)) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	told, done := make(chan struct{}, 100), make(chan struct{})
	go func() {
		defer close(done)
		_ = r.Watch(ctx, func(sets [][]dnsrules.Selector) error {
			each(sets)
			select {
			case told <- struct{}{}:
			default:
			}
			return nil
		})
	}()
	<-told
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return stop
}

// What the table does not take is told, and tried again.
func TestFullTable(t *testing.T) {
	r := newRig(t, Settings{})
	r.names(map[identity.ID]string{300: "a.test"})
	r.table.fail = errors.New("no room")
	err := r.Learn(context.Background(), answer("a.test", time.Minute, "192.0.2.1"))
	if !errors.Is(err, r.table.fail) || !strings.Contains(err.Error(), "192.0.2.1") {
		t.Fatalf("got %v", err)
	}
	r.table.fail = nil
	r.tend(0)
	r.want(map[string]identity.ID{"192.0.2.1": 300})

	r.table.fail = errors.New("still no room")
	if err := r.SetNames(map[identity.ID][]dnsrules.Selector{301: sel("a.test")}, nil); !errors.Is(err, r.table.fail) {
		t.Fatalf("got %v", err)
	}
	r.clock.advance(61 * time.Second)
	r.sweepNow()
	r.table.fail = nil
	r.want(map[string]identity.ID{"192.0.2.1": 300})
	r.sweepNow()
	r.want(nil)
}

func TestBelieved(t *testing.T) {
	r := newRig(t, Settings{})
	server := func(text string, protocol uint8) policy.Server {
		return policy.Server{Addr: netip.MustParseAddrPort(text), Protocol: protocol}
	}
	one := server("10.96.0.10:53", unix.IPPROTO_UDP)
	if r.Believed(one) {
		t.Error("nobody said so")
	}
	if err := r.SetNames(nil, []policy.Server{one, server("[::ffff:10.96.0.11]:5353", unix.IPPROTO_TCP)}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		server   string
		protocol uint8
		want     bool
	}{
		{"10.96.0.10:53", unix.IPPROTO_UDP, true}, {"[::ffff:10.96.0.10]:53", unix.IPPROTO_UDP, true},
		{"10.96.0.10:53", unix.IPPROTO_TCP, false}, {"10.96.0.10:5353", unix.IPPROTO_UDP, false},
		{"10.96.0.11:5353", unix.IPPROTO_TCP, true}, {"10.96.0.11:53", unix.IPPROTO_TCP, false},
		{"10.96.0.12:53", unix.IPPROTO_UDP, false},
	} {
		if r.Believed(server(c.server, c.protocol)) != c.want {
			t.Errorf("%s, protocol %d: believed %v", c.server, c.protocol, !c.want)
		}
	}
}

func TestList(t *testing.T) {
	r := newRig(t, Settings{})
	r.names(map[identity.ID]string{300: "*.a.test"})
	r.learn("x.a.test", 5*time.Minute, "192.0.2.1", "2001:db8::1")
	r.learn("b.test", time.Minute, "192.0.2.2")
	for i := range 2 * keptPods {
		a := answer("x.a.test", time.Minute, "192.0.2.1")
		a.Pod = netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
		if err := r.Learn(context.Background(), a); err != nil {
			t.Fatal(err)
		}
	}
	r.flows.set(netip.MustParseAddr("192.0.2.1"))
	var got []string
	list := func(match string) {
		got = nil
		if err := r.List(context.Background(), match, func(n Name) error {
			slices.SortFunc(n.Addresses, func(a, b Address) int { return a.Addr.Compare(b.Addr) })
			for _, a := range n.Addresses {
				got = append(got, fmt.Sprint(n.Name, a.Addr, a.Expires.Sub(r.clock.Now()), a.Alive, a.Identity, n.Selectors, n.Pods))
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	list("a.t")
	want := []string{
		"x.a.test192.0.2.15m0s true 300 [*.a.test] [10.0.0.7 10.0.0.6 10.0.0.5 10.0.0.4]",
		"x.a.test2001:db8::15m0s false 300 [*.a.test] [10.0.0.7 10.0.0.6 10.0.0.5 10.0.0.4]",
	}
	if len(got) != 2 {
		t.Fatalf("got %q", got)
	}
	for i := range want {
		if strings.ReplaceAll(got[i], " ", "") != strings.ReplaceAll(want[i], " ", "") {
			t.Errorf("got  %s\nwant %s", got[i], want[i])
		}
	}
	if list("nothing"); len(got) != 0 {
		t.Errorf("got %q", got)
	}
	if list(""); len(got) != 3 {
		t.Errorf("got %q", got)
	}
	stop := errors.New("enough")
	if err := r.List(context.Background(), "", func(Name) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("got %v", err)
	}
}

// Pods that nobody knows any more are forgotten.
func TestPodsAreForgotten(t *testing.T) {
	r := newRig(t, Settings{})
	for i := range 1000 {
		a := answer("a.test", time.Minute, "192.0.2.1")
		a.Pod = netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		if err := r.Learn(context.Background(), a); err != nil {
			t.Fatal(err)
		}
	}
	r.tendPods()
	r.tendPods()
	if n := len(r.pods.byAddr); n != keptPods+1 { // and the one whose name it is
		t.Errorf("%d are known", n)
	}
	if n := len(r.pods.list); n != 1000 {
		t.Errorf("%d places", n)
	}
	r.learn("a.test", time.Minute, "192.0.2.1")
	if n := len(r.pods.list); n != 1000 {
		t.Errorf("%d places after another", n)
	}
}
