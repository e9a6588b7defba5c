package fqdn

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/weirnet/weir/identity"
)

// learned is a rig that knows something, and has written it down.
func learned(t testing.TB) *rig {
	r := newRig(t, Settings{})
	r.names(map[identity.ID]string{300: "*.a.test", 301: "b.test"})
	r.learn("x.a.test y.a.test", 5*time.Minute, "192.0.2.1", "2001:db8::1")
	r.learn("b.test", time.Hour, "192.0.2.2")
	r.learn(strings.Repeat("\\255", 60)+".test", 2*time.Minute, "192.0.2.3")
	if err := r.Save(); err != nil {
		t.Fatal(err)
	}
	return r
}

// contents is all that a cache knows, in order.
func contents(c *Cache) []string {
	var out []string
	_ = c.encode(func(b []byte) error {
		d := newDecoder(bytes.NewReader(b), int64(len(b)))
		for {
			r, err := d.next()
			if err != nil {
				return nil
			}
			slices.SortFunc(r.pairs, func(a, b recordPair) int { return a.addr.Compare(b.addr) })
			out = append(out, fmt.Sprintf("%s %v %v", r.text, r.pods, r.pairs))
		}
	})
	slices.Sort(out)
	return out
}

func TestRestore(t *testing.T) {
	r := learned(t)
	before, rows := contents(r.Cache), map[string]identity.ID{"192.0.2.1": 300, "2001:db8::1": 300, "192.0.2.2": 301}
	if len(before) != 4 {
		t.Fatalf("%q", before)
	}
	r.clock.advance(time.Minute)
	writes := r.table.count()
	r.again(Settings{})
	if got := contents(r.Cache); !slices.Equal(got, before) {
		t.Fatalf("restored\n%q\nwant\n%q", got, before)
	}
	// The rows stay while nobody knows what they should be, and then, too.
	r.want(rows)
	r.tend(r.clockNow())
	r.names(map[identity.ID]string{300: "*.a.test", 301: "b.test"})
	r.want(rows)
	if n := r.table.count() - writes; n != 0 {
		t.Errorf("%d writes", n)
	}
	// Expiry is what it was.
	r.clock.advance(4 * time.Minute)
	r.sweepNow()
	r.want(rows)
	r.clock.advance(time.Second)
	r.sweepNow()
	r.want(map[string]identity.ID{"192.0.2.2": 301})
}

// A row that nothing explains goes, but not at once: what was learned after the
// last checkpoint may be in use.
func TestUnexplainedRows(t *testing.T) {
	r := learned(t)
	r.learn("z.a.test", time.Hour, "192.0.2.9")
	r.table.rows[netip.MustParseAddr("192.0.2.10")] = 301
	r.table.rows[netip.MustParseAddr("192.0.2.11")] = 300
	r.table.rows[netip.MustParseAddr("192.0.2.12")] = 999
	all := map[string]identity.ID{"192.0.2.1": 300, "2001:db8::1": 300, "192.0.2.2": 301, "192.0.2.9": 300, "192.0.2.10": 301, "192.0.2.11": 300, "192.0.2.12": 999}
	r.want(all)
	r.again(Settings{})
	r.want(all)
	delete(all, "192.0.2.12") // nobody has that identity
	r.names(map[identity.ID]string{300: "*.a.test", 301: "b.test"})
	r.want(all)
	r.learn("b.test", time.Hour, "192.0.2.11")
	all["192.0.2.11"] = 301
	r.want(all)
	r.flows.set(netip.MustParseAddr("192.0.2.10"))
	r.clock.advance(time.Duration(inheritance+1) * time.Second)
	r.sweepNow()
	delete(all, "192.0.2.9")
	r.want(all)
	r.flows.set()
	r.clock.advance(time.Second)
	r.sweepNow()
	delete(all, "192.0.2.10")
	r.want(all)
}

// The combination that an unexplained row is of stays wanted while it does.
func TestUnexplainedCombination(t *testing.T) {
	r := newRig(t, Settings{})
	r.table.rows[netip.MustParseAddr("192.0.2.1")] = 302
	r.again(Settings{})
	r.names(map[identity.ID]string{300: "a.test", 301: "b.test", 302: "a.test b.test"})
	wanted := func() int {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.wanted())
	}
	if n := wanted(); n != 1 {
		t.Errorf("%d combinations are wanted", n)
	}
	// With a name it is what its name is.
	r.learn("a.test", time.Minute, "192.0.2.1")
	r.want(map[string]identity.ID{"192.0.2.1": 300})
	r.table.rows[netip.MustParseAddr("192.0.2.2")] = 302
	if err := r.inspect(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.clock.advance(2 * time.Minute)
	r.sweepNow()
	r.want(nil)
	r.clock.advance(time.Hour)
	r.tendWants(r.clockNow())
	if n := wanted(); n != 0 {
		t.Errorf("%d combinations are still wanted", n)
	}
	if err := r.consistent(); err != nil {
		t.Error(err)
	}
}

