package endpoint

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy"
)

func nodeObject(ranges ...string) policy.Change {
	n := &policy.Node{Name: "n1"}
	for _, r := range ranges {
		n.PodCIDRs = append(n.PodCIDRs, netip.MustParsePrefix(r))
	}
	return policy.Change{Object: policy.Object{Kind: "Node", Name: "n1"}, Value: n}
}

// TestPodIsKnownBeforeItsAddress: a veth that comes while a pod waits is under
// that pod's policy at once, and stays so when the object tells the address.
func TestPodIsKnownBeforeItsAddress(t *testing.T) {
	if !ownNamespace(t) {
		return
	}
	for _, shape := range []string{"routed", "bridged"} {
		t.Run(shape, func(t *testing.T) {
			n := newNode(t)
			db, other := "10.9.0.1", "10.9.0.2"
			n.start(nodeObject("10.9.0.0/24", "fd00:9::/64"), podObject("db", "u1"), onlyFrom("db", "api"))
			p := newPod(t, "p1-"+shape, db+"/32", "fd00:9::1/128")
			if shape == "bridged" {
				bridged(t, p)
				t.Cleanup(func() { run(t, "ip link del br0") })
			}
			eventually(t, "the address is the waiting pod's", func() bool {
				e, ok := n.row(db)
				_, six := n.row("fd00:9::1")
				return ok && six && e.Identity >= uint32(identity.FirstLocal)
			})
			before, _ := n.row(db)
			if info, ok, err := n.datapath.Policies.Lookup(before.Policy); err != nil || !ok || info.Enforced[policy.Ingress] == 0 {
				t.Errorf("its policy: %+v %v %v", info, ok, err)
			}
			q := newPod(t, "p2-"+shape, other+"/32")
			eventually(t, "what nobody waits for is closed", func() bool {
				e, ok := n.row(other)
				return ok && e.Identity == uint32(identity.UnknownPod) && e.Policy != before.Policy
			})
			n.submit(podObject("db", "u1", db, "fd00:9::1"))
			n.wait()
			if after, _ := n.row(db); after != before {
				t.Errorf("row %+v, was %+v", after, before)
			}
			if s := n.m.Status().Strangers; len(s) != 1 || s[0].Veth != "p2-"+shape || s[0].State != StrangerUnknown {
				t.Errorf("strangers: %+v", s)
			}
			for _, pod := range []*testPod{p, q} {
				run(t, "ip link del %s", pod.dev)
			}
			n.wait()
			if s := n.m.Status().Strangers; len(s) != 0 {
				t.Errorf("strangers left: %+v", s)
			}
		})
	}
}

// TestWhatIsNoPodsIsLeftAlone: interfaces that no pod can own get no program, and
// are shown.
func TestWhatIsNoPodsIsLeftAlone(t *testing.T) {
	if !ownNamespace(t) {
		return
	}
	n := newNode(t)
	newPod(t, "known", "10.9.0.1/32")
	uplink := newPod(t, "uplink", "192.0.2.1/24")
	run(t, "ip addr add 192.0.2.2/24 dev %s", uplink.dev)
	n.start(nodeObject("10.9.0.0/24"), podObject("web", "u1", "10.9.0.1"), podObject("db", "u2"), onlyFrom("db", "api"))
	newPod(t, "docker", "172.17.0.2/16")
	eventually(t, "it is shown", func() bool {
		s := n.m.Status().Strangers
		return len(s) == 1 && s[0].Veth == "docker" && s[0].State == StrangerAlone && len(s[0].Addresses) > 0
	})
	attached, err := n.datapath.Attached()
	if err != nil || len(attached) != 1 || attached[0] != int(ifindex(t, "known")) {
		t.Errorf("attached to %v, %v", attached, err)
	}
}

