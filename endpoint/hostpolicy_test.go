package endpoint

import (
	"errors"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

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
		{index: 2, name: "eth0", ethernet: true, global: true, subnet: true, route: true},
		{index: 3, name: "eth1", ethernet: true},
		{index: 4, name: "ib0", global: true},
		{index: 5, name: "bond0.7", ethernet: true, global: true},
		{index: 6, name: "uplink", ethernet: true, route: true},
		{index: 7, name: "veth1", ethernet: true, veth: true, global: true},
		{index: 8, name: "veth2", ethernet: true, veth: true, global: true, subnet: true},
		{index: 9, name: "weir0", ethernet: true, veth: true, ours: true, global: true, subnet: true},
		{index: 10, name: "kind", ethernet: true, veth: true, global: true, subnet: true},
		{index: 11, name: "unnumbered", ethernet: true, veth: true, route: true},
		{index: 12, name: "wg0", route: true},
	}
	isPod := func(i int) bool { return i == 8 }
	for _, c := range []struct{ pattern, chosen, skipped string }{
		{"", "bond0.7 eth0 kind unnumbered uplink", "ib0 wg0"},
		{"eth.*|lo|veth.*|weir0", "eth0 eth1 veth1", ""},
		{"wg0", "", "wg0"},
		{"none", "", ""},
	} {
		var pattern *regexp.Regexp
		if c.pattern != "" {
			pattern = regexp.MustCompile("^(?:" + c.pattern + ")$")
		}
		chosen, skipped := chooseHostDevices(all, isPod, pattern)
		if got := strings.Join(slices.Sorted(maps.Values(chosen)), " "); got != c.chosen || strings.Join(skipped, " ") != c.skipped {
			t.Errorf("%q: %q, skipped %q; want %q, %q", c.pattern, got, skipped, c.chosen, c.skipped)
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
	chosen, skipped, err := HostDevices(func(int) bool { return false }, nil)
	if got := slices.Sorted(maps.Values(chosen)); err != nil || !slices.Equal(got, []string{"br0", "routed", "six"}) || len(skipped) != 0 {
		t.Errorf("%v, skipped %v, %v", got, skipped, err)
	}
}
