package endpoint

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/weirnet/weir/policy"
)

// TestProgramsTakenOff: whoever ends enforcement on an interface behind the
// agent's back does so until the agent looks again, and it is told.
func TestProgramsTakenOff(t *testing.T) {
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
			if s := n.m.Status(); s.Lost.Count != 0 {
				t.Errorf("lost at first: %+v", s.Lost)
			}
			index := int(ifindex(t, "vb"))
			if n.clsact {
				run(t, "tc qdisc del dev vb clsact")
			} else {
				for _, program := range []string{"from_pod", "to_pod"} {
					if err := os.Remove(filepath.Join(n.pins, "links", fmt.Sprintf("%s-%d", program, index))); err != nil {
						t.Fatal(err)
					}
				}
			}
			if list, err := n.datapath.Attached(); err != nil || slices.Contains(list, index) {
				t.Fatalf("attached %v, %v", list, err)
			}
			// The kernel takes off a link that nobody holds a moment later.
			eventually(t, "nothing is enforced", func() bool { return c.dial("10.9.0.2:80") })
			n.wait()
			if list, err := n.datapath.Attached(); err != nil || !slices.Contains(list, index) {
				t.Errorf("attached %v, %v", list, err)
			}
			if c.dial("10.9.0.2:80") {
				t.Error("c reaches b")
			}
			if !a.dial("10.9.0.2:80") {
				t.Error("a does not reach b")
			}
			if s := n.m.Status(); s.Lost.Count != 1 || s.Lost.Interface != "vb" || s.Lost.At.IsZero() || !s.Realised {
				t.Errorf("status %+v", s)
			}
			if got := testutil.ToFloat64(n.m.metrics.lost); got != 1 {
				t.Errorf("%v times lost", got)
			}
			// A veth that goes takes its programs along: that is no loss.
			run(t, "ip link del vb")
			n.submit(policy.Change{Object: podObject("b", "2", "10.9.0.2").Object})
			n.wait()
			n.wait()
			if s := n.m.Status(); s.Lost.Count != 1 {
				t.Errorf("lost with its interface: %+v", s.Lost)
			}
		})
	}
}
