package endpoint

import (
	"context"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy"
)

func TestReached(t *testing.T) {
	raw := func(a string) []byte { return netip.MustParseAddr(a).AsSlice() }
	for _, c := range []struct {
		name  string
		bits  uint8
		attrs map[uint16][]byte
		want  string
	}{
		{"IPv4", 16, map[uint16][]byte{unix.IFA_ADDRESS: raw("172.17.0.1"), unix.IFA_LOCAL: raw("172.17.0.1"), unix.IFA_BROADCAST: raw("172.17.255.255")}, "172.17.0.1 172.17.255.255"},
		{"IPv4 without broadcast", 32, map[uint16][]byte{unix.IFA_ADDRESS: raw("10.0.0.1"), unix.IFA_LOCAL: raw("10.0.0.1")}, "10.0.0.1"},
		{"to one peer: the peer has the other", 32, map[uint16][]byte{unix.IFA_ADDRESS: raw("10.0.0.2"), unix.IFA_LOCAL: raw("10.0.0.1")}, "10.0.0.1"},
		{"IPv6", 64, map[uint16][]byte{unix.IFA_ADDRESS: raw("fd00::7")}, "fd00::7 fd00::"},
		{"IPv6, two in a subnet", 127, map[uint16][]byte{unix.IFA_ADDRESS: raw("fd00::1")}, "fd00::1"},
		{"IPv6, alone", 128, map[uint16][]byte{unix.IFA_ADDRESS: raw("fd00::1")}, "fd00::1"},
		{"link-local", 64, map[uint16][]byte{unix.IFA_ADDRESS: raw("fe80::1")}, "fe80::1 fe80::"},
		{"tentative", 128, map[uint16][]byte{unix.IFA_ADDRESS: raw("fd00::1"), unix.IFA_FLAGS: binary.NativeEndian.AppendUint32(nil, unix.IFA_F_TENTATIVE)}, "fd00::1"},
		{"another's", 64, map[uint16][]byte{unix.IFA_ADDRESS: raw("fd00::1"), unix.IFA_FLAGS: binary.NativeEndian.AppendUint32(nil, unix.IFA_F_DADFAILED)}, ""},
		{"loopback", 8, map[uint16][]byte{unix.IFA_ADDRESS: raw("127.0.0.1"), unix.IFA_LOCAL: raw("127.0.0.1")}, ""},
		{"IPv6 loopback", 128, map[uint16][]byte{unix.IFA_ADDRESS: raw("::1")}, ""},
		{"broadcast to all", 24, map[uint16][]byte{unix.IFA_LOCAL: raw("10.0.0.1"), unix.IFA_BROADCAST: raw("255.255.255.255")}, "10.0.0.1"},
		{"nothing", 24, nil, ""},
		{"cut", 24, map[uint16][]byte{unix.IFA_LOCAL: {10, 0}}, ""},
		{"a length beyond", 200, map[uint16][]byte{unix.IFA_ADDRESS: raw("fd00::1")}, "fd00::1"},
	} {
		var got []string
		for _, a := range reached(&nl.IfAddrmsg{IfAddrmsg: unix.IfAddrmsg{Prefixlen: c.bits}}, c.attrs) {
			got = append(got, a.String())
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestHostAddressesFollowEvents(t *testing.T) {
	if !ownNamespace(t) {
		return
	}
	v, err := OpenVeths()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	get := func() []netip.Addr {
		t.Helper()
		got, err := v.HostAddresses()
		if err != nil {
			t.Fatal(err)
		}
		return global(got)
	}
	if got := get(); len(got) != 0 {
		t.Errorf("an empty namespace has %v", got)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- v.Run(ctx) }()
	// Every step must be announced.
	wait := func(what string, want ...string) {
		t.Helper()
		for !slices.Equal(get(), addrs(want...)) {
			select {
			case <-v.Changed():
			case <-time.After(5 * time.Second):
				t.Fatalf("%s: %v, want %v, and no event", what, get(), want)
			}
		}
	}
	run(t, "ip link add docker0 type bridge")
	run(t, "ip addr add 172.17.0.1/16 brd + dev docker0")
	wait("added, down", "172.17.0.1", "172.17.255.255")
	run(t, "ip link set docker0 up")
	run(t, "ip addr add fd00:17::1/64 dev docker0 nodad")
	wait("IPv6", "172.17.0.1", "172.17.255.255", "fd00:17::", "fd00:17::1")
	if all, err := v.HostAddresses(); err != nil || !slices.ContainsFunc(all, netip.Addr.IsLinkLocalUnicast) {
		t.Errorf("no link-local address of docker0 in %v, %v", all, err)
	}
	// The same on each veth, and what pods have themselves is not the node's.
	a, b := newPod(t, "va", "10.9.0.2/32"), newPod(t, "vb", "10.9.0.3/32")
	for _, p := range []*testPod{a, b} {
		run(t, "ip addr add 10.9.0.1/32 dev %s", p.dev)
	}
	run(t, "ip link del docker0")
	wait("the interface gone", "10.9.0.1")
	run(t, "ip addr del 10.9.0.1/32 dev va")
	run(t, "ip addr add 192.0.2.7/32 dev lo")
	wait("on one of two, and on lo", "10.9.0.1", "192.0.2.7")
	run(t, "ip link del vb")
	wait("on none", "192.0.2.7")

	// Nobody hears: the list that is asked for now and then tells.
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
	run(t, "ip addr add 192.0.2.8/32 dev lo")
	if got := get(); !slices.Equal(got, addrs("192.0.2.7")) {
		t.Errorf("read without need: %v", got)
	}
	v.Invalidate()
	if got := get(); !slices.Equal(got, addrs("192.0.2.7", "192.0.2.8")) {
		t.Errorf("after Invalidate: %v", got)
	}
}

// TestManagerFollowsTheHost: an address of the node is identity host as long as
// it has it, whoever is running when it comes or goes.
func TestManagerFollowsTheHost(t *testing.T) {
	if !ownNamespace(t) {
		return
	}
	n := newNode(t)
	n.services = &Services{tables: newServiceTables(newServiceRows().kernel()), nodes: map[netip.Addr]bool{}, services: map[policy.Frontend]*policy.Backends{}}
	serves := func(a string) bool {
		n.services.mu.Lock()
		defer n.services.mu.Unlock()
		return n.services.nodes[netip.MustParseAddr(a)]
	}
	run(t, "ip link add docker0 type bridge")
	run(t, "ip addr add 172.17.0.1/16 dev docker0")
	newPod(t, "va", "10.9.0.1/24")
	n.start(podObject("a", "1", "10.9.0.1"))
	row := func(a string) bpf.Peer {
		t.Helper()
		p, _, err := n.datapath.IPCache.Lookup(bpf.PrefixOf(netip.PrefixFrom(netip.MustParseAddr(a), netip.MustParseAddr(a).BitLen())))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	host := bpf.Peer{Identity: uint32(identity.Host), Flags: bpf.PeerHost | bpf.PeerNode}
	if got := row("172.17.0.1"); got != host {
		t.Errorf("172.17.0.1 is %+v", got)
	}
	if got := n.m.Status().HostAddresses; !slices.Contains(got, netip.MustParseAddr("172.17.0.1")) {
		t.Errorf("status: %v", got)
	}
	revision := n.m.Status().Revision
	run(t, "ip addr add 172.17.0.9/16 dev docker0")
	eventually(t, "an address that comes is the host's", func() bool { return row("172.17.0.9") == host })
	eventually(t, "flows are judged anew", func() bool { return n.m.Status().Revision > revision })
	// kube-proxy serves node ports there, and would translate behind the egress policy.
	if !serves("172.17.0.1") || !serves("172.17.0.9") {
		t.Error("node ports at addresses that only the node's interfaces have are not translated")
	}
	run(t, "ip addr del 172.17.0.9/16 dev docker0")
	eventually(t, "an address that goes is not", func() bool { return row("172.17.0.9") != host && !serves("172.17.0.9") })

	n.stop()
	run(t, "ip addr add 172.18.0.1/32 dev docker0")
	run(t, "ip addr del 172.17.0.1/16 dev docker0")
	n.prepare()
	if got := row("172.17.0.1"); got != host {
		t.Errorf("before the first read 172.17.0.1 is %+v", got)
	}
	n.submit(podObject("a", "1", "10.9.0.1"))
	n.wait()
	if a, b := row("172.17.0.1"), row("172.18.0.1"); a == host || b != host {
		t.Errorf("after a restart: the old address is %+v, the new one %+v", a, b)
	}
}

// TestHostAddressesUnread: while nobody can tell what the node has, what a
// predecessor wrote stays, and the status says so.
func TestHostAddressesUnread(t *testing.T) {
	if !ownNamespace(t) {
		return
	}
	v, err := OpenVeths()
	if err != nil {
		t.Fatal(err)
	}
	f := newFakeKernel()
	key := bpf.PrefixOf(netip.MustParsePrefix("172.17.0.1/32"))
	f.ipcache.m[key] = bpf.Peer{Identity: uint32(identity.Host)}
	m := namesManager(t, f, &fakeNames{})
	m.tellMTU = func(int) error { return nil }
	m.veths = v
	m.heard, m.started = true, true
	if err := m.compute(nil); err != nil {
		t.Fatal(err)
	}
	v.Close()
	if err := m.pass(t.Context()); err == nil || !strings.Contains(err.Error(), "the node's addresses") {
		t.Errorf("the pass says %v", err)
	}
	if _, there := f.ipcache.m[key]; !there {
		t.Error("the predecessor's row is gone")
	}
	if s := m.Status(); s.Realised || len(s.Errors) == 0 {
		t.Errorf("status: %+v", s)
	}
	if m.veths, err = OpenVeths(); err != nil {
		t.Fatal(err)
	}
	defer m.veths.Close()
	if err := m.pass(t.Context()); err != nil {
		t.Error(err)
	}
	if _, there := f.ipcache.m[key]; there {
		t.Error("the row stays though the node has no such address")
	}
}
