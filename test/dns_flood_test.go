package test

import (
	"encoding/binary"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// sendAll sends a message over and over by two threads, each time with another
// id, until stop; answers are left unread.
func (p *place) sendAll(t *testing.T, server string, b []byte) (sent *atomic.Int64, stop func()) {
	t.Helper()
	sent = &atomic.Int64{}
	var all sync.WaitGroup
	var over atomic.Bool
	for range 2 {
		c, err := p.DialContext(t.Context(), "udp", server)
		if err != nil {
			t.Fatal(err)
		}
		b := append([]byte(nil), b...)
		all.Go(func() {
			defer c.Close()
			for id := uint16(0); !over.Load(); id++ {
				binary.BigEndian.PutUint16(b, id)
				if _, err := c.Write(b); err == nil {
					sent.Add(1)
				}
			}
		})
	}
	return sent, func() { over.Store(true); all.Wait() }
}

// askSteadily asks a thousand questions a second, and tells how many there were
// and how many were answered.
func (p *place) askSteadily(t *testing.T, server string, b []byte, during time.Duration) (asked, answered int) {
	c, err := p.DialContext(t.Context(), "udp", server)
	if err != nil {
		t.Error(err)
		return 0, 0
	}
	defer c.Close()
	_ = c.(*net.UDPConn).SetReadBuffer(1 << 20) // what is looked for is lost elsewhere
	var got atomic.Int64
	var over sync.WaitGroup
	over.Go(func() { countAnswers(c, &got) })
	for begin := time.Now(); time.Since(begin) < during; time.Sleep(time.Millisecond) {
		for ; asked < int(time.Since(begin)/time.Millisecond); asked++ {
			binary.BigEndian.PutUint16(b, uint16(asked))
			_, _ = c.Write(b)
		}
	}
	// Nothing is late as long as more comes: the machine may be busy.
	for last, at := int64(-1), time.Now(); int(got.Load()) < asked && time.Since(at) < 2*time.Second; time.Sleep(5 * time.Millisecond) {
		if n := got.Load(); n != last {
			last, at = n, time.Now()
		}
	}
	_ = c.SetReadDeadline(time.Now())
	over.Wait()
	return asked, int(got.Load())
}

func countAnswers(c net.Conn, n *atomic.Int64) {
	for b := make([]byte, 4096); ; {
		if _, err := c.Read(b); os.IsTimeout(err) {
			return
		} else if err == nil {
			n.Add(1)
		}
	}
}

// TestFloodsOfQuestions: whatever a pod sends as fast as it can, another one's
// questions are answered: by the proxy alone, or it would be seen how a server
// bears it. By IPv6 they surely have another lane than the flood by
// IPv4; by IPv4 they have in 63 of 64 cases, and must not perish in the other.
func TestFloodsOfQuestions(t *testing.T) {
	t.Parallel()
	needRoot(t)
	s := tell(t, "setups/dns-own.txtar")
	o := s.serveOwn(s.places["kube-system/dns"])
	o.on("silence", func(*dns.Msg) []*dns.Msg { return nil })
	s.must("start")
	at := s.places["kube-system/dns"]
	message := func(name string) []byte {
		b, err := new(dns.Msg).SetQuestion(name, dns.TypeA).Pack()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	unparsable := message("n1.good.test.")
	unparsable[5] = 2 // questions, it says
	during := time.Second
	if long := os.Getenv("WEIR_FLOOD"); long != "" {
		var err error
		if during, err = time.ParseDuration(long); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []struct {
		what string
		b    []byte
	}{{"denied", message("example.org.")}, {"unparsable", unparsable}, {"allowed", message("silence.good.test.")}} {
		sent, stop := s.places["shop/web2"].sendAll(t, addrPort(at, 0, 53).String(), f.b)
		var all sync.WaitGroup
		for family, most := range []float64{90, 1} {
			all.Go(func() {
				asked, answered := s.places["shop/web"].askSteadily(t, addrPort(at, family, 53).String(), message("victim.example.org."), during)
				lost := 100 - 100*float64(answered)/float64(max(asked, 1))
				t.Logf("%s flood, IPv%d: %d asked, %d answered: %.2f %% lost", f.what, 4+2*family, asked, answered, lost)
				if asked == 0 || lost > most {
					t.Errorf("%s flood, IPv%d: %.2f %% lost", f.what, 4+2*family, lost)
				}
			})
		}
		all.Wait()
		stop()
		t.Logf("%s flood: %d", f.what, sent.Load())
		if sent.Load() < 1000 {
			t.Errorf("that was no flood: %d", sent.Load())
		}
	}
}
