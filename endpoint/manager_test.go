package endpoint

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/flow"
	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/policy/api"
)

// node is a Manager on the real kernel, in a network namespace of its own.
type node struct {
	t    *testing.T
	pins string
	rule *fakeKernel // takes the rule sets

	datapath *bpf.Datapath
	m        *Manager
	stop     func()
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{t: t, pins: t.TempDir(), rule: newFakeKernel()}
	if err := bpf.MountPins(n.pins); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if n.stop != nil {
			n.stop()
		}
		if err := bpf.Remove(n.pins); err != nil {
			t.Error(err)
		}
		if err := bpf.UnmountPins(n.pins); err != nil {
			t.Error(err)
		}
	})
	return n
}

// start runs a Manager with these objects as the first read.
func (n *node) start(objects ...policy.Change) {
	n.t.Helper()
	n.prepare()
	n.submit(objects...)
	n.wait()
}

func (n *node) prepare() {
	n.t.Helper()
	d, err := bpf.Load(bpf.Options{Pins: n.pins, Sizes: bpf.Sizes{Conntrack: 4096, Conns: 1024, Policy: 4096, Numbers: 4096, IPCache: 4096}})
	if err != nil {
		n.t.Fatal(err)
	}
	v, err := OpenVeths()
	if err != nil {
		n.t.Fatal(err)
	}
	m, err := New(Options{
		Node: "n1", Datapath: d, RuleSets: n.rule, Veths: v, MTU: func(int) error { return nil },
		Log: slog.New(slog.DiscardHandler), Metrics: NewMetrics(prometheus.NewRegistry()),
	})
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- m.Run(ctx) }()
	go func() { done <- v.Run(ctx) }()
	n.datapath, n.m = d, m
	n.stop = func() {
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				n.t.Error(err)
			}
		}
		v.Close()
		if err := d.Close(); err != nil {
			n.t.Error(err)
		}
		n.stop = nil
	}
}

func (n *node) submit(objects ...policy.Change) {
	n.t.Helper()
	if err := n.m.Submit(n.t.Context(), objects); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) wait() {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), 10*time.Second)
	defer cancel()
	if err := n.m.Wait(ctx); err != nil {
		n.t.Fatalf("wait: %v", err)
	}
}

func (n *node) state(pod string) EndpointStatus {
	n.t.Helper()
	for _, e := range n.m.Status().Endpoints {
		if e.Pod == pod {
			return e
		}
	}
	return EndpointStatus{}
}

func (n *node) row(addr string) (bpf.Endpoint, bool) {
	n.t.Helper()
	e, ok, err := n.datapath.Endpoints.Lookup(bpf.AddrOf(netip.MustParseAddr(addr)))
	if err != nil {
		n.t.Fatal(err)
	}
	return e, ok
}

func ifindex(t *testing.T, dev string) uint32 {
	t.Helper()
	// net.InterfaceByName may ask from another thread.
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	req, err := unix.NewIfreq(dev)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, req); err != nil {
		t.Fatalf("ifindex of %s: %v", dev, err)
	}
	return req.Uint32()
}

func podObject(name, uid string, addrs ...string) policy.Change {
	p := &policy.Pod{Namespace: "shop", Name: name, UID: uid, Node: "n1", Labels: map[string]string{"app": name}}
	for _, a := range addrs {
		p.Addresses = append(p.Addresses, netip.MustParseAddr(a))
	}
	return policy.Change{Object: policy.Object{Kind: "Pod", Namespace: "shop", Name: name}, Value: p}
}

func gone(c policy.Change) policy.Change { c.Value = nil; return c }

// onlyFrom lets from reach to on TCP port 80.
func onlyFrom(to, from string) policy.Change {
	port := intstr.FromInt32(80)
	p := &api.Policy{
		Kind: api.KindNetworkPolicy, Namespace: "shop", Name: to,
		NetworkPolicy: &networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": to}},
			Ingress: []networkingv1.NetworkPolicyIngressRule{{
				From:  []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": from}}}},
				Ports: []networkingv1.NetworkPolicyPort{{Port: &port}},
			}},
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
		},
	}
	return policy.Change{Object: policy.Object{Kind: api.KindNetworkPolicy, Namespace: "shop", Name: to}, Value: p}
}

