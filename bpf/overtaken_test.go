package bpf

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

func TestBestSpot(t *testing.T) {
	const ours, all = "weir from_pod /pins", unix.ETH_P_ALL
	bpfAt := func(priority uint16, handle uint32, name string) filter {
		return filter{spot: spot{priority, handle}, kind: "bpf", protocol: all, name: name}
	}
	flower := func(priority uint16) filter {
		return filter{spot: spot{priority, 1}, kind: "flower", protocol: all}
	}
	onlyIP := bpfAt(1, 1, "another")
	onlyIP.protocol = unix.ETH_P_IP
	for name, c := range map[string]struct {
		all   []filter
		best  spot
		there bool
	}{
		"none":                        {nil, spot{1, firstHandle}, false},
		"alone":                       {[]filter{bpfAt(1, firstHandle, ours)}, spot{1, firstHandle}, true},
		"alone, elsewhere":            {[]filter{bpfAt(0x7765, 1, ours)}, spot{1, firstHandle}, false},
		"first":                       {[]filter{bpfAt(1, firstHandle, ours), bpfAt(1, 1, "another"), flower(2)}, spot{1, firstHandle}, true},
		"another's place":             {[]filter{bpfAt(1, 1, "another")}, spot{1, firstHandle}, false},
		"another's later":             {[]filter{bpfAt(7, 1, "another")}, spot{1, firstHandle}, false},
		"overtaken":                   {[]filter{bpfAt(1, 9, "another"), bpfAt(1, firstHandle, ours)}, spot{1, firstHandle + 1}, false},
		"overtaken by its own handle": {[]filter{bpfAt(1, firstHandle, "another")}, spot{1, firstHandle + 1}, false},
		"another kind":                {[]filter{flower(1)}, spot{2, firstHandle}, false},
		"another protocol":            {[]filter{onlyIP}, spot{2, firstHandle}, false},
		"two other kinds":             {[]filter{flower(1), flower(2), bpfAt(3, 1, "another")}, spot{3, firstHandle}, false},
		"behind another kind":         {[]filter{flower(1), bpfAt(2, firstHandle, ours)}, spot{2, firstHandle}, true},
		"the other kind has gone":     {[]filter{bpfAt(2, firstHandle, ours)}, spot{1, firstHandle}, false},
		"overtaken behind it":         {[]filter{flower(1), bpfAt(2, 5, "another"), bpfAt(2, firstHandle, ours)}, spot{2, firstHandle + 1}, false},
	} {
		if best, there := bestSpot(c.all, ours); best != c.best || there != c.there {
			t.Errorf("%s: %+v, %v", name, best, there)
		}
	}
}

// passing is a program of somebody else's that lets everything pass.
func passing(t *testing.T) *ebpf.Program {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "somebody", Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0 /* TC_ACT_OK */), asm.Return()},
	})
	check(t, err)
	t.Cleanup(func() { letGo(p) })
	return p
}

// overtaken asks for what runs before ours, in a namespace.
func (ns *namespace) overtaken(t *testing.T, d *Datapath) (out []string) {
	t.Helper()
	var all []Overtaken
	var err error
	ns.do(func() { all, err = d.Overtaken() })
	check(t, err)
	for _, o := range all {
		out = append(out, o.Program+": "+o.By)
	}
	slices.Sort(out)
	return out
}

