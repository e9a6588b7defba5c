package endpoint

import (
	"net/netip"
	"testing"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy"
)

// TestIdentitiesOfAddresses: each address of a pod has the identity that it is
// known by; what the pod sends from another has that of its labels.
func TestIdentitiesOfAddresses(t *testing.T) {
	f := newFakeKernel()
	r := newRealiser(f.kernel(), f)
	four, six, late := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1"), netip.MustParseAddr("10.0.0.2")
	pod := policy.Endpoint{Namespace: "shop", Name: "web", UID: "1", Identity: 301, Labels: 300, Policy: 5}
	other := pod
	other.Identity = 302
	r.strangers[4] = &stranger{addresses: []netip.Addr{late, netip.MustParseAddr("fd00::2")}}
	r.fold(policy.Delta{
		Policies:  map[uint32]*policy.Resolved{5: resolved(true, allow80)},
		Endpoints: map[netip.Addr]*policy.Endpoint{four: &pod, six: &other},
		Strangers: map[string]*policy.Guess{"4": {Identity: identity.UnknownPod, At: map[netip.Addr]identity.ID{late: 303}, Policy: 5}},
	})
	r.veths = testVeths(testVeth(3, "10.0.0.1", "fd00::1"), testVeth(4))
	for range 5 { // whichever address comes first
		pass(t, r)
		for addr, want := range map[string]uint32{"10.0.0.1": 301, "fd00::1": 302, "10.0.0.2": 303, "fd00::2": uint32(identity.UnknownPod)} {
			if row := f.endpoints.m[bpf.AddrOf(netip.MustParseAddr(addr))]; row.Identity != want {
				t.Errorf("%s is %d, want %d", addr, row.Identity, want)
			}
		}
		if a, b := f.devices.m[3].Identity, f.devices.m[4].Identity; a != 300 || b != uint32(identity.UnknownPod) {
			t.Errorf("the devices are %d and %d", a, b)
		}
	}
}
