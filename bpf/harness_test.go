package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/flow"
	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy"
)

// needRoot skips without the rights to load programs, and fails where that
// must not pass for a success.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("needs root, which CI must give")
	}
	t.Skip("needs root to load eBPF programs")
}

// mountPins gives the test a bpffs.
func mountPins(t testing.TB) string {
	t.Helper()
	needRoot(t)
	dir := filepath.Join(t.TempDir(), "bpf")
	if err := MountPins(dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := UnmountPins(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// small are sizes that load fast.
var small = Sizes{
	Endpoints: 1024, Devices: 64, IPCache: 4096, FQDN: 1024, Policies: 1024, Policy: 65536,
	Conntrack: 4096, Conns: 64, Fragments: 512, Numbers: 1024, Events: 1 << 20,
}

// kernel is a datapath for packets run through the programs one by one: two
// pods of this node, a proxy, a world beyond.
type kernel struct {
	*Datapath
	t      testing.TB
	ns     *namespace
	events *ringbuf.Reader

	podA, podB, proxyIf int // interfaces
	proxyNS             *namespace
}

// Identities and policies the tests use.
const (
	idA, idB, idPeer = 300, 301, 302
	policyA, policyB = 400, 401
)

// addresses of one family.
type addresses struct {
	a, b   netip.Addr // pods of this node
	peer   netip.Addr // a pod elsewhere, identity idPeer
	world  netip.Addr
	node   netip.Addr
	v4     bool
	icmp   uint8
	echo   uint8
	family string
}

var (
	ipv4 = addresses{
		netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("10.1.0.2"),
		netip.MustParseAddr("10.2.0.9"), netip.MustParseAddr("192.0.2.7"),
		netip.MustParseAddr("172.16.0.1"), true, unix.IPPROTO_ICMP, 8, "IPv4",
	}
	ipv6 = addresses{
		netip.MustParseAddr("fd01::1"), netip.MustParseAddr("fd01::2"),
		netip.MustParseAddr("fd02::9"), netip.MustParseAddr("2001:db8::7"),
		netip.MustParseAddr("fd03::1"), false, unix.IPPROTO_ICMPV6, 128, "IPv6",
	}
)

// bothFamilies runs the test for IPv4 and for IPv6.
func bothFamilies(t *testing.T, k *kernel, f func(t *testing.T, k *kernel, ip addresses)) {
	for _, ip := range []addresses{ipv4, ipv6} {
		t.Run(ip.family, func(t *testing.T) {
			k := *k
			k.t = t
			k.reset()
			f(t, &k, ip)
		})
	}
}

func newKernel(t testing.TB) *kernel {
	t.Helper()
	return newKernelOf(t, small, 1<<30)
}

// newKernelOf makes one with these sizes and limit of events, 0 for the default.
func newKernelOf(t testing.TB, sizes Sizes, limit uint32) *kernel {
	t.Helper()
	d, err := Load(Options{Pins: mountPins(t), Sizes: sizes, EventLimit: limit})
	if err != nil {
		t.Fatal(err)
	}
	k := &kernel{Datapath: d, t: t, ns: newNamespace(t)}
	pod, proxy := newNamespace(t), newNamespace(t)
	k.ns.quiet(t)
	k.podA = k.ns.veth(t, "pod-a", pod, "a")
	k.podB = k.ns.veth(t, "pod-b", pod, "b")
	k.proxyIf = k.ns.veth(t, "weir0", proxy, "eth0")
	k.proxyNS = proxy
	proxy.do(func() { err = setUp("eth0") })
	k.must(err)
	k.ns.untilUp(t, k.proxyIf)
	if k.events, err = ringbuf.NewReader(d.objects.Events); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		letGo(k.events)
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	k.reset()
	return k
}

// rx counts the packets that came into the proxy's namespace, but for its own
// host side's chatter, which there is none of: IPv6 is off.
func (k *kernel) rx() (n uint64) {
	k.t.Helper()
	var err error
	k.proxyNS.do(func() {
		var l netlink.Link
		if l, err = netlink.LinkByName("eth0"); err == nil {
			n = l.Attrs().Statistics.RxPackets
		}
	})
	k.must(err)
	return n
}

func (k *kernel) must(err error) {
	k.t.Helper()
	if err != nil {
		k.t.Fatal(err)
	}
}

func empty[K, V comparable](k *kernel, t Table[K, V]) {
	k.t.Helper()
	_, err := t.Reconcile(nil)
	k.must(err)
}

// forgetConns is as if no flow had been redirected so far.
func (k *kernel) forgetConns() {
	k.t.Helper()
	empty(k, k.Conns)
	empty(k, k.Shares)
	empty(k, k.Grants)
}

// reset empties all tables and sets the pods up, with no policy on either.
func (k *kernel) reset() {
	k.t.Helper()
	empty(k, k.Endpoints)
	empty(k, k.Devices)
	empty(k, k.IPCache)
	empty(k, k.Fronts)
	empty(k, k.FQDN)
	empty(k, k.Names)
	empty(k, neighbors(k))
	k.must(k.Host.Update(0, Host{}))
	k.state.MidstreamUntil = 0
	empty(k, k.Policies)
	empty(k, k.Policy)
	empty(k, k.Conntrack)
	k.forgetConns()
	empty(k, Table[datapathFragmentKey, datapathFragment]{"fragments", k.objects.Fragments})
	k.drain()
	for _, ip := range []addresses{ipv4, ipv6} {
		k.must(k.Endpoints.Update(AddrOf(ip.a), Endpoint{
			Ifindex: uint32(k.podA), Policy: policyA, Identity: idA, PodMac: podMAC, HostMac: hostMAC}))
		k.must(k.Endpoints.Update(AddrOf(ip.b), Endpoint{
			Ifindex: uint32(k.podB), Policy: policyB, Identity: idB, PodMac: podMAC, HostMac: hostMAC}))
		k.prefix(netip.PrefixFrom(ip.peer, ip.peer.BitLen()), idPeer)
		k.prefix(netip.PrefixFrom(ip.node, ip.node.BitLen()), identity.Host)
	}
	k.must(k.Devices.Update(uint32(k.podA), Device{Policy: policyA, Identity: idA}))
	k.must(k.Devices.Update(uint32(k.podB), Device{Policy: policyB, Identity: idB}))
	k.policy(policyA, nil)
	k.policy(policyB, nil)
	k.must(k.Proxies.Update(1, Proxy{Ifindex: uint32(k.proxyIf), Alive: 1, Mac: [6]byte{2, 9, 9, 9, 9, 9}}))
	k.must(k.Proxies.Update(2, Proxy{}))
	k.SetGeneration(1)
}

func (k *kernel) prefix(p netip.Prefix, id identity.ID) {
	k.t.Helper()
	var flags uint32
	if id >= 256 && !p.IsSingleIP() {
		flags = PeerWorld
	}
	if id == identity.Host {
		flags = PeerHost
	}
	k.must(k.IPCache.Update(PrefixOf(p), Peer{Identity: uint32(id), Flags: flags}))
}

// rules are the entries of a policy; a nil map means that it enforces nothing.
type rules map[policy.Key]policy.Entry

// closed enforces both directions and lets nothing pass.
var closed = rules{}

// policy makes the entries those of the policy, in every direction unless they
// are nil, and bumps the revision.
func (k *kernel) policy(id uint32, entries rules, dirs ...policy.Direction) {
	k.t.Helper()
	r := policy.Resolved{Entries: entries}
	for d := range r.Enforced {
		r.Enforced[d] = entries != nil && len(dirs) == 0
	}
	for _, d := range dirs {
		r.Enforced[d] = true
	}
	k.must(k.Policies.Update(id, PolicyInfoOf(&r)))
	old, err := k.Policy.Snapshot()
	k.must(err)
	for key, e := range entries {
		pk := PolicyKeyOf(id, key)
		k.must(k.Policy.Update(pk, PolicyEntryOf(e)))
		delete(old, pk)
	}
	for key := range old {
		if key.Policy == id {
			k.must(k.Policy.Delete(key))
		}
	}
	k.BumpRevision()
}

// port is the key of one port for one peer.
func port(dir policy.Direction, id identity.ID, proto uint8, port uint16) policy.Key {
	return policy.Key{Direction: dir, Identity: id, Protocol: proto, Port: port, PortBits: 16}
}

func allow(rule uint32) policy.Entry { return policy.Entry{Action: policy.Allow, Rule: rule} }
func l7(rule, set uint32) policy.Entry {
	return policy.Entry{Action: policy.Redirect, Rule: rule, RuleSet: set}
}

// at is where and how a packet is run.
type at struct {
	prog    *ebpf.Program
	ifindex int
	ingress int // interface it came in by; 0: sent by this node
	mark    uint32
	gso     uint32 // bytes a segment, of a packet of segments
}

func (k *kernel) fromA() at { return at{prog: k.objects.FromPod, ifindex: k.podA} }
func (k *kernel) fromB() at { return at{prog: k.objects.FromPod, ifindex: k.podB} }
func (k *kernel) toA() at   { return at{prog: k.objects.ToPod, ifindex: k.podA, ingress: k.podB} }
func (k *kernel) toB() at   { return at{prog: k.objects.ToPod, ifindex: k.podB, ingress: k.podA} }
func (k *kernel) proxied() at {
	return at{prog: k.objects.FromProxy, ifindex: k.proxyIf, ingress: k.proxyIf}
}

// skb is struct __sk_buff as PROG_RUN takes it.
type skb struct {
	Len, PktType, Mark, QueueMapping, Protocol, VlanPresent, VlanTCI, VlanProto uint32
	Priority, IngressIfindex, Ifindex                                           uint32
	_                                                                           [33]uint32
	GSOSize                                                                     uint32
	_                                                                           [3]uint32
}

// The kernel refuses a context of another size, so a wrong one can't go
// unnoticed: every run would fail.
var _ = [1]struct{}{}[unsafe.Sizeof(skb{})-192]

// Verdicts of a program.
const (
	pass     = ^uint32(0) // TC_ACT_UNSPEC
	dropped  = uint32(2)
	redirect = uint32(7)
)

// run puts a packet through a program and returns its verdict and what became
// of the packet and its mark.
func (k *kernel) run(a at, data []byte) (verdict uint32, out []byte, mark uint32) {
	k.t.Helper()
	in := skb{Mark: a.mark, IngressIfindex: uint32(a.ingress), Ifindex: uint32(a.ifindex), GSOSize: a.gso}
	var after skb
	opts := &ebpf.RunOptions{Data: data, DataOut: make([]byte, len(data)+256), Context: in, ContextOut: &after}
	var err error
	k.ns.do(func() { verdict, err = a.prog.Run(opts) })
	if err != nil {
		k.t.Fatalf("run program: %v", err)
	}
	return verdict, opts.DataOut, after.Mark
}

// drain returns the events since it was called last.
func (k *kernel) drain() (out []Event) {
	k.t.Helper()
	for {
		k.events.SetDeadline(time.Now().Add(-time.Second))
		rec, err := k.events.Read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return out
		}
		k.must(err)
		e, err := decodeEvent(rec.RawSample, clock{})
		k.must(err)
		out = append(out, e)
	}
}

// seen is what a test wants of an event.
type seen struct {
	verdict   flow.Verdict
	reason    flow.Reason
	direction policy.Direction
}

func forwarded(r flow.Reason, d policy.Direction) []seen { return []seen{{flow.Forwarded, r, d}} }
func droppedFor(r flow.Reason, d policy.Direction) []seen {
	return []seen{{flow.Dropped, r, d}}
}
func redirected(d policy.Direction) []seen {
	return []seen{{flow.Redirected, flow.ReasonRedirected, d}}
}

// silent: no event.
var silent []seen

// want runs a packet and checks verdict and events.
func (k *kernel) want(a at, p packet, verdict uint32, events []seen) []byte {
	k.t.Helper()
	got, out, _ := k.run(a, p.bytes())
	var told []seen
	for _, e := range k.drain() {
		told = append(told, seen{e.Verdict, e.Reason, e.Direction})
	}
	if got != verdict || fmt.Sprint(told) != fmt.Sprint(events) {
		k.t.Fatalf("verdict %d, events %v, want %d, %v", int32(got), told, int32(verdict), events)
	}
	return out
}

// entry is the conntrack entry of a forward packet's flow; nil if none.
func (k *kernel) entry(p packet) *Conntrack {
	k.t.Helper()
	key, _ := p.tuple().Canonical()
	ct, ok, err := k.Conntrack.Lookup(key)
	k.must(err)
	if !ok {
		return nil
	}
	return &ct
}

// wantEntry checks the flags of a flow's entry, orientation aside.
func (k *kernel) wantEntry(p packet, flags uint32) *Conntrack {
	k.t.Helper()
	ct := k.entry(p)
	if ct == nil {
		k.t.Fatalf("no conntrack entry, want flags %#x", flags)
	}
	_, swapped := p.tuple().Canonical()
	if (ct.Flags&CTSwapped != 0) != swapped {
		k.t.Fatalf("entry's orientation is wrong: flags %#x", ct.Flags)
	}
	if ct.Flags&^CTSwapped != flags {
		k.t.Fatalf("flags %#x, want %#x", ct.Flags&^CTSwapped, flags)
	}
	return ct
}

// change rewrites the entry of a flow.
func (k *kernel) change(p packet, f func(*Conntrack)) {
	k.t.Helper()
	key, _ := p.tuple().Canonical()
	ct := k.entry(p)
	if ct == nil {
		k.t.Fatal("no conntrack entry to change")
	}
	f(ct)
	k.must(k.Conntrack.Update(key, *ct))
}

// age makes the entry as if nothing was seen for d.
func (k *kernel) age(p packet, d time.Duration) {
	k.t.Helper()
	k.change(p, func(ct *Conntrack) { ct.LastSeen -= uint64(d) })
}
