package endpoint

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/policy"
)

// serviceRows are tables of services as the kernel has them, and a check at
// every write.
type serviceRows struct {
	services map[bpf.ServiceKey]bpf.Service
	backends map[bpf.Slot]bpf.Backend
	members  map[bpf.Member]uint32
	nodes    map[bpf.ServiceAddr]uint32
	after    func()
	fail     func() error
}

type rowsOf[K comparable, V comparable] struct {
	rows map[K]V
	all  *serviceRows
}

func (r rowsOf[K, V]) Snapshot() (map[K]V, error) { return maps.Clone(r.rows), nil }

func (r rowsOf[K, V]) Update(k K, v V) error {
	if err := r.all.fail(); err != nil {
		return err
	}
	r.rows[k] = v
	r.all.after()
	return nil
}

func (r rowsOf[K, V]) Delete(k K) error {
	if err := r.all.fail(); err != nil {
		return err
	}
	delete(r.rows, k)
	r.all.after()
	return nil
}

func newServiceRows() *serviceRows {
	return &serviceRows{
		map[bpf.ServiceKey]bpf.Service{}, map[bpf.Slot]bpf.Backend{}, map[bpf.Member]uint32{}, map[bpf.ServiceAddr]uint32{},
		func() {}, func() error { return nil },
	}
}

func (r *serviceRows) kernel() serviceKernel {
	return serviceKernel{
		rowsOf[bpf.ServiceKey, bpf.Service]{r.services, r}, rowsOf[bpf.Slot, bpf.Backend]{r.backends, r},
		rowsOf[bpf.Member, uint32]{r.members, r}, rowsOf[bpf.ServiceAddr, uint32]{r.nodes, r},
	}
}

// emptySlot names a slot that a service leads to and that is not there.
func (r *serviceRows) emptySlot() string {
	for k, s := range r.services {
		for n := range s.Count {
			if _, ok := r.backends[bpf.Slot{Service: s.Id, Number: n}]; !ok {
				return fmt.Sprintf("%v -> %v, slot %d", k, s, n)
			}
		}
	}
	return ""
}

// check compares the rows with what is wanted.
func (r *serviceRows) check(t *testing.T, want map[policy.Frontend]*policy.Backends, nodes map[netip.Addr]bool) {
	t.Helper()
	slots, members := 0, 0
	seen := map[uint32]policy.BackendsKey{}
	for f, b := range want {
		s, ok := r.services[frontendKey(f)]
		if !ok {
			t.Fatalf("%v is missing", f)
		}
		if s.Affinity != affinitySeconds(b.Affinity) {
			t.Errorf("%v has affinity %d, want %v", f, s.Affinity, b.Affinity)
		}
		var have []netip.AddrPort
		for n := range s.Count {
			have = append(have, r.backends[bpf.Slot{Service: s.Id, Number: n}].AddrPort())
		}
		slices.SortFunc(have, netip.AddrPort.Compare)
		if !slices.Equal(have, b.Ready) {
			t.Errorf("%v leads to %v, want %v", f, have, b.Ready)
		}
		if of, again := seen[s.Id]; again && of != b.Key {
			t.Errorf("%v and %v have one number", of, b.Key)
		} else if again {
			continue
		}
		seen[s.Id] = b.Key
		slots, members = slots+len(b.Ready), members+len(b.Ready)+len(b.Draining)
		for as, list := range map[uint32][]netip.AddrPort{bpf.MemberReady: b.Ready, bpf.MemberDraining: b.Draining} {
			for _, a := range list {
				if r.members[bpf.Member{Service: s.Id, Backend: bpf.BackendOf(a)}] != as {
					t.Errorf("%v: %v is no member, or another kind", f, a)
				}
			}
		}
	}
	serving := 0
	for a, serves := range nodes {
		if serves {
			serving++
			if _, ok := r.nodes[bpf.ServiceAddr(bpf.AddrOf(a))]; !ok {
				t.Errorf("node address %v is missing", a)
			}
		}
	}
	if len(r.services) != len(want)+len(probeFrontends) || len(r.backends) != slots || len(r.members) != members || len(r.nodes) != serving {
		t.Errorf("%d services, %d backends, %d members, %d nodes; want %d, %d, %d, %d", len(r.services), len(r.backends), len(r.members), len(r.nodes),
			len(want)+len(probeFrontends), slots, members, serving)
	}
}

