package endpoint

import (
	"errors"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/policy"
)

// fakeHost is the part of a kernel in memory that is about the node itself.
type fakeHost struct {
	f        *fakeKernel
	row      bpf.Host
	programs map[int]bool
	fail     map[int]error
}

func newFakeHost() *fakeHost {
	return &fakeHost{f: newFakeKernel(), programs: map[int]bool{}, fail: map[int]error{}}
}

func (h *fakeHost) kernel() kernel {
	k := h.f.kernel()
	k.host = hostKernel{
		row: func() (bpf.Host, error) { return h.row, nil },
		setRow: func(row bpf.Host) error {
			h.row = row
			h.f.note("host %d", row.Policy)
			return nil
		},
		attach: func(i int) error {
			if err := h.fail[i]; err != nil {
				return err
			}
			h.programs[i] = true
			h.f.note("host attach %d", i)
			return nil
		},
		detach: func(i int) error {
			delete(h.programs, i)
			h.f.note("host detach %d", i)
			return nil
		},
		attached: func() (map[int]bool, error) { return maps.Clone(h.programs), nil },
	}
	return k
}

func hostDelta(id uint32) policy.Delta {
	d := policy.Delta{Host: &policy.HostPolicy{Policy: id, Always: id + 1}, Policies: map[uint32]*policy.Resolved{
		id:     resolved(true, map[policy.Key]policy.Entry{}),
		id + 1: resolved(true, map[policy.Key]policy.Entry{{Protocol: 6, Port: 22, PortBits: 16}: {Action: policy.Allow}}),
	}}
	return d
}

var noHost = policy.Delta{Host: &policy.HostPolicy{}, Policies: map[uint32]*policy.Resolved{7: nil, 8: nil}}

// TestHostOrder: what the kernel is to ask is there before it asks, and it stops
// asking before that goes.
func TestHostOrder(t *testing.T) {
	h := newFakeHost()
	r := newRealiser(h.kernel(), h.f)
	r.host.devices = map[int]string{3: "eth0", 4: "eth1"}
	h.f.after = func() {
		if h.row.Policy == 0 {
			return
		}
		for _, id := range []uint32{h.row.Policy, h.row.Always} {
			if _, ok := h.f.policies.m[id]; !ok {
				t.Errorf("policy %d is asked and not there, after %q", id, h.f.log)
			}
		}
	}
	pass(t, r)
	wantSteps(t, h.f)
	r.fold(hostDelta(7))
	pass(t, r)
	if got := h.f.steps(); !slices.Equal(got[len(got)-4:], []string{"host attach 3", "host attach 4", "host 7", "revise"}) {
		t.Errorf("steps: %q", got)
	}
	pass(t, r)
	wantSteps(t, h.f)
	r.host.devices = map[int]string{4: "eth1", 5: "eth2"}
	pass(t, r)
	wantSteps(t, h.f, "host attach 5", "host detach 3")
	r.fold(noHost)
	pass(t, r)
	if got := h.f.steps(); len(got) < 3 || got[0] != "host 0" || len(h.programs) != 0 || len(h.f.policies.m) != 0 {
		t.Errorf("steps: %q; left %v %v", got, h.programs, h.f.policies.m)
	}
}

// TestHostFailures: an interface that can't be attached to does not keep the
// others open, and is tried again.
func TestHostFailures(t *testing.T) {
	h := newFakeHost()
	r := newRealiser(h.kernel(), h.f)
	r.host.devices = map[int]string{3: "eth0", 4: "eth1"}
	h.fail[3] = errors.New("no")
	r.fold(hostDelta(7))
	r.place()
	if err := r.realise(t.Context(), true); err == nil || !strings.Contains(err.Error(), "eth0") {
		t.Errorf("error: %v", err)
	}
	if h.row.Policy != 7 || !h.programs[4] {
		t.Errorf("row %+v, programs %v", h.row, h.programs)
	}
	delete(h.fail, 3)
	pass(t, r)
	if !h.programs[3] {
		t.Errorf("programs %v", h.programs)
	}
}

