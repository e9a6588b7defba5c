package endpoint

import (
	"net/netip"
	"testing"
	"time"

	"github.com/weirnet/weir/bpf"
)

// A full conntrack must not hold up policy when an address changes hands.
func TestForgetIsQuickWithAFullTable(t *testing.T) {
	if !ownNamespace(t) {
		return
	}
	n := newNode(t)
	d, err := bpf.Load(bpf.Options{Pins: n.pins})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}()
	const flows = 200_000
	mine := netip.MustParseAddr("10.0.0.1")
	peer := netip.MustParseAddrPort("10.0.0.9:80")
	for i := range flows {
		from := netip.AddrFrom4([4]byte{10, 1 + byte(i>>16), byte(i >> 8), byte(i)})
		if i%1000 == 0 {
			from = mine
		}
		key, _ := bpf.TupleOf(netip.AddrPortFrom(from, uint16(i)), peer, 6).Canonical()
		if err := d.Conntrack.Update(key, bpf.Conntrack{LastSeen: uint64(i)}); err != nil {
			t.Fatal(err)
		}
	}
	count := func() (mines, all int) {
		if err := d.Conntrack.Scan(func(key bpf.Tuple, ct bpf.Conntrack) {
			all++
			if key.Saddr == bpf.AddrOf(mine) || key.Daddr == bpf.AddrOf(mine) {
				mines++
			}
		}); err != nil {
			t.Fatal(err)
		}
		return mines, all
	}
	before, all := count()
	if before < 100 || all < flows*9/10 {
		t.Fatalf("%d of %d flows are in the table", before, all)
	}
	start := time.Now()
	if err := forget(d, map[bpf.Addr]bool{bpf.AddrOf(mine): true}); err != nil {
		t.Fatal(err)
	}
	took := time.Since(start)
	t.Logf("%d of %d flows forgotten in %v", before, all, took)
	if after, left := count(); after != 0 || left != all-before {
		t.Errorf("%d flows of the address are left, %d of all %d", after, left, all)
	}
	if took > time.Second {
		t.Errorf("it took %v", took)
	}
}
