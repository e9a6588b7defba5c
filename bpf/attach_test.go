package bpf

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func load(t *testing.T, pins string, change func(*Options)) *Datapath {
	t.Helper()
	o := Options{Pins: pins, Sizes: small}
	if change != nil {
		change(&o)
	}
	d, err := Load(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { letGo(d) })
	return d
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// programs lists the ids of the programs on an interface, tcx and filters, by
// side.
func (ns *namespace) programs(t *testing.T, ifindex int, a ebpf.AttachType) (tcx, filters []int) {
	t.Helper()
	ns.do(func() {
		q, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: a})
		if err != nil {
			t.Error(err)
			return
		}
		for _, p := range q.Programs {
			tcx = append(tcx, int(p.ID))
		}
		l, err := netlink.LinkByIndex(ifindex)
		if err != nil {
			t.Error(err)
			return
		}
		fs, err := netlink.FilterList(l, parentOf(a))
		if err != nil {
			t.Error(err)
			return
		}
		for _, f := range fs {
			filters = append(filters, f.(*netlink.BpfFilter).Id)
		}
	})
	return tcx, filters
}

func id(t *testing.T, p *ebpf.Program) int {
	t.Helper()
	info, err := p.Info()
	check(t, err)
	id, _ := info.ID()
	return int(id)
}

// Attaching, twice; a successor that takes over; an interface that goes; and
// taking off; as links and as filters.
func TestAttachPod(t *testing.T) {
	for _, clsact := range []bool{false, true} {
		t.Run(map[bool]string{false: "tcx", true: "clsact"}[clsact], func(t *testing.T) {
			pins := mountPins(t)
			ns, pod := newNamespace(t), newNamespace(t)
			one, two := ns.veth(t, "one", pod, "one"), ns.veth(t, "two", pod, "two")
			force := func(o *Options) { o.ForceClsact = clsact }
			on := func(d *Datapath, ifindex int) bool {
				t.Helper()
				in, inFilters := ns.programs(t, ifindex, ebpf.AttachTCXIngress)
				out, outFilters := ns.programs(t, ifindex, ebpf.AttachTCXEgress)
				if clsact {
					in, inFilters, out, outFilters = inFilters, in, outFilters, out
				}
				if len(inFilters)+len(outFilters) > 0 {
					t.Errorf("programs of the other kind: %v %v", inFilters, outFilters)
				}
				return slices.Equal(in, []int{id(t, d.objects.FromPod)}) && slices.Equal(out, []int{id(t, d.objects.ToPod)})
			}
			attached := func(d *Datapath, want ...int) {
				t.Helper()
				var got []int
				var err error
				ns.do(func() { got, err = d.Attached() })
				check(t, err)
				if !slices.Equal(got, want) {
					t.Errorf("attached %v, want %v", got, want)
				}
			}
			do := func(f func() error) {
				t.Helper()
				var err error
				ns.do(func() { err = f() })
				check(t, err)
			}

			d := load(t, pins, force)
			attached(d)
			for range 2 {
				do(func() error { return d.AttachPod(one) })
				do(func() error { return d.AttachPod(two) })
			}
			attached(d, one, two)
			if !on(d, one) || !on(d, two) {
				t.Fatal("not there, or more than once")
			}
			check(t, d.Close())

			// The agent is gone: they stay. The next one takes over, when it is
			// ready to.
			next := load(t, pins, force)
			attached(next, one, two)
			if on(next, one) {
				t.Error("replaced too early")
			}
			do(next.Activate)
			if !on(next, one) || !on(next, two) {
				t.Error("not replaced")
			}

			// An interface goes; another may get its number.
			var err error
			ns.do(func() { err = netlink.LinkDel(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "two"}}) })
			check(t, err)
			attached(next, one)
			do(next.Activate)
			if left, _ := os.ReadDir(filepath.Join(pins, linksDir)); !clsact && len(left) != 2 {
				t.Errorf("pins left: %v", left)
			}
			if err := func() (err error) { ns.do(func() { err = next.AttachPod(two) }); return }(); err == nil {
				t.Error("attached to an interface that is gone")
			}
			do(func() error { return next.DetachPod(two) })

			do(func() error { return next.DetachPod(one) })
			do(func() error { return next.DetachPod(one) })
			attached(next)
			ns.bare(t, one)
		})
	}
}