// TestHostAdopted: a successor leaves in force what is there until it knows all
// objects, and takes away then what none of them asks for.
func TestHostAdopted(t *testing.T) {
	h := newFakeHost()
	first := newRealiser(h.kernel(), h.f)
	first.host.devices = map[int]string{3: "eth0"}
	first.fold(hostDelta(7))
	pass(t, first)
	h.f.steps()
	next := newRealiser(h.kernel(), h.f)
	if _, err := next.adopt(); err != nil {
		t.Fatal(err)
	}
	if !next.host.wanted() {
		t.Error("what is there is not looked at")
	}
	next.host.devices = map[int]string{3: "eth0"}
	next.place()
	if err := next.realise(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if h.row.Policy != 7 || !h.programs[3] {
		t.Errorf("before all is known: %+v %v", h.row, h.programs)
	}
	pass(t, next)
	if h.row != (bpf.Host{}) || len(h.programs) != 0 {
		t.Errorf("left: %+v %v", h.row, h.programs)
	}
}

func TestChooseHostDevices(t *testing.T) {
	all := []hostDevice{
		{index: 1, name: "lo", loopback: true, global: true},
		{index: 2, name: "eth0", global: true, subnet: true, route: true},
		{index: 3, name: "eth1"},
		{index: 4, name: "ib0", global: true},
		{index: 5, name: "bond0.7", global: true},
		{index: 6, name: "uplink", route: true},
		{index: 7, name: "veth1", veth: true, global: true},
		{index: 8, name: "veth2", veth: true, global: true, subnet: true},
		{index: 9, name: "weir0", veth: true, ours: true, global: true, subnet: true},
		{index: 10, name: "kind", veth: true, global: true, subnet: true},
		{index: 11, name: "unnumbered", veth: true, route: true},
		{index: 12, name: "wg0", tunnel: true},
	}
	isPod := func(i int) bool { return i == 8 }
	for _, c := range []struct{ pattern, chosen string }{
		{"", "bond0.7 eth0 ib0 kind unnumbered uplink wg0"},
		{"eth.*|lo|veth.*|weir0", "eth0 eth1 veth1"},
		{"wg0", "wg0"},
		{"none", ""},
	} {
		var pattern *regexp.Regexp
		if c.pattern != "" {
			pattern = regexp.MustCompile("^(?:" + c.pattern + ")$")
		}
		chosen := chooseHostDevices(all, isPod, pattern)
		if got := strings.Join(slices.Sorted(maps.Values(chosen)), " "); got != c.chosen {
			t.Errorf("%q: %q, want %q", c.pattern, got, c.chosen)
		}
	}
}

// TestHostDevices reads real interfaces.
func TestHostDevices(t *testing.T) {
	if !ownNamespace(t) {
		return
	}
	run(t, "ip link set lo up")
	run(t, "ip link add br0 type bridge")
	run(t, "ip addr add 192.0.2.1/24 dev br0")
	run(t, "ip link add six type bridge")
	run(t, "ip addr add 2001:db8::1/64 dev six nodad")
	run(t, "ip link add bare type bridge")
	run(t, "ip link set bare up")
	run(t, "ip link add routed type bridge")
	run(t, "ip link set routed up")
	run(t, "ip route add default dev routed")
	pod := newPod(t, "va", "10.9.0.2/32")
	run(t, "ip addr add 10.9.0.1/32 dev %s", pod.dev)
	run(t, "ip link add vx0 type vxlan id 7 dev br0 dstport 4789")
	run(t, "ip link add vx1 type vxlan id 8 dev br0 dstport 4789")
	run(t, "ip link set vx1 up")
	run(t, "ip link add vx2 type vxlan id 9 dev br0 dstport 4789")
	run(t, "ip link set vx2 master bare up")
	run(t, "ip tuntap add tun0 mode tun")
	run(t, "ip tuntap add tun1 mode tun")
	run(t, "ip link set tun1 up")
	run(t, "ip tuntap add tap0 mode tap")
	run(t, "ip link set tap0 up")
	chosen, err := HostDevices(func(int) bool { return false }, nil)
	if got := slices.Sorted(maps.Values(chosen)); err != nil || !slices.Equal(got, []string{"br0", "routed", "six", "tun1", "vx1"}) {
		t.Errorf("%v, %v", got, err)
	}
	for name, want := range map[string]bool{"tun1": false, "tap0": true, "vx1": true, "br0": true} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := hasEthernet(l); got != want {
			t.Errorf("%s has Ethernet: %v", name, got)
		}
	}
}