// serve accepts on an address in the pod.
func (p *testPod) serve(addr string) {
	p.t.Helper()
	l, err := inNamespace(p, func() (net.Listener, error) { return net.Listen("tcp", addr) })
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
}

// dial tells whether addr can be reached from the pod.
func (p *testPod) dial(addr string) bool {
	p.t.Helper()
	c, err := inNamespace(p, func() (net.Conn, error) { return net.DialTimeout("tcp", addr, 300*time.Millisecond) })
	if err != nil {
		return false
	}
	c.Close()
	return true
}

func inNamespace[T any](p *testPod, do func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	answer := make(chan result)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread ends
		var r result
		fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/net", p.cmd.Process.Pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			_ = unix.Close(fd)
		}
		if r.err = err; err == nil {
			r.value, r.err = do()
		}
		answer <- r
	}()
	r := <-answer
	return r.value, r.err
}

// bridged joins pods to one bridge.
func bridged(t *testing.T, pods ...*testPod) {
	t.Helper()
	run(t, "ip link add br0 type bridge")
	run(t, "ip link set br0 up")
	for _, p := range pods {
		run(t, "ip link set %s master br0", p.dev)
	}
}

func TestManagerEnforcesAndSurvivesARestart(t *testing.T) {
	if !ownNamespace(t) {
		return
	}
	n := newNode(t)
	a, b, c := newPod(t, "va", "10.9.0.1/24"), newPod(t, "vb", "10.9.0.2/24"), newPod(t, "vc", "10.9.0.3/24")
	bridged(t, a, b, c)
	b.serve("10.9.0.2:80")
	objects := []policy.Change{podObject("a", "1", "10.9.0.1"), podObject("b", "2", "10.9.0.2"), podObject("c", "3", "10.9.0.3"), onlyFrom("b", "a")}
	n.start(objects...)
	check := func(when string) {
		t.Helper()
		if !a.dial("10.9.0.2:80") {
			t.Errorf("%s: a does not reach b", when)
		}
		if c.dial("10.9.0.2:80") {
			t.Errorf("%s: c reaches b", when)
		}
	}
	check("at first")
	if s := n.state("b"); s.State != EndpointReady || s.Veth != "vb" || !s.Ingress || s.Egress || !slices.Equal(s.IngressPolicies, []string{"NetworkPolicy shop/b"}) {
		t.Errorf("status of b: %+v", s)
	}
	row, _ := n.row("10.9.0.2")
	if row.Ifindex != ifindex(t, "vb") || row.PodMac != b.mac() {
		t.Errorf("row of b: %+v", row)
	}
	revision := n.m.Status().Revision

	n.stop()
	check("without an agent")
	n.prepare()
	check("before the first read")
	n.submit(objects...)
	n.wait()
	check("after the restart")
	if got := n.m.Status().Revision; got != revision {
		t.Errorf("revision %d after a restart without changes, was %d", got, revision)
	}

	// The policy goes while nobody looks.
	n.stop()
	n.start(objects[:3]...)
	if !c.dial("10.9.0.2:80") {
		t.Error("c does not reach b although the policy is gone")
	}
}