// bare fails if anything is left on an interface.
func (ns *namespace) bare(t *testing.T, ifindex int) {
	t.Helper()
	for _, a := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
		if tcx, filters := ns.programs(t, ifindex, a); len(tcx)+len(filters) > 0 {
			t.Errorf("left: %v %v", tcx, filters)
		}
	}
	ns.do(func() {
		qs, err := netlink.QdiscList(nil)
		if err != nil {
			t.Error(err)
		}
		for _, q := range qs {
			if q.Type() == "clsact" {
				t.Errorf("left: %v", q)
			}
		}
	})
}

// From one way of attaching to the other: one program is always there, and in
// the end only the new one.
func TestAttachOtherWay(t *testing.T) {
	pins := mountPins(t)
	ns, pod := newNamespace(t), newNamespace(t)
	one := ns.veth(t, "one", pod, "one")
	var last *Datapath
	for _, clsact := range []bool{true, false, true} {
		d := load(t, pins, func(o *Options) { o.ForceClsact = clsact })
		var err error
		ns.do(func() { err = d.AttachPod(one) })
		check(t, err)
		last = d
		tcx, filters := ns.programs(t, one, ebpf.AttachTCXIngress)
		if clsact && (len(tcx) != 0 || len(filters) != 1) || !clsact && (len(tcx) != 1 || len(filters) != 0) {
			t.Errorf("clsact %v: tcx %v, filters %v", clsact, tcx, filters)
		}
	}
	// A filter of somebody else stays, and its qdisc.
	var err error
	ns.do(func() {
		err = netlink.FilterAdd(&netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{LinkIndex: one, Parent: netlink.HANDLE_MIN_INGRESS, Priority: 7, Protocol: unix.ETH_P_ALL},
			Fd:          last.objects.FromPod.FD(), Name: "another", DirectAction: true,
		})
	})
	check(t, err)
	ns.do(func() { err = Remove(pins) })
	check(t, err)
	ns.do(func() {
		l, _ := netlink.LinkByIndex(one)
		fs, ferr := netlink.FilterList(l, netlink.HANDLE_MIN_INGRESS)
		if ferr != nil || len(fs) != 1 || fs[0].(*netlink.BpfFilter).Name != "another" {
			t.Errorf("filters %v, %v", fs, ferr)
		}
	})
}

// Remove leaves nothing, also of what another process has made.
func TestRemove(t *testing.T) {
	pins := mountPins(t)
	ns, pod, proxy := newNamespace(t), newNamespace(t), newNamespace(t)
	one, two := ns.veth(t, "one", pod, "one"), ns.veth(t, "two", pod, "two")
	weir := ns.veth(t, "weir0", proxy, "eth0")
	d := load(t, pins, nil)
	old := load(t, pins, func(o *Options) { o.ForceClsact = true })
	var err error
	ns.do(func() {
		err = errors.Join(d.AttachPod(one), old.AttachPod(two), d.AttachProxy(3, weir, proxy.file))
	})
	check(t, err)
	check(t, d.Close())
	check(t, old.Close())
	for range 2 {
		ns.do(func() { err = Remove(pins) })
		check(t, err)
	}
	for _, i := range []int{one, two, weir} {
		ns.bare(t, i)
	}
	left, err := os.ReadDir(pins)
	check(t, err)
	for _, e := range left {
		if e.IsDir() { // files are the kernel's own
			t.Errorf("left: %v", left)
		}
	}
}

