package endpoint

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/weirnet/weir/bpf"
)

// TestOrphans: what went while no agent saw it, and nothing that serves.
func TestOrphans(t *testing.T) {
	backend := func(last byte) bpf.Backend {
		return bpf.BackendOf(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, last}), 53))
	}
	members := map[bpf.Member]uint32{{Service: 1, Backend: backend(1)}: bpf.MemberReady, {Service: 1, Backend: backend(2)}: bpf.MemberDraining}
	rows := []struct {
		service uint32
		backend bpf.Backend
	}{{1, backend(1)}, {1, backend(2)}, {1, backend(3)}, {2, backend(1)}}
	failed := errors.New("no")
	scan := func(see func(bpf.Sent, bpf.Named)) error {
		for i, r := range rows {
			see(bpf.Sent{Socket: uint64(i), Backend: r.backend}, bpf.Named{Service: r.service})
		}
		return failed
	}
	got, err := orphans(scan, members)
	if want := []bpf.Member{{Service: 1, Backend: backend(3)}, {Service: 2, Backend: backend(1)}}; !slices.Equal(got, want) || !errors.Is(err, failed) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
}