func TestManagerFollowsPodsAndVeths(t *testing.T) {
	if !ownNamespace(t) {
		return
	}
	n := newNode(t)
	a := newPod(t, "va", "10.9.0.1/24")
	n.start(podObject("a", "1", "10.9.0.1"), podObject("b", "2", "10.9.0.2"), onlyFrom("b", "a"))
	if s := n.state("b"); s.State != EndpointWaiting {
		t.Errorf("status of b without a veth: %+v", s)
	}
	if _, there := n.row("10.9.0.2"); there {
		t.Error("an endpoint without a veth")
	}
	b := newPod(t, "vb", "10.9.0.2/24")
	eventually(t, "b's veth is found", func() bool {
		row, ok := n.row("10.9.0.2")
		return ok && row.Ifindex == ifindex(t, "vb")
	})
	attached := func() []int {
		list, err := n.datapath.Attached()
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	if !slices.Contains(attached(), int(ifindex(t, "vb"))) {
		t.Error("no programs on vb")
	}
	// Made anew with the same name.
	old := ifindex(t, "vb")
	run(t, "ip link del vb")
	eventually(t, "the endpoint goes with its veth", func() bool { _, ok := n.row("10.9.0.2"); return !ok })
	b.link("10.9.0.2/24")
	eventually(t, "the new veth is found", func() bool {
		row, ok := n.row("10.9.0.2")
		return ok && row.Ifindex != old && row.Ifindex == ifindex(t, "vb")
	})
	bridged(t, a, b)
	b.serve("10.9.0.2:80")
	if !a.dial("10.9.0.2:80") {
		t.Error("a does not reach b")
	}
	// Another pod takes the address over: it inherits no flow.
	tuple, _ := bpf.TupleOf(netip.MustParseAddrPort("10.9.0.77:1234"), netip.MustParseAddrPort("10.9.0.2:80"), 6).Canonical()
	if err := n.datapath.Conntrack.Update(tuple, bpf.Conntrack{LastSeen: 1}); err != nil {
		t.Fatal(err)
	}
	other, _ := bpf.TupleOf(netip.MustParseAddrPort("10.9.0.77:1234"), netip.MustParseAddrPort("10.9.0.1:80"), 6).Canonical()
	if err := n.datapath.Conntrack.Update(other, bpf.Conntrack{LastSeen: 1}); err != nil {
		t.Fatal(err)
	}
	newPod(t, "vc", "10.9.0.2/24")
	b.addr("del", "10.9.0.2/24")
	n.submit(gone(podObject("b", "2")), podObject("c", "3", "10.9.0.2"))
	eventually(t, "c has the address", func() bool {
		row, ok := n.row("10.9.0.2")
		return ok && row.Ifindex == ifindex(t, "vc")
	})
	if _, there, err := n.datapath.Conntrack.Lookup(tuple); there || err != nil {
		t.Errorf("c inherits a flow of b (%v)", err)
	}
	if _, there, err := n.datapath.Conntrack.Lookup(other); !there || err != nil {
		t.Errorf("a lost a flow (%v)", err)
	}
	if slices.Contains(attached(), int(ifindex(t, "vb"))) {
		t.Error("programs are left on vb")
	}
	n.submit(gone(podObject("c", "3")), gone(podObject("a", "1")))
	eventually(t, "everything is taken off", func() bool { return len(attached()) == 0 })
}

func TestManagerNamesWhatItSees(t *testing.T) {
	if !ownNamespace(t) {
		return
	}
	n := newNode(t)
	a, b := newPod(t, "va", "10.9.0.1/24"), newPod(t, "vb", "10.9.0.2/24")
	bridged(t, a, b)
	b.serve("10.9.0.2:81")
	n.start(podObject("a", "1", "10.9.0.1"), podObject("b", "2", "10.9.0.2"), onlyFrom("b", "a"))
	ring := flow.NewRing(100)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.m.Records(ctx, n.datapath, ring.Publish) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	a.dial("10.9.0.2:81")
	var got *flow.Record
	eventually(t, "the drop is recorded", func() bool {
		_ = ring.Read(ctx, flow.Query{Last: -1, Filter: flow.Filter{Verdict: []string{"dropped"}, Protocol: []string{"tcp"}}}, func(r *flow.Record, _ uint64) error {
			got = r
			return nil
		})
		return got != nil
	})
	if got.Source.Pod != "a" || got.Dest.Pod != "b" || got.Dest.Namespace != "shop" || got.Dest.Port != 81 || got.Protocol != "TCP" ||
		got.Reason != "policy-denied" || got.Direction != "ingress" || got.Node != "n1" || got.Rule != nil ||
		!slices.Equal(got.Policies, []string{"NetworkPolicy shop/b"}) || !slices.Contains(got.Source.Labels, "k8s:app=a") ||
		time.Since(got.Time).Abs() > 10*time.Second {
		t.Errorf("record %+v", got)
	}
}
