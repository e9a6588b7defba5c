package dns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// flood sends a message from a pod as fast as two threads can, each time with
// another id, until stop; what is answered is left unread.
func (g *rig) flood(pod netip.Addr, server netip.AddrPort, b []byte) (sent *atomic.Int64, stop func()) {
	g.t.Helper()
	sent = &atomic.Int64{}
	var over atomic.Bool
	var all sync.WaitGroup
	for range 2 {
		c := g.dial(pod, server)
		raw, err := c.SyscallConn()
		g.must(err)
		b := append([]byte(nil), b...)
		all.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			_ = raw.Control(func(fd uintptr) {
				for id := uint16(0); !over.Load(); id++ {
					if len(b) >= headerSize {
						setMessageID(b, id)
					}
					if _, err := unix.SendmsgN(int(fd), b, nil, nil, unix.MSG_DONTWAIT); err == nil {
						sent.Add(1)
					}
				}
			})
		})
	}
	return sent, sync.OnceFunc(func() { over.Store(true); all.Wait() })
}

// steady asks a thousand questions a second for a while, which are denied, and
// tells how many were answered.
func (g *rig) steady(pod netip.Addr, server netip.AddrPort, during time.Duration) (asked, answered int) {
	g.t.Helper()
	c := g.dial(pod, server)
	g.must(c.SetDeadline(time.Time{}))
	got := make(chan struct{}, 1<<16)
	go func() {
		for b := make([]byte, maxMessage); ; {
			if _, err := c.Read(b); errors.Is(err, net.ErrClosed) {
				return
			} else if err == nil {
				got <- struct{}{}
			}
		}
	}()
	g.must(c.SetReadBuffer(1 << 20))
	b := pack(g.t, query("victim.y", dns.TypeA))
	begin := time.Now()
	for time.Since(begin) < during {
		for ; asked < int(time.Since(begin)/time.Millisecond); asked++ {
			binary.BigEndian.PutUint16(b, uint16(asked))
			_, _ = c.Write(b)
		}
		time.Sleep(time.Millisecond)
	}
	for answered < asked {
		select {
		case <-got:
			answered++
		case <-time.After(2 * time.Second): // the machine may be busy
			return asked, answered
		}
	}
	return asked, answered
}

// TestFloodsStayInTheirLane: whatever a pod sends as fast as it can costs one
// that has another lane nothing. With WEIR_FLOOD (a duration) one in the same lane
// is measured as well: what the kernel drops before the proxy reads depends on the
// machine.
func TestFloodsStayInTheirLane(t *testing.T) {
	during, lanes := 500*time.Millisecond, []bool{false}
	if s := os.Getenv("WEIR_FLOOD"); s != "" {
		var err error
		if during, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
		lanes = []bool{false, true}
	}
	for _, f := range []struct {
		name string
		b    []byte
	}{
		{"denied", pack(t, query("denied.y", dns.TypeA))},
		{"unparsable", header(1)},
		{"allowed", pack(t, query("silent.x", dns.TypeA))},
	} {
		for _, same := range lanes {
			t.Run(fmt.Sprintf("%s, same lane %v", f.name, same), func(t *testing.T) {
				g := newRig(t)
				g.quiet.Store(true)
				g.rules.Store(&Rules{Egress: allow("*.x")})
				server := netip.AddrPortFrom(server4, 53)
				g.listen(server) // which is silent
				if same {
					g.shareLane()
				}
				sent, stop := g.flood(pod4, server, f.b)
				defer stop()
				time.Sleep(during / 10)
				before := sent.Load()
				asked, answered := g.steady(otherPod4, server, during)
				g.mu.Lock()
				lost := g.dropped[ReasonOverrun]
				g.mu.Unlock()
				t.Logf("%d asked, %d answered (%.2f %% lost), flood %d, %d lost", asked, answered,
					100-100*float64(answered)/float64(asked), sent.Load()-before, lost)
				if !same && answered < asked*99/100 {
					t.Errorf("of %d questions %d were answered", asked, answered)
				}
				stop()
			})
		}
	}
}

// TestCrowdedLanes: where datagrams were lost, and several send, each has a share
// of what is dealt with; not where one sends alone, or nothing was lost.
func TestCrowdedLanes(t *testing.T) {
	var lost uint64
	r := &relay{loop: &loop{now: time.Now()}, in: newReceiver(), Options: &Options{Drop: func(reason Reason, n uint64) {
		if reason == ReasonOverrun {
			lost += n
		}
	}}}
	batch := func(overflow uint32, pods ...int) {
		r.in.headers = &r.in.sets[1]
		for i := range batchSize {
			r.in.names[i] = sockaddrOf(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(pods[i%len(pods)])}), uint16(i)))
			c := r.in.control[i][:unix.CmsgSpace(4)]
			clear(c)
			binary.NativeEndian.PutUint64(c, uint64(unix.CmsgLen(4)))
			binary.NativeEndian.PutUint32(c[8:], unix.SOL_SOCKET)
			binary.NativeEndian.PutUint32(c[12:], unix.SO_RXQ_OVFL)
			binary.NativeEndian.PutUint32(c[16:], overflow)
			r.in.headers[i].header.SetControllen(len(c))
		}
	}
	l := &lane{}
	for i, step := range []struct {
		overflow uint32
		pods     []int
		n        int
		after    time.Duration
		crowded  bool
	}{
		{0, []int{1, 2}, batchSize, 0, false},                   // nothing was lost
		{5, []int{1}, batchSize, 2 * crowdTime, false},          // one alone
		{5, []int{1, 1, 1, 2}, batchSize - 1, 0, false},         // the queue is empty by now
		{5, []int{1, 1, 1, 2}, batchSize, 0, true},              // two
		{5, []int{1}, batchSize, crowdTime / 2, true},           // the other one is there still
		{5, []int{1, 2}, batchSize, crowdTime, false},           // nothing was lost for a while
		{1 << 31, []int{1, 2}, batchSize, 10 * crowdTime, true}, // again
		{3, []int{2, 1}, batchSize, 0, true},                    // the counter has gone round
	} {
		r.now = r.now.Add(step.after)
		batch(step.overflow, step.pods...)
		if got := l.crowded(r, step.n); got != step.crowded {
			t.Errorf("step %d: crowded %v", i, got)
		}
	}
	if want := uint64(1<<32 + 3); lost != want {
		t.Errorf("%d were lost, not %d", lost, want)
	}
	admitted := map[netip.Addr]int{}
	batch(0, 1, 1, 1, 2)
	for range crowdBatches {
		for i := range batchSize {
			if l.admit(&r.in.names[i]) {
				admitted[r.in.names[i].ip()]++
			}
		}
	}
	if len(admitted) != 2 || admitted[netip.MustParseAddr("10.0.0.1")] != crowdShare || admitted[netip.MustParseAddr("10.0.0.2")] != crowdShare {
		t.Errorf("admitted: %v", admitted)
	}
}

// shareLane has all pods' datagrams come to one socket.
func (g *rig) shareLane() {
	g.loop(func(r *relay) {
		for _, l := range r.listeners {
			if family, _ := unix.GetsockoptInt(l.fd, unix.SOL_SOCKET, unix.SO_DOMAIN); family == unix.AF_INET {
				if err := g.steering.Update(uint32(0), uint64(l.fd), ebpf.UpdateAny); err != nil {
					g.t.Error(err)
				}
				if err := g.steering.Update(uint32(otherLane), uint64(l.fd), ebpf.UpdateAny); err != nil {
					g.t.Error(err)
				}
				return
			}
		}
	})
}
