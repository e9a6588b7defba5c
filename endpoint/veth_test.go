package endpoint

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"
)

func addrs(s ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// global leaves out the link-local addresses that come by themselves.
func global(in []netip.Addr) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(in), netip.Addr.IsLinkLocalUnicast)
}

func byName(t *testing.T, v *Veths, name string) (Veth, bool) {
	t.Helper()
	found, err := v.Scan()
	if err != nil {
		t.Logf("scan: %v", err)
	}
	for _, d := range found {
		if d.Name == name {
			return d, true
		}
	}
	return Veth{}, false
}

func TestVethsFindAddressesBehindThem(t *testing.T) {
	if !ownNamespace(t) {
		return
	}
	p1 := newPod(t, "p1", "10.9.0.1/32", "fd00:9::1/128")
	newPod(t, "p2", "10.9.0.2/24")
	run(t, "ip link add br0 type bridge")
	run(t, "ip link set p2 master br0")
	run(t, "ip link add a0 type veth peer name a1") // both ends here: nobody's
	p1.in("ip addr add 10.9.9.9/32 dev lo")

	v, err := OpenVeths()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	found, err := v.Scan()
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != 2 {
		t.Fatalf("found %d veths, want p1 and p2: %v", len(found), found)
	}
	d, _ := byName(t, v, "p1")
	if !slices.Equal(global(d.Addresses), addrs("10.9.0.1", "fd00:9::1")) {
		t.Errorf("p1: addresses %v", d.Addresses)
	}
	if !slices.Contains(d.Nearby, netip.MustParseAddr("10.9.9.9")) {
		t.Errorf("p1: nearby %v", d.Nearby)
	}
	if d.PodMAC != p1.mac() || d.PodMAC == [6]byte{} || d.HostMAC == d.PodMAC || d.HostMAC == [6]byte{} {
		t.Errorf("p1: MACs %x here, %x there, want %x there", d.HostMAC, d.PodMAC, p1.mac())
	}
	if d, _ := byName(t, v, "p2"); !slices.Equal(global(d.Addresses), addrs("10.9.0.2")) {
		t.Errorf("p2: addresses %v", d.Addresses)
	}
}

func TestVethsFollowEvents(t *testing.T) {
	if !ownNamespace(t) {
		return
	}
	v, err := OpenVeths()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- v.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}()
	if _, err := v.Scan(); err != nil {
		t.Fatal(err)
	}
	// Every step must be announced: Scan is only called after an event.
	wait := func(what string, ok func() bool) {
		t.Helper()
		for {
			if ok() {
				return
			}
			select {
			case <-v.Changed():
			case <-time.After(5 * time.Second):
				t.Fatalf("no event: %s", what)
			}
		}
	}
	has := func(dev string, want ...string) func() bool {
		return func() bool {
			d, ok := byName(t, v, dev)
			return ok && slices.Equal(global(d.Addresses), addrs(want...))
		}
	}
	p := newPod(t, "p1")
	wait("new veth", has("p1"))
	first, _ := byName(t, v, "p1")
	p.addr("add", "10.9.0.1/32")
	wait("new address", has("p1", "10.9.0.1"))
	p.addr("add", "fd00:9::1/128")
	wait("IPv6 address", has("p1", "10.9.0.1", "fd00:9::1"))
	p.addr("del", "10.9.0.1/32")
	wait("address gone", has("p1", "fd00:9::1"))

	run(t, "ip link del p1")
	wait("veth gone", func() bool { _, ok := byName(t, v, "p1"); return !ok })
	p.link("10.9.0.3/32")
	wait("veth again", has("p1", "10.9.0.3"))
	if again, _ := byName(t, v, "p1"); again.Ifindex == first.Ifindex {
		t.Errorf("the new veth has the old ifindex %d", again.Ifindex)
	}

	p.kill() // the namespace goes, its number is free again
	wait("namespace gone", func() bool { _, ok := byName(t, v, "p1"); return !ok })
	newPod(t, "p2", "10.9.0.4/32")
	wait("number used again", has("p2", "10.9.0.4"))
}