// Another process wrote to the table meanwhile.
func TestForeignRows(t *testing.T) {
	r := learned(t)
	r.table.rows[netip.MustParseAddr("192.0.2.1")] = 301
	r.table.rows[netip.MustParseAddr("192.0.2.20")] = 301
	r.table.rows[netip.MustParseAddr("192.0.2.21")] = 302
	r.names(map[identity.ID]string{300: "*.a.test"})
	r.want(map[string]identity.ID{"192.0.2.1": 300, "2001:db8::1": 300})
}

// Whatever happens while a checkpoint is written, the one before stays whole.
func TestInterruptedSave(t *testing.T) {
	whole := contents(learned(t).Cache)
	for dieAfter := 1; ; dieAfter++ {
		r := learned(t)
		for _, f := range r.files {
			f.dieAfter = f.writes + dieAfter
		}
		r.learn("new.test", time.Hour, "192.0.2.77")
		err := r.Save()
		for _, f := range r.files {
			f.dieAfter = 0
		}
		r.again(Settings{})
		got := contents(r.Cache)
		if err == nil {
			if len(got) != len(whole)+1 {
				t.Fatalf("after a whole save: %q", got)
			}
			if dieAfter < 3 {
				t.Fatalf("it has %d steps only", dieAfter-1)
			}
			return
		}
		if !errors.Is(err, errDead) {
			t.Fatal(err)
		}
		if !slices.Equal(got, whole) {
			t.Fatalf("died at step %d:\n%q\nwant\n%q", dieAfter, got, whole)
		}
	}
}