// TestServiceTables: whatever changes, in whatever order, and whether an agent or
// its successor does it, the tables get there, and no service leads to an empty
// slot at any time, also when writes fail.
func TestServiceTables(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 1))
		rows := newServiceRows()
		rows.after = func() {
			if where := rows.emptySlot(); where != "" {
				t.Fatalf("seed %d: an empty slot: %s", seed, where)
			}
		}
		want, nodes := map[policy.Frontend]*policy.Backends{}, map[netip.Addr]bool{}
		tables := newServiceTables(rows.kernel())
		for step := range 40 {
			change, addrs := map[policy.Frontend]*policy.Backends{}, map[netip.Addr]bool{}
			for range 1 + r.IntN(3) {
				key := policy.BackendsKey{Service: policy.Object{Name: fmt.Sprint(r.IntN(4))}, Internal: r.IntN(2) == 0}
				b := &policy.Backends{Key: key}
				for i := range 6 {
					a := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 80)
					switch r.IntN(4) {
					case 0, 1:
						b.Ready = append(b.Ready, a)
					case 2:
						b.Draining = append(b.Draining, a)
					}
				}
				if r.IntN(3) == 0 {
					b.Affinity = time.Duration(r.IntN(5)) * time.Second
				}
				// All frontends of a key have the same backends.
				for f, old := range want {
					if old.Key == key {
						change[f] = b
					}
				}
				for f, now := range change {
					if now != nil && now.Key == key {
						change[f] = b
					}
				}
				f := policy.Frontend{Addr: netip.AddrFrom4([4]byte{10, 96, 0, byte(r.IntN(6))}), Port: 80, Protocol: 6}
				if change[f] = b; r.IntN(3) == 0 {
					change[f] = nil
				}
				addrs[netip.AddrFrom4([4]byte{192, 0, 2, byte(r.IntN(4))})] = r.IntN(2) == 0
			}
			maps.Copy(nodes, addrs)
			for f, b := range change {
				if want[f] = b; b == nil {
					delete(want, f)
				}
			}
			switch {
			case r.IntN(8) == 0: // a successor, who is told everything
				tables = newServiceTables(rows.kernel())
				if err := tables.adopt(); err != nil {
					t.Fatal(err)
				}
				tables.fold(want, nodes)
			default:
				tables.fold(change, addrs)
			}
			if r.IntN(4) == 0 {
				left := r.IntN(12)
				rows.fail = func() error {
					if left--; left < 0 && left > -6 {
						return errors.New("no room")
					}
					return nil
				}
				_, _ = tables.realise() // the next one makes it good
				rows.fail = func() error { return nil }
				if _, err := tables.realise(); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := tables.realise(); err != nil {
				t.Fatal(err)
			}
			rows.check(t, want, nodes)
			if t.Failed() {
				t.Fatalf("seed %d, step %d", seed, step)
			}
		}
	}
}

