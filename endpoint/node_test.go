package endpoint

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/policy/api"
)

// node is a Manager on the real kernel, in a network namespace of its own.
type node struct {
	t    *testing.T
	pins string
	rule *fakeKernel // takes the rule sets
	// clsact attaches as a kernel without tcx does.
	clsact bool
	// inhabitants, if not nil, are looked at.
	inhabitants *Inhabitants
	// services, if not nil, are told what becomes of services.
	services *Services

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
	d, err := bpf.Load(bpf.Options{Pins: n.pins, ForceClsact: n.clsact, Sizes: bpf.Sizes{Conntrack: 4096, Conns: 1024, Policy: 4096, Numbers: 4096, IPCache: 4096}})
	if err != nil {
		n.t.Fatal(err)
	}
	v, err := OpenVeths()
	if err != nil {
		n.t.Fatal(err)
	}
	m, err := New(Options{
		Node: "n1", Datapath: d, RuleSets: n.rule, Veths: v, Inhabitants: n.inhabitants, Services: n.services, MTU: func(int) error { return nil },
		Log: slog.New(slog.DiscardHandler), Metrics: NewMetrics(prometheus.NewRegistry()),
	})
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 3)
	go func() { done <- m.Run(ctx) }()
	go func() {
		if n.inhabitants == nil {
			done <- nil
			return
		}
		done <- n.inhabitants.Run(ctx)
	}()
	go func() { done <- v.Run(ctx) }()
	n.datapath, n.m = d, m
	n.stop = func() {
		cancel()
		for range 3 {
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