// Checkpoints take turns, and the newest whole one counts.
func TestTurns(t *testing.T) {
	r := learned(t)
	for i := range 5 {
		r.learn(fmt.Sprintf("n%d.test", i), time.Hour, "192.0.2.50")
		if err := r.Save(); err != nil {
			t.Fatal(err)
		}
	}
	newest := contents(r.Cache)
	h0, err0 := readHeader(r.files[0])
	h1, err1 := readHeader(r.files[1])
	if err0 != nil || err1 != nil || h0.sequence+h1.sequence != 11 {
		t.Fatal(h0.sequence, h1.sequence, err0, err1)
	}
	r.again(Settings{})
	if got := contents(r.Cache); !slices.Equal(got, newest) {
		t.Fatalf("got %q", got)
	}
	// The newest is damaged: the other one counts, and stays until another is
	// written.
	r.files[fileOf(6)].b[headerSize+3] ^= 1
	r.again(Settings{})
	older := contents(r.Cache)
	if len(older) != len(newest)-1 {
		t.Fatalf("got %q", older)
	}
	if !strings.Contains(r.log.String(), "damaged") {
		t.Errorf("nothing was said of the damage: %s", r.log.String())
	}
	good := slices.Clone(r.files[fileOf(5)].b)
	if err := r.Save(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(good, r.files[fileOf(5)].b) {
		t.Error("the only whole checkpoint was written over")
	}
	r.again(Settings{})
	if got := contents(r.Cache); !slices.Equal(got, older) {
		t.Fatalf("got %q", got)
	}
}

// What can't be used is ignored, and said.
func TestUselessCheckpoints(t *testing.T) {
	for _, c := range []struct {
		name, says string
		spoil      func(r *rig, f *memFile)
	}{
		{"cut short", "ends too early", func(_ *rig, f *memFile) { f.b = f.b[:len(f.b)-1] }},
		{"with something behind", "end", func(_ *rig, f *memFile) { f.b = append(f.b, 0) }},
		{"without most of its header", "header", func(_ *rig, f *memFile) { f.b = f.b[:20] }},
		{"of another kind", "no checkpoint", func(_ *rig, f *memFile) { f.b[0] = 'x' }},
		{"of another version", "version", func(_ *rig, f *memFile) { f.b[8]++ }},
		{"without a header", "no checkpoint", func(_ *rig, f *memFile) { clear(f.b[:headerSize]) }},
		{"with another time", "sum", func(_ *rig, f *memFile) { f.b[20]++ }},
		{"with another sequence", "sum", func(_ *rig, f *memFile) { f.b[12]++ }},
		{"too old", "too old", func(r *rig, _ *memFile) { r.clock.advance(25 * time.Hour) }},
		{"of another file system's whims", "header", func(_ *rig, f *memFile) { f.b = []byte{1} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := learned(t)
			c.spoil(r, r.files[fileOf(1)])
			r.again(Settings{})
			if n, a := r.Len(); n != 0 || a != 3 { // the rows
				t.Errorf("%d names, %d addresses", n, a)
			}
			if !strings.Contains(r.log.String(), c.says) {
				t.Errorf("it says %s", r.log.String())
			}
			r.learn("b.test", time.Minute, "192.0.2.2")
			if err := r.Save(); err != nil {
				t.Fatal(err)
			}
			if r.again(Settings{}); len(contents(r.Cache)) != 1 {
				t.Errorf("then it knows %q", contents(r.Cache))
			}
		})
	}
	t.Run("empty files are none", func(t *testing.T) {
		if r := newRig(t, Settings{}); r.log.Len() > 0 {
			t.Errorf("it says %s", r.log.String())
		}
	})
}

// Every single byte counts.
func TestDamage(t *testing.T) {
	r := learned(t)
	f := r.files[fileOf(1)]
	for i := range f.b {
		for _, bit := range []byte{1, 0x80} {
			f.b[i] ^= bit
			c := New(Options{Checkpoints: [2]File{f}, Now: r.clock.Now})
			f.b[i] ^= bit
			if n, a := c.Len(); n+a != 0 {
				t.Fatalf("byte %d: %d names and %d addresses were believed", i, n, a)
			}
		}
	}
	for n := range f.b {
		c := New(Options{Checkpoints: [2]File{&memFile{b: f.b[:n]}}, Now: r.clock.Now})
		if n, a := c.Len(); n+a != 0 {
			t.Fatalf("cut to %d bytes: %d names were believed", n, a)
		}
	}
}

// A clock that jumps makes nothing live longer than an answer would.
func TestClockJumps(t *testing.T) {
	r := learned(t)
	r.clock.advance(-48 * time.Hour)
	r.again(Settings{})
	if n, _ := r.Len(); n != 4 {
		t.Fatalf("%d names", n)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for at := range r.pairs.end {
		if p := r.pairs.at(at); p.expires > r.base+24*3600 || p.learned > r.base {
			t.Errorf("pair %+v at %d", p, r.base)
		}
	}
}

// After Retire the files and the table are the successor's.
func TestRetire(t *testing.T) {
	r := learned(t)
	old := r.Cache
	r.learn("late.test", time.Hour, "192.0.2.40")
	if err := old.Retire(); err != nil {
		t.Fatal(err)
	}
	r.again(Settings{})
	r.names(map[identity.ID]string{300: "*.a.test", 301: "b.test", 302: "late.test"})
	if got := r.table.get("192.0.2.40"); got != 302 {
		t.Errorf("what was learned last is %d", got)
	}
	if err := old.Learn(t.Context(), answer("q.a.test", time.Minute, "192.0.2.41")); err != nil {
		t.Fatal(err)
	}
	if got := r.table.get("192.0.2.41"); got != 300 {
		t.Errorf("what is learned for an old question is %d", got)
	}
	before := slices.Clone(r.files[0].b)
	if err := old.Save(); err != nil || !bytes.Equal(before, r.files[0].b) {
		t.Error("it wrote a checkpoint", err)
	}
	r.clock.advance(48 * time.Hour)
	step := &runner{Cache: old}
	step.step(t.Context())
	if got := r.table.get("192.0.2.41"); got != 300 {
		t.Error("it took a row out of the table")
	}
}

// Of two processes with the same files the first one writes until it retires.
func TestOneWriter(t *testing.T) {
	dir := t.TempDir()
	open := func() (files [2]File) {
		for i := range files {
			f, err := os.OpenFile(filepath.Join(dir, fmt.Sprint(i)), os.O_RDWR|os.O_CREATE, 0o600)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.Close() })
			files[i] = f
		}
		return files
	}
	learn := func(c *Cache, name string) {
		if err := c.Learn(t.Context(), answer(name, time.Hour, "192.0.2.1")); err != nil {
			t.Fatal(err)
		}
	}
	old := New(Options{Checkpoints: open()})
	learn(old, "a.test")
	for range 3 {
		if err := old.Save(); err != nil {
			t.Fatal(err)
		}
	}
	next := New(Options{Checkpoints: open()})
	learn(next, "b.test")
	if err := next.Save(); !errors.Is(err, errOthers) {
		t.Fatalf("got %v", err)
	}
	learn(old, "c.test")
	if err := old.Retire(); err != nil {
		t.Fatal(err)
	}
	if err := next.Save(); err != nil {
		t.Fatal(err)
	}
	if got := contents(New(Options{Checkpoints: open()})); !slices.Equal(got, contents(next)) || len(got) != 2 {
		t.Errorf("a third one knows %q", got)
	}
}