// TestServiceNumbersStay: a successor changes nothing where nothing changed, and
// tells which backends went meanwhile.
func TestServiceNumbersStay(t *testing.T) {
	at := func(last byte) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, last}), 80)
	}
	rows := newServiceRows()
	f := policy.Frontend{Addr: netip.MustParseAddr("10.96.0.1"), Port: 80, Protocol: 6}
	g := policy.Frontend{Addr: netip.MustParseAddr("10.96.0.2"), Port: 80, Protocol: 6}
	key := func(name string) policy.BackendsKey { return policy.BackendsKey{Service: policy.Object{Name: name}} }
	want := map[policy.Frontend]*policy.Backends{
		f: {Key: key("f"), Ready: []netip.AddrPort{at(1), at(2), at(3)}},
		g: {Key: key("g"), Ready: []netip.AddrPort{at(1)}},
	}
	first := newServiceTables(rows.kernel())
	first.fold(want, nil)
	if gone, err := first.realise(); err != nil || len(gone) > 0 {
		t.Fatal(gone, err)
	}
	// The first backend goes: the last one takes its slot, the second stays.
	want[f] = &policy.Backends{Key: key("f"), Ready: []netip.AddrPort{at(2), at(3)}}
	id := rows.services[frontendKey(f)].Id
	first.fold(map[policy.Frontend]*policy.Backends{f: want[f]}, nil)
	gone, err := first.realise()
	if err != nil || !slices.Equal(gone, []bpf.Member{{Service: id, Backend: bpf.BackendOf(at(1))}}) {
		t.Errorf("gone: %v, %v", gone, err)
	}
	if got := rows.backends[bpf.Slot{Service: id, Number: 1}].AddrPort(); got != at(2) {
		t.Errorf("slot 1 has %v", got)
	}

	writes := 0
	rows.after = func() { writes++ }
	second := newServiceTables(rows.kernel())
	if err := second.adopt(); err != nil {
		t.Fatal(err)
	}
	second.fold(want, nil)
	if gone, err := second.realise(); err != nil || len(gone) > 0 || writes > 0 {
		t.Errorf("a successor of the same objects wrote %d rows, %v, %v", writes, gone, err)
	}
	third := newServiceTables(rows.kernel())
	if err := third.adopt(); err != nil {
		t.Fatal(err)
	}
	want[f] = &policy.Backends{Key: key("f"), Ready: []netip.AddrPort{at(3)}}
	third.fold(want, nil)
	if gone, err := third.realise(); err != nil || !slices.Equal(gone, []bpf.Member{{Service: id, Backend: bpf.BackendOf(at(2))}}) {
		t.Errorf("gone: %v, %v", gone, err)
	}
}

func TestKubepods(t *testing.T) {
	for _, c := range []struct {
		name string
		dirs []string
		want string
	}{
		{"none", []string{"system.slice/kubelet.service"}, ""},
		{"cgroupfs", []string{"kubepods/burstable/pod1"}, "kubepods"},
		{"systemd", []string{"kubepods.slice/kubepods-burstable.slice", "system.slice"}, "kubepods.slice"},
		{"a kubelet with a root", []string{"kubelet.slice/kubelet-kubepods.slice/x", "system.slice"}, "kubelet.slice/kubelet-kubepods.slice"},
		{"two", []string{"a/kubepods", "b/kubepods"}, ""},
		{"too deep", []string{"a/b/c/kubepods"}, ""},
	} {
		root := t.TempDir()
		for _, d := range c.dirs {
			if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if got := kubepods(root); got != filepath.Join(root, c.want) {
			t.Errorf("%s: %s", c.name, got)
		}
	}
}

func TestCgroupRoot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mountinfo")
	for _, text := range []string{"", "garbage\n", "30 23 0:26 / /proc rw - proc proc rw\n", `30 23 0:26 / /no\040such rw - cgroup2 cgroup rw` + "\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := cgroupRoot(path); err == nil {
			t.Errorf("%q: %s", text, got)
		}
	}
}

// TestStuck: what keeps the manager busy for long stops the pulse.
func TestStuck(t *testing.T) {
	var none *Services
	none.note(policy.Delta{})
	none.release(true)
	none.working(true)
	s := &Services{}
	if s.stuck() != "" {
		t.Error("stuck while it waits")
	}
	s.working(true)
	s.working(true)
	if s.stuck() != "" {
		t.Error("stuck at once")
	}
	s.busy.Store(time.Now().Add(-2 * stuckAfter).UnixNano())
	s.working(true)
	if s.stuck() == "" {
		t.Error("not stuck after two minutes")
	}
	s.working(false)
	if s.stuck() != "" {
		t.Error("stuck while it waits again")
	}
}
