package endpoint

import (
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/bpf"
)

// passing is a program of somebody's that lets everything pass.
func passing(t *testing.T) *ebpf.Program {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "somebody", Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0 /* TC_ACT_OK */), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// TestOvertaken: a program that comes before Weir's and lets everything pass ends
// enforcement until the agent looks again, and it is told.
func TestOvertaken(t *testing.T) {
	for _, how := range []string{"link", "filter"} {
		t.Run(how, func(t *testing.T) {
			if !ownNamespace(t) {
				return
			}
			n := newNode(t)
			n.clsact = how == "filter"
			a, b, c := newPod(t, "va", "10.9.0.1/24"), newPod(t, "vb", "10.9.0.2/24"), newPod(t, "vc", "10.9.0.3/24")
			bridged(t, a, b, c)
			b.serve("10.9.0.2:80")
			n.start(podObject("a", "1", "10.9.0.1"), podObject("b", "2", "10.9.0.2"), onlyFrom("b", "a"))
			n.wait()
			if s := n.m.Status().Overtaken; s.Count != 0 || s.Now != nil {
				t.Errorf("overtaken at first: %+v", s)
			}
			index, other := int(ifindex(t, "vb")), passing(t)
			if n.clsact {
				if err := netlink.FilterAdd(&netlink.BpfFilter{
					FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: netlink.HANDLE_MIN_EGRESS, Handle: 1, Priority: 1, Protocol: unix.ETH_P_ALL},
					Fd:          other.FD(), Name: "another", DirectAction: true,
				}); err != nil {
					t.Fatal(err)
				}
			} else {
				l, err := link.AttachTCX(link.TCXOptions{Interface: index, Program: other, Attach: ebpf.AttachTCXEgress, Anchor: link.Head()})
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
			}
			if !c.dial("10.9.0.2:80") {
				t.Error("this tests nothing: c does not reach b")
			}
			n.wait()
			if c.dial("10.9.0.2:80") {
				t.Error("c reaches b")
			}
			if !a.dial("10.9.0.2:80") {
				t.Error("a does not reach b")
			}
			n.wait()
			s := n.m.Status()
			if o := s.Overtaken; o.Count != 1 || o.Interface != "vb" || o.At.IsZero() || o.By == "" || o.Now != nil || !s.Realised || s.Lost.Count != 0 {
				t.Errorf("status %+v", s)
			}
			if got := testutil.ToFloat64(n.m.metrics.overtaken); got != 1 {
				t.Errorf("%v times overtaken", got)
			}
		})
	}
}

// TestNotToBeOvertaken: what has the first place by right is told as long as it
// is there.
func TestNotToBeOvertaken(t *testing.T) {
	if !ownNamespace(t) {
		return
	}
	n := newNode(t)
	n.clsact = true
	newPod(t, "vb", "10.9.0.2/24")
	run(t, "tc qdisc add dev vb clsact")
	run(t, "tc filter add dev vb egress pref 1 protocol all u32 match u8 0 0 flowid 1:1")
	n.start(podObject("b", "2", "10.9.0.2"))
	for range 3 {
		n.wait()
		s := n.m.Status()
		if o := s.Overtaken; o.Count != 1 || len(o.Now) != 1 || !strings.HasPrefix(o.Now[0], "vb: filter of kind u32") || !s.Realised {
			t.Errorf("status %+v", s)
		}
	}
	if got := testutil.ToFloat64(n.m.metrics.behind); got != 1 {
		t.Errorf("behind on %v interfaces", got)
	}
	run(t, "tc filter del dev vb egress pref 1")
	n.wait()
	if o := n.m.Status().Overtaken; o.Count != 1 || o.Now != nil {
		t.Errorf("status %+v", o)
	}
}

// What is overtaken is attached again, but for what is no pod's any more.
func TestDropOvertaken(t *testing.T) {
	f := newFakeKernel()
	r := newRealiser(f.kernel(), f)
	r.fold(delta("10.0.0.1", "u", 7, resolved(true, nil)))
	r.veths = testVeths(testVeth(3, "10.0.0.1"))
	pass(t, r)
	f.steps()
	f.overtaken = []bpf.Overtaken{{Ifindex: 3, Program: "from_pod", By: "x"}, {Ifindex: 4, Program: "from_pod", By: "y"}}
	by, err := r.dropOvertaken()
	if err != nil || len(by) != 1 || by[3] != "x" {
		t.Fatalf("overtaken %v, %v", by, err)
	}
	pass(t, r)
	if got := f.steps(); !slices.Equal(got, []string{"attach 3"}) {
		t.Errorf("steps %q", got)
	}
}

// The node's own interfaces are looked at as well, while a policy selects it.
func TestHostOvertaken(t *testing.T) {
	h := newFakeHost()
	r := newRealiser(h.kernel(), h.f)
	r.host.devices = map[int]string{3: "eth0", 4: "wg0"}
	h.f.overtaken = []bpf.Overtaken{{Ifindex: 3, Program: "to_host", By: "x"}, {Ifindex: 5, Program: "to_host", By: "y"}}
	if by, err := r.dropOvertaken(); err != nil || len(by) != 0 {
		t.Fatalf("without a policy: %v, %v", by, err)
	}
	r.fold(hostDelta(7))
	pass(t, r)
	h.f.steps()
	by, err := r.dropOvertaken()
	if err != nil || len(by) != 1 || by[3] != "x" || r.nameOf(3) != "eth0" {
		t.Fatalf("overtaken %v, %v", by, err)
	}
	pass(t, r)
	if got := h.f.steps(); !slices.Equal(got, []string{"host attach 3"}) {
		t.Errorf("steps %q", got)
	}
}
