package bpf

import (
	"maps"
	"net/netip"
	"testing"
	"unsafe"
)

func TestTable(t *testing.T) {
	d := load(t, mountPins(t), nil)
	key := func(s string) Prefix { return PrefixOf(netip.MustParsePrefix(s)) }
	a, b, c, e := key("10.0.0.0/8"), key("fd00::/64"), key("10.1.2.3/32"), key("0.0.0.0/0")
	one, two := Peer{Identity: 1}, Peer{Identity: 2, Flags: PeerWorld}

	if _, ok, err := d.IPCache.Lookup(a); ok || err != nil {
		t.Errorf("empty: %v %v", ok, err)
	}
	check(t, d.IPCache.Delete(a))
	done, err := d.IPCache.Reconcile(map[Prefix]Peer{a: one, b: one, c: one})
	check(t, err)
	if done != (Changes{Added: 3}) {
		t.Errorf("%+v", done)
	}
	want := map[Prefix]Peer{a: one, b: two, e: two}
	done, err = d.IPCache.Reconcile(want)
	check(t, err)
	if done != (Changes{Added: 1, Changed: 1, Deleted: 1}) {
		t.Errorf("%+v", done)
	}
	got, err := d.IPCache.Snapshot()
	check(t, err)
	if !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if done, err = d.IPCache.Reconcile(want); err != nil || done != (Changes{}) {
		t.Errorf("%+v %v", done, err)
	}
	for range d.IPCache.All(&err) {
		break
	}
	check(t, err)
	// What doesn't fit is told, and the rest is done.
	many := map[uint32]Device{}
	for i := range uint32(100) {
		many[i] = Device{Policy: i}
	}
	done, err = d.Devices.Reconcile(many)
	if err == nil || done.Added != int(small.Devices) {
		t.Errorf("%+v %v", done, err)
	}
}

func TestNumbersTable(t *testing.T) {
	d := load(t, mountPins(t), nil)
	k := Number{Kind: NumberPolicy, Id: 7}
	v := Digest{Sum: [16]uint8{1, 2, 3}}
	check(t, d.Numbers.Update(k, v))
	if got, ok, err := d.Numbers.Lookup(k); err != nil || !ok || got != v {
		t.Errorf("%v %v %v", got, ok, err)
	}
}

func TestAddresses(t *testing.T) {
	for _, s := range []string{"10.0.0.1", "::1", "fd00::1234", "0.0.0.0", "255.255.255.255"} {
		a := netip.MustParseAddr(s)
		if got := AddrOf(a).Netip(); got != a {
			t.Errorf("%v came back as %v", a, got)
		}
	}
	for _, s := range []string{"10.0.0.0/8", "0.0.0.0/0", "10.1.1.1/32", "::/0", "fd00::/64", "fd00::1/128"} {
		p := netip.MustParsePrefix(s)
		if got := PrefixOf(p).Netip(); got != p {
			t.Errorf("%v came back as %v", p, got)
		}
	}
	if got := PrefixOf(netip.MustParsePrefix("10.9.9.9/8")).Netip(); got != netip.MustParsePrefix("10.0.0.0/8") {
		t.Errorf("host bits: %v", got)
	}
}

// The layouts user space shares with the programs have no hidden padding: a
// key's would be compared.
func TestLayouts(t *testing.T) {
	for name, sizes := range map[string][2]uintptr{
		"tuple":       {unsafe.Sizeof(Tuple{}), 40},
		"endpoint":    {unsafe.Sizeof(Endpoint{}), 32},
		"policy_key":  {unsafe.Sizeof(PolicyKey{}), 16},
		"policy_info": {unsafe.Sizeof(PolicyInfo{}), 20},
		"conntrack":   {unsafe.Sizeof(Conntrack{}), 56},
		"conn":        {unsafe.Sizeof(Conn{}), 56},
		"share":       {unsafe.Sizeof(Share{}), 24},
		"grant":       {unsafe.Sizeof(Grant{}), 16},
		"event":       {unsafe.Sizeof(datapathEvent{}), 80},
		"prefix":      {unsafe.Sizeof(Prefix{}), 20},
	} {
		if sizes[0] != sizes[1] {
			t.Errorf("struct %s has %d bytes, want %d", name, sizes[0], sizes[1])
		}
	}
}
