package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	nethttp "net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/policy"
)

// succession is a predecessor, of generation 3, and its successor, 4, on one
// table of flows.
type succession struct {
	t        *testing.T
	old, new *dataSide
	flows    *memoryFlows
	clients  []net.Conn
	running  sync.WaitGroup
}

// newSuccession makes both, in front of a server that answers with the path.
func newSuccession(t *testing.T) *succession {
	t.Helper()
	server := httptest.NewServer(nethttp.HandlerFunc(func(w nethttp.ResponseWriter, r *nethttp.Request) {
		_, _ = io.WriteString(w, r.URL.Path)
	}))
	s := &succession{t: t}
	make := func() *dataSide {
		d, flows, _ := newData(t)
		if s.flows == nil {
			s.flows = flows
		}
		d.flows, d.max, d.share = s.flows, 1000, 1000
		d.dial = func(ctx context.Context, _, _ netip.AddrPort, _ bool) (*net.TCPConn, error) {
			c, err := (&net.Dialer{}).DialContext(ctx, "tcp", server.Listener.Addr().String())
			if err != nil {
				return nil, err
			}
			return c.(*net.TCPConn), nil
		}
		// In one namespace the server's socket can't have the client's address.
		d.checkSocket = func(fd int, local, remote netip.AddrPort) error {
			if err := checkSocket(fd, local, remote); err != nil && !errors.Is(err, errOtherEnds) {
				return err
			}
			return nil
		}
		return d
	}
	s.old, s.new = make(), make()
	s.new.generation = 4
	t.Cleanup(server.Close)
	t.Cleanup(s.running.Wait)
	serve(t, s.old)
	serve(t, s.new)
	t.Cleanup(func() {
		for _, d := range []*dataSide{s.old, s.new} {
			d.end()
		}
	})
	return s
}

// connect adds clients' connections to the predecessor.
func (s *succession) connect(n int) {
	s.t.Helper()
	for range n {
		accepted, dialed := tcpPair(s.t)
		client, server := ends(accepted)
		s.flows.set(bpf.TupleOf(client, server, unix.IPPROTO_TCP), bpf.Conn{Id: uint64(len(s.clients)) + 1, Generation: s.old.generation, Ifindex: 7})
		s.old.admit(accepted)
		s.clients = append(s.clients, dialed)
	}
	for i := range s.clients {
		s.ask(i)
	}
}

// ask makes a request on each connection.
func (s *succession) ask(i int) {
	s.t.Helper()
	path := fmt.Sprintf("/%d", i)
	fmt.Fprintf(s.clients[i], "GET %s HTTP/1.1\r\nHost: h\r\n\r\n", path)
	res, err := nethttp.ReadResponse(bufio.NewReader(s.clients[i]), nil)
	if err != nil {
		s.t.Fatalf("client %d: %v", i, err)
	}
	defer res.Body.Close()
	if b, err := io.ReadAll(res.Body); err != nil || string(b) != path {
		s.t.Fatalf("client %d: %q, %v", i, b, err)
	}
}

// seqPackets is a pair of connected sockets as an agent makes it.
func seqPackets(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range []**net.UnixConn{&a, &b} {
		f := os.NewFile(uintptr(fds[i]), "bridge")
		if *c, err = unixConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
		t.Cleanup(func() { (*c).Close() })
	}
	return a, b
}

// bridge connects the two.
func (s *succession) bridge(oldNames, newNames nameKeeper) (*heir, *receiver) {
	a, b := seqPackets(s.t)
	h := s.old.handTo(a)
	s.running.Go(func() { s.old.serveHeir(h, "boot", oldNames) })
	r := s.new.takeOver(b, newNames)
	s.running.Go(r.run)
	<-r.ready
	return h, r
}

func (f *memoryFlows) len() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.entries)
}