// What one process exports another imports, beside what it knows, byte by byte.
func TestExport(t *testing.T) {
	r := learned(t)
	from := r.Cache
	var b bytes.Buffer
	if err := from.Export(&b); err != nil {
		t.Fatal(err)
	}
	whole := slices.Clone(b.Bytes())
	b.WriteString("more")
	r.clock.advance(10 * time.Second)
	r.files = [2]*memFile{{}, {}}
	r.table = newFakeTable()
	r.again(Settings{})
	r.names(map[identity.ID]string{300: "*.a.test", 301: "b.test", 302: "*.a.test b.test"})
	r.learn("x.a.test", time.Minute, "192.0.2.2", "192.0.2.8")
	delete(r.table.rows, netip.MustParseAddr("192.0.2.8")) // by the other one, before it retired
	if err := r.Import(iotest.OneByteReader(&b)); err != nil {
		t.Fatal(err)
	}
	if b.String() != "more" {
		t.Errorf("%q is left", b.String())
	}
	r.want(map[string]identity.ID{"192.0.2.1": 300, "2001:db8::1": 300, "192.0.2.2": 302, "192.0.2.8": 300})
	if got, want := r.known("x.a.test"), []string{"192.0.2.1", "192.0.2.2", "192.0.2.8", "2001:db8::1"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if err := r.consistent(); err != nil {
		t.Error(err)
	}
	for n := range whole {
		if err := New(Options{}).Import(bytes.NewReader(whole[:n])); err == nil {
			t.Fatalf("%d of %d bytes are taken for all", n, len(whole))
		}
	}
	if err := New(Options{}).Import(bytes.NewReader([]byte{0xff, 0xff, 0xff, 0xff})); err == nil {
		t.Error("a part of 4 GB is taken")
	}
}

// decode reads the names of a checkpoint to the end.
func decode(f io.ReaderAt) (names []string, err error) {
	h, err := readHeader(f)
	if err != nil {
		return nil, err
	}
	d := newDecoder(namesOf(f, &h), h.length)
	for {
		r, err := d.next()
		if errors.Is(err, io.EOF) {
			return names, d.check(&h)
		}
		if err != nil {
			return nil, err
		}
		names = append(names, string(r.append(nil)))
	}
}

// Whatever a file holds: no panic, bounded memory, and only what was written as
// a whole is believed. With a right header and sum the names themselves are
// read; what is accepted is what would be written.
func FuzzCheckpoint(f *testing.F) {
	r := learned(f)
	good := r.files[fileOf(1)].b
	f.Add(good)
	f.Add(good[headerSize:])
	f.Add([]byte{})
	f.Add([]byte{1, 'a', 0, 0, 1, 4, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		if names, err := decode(&memFile{b: data}); err == nil {
			h, _ := readHeader(&memFile{b: data})
			if again := sealed(h, []byte(strings.Join(names, ""))); !bytes.Equal(again, data) {
				t.Fatalf("a damaged checkpoint is believed")
			}
		}
		c := New(Options{Checkpoints: [2]File{&memFile{b: sealed(header{sequence: 2, saved: r.clock.Now()}, data)}, &memFile{b: data}}, Now: r.clock.Now})
		if err := c.consistent(); err != nil {
			t.Fatal(err)
		}
		names, err := decode(&memFile{b: sealed(header{}, data)})
		if text := strings.Join(names, ""); err == nil && len(text) > len(data) {
			t.Fatalf("%d bytes were read of %d", len(text), len(data))
		}
	})
}

// sealed is a checkpoint with these names, whatever they are.
func sealed(h header, names []byte) []byte {
	h.length = int64(len(names))
	sum := sha256.New()
	sum.Write(names)
	sum.Write(h.append(nil)[:headerSummed])
	copy(h.sum[:], sum.Sum(nil))
	return append(h.append(nil), names...)
}