// Filters of others, before and after ours was there.
func TestFilterComesFirst(t *testing.T) {
	pins := mountPins(t)
	ns, pod := newNamespace(t), newNamespace(t)
	one := ns.veth(t, "one", pod, "one")
	d := load(t, pins, func(o *Options) { o.ForceClsact = true })
	other := passing(t)
	do := func(f func() error) {
		t.Helper()
		var err error
		ns.do(func() { err = f() })
		check(t, err)
	}
	add := func(priority uint16, handle uint32) {
		t.Helper()
		do(func() error {
			return netlink.FilterAdd(&netlink.BpfFilter{
				FilterAttrs: filterAttrs(one, ebpf.AttachTCXIngress, spot{priority, handle}),
				Fd:          other.FD(), Name: "another", DirectAction: true,
			})
		})
	}
	// In the order they run; the kernel tells.
	order := func(want ...*ebpf.Program) {
		t.Helper()
		var ids []int
		for _, p := range want {
			ids = append(ids, id(t, p))
		}
		if _, got := ns.programs(t, one, ebpf.AttachTCXIngress); !slices.Equal(got, ids) {
			t.Errorf("filters %v, want %v", got, ids)
		}
	}
	ours := d.objects.FromPod
	do(func() error { return netlink.QdiscAdd(clsactOf(one)) })
	add(1, 1) // as others do it
	do(func() error { return d.AttachPod(one) })
	order(ours, other)
	if got := ns.overtaken(t, d); len(got) != 0 {
		t.Errorf("overtaken at first: %q", got)
	}
	add(1, 2)
	order(other, ours, other)
	if got := ns.overtaken(t, d); !slices.Equal(got, []string{`from_pod: filter "another" of priority 1`}) {
		t.Errorf("overtaken: %q", got)
	}
	for range 2 {
		do(func() error { return d.AttachPod(one) })
		order(ours, other, other)
		if got := ns.overtaken(t, d); len(got) != 0 {
			t.Errorf("overtaken afterwards: %q", got)
		}
	}
	// tcx, which comes before all filters: ours would have to be there, too.
	var l link.Link
	do(func() (err error) {
		l, err = link.AttachTCX(link.TCXOptions{Interface: one, Program: other, Attach: ebpf.AttachTCXEgress})
		return err
	})
	do(func() error { return d.AttachPod(one) })
	if got := ns.overtaken(t, d); len(got) != 1 || !strings.HasPrefix(got[0], `to_pod: tcx program "somebody"`) {
		t.Errorf("overtaken by tcx: %q", got)
	}
	letGo(l)
	// They leave with what they brought; others' stay.
	do(func() error { return d.DetachPod(one) })
	order(other, other)
}

// A filter of another kind that has the first priority can't be overtaken: ours
// comes next, and is moved when that has gone.
func TestFilterBehindAnotherKind(t *testing.T) {
	pins := mountPins(t)
	ns, pod := newNamespace(t), newNamespace(t)
	one := ns.veth(t, "one", pod, "one")
	d := load(t, pins, func(o *Options) { o.ForceClsact = true })
	ns.sh(t, `
		tc qdisc add dev one clsact
		tc filter add dev one ingress pref 1 protocol all u32 match u8 0 0 flowid 1:1
		tc filter add dev one ingress pref 1 chain 5 protocol all u32 match u8 0 0 flowid 1:1
		tc filter add dev one ingress pref 9 protocol ip u32 match u8 0 0 flowid 1:1`)
	onlyIP := filterAttrs(one, ebpf.AttachTCXIngress, spot{2, 1})
	onlyIP.Protocol = unix.ETH_P_IP
	ns.do(func() {
		err := netlink.FilterAdd(&netlink.BpfFilter{FilterAttrs: onlyIP, Fd: passing(t).FD(), Name: "another", DirectAction: true})
		if err != nil {
			t.Error(err)
		}
	})
	attach := func() {
		t.Helper()
		var err error
		ns.do(func() { err = d.AttachPod(one) })
		check(t, err)
	}
	where := func(want uint16) {
		t.Helper()
		var all []filter
		var err error
		ns.do(func() { all, err = listFilters(one, ebpf.AttachTCXIngress) })
		check(t, err)
		at := slices.IndexFunc(all, func(f filter) bool { return f.name == filterName(progFromPod, pins) })
		if at < 0 || all[at].priority != want || !slices.IsSortedFunc(all, func(a, b filter) int { return int(a.priority) - int(b.priority) }) {
			t.Errorf("filters %v, want ours at priority %d", all, want)
		}
	}
	for range 2 {
		attach()
		where(3)
		if got := ns.overtaken(t, d); !slices.Equal(got, []string{"from_pod: filter of kind u32 and priority 1"}) {
			t.Errorf("overtaken: %q", got)
		}
	}
	ns.sh(t, "tc filter del dev one ingress pref 1")
	attach()
	where(1)
	if got := ns.overtaken(t, d); len(got) != 0 {
		t.Errorf("overtaken: %q", got)
	}
}