func (s *succession) wait(what string, ok func() bool) {
	s.t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatalf("%s: not in time; %d and %d connections, %v", what, s.old.pairs.len(), s.new.pairs.len(), s.new.held())
		}
	}
}

func TestHandOver(t *testing.T) {
	s := newSuccession(t)
	s.connect(20)
	fds := openFiles(t)
	s.bridge(nil, nil)
	if held := s.new.held(); len(held) != 1 || held[0].Generation != 3 || !held[0].Receiving || held[0].Connections != 0 {
		t.Errorf("before: %v", held)
	}
	if s.old.pairs.len() != 20 {
		t.Error("it hands over before it is told to")
	}
	s.old.handOver()
	s.old.handOver()
	s.wait("the hand-over", func() bool { return s.new.pairs.len() == 20 && s.old.pairs.len() == 0 })
	if got := openFiles(t); got > fds+4 {
		t.Errorf("%d open files, before %d", got, fds)
	}
	for i := range s.clients {
		s.ask(i)
	}
	// A request is counted once its answer is out.
	s.wait("the successor's requests", func() bool { return s.new.counters.requests.Load() == 20 })
	if n := s.old.counters.requests.Load(); n != 20 {
		t.Errorf("the predecessor served %d requests", n)
	}
	// What comes late is accepted, and goes over as well.
	s.connect(1)
	s.wait("the late one", func() bool { return s.new.pairs.len() == 21 })
	if h, taken := s.old.counters.handed.Load(), s.new.counters.takenOver.Load(); h != 21 || taken != 21 {
		t.Errorf("%d were handed over, %d taken", h, taken)
	}
	// An entry without a connection may be one in a moment; who accounts for it
	// is the predecessor.
	now, err := monotonic()
	if err != nil {
		t.Fatal(err)
	}
	s.flows.set(numbered(1), bpf.Conn{Id: now, Generation: 3})
	old, successor := newSweeper(s.old), newSweeper(s.new)
	walk := func(at uint64) {
		t.Helper()
		if err := errors.Join(old.walk(nil, at), successor.walk(nil, at)); err != nil {
			t.Fatal(err)
		}
	}
	walk(now)
	walk(now)
	if s.old.over() {
		t.Error("over, though a client is connecting")
	}
	walk(now + uint64(time.Hour))
	walk(now + uint64(time.Hour))
	if s.flows.len() != 21 || s.new.counters.swept.Load() != 0 || s.old.counters.swept.Load() != 1 {
		t.Errorf("%d entries; swept: %d and %d", s.flows.len(), s.old.counters.swept.Load(), s.new.counters.swept.Load())
	}
	if !s.old.over() || s.new.over() != false {
		t.Error("the predecessor is not over, or its successor is")
	}
	s.flows.set(numbered(1), bpf.Conn{Id: now, Generation: 3})
	s.old.end()
	s.wait("the end of the hand-over", func() bool { return !s.new.held()[0].Receiving })
	// From now on nobody else accounts for the generation.
	if err := successor.walk(nil, now+uint64(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if _, ok, _ := s.flows.get(numbered(1)); ok || s.flows.len() != 21 || s.new.counters.swept.Load() != 1 {
		t.Errorf("%d entries, the successor swept %d", s.flows.len(), s.new.counters.swept.Load())
	}
	s.ask(20)
	s.clients[20].Close()
	s.wait("the end of a connection", func() bool { return s.new.pairs.len() == 20 && s.flows.len() == 20 })
	if held := s.new.held(); len(held) != 1 || held[0].Connections != 20 {
		t.Errorf("held: %v", held)
	}
	s.new.endGeneration(4)
	s.ask(0)
	s.new.endGeneration(3)
	for _, c := range s.clients[:20] {
		if _, err := io.Copy(io.Discard, c); err != nil {
			t.Errorf("a connection ends with %v", err)
		}
		c.Close()
	}
	s.wait("the end of the generation", func() bool { return len(s.new.held()) == 0 })
}

// openFiles counts this process's descriptors.
func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// TestHandOverRules: the successor's rules hold from the first request on.
func TestHandOverRules(t *testing.T) {
	s := newSuccession(t)
	s.connect(2)
	s.new.sets.set([]policy.RuleSet{{ID: 9}}, nil, false)
	s.flows.mu.Lock()
	for tuple, c := range s.flows.entries {
		c.L7, c.RuleSet[policy.Egress] = 1<<policy.Egress, 9
		s.flows.entries[tuple] = c
	}
	s.flows.mu.Unlock()
	s.bridge(nil, nil)
	s.old.handOver()
	s.wait("the hand-over", func() bool { return s.new.pairs.len() == 2 })
	fmt.Fprint(s.clients[0], "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
	if res, err := nethttp.ReadResponse(bufio.NewReader(s.clients[0]), nil); err != nil || res.StatusCode != 403 {
		t.Errorf("%v, %v", res, err)
	}
}

// TestHandOverBounded: more connections than there is room for on the way, to a
// successor that is slow to read.
func TestHandOverBounded(t *testing.T) {
	s := newSuccession(t)
	const connections = 300
	s.connect(connections)
	a, b := seqPackets(t)
	h := newHeir(a, 8)
	s.old.heir.Store(h)
	s.running.Go(func() { s.old.serveHeir(h, "boot", nil) })
	s.old.handOver()
	time.Sleep(50 * time.Millisecond)
	if s.old.pairs.len() == 0 {
		t.Error("all are on their way to one who does not read")
	}
	r := s.new.takeOver(b, nil)
	s.running.Go(r.run)
	s.wait("the hand-over", func() bool { return s.new.pairs.len() == connections })
	for i := range s.clients {
		s.ask(i)
	}
}

// TestSuccessorDies in the midst: what it has not got is served by the
// predecessor, and so are those that come later; then another one comes.
func TestSuccessorDies(t *testing.T) {
	s := newSuccession(t)
	s.connect(50)
	a, b := seqPackets(t)
	h := newHeir(a, 4)
	s.old.heir.Store(h)
	s.running.Go(func() { s.old.serveHeir(h, "boot", nil) })
	time.Sleep(20 * time.Millisecond)
	// What its socket holds is lost with it.
	if err := a.SetWriteBuffer(1); err != nil {
		t.Fatal(err)
	}
	s.old.handOver()
	time.Sleep(20 * time.Millisecond)
	lost := int(s.old.counters.handed.Load())
	b.Close()
	s.wait("that it is noticed", func() bool { return s.old.heir.Load() == nil })
	lost = max(lost, int(s.old.counters.handed.Load()))
	s.wait("that the others are back", func() bool { return s.old.pairs.len() == 50-lost })
	if lost == 50 {
		t.Fatal("all are lost: this tests nothing")
	}
	if len(s.old.pairs.handed) != 0 {
		t.Error("the dead one's are still accounted for")
	}
	served := 0
	for i, c := range s.clients {
		fmt.Fprint(c, "GET /x HTTP/1.1\r\nHost: h\r\n\r\n")
		res, err := nethttp.ReadResponse(bufio.NewReader(c), nil)
		if err == nil && res.StatusCode == 200 {
			_, _ = io.Copy(io.Discard, res.Body)
			served++
		} else if err == nil {
			t.Errorf("client %d: %d", i, res.StatusCode)
		}
	}
	if served != 50-lost {
		t.Errorf("%d of 50 are served, %d were lost", served, lost)
	}
	s.bridge(nil, nil)
	s.wait("the hand-over to another one", func() bool { return s.new.pairs.len() == 50-lost && s.old.pairs.len() == 0 })
}

// keeper is a nameKeeper that exports given bytes and keeps what it imports.
type keeper struct {
	out     []byte
	in      bytes.Buffer
	fail    error // of the first Import
	failed  atomic.Bool
	answers atomic.Uint64
	exports atomic.Int32
}

func (k *keeper) Export(w io.Writer) error {
	_, err := w.Write(k.out)
	k.exports.Add(1)
	return err
}
func (k *keeper) Import(r io.Reader) error {
	if k.fail != nil && !k.failed.Swap(true) {
		return k.fail
	}
	_, err := io.Copy(&k.in, r)
	return err
}
func (k *keeper) Retire() error   { return nil }
func (k *keeper) Answers() uint64 { return k.answers.Load() }

// TestHandOverLearned: what was learned comes before connections do, and one
// who does not want it holds nothing up.
func TestHandOverLearned(t *testing.T) {
	s := newSuccession(t)
	s.connect(3)
	from, to := &keeper{out: make([]byte, 300<<10)}, &keeper{}
	if _, err := rand.Read(from.out); err != nil {
		t.Fatal(err)
	}
	s.old.handOver()
	s.bridge(from, to)
	if !bytes.Equal(to.in.Bytes(), from.out) {
		t.Errorf("%d bytes came, of %d", to.in.Len(), len(from.out))
	}
	s.wait("the hand-over", func() bool { return s.new.pairs.len() == 3 })

	s = newSuccession(t)
	s.connect(1)
	s.bridge(from, &keeper{fail: errors.New("no names today")})
	s.old.handOver()
	s.wait("the hand-over all the same", func() bool { return s.new.pairs.len() == 1 })
}

// TestHandOverLearnedLate: what was learned after the first export goes over, too,
// when that is asked for and when the predecessor ends.
func TestHandOverLearnedLate(t *testing.T) {
	s := newSuccession(t)
	from, to := &keeper{out: []byte("first")}, &keeper{}
	h, r := s.bridge(from, to)
	exported := func(n int32) {
		t.Helper()
		s.wait("an export", func() bool { return from.exports.Load() == n })
	}
	exported(1)
	s.old.tellAgain() // nothing is new
	from.answers.Add(1)
	s.old.tellAgain()
	exported(2)
	s.connect(1)
	s.old.handOver()
	s.wait("the hand-over", func() bool { return s.new.pairs.len() == 1 })
	from.answers.Add(1)
	s.old.end()
	if from.exports.Load() != 3 {
		t.Errorf("it is over, and exported %d times", from.exports.Load())
	}
	s.wait("the end", func() bool { return !s.new.held()[0].Receiving })
	<-r.imported
	if got := to.in.String(); got != "firstfirstfirst" {
		t.Errorf("the successor got %q", got)
	}
	if n := h.waiting(); n != 0 {
		t.Errorf("%d wait", n)
	}

	// One export that can't be read does not spoil the next.
	s = newSuccession(t)
	to = &keeper{fail: errors.New("no names today")}
	_, r = s.bridge(from, to)
	from.answers.Add(1)
	s.old.tellAgain()
	s.old.end()
	s.wait("the end", func() bool { return !s.new.estate.expects(r, 3) })
	<-r.imported
	if got := to.in.String(); got != "first" {
		t.Errorf("the successor got %q", got)
	}
}

// TestHandOverOfAnOldPort: a client that began anew with its port keeps the new
// connection.
func TestHandOverOfAnOldPort(t *testing.T) {
	s := newSuccession(t)
	s.connect(1)
	p := s.old.pairs.all()[0]
	h := newHeir(nil, 1)
	s.old.heir.Store(h)
	anew := &pair{tuple: p.tuple}
	if _, ok := s.old.pairs.put(anew, 10, 10); !ok {
		t.Fatal("no room")
	}
	defer s.old.pairs.drop(anew)
	if s.old.offer(p) != nil || h.waiting() != 0 {
		t.Error("the old one is handed over")
	}
	s.old.heir.Store(nil)
	if s.old.offer(p) != nil {
		t.Error("to nobody")
	}
	p.abort()
}