// Tables outlive the process, and a change of one table's layout touches that
// table alone.
func TestLoadAdopts(t *testing.T) {
	pins := mountPins(t)
	d := load(t, pins, nil)
	check(t, d.Endpoints.Update(AddrOf(ipv4.a), Endpoint{Ifindex: 5, Policy: 6}))
	check(t, d.IPCache.Update(PrefixOf(netip.MustParsePrefix("10.0.0.0/8")), Peer{Identity: 300}))
	d.SetGeneration(9)
	revision := d.BumpRevision()
	check(t, d.Close())

	d = load(t, pins, func(o *Options) { o.Sizes.IPCache = 2048 })
	if d.Severed() {
		t.Error("proxies have ipcache")
	}
	if ep, ok, err := d.Endpoints.Lookup(AddrOf(ipv4.a)); err != nil || !ok || ep.Ifindex != 5 || ep.Policy != 6 {
		t.Errorf("endpoint %+v %v %v", ep, ok, err)
	}
	if d.Generation() != 9 || d.Revision() != revision {
		t.Errorf("state %d %d", d.Generation(), d.Revision())
	}
	if all, err := d.IPCache.Snapshot(); err != nil || len(all) != 0 {
		t.Errorf("ipcache %v %v", all, err)
	}
	count := func() (n int) {
		entries, err := os.ReadDir(filepath.Join(pins, mapsDir))
		check(t, err)
		return len(entries)
	}
	before := count()
	check(t, d.Activate())
	if count() != before-1 {
		t.Errorf("%d tables pinned, then %d", before, count())
	}
	// What the programs of before have judged since is judged again, once.
	if got := d.Revision(); got <= revision {
		t.Errorf("revision %d after other tables took over, %d before", got, revision)
	}
	revision = d.Revision()
	check(t, d.Activate())
	if got := d.Revision(); got != revision {
		t.Errorf("revision %d after a second time, %d before", got, revision)
	}
	until := d.state.MidstreamUntil
	if until == 0 {
		t.Fatal("not lenient")
	}
	check(t, d.Close())

	// A new state begins above the old one, by the copy or, without, by the clock,
	// and goes on with the same proxy.
	for _, anew := range [][]string{{"state"}, {"state", revisionTable}} {
		for _, name := range anew {
			check(t, os.Rename(d.paths[name], filepath.Join(pins, mapsDir, name+"@other")))
		}
		d = load(t, pins, func(o *Options) { o.Sizes.IPCache = 2048 })
		if got := d.Revision(); got <= revision || *d.revision.word != got {
			t.Errorf("%v made anew: revision %d, the copy says %d, %d before", anew, got, *d.revision.word, revision)
		}
		if d.Generation() != 9 || d.state.MidstreamUntil != until {
			t.Errorf("%v made anew: generation %d, lenient until %d", anew, d.Generation(), d.state.MidstreamUntil)
		}
		revision = d.Revision()
		check(t, d.Close())
	}

	// Proxies of other tables, until those are gone.
	for i, severed := range []bool{true, true, false} {
		d = load(t, pins, func(o *Options) { o.Sizes.IPCache, o.Sizes.Conns = 2048, 1024 })
		if d.Severed() != severed {
			t.Errorf("%d: severed %v, want %v", i, d.Severed(), severed)
		}
		if i == 1 {
			check(t, d.Activate())
		}
		check(t, d.Close())
	}

	if _, err := Load(Options{Pins: t.TempDir()}); err == nil {
		t.Error("loaded without a bpffs")
	}
	if _, err := Load(Options{Pins: filepath.Join(t.TempDir(), "none")}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("loaded from nowhere: %v", err)
	}
}

func TestMountPins(t *testing.T) {
	needRoot(t)
	dir := filepath.Join(t.TempDir(), "a", "b")
	for range 2 {
		check(t, MountPins(dir))
	}
	if on, err := onBPFFS(dir); err != nil || !on {
		t.Fatalf("on a bpffs: %v, %v", on, err)
	}
	// Within one it mounts nothing.
	within := filepath.Join(dir, "within")
	check(t, MountPins(within))
	check(t, UnmountPins(within))
	if on, _ := onBPFFS(within); !on {
		t.Error("unmounted what it had not mounted")
	}
	for range 2 {
		check(t, UnmountPins(dir))
	}
	if on, err := onBPFFS(dir); err != nil || on {
		t.Errorf("still on a bpffs: %v, %v", on, err)
	}
	check(t, UnmountPins(filepath.Join(dir, "nothing")))
}

// A program that was there before, and lets everything pass, does not keep
// packets from being judged.
func TestAttachComesFirst(t *testing.T) {
	pins := mountPins(t)
	ns, pod := newNamespace(t), newNamespace(t)
	one := ns.veth(t, "one", pod, "one")
	other, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:         ebpf.SchedCLS,
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0 /* TC_ACT_OK */), asm.Return()},
		License:      "GPL",
	})
	check(t, err)
	defer letGo(other)
	sides := []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress}
	for _, a := range sides {
		var l link.Link
		ns.do(func() { l, err = link.AttachTCX(link.TCXOptions{Interface: one, Program: other, Attach: a}) })
		check(t, err)
		defer letGo(l)
	}
	d := load(t, pins, nil)
	ns.do(func() { err = d.AttachPod(one) })
	check(t, err)
	for i, first := range []*ebpf.Program{d.objects.FromPod, d.objects.ToPod} {
		if got, _ := ns.programs(t, one, sides[i]); !slices.Equal(got, []int{id(t, first), id(t, other)}) {
			t.Errorf("programs %v, want %d and then %d", got, id(t, first), id(t, other))
		}
	}
}
