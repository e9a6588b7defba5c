package fqdn

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy/dnsrules"
)

// fakeTable is a Table in memory.
type fakeTable struct {
	mu     sync.Mutex
	rows   map[netip.Addr]identity.ID
	writes int
	fail   error
	size   int
}

func newFakeTable() *fakeTable {
	return &fakeTable{rows: map[netip.Addr]identity.ID{}, size: 1 << 19}
}

func (t *fakeTable) Set(a netip.Addr, id identity.ID) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.fail != nil {
		return t.fail
	}
	t.rows[a] = id
	t.writes++
	return nil
}

func (t *fakeTable) Delete(a netip.Addr) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.fail != nil {
		return t.fail
	}
	delete(t.rows, a)
	t.writes++
	return nil
}

func (t *fakeTable) Get(a netip.Addr) (identity.ID, bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	id, ok := t.rows[a]
	return id, ok, t.fail
}

func (t *fakeTable) Walk(_ context.Context, visit func([]Row)) error {
	t.mu.Lock()
	rows := make([]Row, 0, len(t.rows))
	for a, id := range t.rows {
		rows = append(rows, Row{a, id})
	}
	t.mu.Unlock()
	for chunk := range slices.Chunk(rows, 3) {
		visit(chunk)
	}
	return nil
}

func (t *fakeTable) Size() int { return t.size }

func (t *fakeTable) get(a string) identity.ID {
	id, _, _ := t.Get(netip.MustParseAddr(a))
	return id
}

func (t *fakeTable) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.writes
}

// fakeFlows is Flows in memory.
type fakeFlows struct {
	mu   sync.Mutex
	to   map[netip.Addr]bool
	fail error
}

func (f *fakeFlows) set(list ...netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.to = map[netip.Addr]bool{}
	for _, a := range list {
		f.to[a] = true
	}
}

func (f *fakeFlows) Walk(_ context.Context, visit func([]netip.Addr)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return f.fail
	}
	for a := range f.to {
		visit([]netip.Addr{a, a})
	}
	return nil
}

// fakeClock is set by hand.
type fakeClock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *fakeClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *fakeClock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// memFile is a File in memory.
type memFile struct {
	mu     sync.Mutex
	b      []byte
	fail   error
	writes int
	// dieAfter so many writes nothing is written any more; 0: never.
	dieAfter int
}

var errDead = errors.New("no more writes")

func (f *memFile) ReadAt(p []byte, at int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if at >= int64(len(f.b)) {
		return 0, io.EOF
	}
	n := copy(p, f.b[at:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) WriteAt(p []byte, at int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.writes++; f.dieAfter > 0 && f.writes >= f.dieAfter {
		return 0, errDead
	}
	if f.fail != nil {
		return 0, f.fail
	}
	if need := int(at) + len(p); need > len(f.b) {
		f.b = append(f.b, make([]byte, need-len(f.b))...)
	}
	return copy(f.b[at:], p), nil
}

func (f *memFile) Truncate(n int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.writes++; f.dieAfter > 0 && f.writes >= f.dieAfter {
		return errDead
	}
	f.b = append(f.b[:min(int(n), len(f.b))], make([]byte, max(0, int(n)-len(f.b)))...)
	return nil
}

func (f *memFile) Sync() error { return f.fail }

// rig is a cache with everything around it faked.
type rig struct {
	*Cache
	t     testing.TB
	table *fakeTable
	flows *fakeFlows
	clock *fakeClock
	files [2]*memFile
	log   strings.Builder
}

func newRig(t testing.TB, s Settings) *rig {
	r := &rig{
		t: t, table: newFakeTable(), flows: &fakeFlows{},
		clock: &fakeClock{now: time.Unix(1_800_000_000, 0)}, files: [2]*memFile{{}, {}},
	}
	r.again(s)
	return r
}

// again starts a successor.
func (r *rig) again(s Settings) {
	r.Cache = New(Options{
		Settings: s, Table: r.table, Flows: r.flows, Checkpoints: [2]File{r.files[0], r.files[1]},
		Now: r.clock.Now, Log: slog.New(slog.NewTextHandler(&r.log, nil)),
	})
}

// learn takes in an answer: names (the asked one and its chain), then
// addresses.
func (r *rig) learn(names string, ttl time.Duration, addrs ...string) {
	r.t.Helper()
	if err := r.Learn(context.Background(), answer(names, ttl, addrs...)); err != nil {
		r.t.Fatal(err)
	}
}

func answer(names string, ttl time.Duration, addrs ...string) Answer {
	list := strings.Fields(names)
	a := Answer{Name: list[0], Chain: list[1:], Pod: netip.MustParseAddr("10.0.0.1")}
	for _, x := range addrs {
		a.Records = append(a.Records, Record{netip.MustParseAddr(x), ttl})
	}
	return a
}

// sel reads selectors: patterns are those with a "*".
func sel(text string) []dnsrules.Selector {
	var out []dnsrules.Selector
	for _, s := range strings.Fields(text) {
		if strings.Contains(s, "*") {
			out = append(out, dnsrules.NewSelector("", s))
		} else {
			out = append(out, dnsrules.NewSelector(s, ""))
		}
	}
	return out
}

func (r *rig) names(ids map[identity.ID]string) {
	r.t.Helper()
	all := map[identity.ID][]dnsrules.Selector{}
	for id, text := range ids {
		all[id] = sel(text)
	}
	if err := r.SetNames(all, nil); err != nil {
		r.t.Fatal(err)
	}
}

// want compares the table: "address identity" pairs, all there are.
func (r *rig) want(rows map[string]identity.ID) {
	r.t.Helper()
	r.table.mu.Lock()
	defer r.table.mu.Unlock()
	for a, id := range rows {
		if got := r.table.rows[netip.MustParseAddr(a)]; got != id {
			r.t.Errorf("%s is %d, want %d", a, got, id)
		}
	}
	for a, id := range r.table.rows {
		if _, ok := rows[a.String()]; !ok {
			r.t.Errorf("%s is %d, want nothing", a, id)
		}
	}
	if r.t.Failed() {
		r.t.FailNow()
	}
}

func (r *rig) sweepNow() {
	r.t.Helper()
	if err := r.sweep(context.Background()); err != nil {
		r.t.Fatal(err)
	}
}
