package proxy

import (
	"context"
	"log/slog"
	"maps"
	"os"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/fqdn"
	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/proxy/dns"
	"github.com/weirnet/weir/proxy/http"
)

// needRoot ends a test that needs what only root has.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("needs root")
	}
	t.Skip("needs root")
}

// inNamespace calls f in a network namespace of its own. What f starts on
// other threads is not in it.
func inNamespace(t testing.TB, f func()) {
	t.Helper()
	needRoot(t)
	done := make(chan error)
	go func() {
		// The thread ends with the goroutine, and the namespace with it.
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// memoryFlows is a flowTable in memory.
type memoryFlows struct {
	mu      sync.Mutex
	entries map[bpf.Tuple]bpf.Conn
	gets    int
}

func (f *memoryFlows) get(t bpf.Tuple) (bpf.Conn, bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gets++
	c, ok := f.entries[t]
	return c, ok, nil
}

func (f *memoryFlows) set(t bpf.Tuple, c bpf.Conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.entries[t] = c
}

func (f *memoryFlows) remove(t bpf.Tuple, id uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.entries[t].Id == id {
		delete(f.entries, t)
	}
	return nil
}

func (f *memoryFlows) walk(_ int, visit func(bpf.Tuple, bpf.Conn)) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for t, c := range f.entries {
		defer visit(t, c)
	}
	return true, nil
}

func (f *memoryFlows) size() int { return 1 << 16 }

// memoryShares is a shareTable in memory.
type memoryShares struct {
	shares map[uint32]bpf.Share
	grants map[uint32]bpf.Grant
	writes int
	fail   error
}

func (s *memoryShares) read() (map[uint32]bpf.Share, error) { return maps.Clone(s.shares), s.fail }

func (s *memoryShares) grant(veth uint32, g bpf.Grant) error {
	s.grants[veth] = g
	s.writes++
	return nil
}

// newData makes a data side on tables in memory.
func newData(t testing.TB) (*dataSide, *memoryFlows, *uint32) {
	t.Helper()
	server, err := http.New(http.Options{Loops: 1})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(testWriter{t}, nil))
	flows := &memoryFlows{entries: make(map[bpf.Tuple]bpf.Conn)}
	revision := new(uint32)
	d := &dataSide{
		log: log, generation: 3,
		flows: flows, revisions: revisions{revision},
		shares: &memoryShares{shares: map[uint32]bpf.Share{}, grants: map[uint32]bpf.Grant{}},
		sets:   newRuleSets(), closed: http.Closed(), server: server, closedQuestions: dns.Closed(), believed: nobody{},
		records: newRecordBuffer(), counters: newCounters(), max: 4, dial: failingDial,
		share: 4, pairs: newPairTable(), checkSocket: checkSocket,
	}
	d.questions = newQuestions(t, d)
	return d, flows, revision
}

// newQuestions makes a DNS server for d, which serves no datagrams.
func newQuestions(t testing.TB, d *dataSide) *dns.Server {
	t.Helper()
	s, err := dns.New(dns.Options{
		Open: d.openAsks, Learner: nobody{}, Log: d.log,
		Drop: func(r dns.Reason, n uint64) { d.counters.denyMany(r.String(), n) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// nobody is believed, and learns nothing.
type nobody struct{}

func (nobody) Believed(policy.Server) bool              { return false }
func (nobody) Learn(context.Context, fqdn.Answer) error { return nil }

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", b)
	return len(b), nil
}