// The same with tcx, at a pod's interface and at the proxy's.
func TestLinkComesFirst(t *testing.T) {
	pins := mountPins(t)
	ns, pod, proxy := newNamespace(t), newNamespace(t), newNamespace(t)
	one, weir := ns.veth(t, "one", pod, "one"), ns.veth(t, "weir0", proxy, "eth0")
	d := load(t, pins, nil)
	other := passing(t)
	attach := func() {
		t.Helper()
		var err error
		ns.do(func() { err = errors.Join(d.AttachPod(one), d.AttachProxy(3, weir, proxy.file)) })
		check(t, err)
	}
	attach()
	for _, at := range []struct {
		ifindex int
		side    ebpf.AttachType
		ours    *ebpf.Program
	}{
		{one, ebpf.AttachTCXIngress, d.objects.FromPod}, {one, ebpf.AttachTCXEgress, d.objects.ToPod},
		{weir, ebpf.AttachTCXIngress, d.objects.FromProxy},
	} {
		var l link.Link
		var err error
		ns.do(func() {
			l, err = link.AttachTCX(link.TCXOptions{Interface: at.ifindex, Program: other, Attach: at.side, Anchor: link.Head()})
		})
		check(t, err)
		defer letGo(l)
		if at.ifindex == one {
			if got := ns.overtaken(t, d); len(got) != 1 || !strings.Contains(got[0], `tcx program "somebody"`) {
				t.Errorf("overtaken: %q", got)
			}
		}
		for range 2 {
			attach()
			tcx, filters := ns.programs(t, at.ifindex, at.side)
			if !slices.Equal(tcx, []int{id(t, at.ours), id(t, other)}) || len(filters) != 0 {
				t.Errorf("programs %v, filters %v, want %d and %d", tcx, filters, id(t, at.ours), id(t, other))
			}
		}
		if got := ns.overtaken(t, d); len(got) != 0 {
			t.Errorf("overtaken afterwards: %q", got)
		}
	}
	// What was pinned is what is attached: a successor replaces it.
	next := load(t, pins, nil)
	var err error
	ns.do(func() { err = next.Activate() })
	check(t, err)
	if tcx, _ := ns.programs(t, one, ebpf.AttachTCXIngress); len(tcx) != 2 || tcx[0] != id(t, next.objects.FromPod) {
		t.Errorf("programs %v after a successor took over", tcx)
	}
	ns.do(func() { err = Remove(pins) })
	check(t, err)
	if tcx, _ := ns.programs(t, one, ebpf.AttachTCXIngress); !slices.Equal(tcx, []int{id(t, other)}) {
		t.Errorf("left: %v", tcx)
	}
}

// A message cut anywhere is an error, or the same filter with less known of it.
func TestParseFilter(t *testing.T) {
	chain, kind := uint32(0), "bpf"
	message := func() []byte {
		tc := &nl.TcMsg{Handle: 7, Info: netlink.MakeHandle(3, nl.Swap16(unix.ETH_P_ALL))}
		options := nl.NewRtAttr(nl.TCA_OPTIONS|unix.NLA_F_NESTED, nil)
		options.AddRtAttr(nl.TCA_BPF_NAME, nl.ZeroTerminated("x y"))
		options.AddRtAttr(nl.TCA_BPF_ID, nl.Uint32Attr(99))
		return slices.Concat(tc.Serialize(), nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated(kind)).Serialize(),
			nl.NewRtAttr(nl.TCA_CHAIN, nl.Uint32Attr(chain)).Serialize(), options.Serialize())
	}
	want := filter{spot: spot{3, 7}, protocol: unix.ETH_P_ALL, kind: "bpf", name: "x y", id: 99}
	whole := message()
	if f, ok, err := parseFilter(whole); f != want || !ok || err != nil {
		t.Errorf("%+v, %v, %v", f, ok, err)
	}
	for n := range whole {
		f, _, err := parseFilter(whole[:n])
		if err == nil && (f.spot != want.spot || f.kind != "" && f.kind != "bpf" || f.name != "") {
			t.Errorf("%d bytes: %+v", n, f)
		}
	}
	kind = "flower"
	if f, ok, err := parseFilter(message()); f.kind != "flower" || f.name != "" || !ok || err != nil {
		t.Errorf("another kind: %+v, %v, %v", f, ok, err)
	}
	chain = 1
	if _, ok, err := parseFilter(message()); ok || err != nil {
		t.Errorf("another chain: %v, %v", ok, err)
	}
}
