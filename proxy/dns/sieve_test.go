package dns

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// laneSocket is a socket as a lane's, less what needs rights.
func laneSocket(t *testing.T, own netip.Addr) (fd int, at netip.AddrPort) {
	t.Helper()
	fd, err := unix.Socket(familyOf(own), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err == nil {
		t.Cleanup(func() { _ = unix.Close(fd) })
		err = bind(fd, netip.AddrPortFrom(own, 0))
	}
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1)
	}
	if err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	switch name := name.(type) {
	case *unix.SockaddrInet4:
		return fd, netip.AddrPortFrom(own, uint16(name.Port))
	case *unix.SockaddrInet6:
		return fd, netip.AddrPortFrom(own, uint16(name.Port))
	}
	t.Fatalf("a socket at %T", name)
	return fd, at
}

// TestSieve: of what those send that it is for, the kernel lets pass one in
// sieveShare; of what others send, all; and what it drops is counted.
func TestSieve(t *testing.T) {
	addrs := func(of ...string) (out []netip.Addr) {
		for _, a := range of {
			out = append(out, netip.MustParseAddr(a))
		}
		return out
	}
	for _, c := range []struct {
		from   string
		floods []netip.Addr
		sifted bool
	}{
		{"127.0.0.1", addrs("127.0.0.1"), true},
		{"127.0.0.2", addrs("127.0.0.1"), false},
		{"127.0.0.4", addrs("127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4"), true},
		{"127.0.0.5", addrs("127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4"), false},
		{"::1", addrs("::1"), true},
		{"::1", addrs("1::1", "0:0:1::1", "::1:0:0:1", "::1"), true},
		{"::1", addrs("1::1", "0:0:1::1", "::1:0:0:1", "::2"), false},
	} {
		t.Run(fmt.Sprint(c.from, " of ", c.floods), func(t *testing.T) {
			const sent = 100 * sieveShare
			from := netip.MustParseAddr(c.from)
			to := netip.MustParseAddr("127.0.0.9")
			if from.Is6() {
				to = from
			}
			fd, at := laneSocket(t, to)
			if err := setSieve(fd, c.floods); err != nil {
				t.Fatal(err)
			}
			sender, _ := laneSocket(t, from)
			if err := connect(sender, at); err != nil {
				t.Fatal(err)
			}
			in, got, lost := newReceiver(), 0, uint32(0)
			send := func(n int) {
				t.Helper()
				for range n {
					if _, err := unix.Write(sender, []byte("question")); err != nil {
						t.Fatal(err)
					}
					if k, errno := in.receive(fd, true); errno == 0 {
						got, lost = got+k, in.lost(k-1)
					}
				}
			}
			send(sent)
			// The chance that it is further from the mean is one in a billion.
			if mean := sent / sieveShare; c.sifted && (got < mean/2 || got > 2*mean) || !c.sifted && got != sent {
				t.Errorf("of %d, %d passed", sent, got)
			}
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0); err != nil {
				t.Fatal(err)
			}
			before := got
			send(1)
			if got != before+1 || lost != uint32(sent-before) {
				t.Errorf("%d passed then, %d are counted as lost of %d", got-before, lost, sent-before)
			}
		})
	}
}

// TestSift: a lane gets a sieve when it is crowded for long, for longer when it
// still is afterwards, and is rid of it in time.
func TestSift(t *testing.T) {
	fd, _ := laneSocket(t, netip.MustParseAddr("127.0.0.1"))
	l := &lane{sock: sock{fd: fd}}
	var log bytes.Buffer
	r := &relay{
		loop: &loop{now: time.Now()}, listeners: []*lane{l}, in: newReceiver(),
		Options: &Options{Log: slog.New(slog.NewTextHandler(&log, nil))},
	}
	from := func(host byte, n int) source {
		return source{of: sockaddrOf(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, host}), 0)), n: n}
	}
	round := func(after time.Duration, sources ...source) time.Duration {
		r.now = r.now.Add(after)
		l.sources = sources
		r.sift(l, crowdBatches)
		if l.sieve.until.IsZero() {
			return 0
		}
		return l.sieve.until.Sub(r.now)
	}
	const rounds = sieveBatches / crowdBatches
	flood, victim := from(1, 500), from(2, crowdShare)
	for i := range rounds - 1 {
		if round(time.Millisecond, flood, victim) != 0 {
			t.Fatalf("round %d: a sieve", i)
		}
	}
	// The machine was busy for a moment, and now and then is again.
	r.now = r.now.Add(crowdTime)
	for i := range 4 * rounds {
		if round(crowdTime/(rounds-2), flood, victim) != 0 {
			t.Fatalf("a sieve after %d rounds in several seconds", i)
		}
	}
	r.now = r.now.Add(crowdTime)
	for i, want := range []time.Duration{sieveTime, 2 * sieveTime, 4 * sieveTime, sieveLongest, sieveLongest} {
		var got time.Duration
		for n := 0; got == 0; n++ {
			if got = round(time.Millisecond, victim, flood); n > 0 && i > 0 || n > rounds {
				t.Fatalf("sieve %d comes late", i)
			}
		}
		if got != want || r.sieves != 1 {
			t.Errorf("sieve %d is for %v, of %d; want %v", i, got, r.sieves, want)
		}
		l.at, l.mixed = r.now.Add(got), r.now.Add(got)
		if l.crowded(r, batchSize) {
			t.Error("crowded, and there is a sieve")
		}
		r.now = r.now.Add(got - 1)
		if r.unsift(); r.sieves != 1 {
			t.Error("it is gone too early")
		}
		r.now = r.now.Add(1)
		if r.unsift(); r.sieves != 0 || !l.sieve.until.IsZero() {
			t.Error("it stays")
		}
		if !l.crowded(r, batchSize) {
			t.Error("it counts as crowded no more")
		}
	}
	if n := bytes.Count(log.Bytes(), []byte("clients=[10.0.0.1]")); n != 1 {
		t.Errorf("told of %d times:\n%s", n, &log)
	}
	// Much later it begins anew.
	if round(crowdTime, flood, victim) != 0 {
		t.Error("a sieve at once")
	}
	for _, c := range []struct {
		sources []source
		floods  []string
	}{
		{[]source{from(1, sieveSample)}, []string{"10.0.0.1"}},
		{[]source{from(1, sieveSample-2), from(2, 1)}, nil}, // too few
		{[]source{from(1, 100), from(2, 300)}, []string{"10.0.0.1", "10.0.0.2"}},
		{[]source{from(1, 99), from(2, 300)}, []string{"10.0.0.2"}},
		{[]source{from(1, 100), from(2, 100), from(3, 100), from(4, 100)}, []string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"}},
		{[]source{from(1, 100), from(2, 100), from(3, 100), from(4, 100), from(5, 100)}, nil}, // none is worse
	} {
		l.sources = c.sources
		var got []string
		for _, a := range l.floods() {
			got = append(got, a.String())
		}
		if !slices.Equal(got, c.floods) {
			t.Errorf("of %+v: %v", c.sources, got)
		}
	}
}