// TestAddressOfDeletingPod: a new pod is not under the policy of the one whose
// object still has its address.
func TestAddressOfDeletingPod(t *testing.T) {
	if !ownNamespace(t) {
		return
	}
	n := newNode(t)
	old := newPod(t, "p1", "10.9.0.1/32")
	n.start(nodeObject("10.9.0.0/24"), podObject("web", "u1", "10.9.0.1"), onlyFrom("db", "api"))
	free, _ := n.row("10.9.0.1")
	deleting := podObject("web", "u1", "10.9.0.1")
	deleting.Value.(*policy.Pod).Deleting = true
	n.submit(deleting, podObject("db", "u2"))
	n.wait()
	if e, _ := n.row("10.9.0.1"); e != free {
		t.Errorf("while it is deleted its row is %+v, was %+v", e, free)
	}
	run(t, "ip link del %s", old.dev)
	n.wait()
	newPod(t, "p2", "10.9.0.1/32")
	at := ifindex(t, "p2")
	eventually(t, "the new pod has the address", func() bool {
		e, ok := n.row("10.9.0.1")
		return ok && e.Ifindex == at && e.Policy != free.Policy && e.Identity != free.Identity
	})
	row, _ := n.row("10.9.0.1")
	peer, ok, err := n.datapath.IPCache.Lookup(bpf.PrefixOf(netip.MustParsePrefix("10.9.0.1/32")))
	if err != nil || !ok || peer.Identity != row.Identity {
		t.Errorf("others know it as %+v, it is %d", peer, row.Identity)
	}
	// The new one's object is told before the old one's is gone.
	n.submit(podObject("db", "u2", "10.9.0.1"))
	n.wait()
	if e, _ := n.row("10.9.0.1"); e != row {
		t.Errorf("then its row is %+v, was %+v", e, row)
	}
}

// TestAnnounce: whom a CNI plugin tells of is under its own policy when the call
// returns, though others wait, and whatever the ranges are.
func TestAnnounce(t *testing.T) {
	if !ownNamespace(t) {
		return
	}
	n := newNode(t)
	n.start(podObject("db", "u1"), podObject("web", "u2"), onlyFrom("db", "api"))
	newPod(t, "p1", "10.9.0.1/32")
	announce := func(name, uid, addr string, within time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		return n.m.Announce(ctx, Announcement{Pod: policy.PodName{Namespace: "shop", Name: name, UID: uid}, Addresses: addrs(addr)})
	}
	if err := announce("web", "u2", "10.9.0.1", 5*time.Second); err != nil {
		t.Fatal(err)
	}
	if e, ok := n.row("10.9.0.1"); !ok || e.Identity < uint32(identity.FirstLocal) {
		t.Errorf("row %+v %v", e, ok)
	} else if info, _, _ := n.datapath.Policies.Lookup(e.Policy); info.Enforced[policy.Ingress] != 0 {
		t.Errorf("it has the policy of db: %+v", info)
	}
	if err := announce("db", "u1", "10.9.0.2", 300*time.Millisecond); err == nil || !strings.Contains(err.Error(), "no veth") {
		t.Errorf("without an interface: %v", err)
	}
	newPod(t, "p2", "10.9.0.3/32")
	if err := announce("later", "u3", "10.9.0.3", 300*time.Millisecond); err == nil || !strings.Contains(err.Error(), "not known yet") {
		t.Errorf("without an object: %v", err)
	}
	if e, ok := n.row("10.9.0.3"); !ok || e.Identity != uint32(identity.UnknownPod) {
		t.Errorf("it is closed until it is known: %+v %v", e, ok)
	}
	n.submit(podObject("later", "u3"))
	if err := announce("later", "u3", "10.9.0.3", 5*time.Second); err != nil {
		t.Error(err)
	}
	if err := n.m.Announce(t.Context(), Announcement{Pod: policy.PodName{Namespace: "shop", Name: "db"}}); err == nil {
		t.Error("without addresses it is announced")
	}
	if err := n.m.Withdraw(t.Context(), policy.PodName{Namespace: "shop", Name: "web", UID: "u2"}); err != nil {
		t.Error(err)
	}
	n.wait()
	if e, _ := n.row("10.9.0.1"); e.Identity != uint32(identity.UnknownPod) {
		t.Errorf("withdrawn, the row is %+v", e)
	}
}

// TestUnguarded: what was sent before the programs were there is counted.
func TestUnguarded(t *testing.T) {
	if !ownNamespace(t) {
		return
	}
	n := newNode(t)
	p := newPod(t, "p1", "10.9.0.1/24")
	run(t, "ip addr add 10.9.0.254/24 dev p1")
	if !p.dial("10.9.0.254:1") { // refused: it has sent
		_ = p
	}
	n.start(podObject("web", "u1", "10.9.0.1"))
	if got := testutil.ToFloat64(n.m.metrics.unguarded.WithLabelValues("before")); got == 0 {
		t.Error("no packet before")
	}
	if got := testutil.ToFloat64(n.m.metrics.late.WithLabelValues("before")); got != 1 {
		t.Errorf("%v interfaces before", got)
	}
}
