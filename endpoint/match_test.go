package endpoint

import (
	"maps"
	"net/netip"
	"testing"
)

func TestMatch(t *testing.T) {
	ip := netip.MustParseAddr
	a, b := owner{"shop", "a", "1"}, owner{"shop", "b", "2"}
	pods := map[netip.Addr]owner{ip("10.0.0.1"): a, ip("fd00::1"): a, ip("10.0.0.2"): b}
	veth := func(index int, addrs ...string) Veth {
		v := Veth{Ifindex: index}
		for _, s := range addrs {
			v.Addresses = append(v.Addresses, ip(s))
		}
		return v
	}
	near := func(v Veth, addrs ...string) Veth {
		for _, s := range addrs {
			v.Nearby = append(v.Nearby, ip(s))
		}
		return v
	}
	for _, c := range []struct {
		name   string
		veths  []Veth
		before map[netip.Addr]int
		want   map[netip.Addr]int
	}{
		{"each its own", []Veth{veth(5, "10.0.0.1", "fd00::1"), veth(6, "10.0.0.2", "fe80::1"), veth(7, "172.17.0.2")},
			nil, map[netip.Addr]int{ip("10.0.0.1"): 5, ip("fd00::1"): 5, ip("10.0.0.2"): 6}},
		{"one not there yet", []Veth{veth(5, "10.0.0.1")}, nil, map[netip.Addr]int{ip("10.0.0.1"): 5}},
		{"a left-over namespace: the youngest", []Veth{veth(5, "10.0.0.1"), veth(9, "10.0.0.1")},
			nil, map[netip.Addr]int{ip("10.0.0.1"): 9}},
		{"a second veth does not take over from the first", []Veth{veth(5, "10.0.0.1"), veth(9, "10.0.0.1")},
			map[netip.Addr]int{ip("10.0.0.1"): 5}, map[netip.Addr]int{ip("10.0.0.1"): 5}},
		{"the one before is gone", []Veth{veth(9, "10.0.0.1")},
			map[netip.Addr]int{ip("10.0.0.1"): 5}, map[netip.Addr]int{ip("10.0.0.1"): 9}},
		{"b takes a's address: both there", []Veth{veth(5, "10.0.0.1", "fd00::1"), veth(6, "10.0.0.2", "10.0.0.1")},
			nil, map[netip.Addr]int{ip("10.0.0.1"): 5, ip("fd00::1"): 5, ip("10.0.0.2"): 6}},
		{"b takes a's address before a is there", []Veth{veth(6, "10.0.0.2", "10.0.0.1")},
			map[netip.Addr]int{ip("10.0.0.2"): 6}, map[netip.Addr]int{ip("10.0.0.2"): 6}},
		{"two interfaces of one pod", []Veth{veth(5, "10.0.0.1"), veth(6, "fd00::1")},
			nil, map[netip.Addr]int{ip("10.0.0.1"): 5, ip("fd00::1"): 6}},
		{"address on another interface of the namespace", []Veth{near(veth(5), "10.0.0.1")},
			nil, map[netip.Addr]int{ip("10.0.0.1"): 5}},
		{"an address that is taken off stays", []Veth{veth(5, "fd00::1"), veth(6)},
			map[netip.Addr]int{ip("10.0.0.1"): 5, ip("fd00::1"): 5, ip("10.0.0.2"): 6},
			map[netip.Addr]int{ip("10.0.0.1"): 5, ip("fd00::1"): 5, ip("10.0.0.2"): 6}},
		{"a pod that takes off its address does not become another", []Veth{veth(5, "10.0.0.2")},
			map[netip.Addr]int{ip("10.0.0.1"): 5, ip("fd00::1"): 5},
			map[netip.Addr]int{ip("10.0.0.1"): 5, ip("fd00::1"): 5}},
		{"taken off here, found there", []Veth{veth(5), veth(9, "10.0.0.1")},
			map[netip.Addr]int{ip("10.0.0.1"): 5}, map[netip.Addr]int{ip("10.0.0.1"): 9}},
		{"the peer's own address goes first", []Veth{near(veth(5), "10.0.0.1"), veth(4, "10.0.0.1")},
			nil, map[netip.Addr]int{ip("10.0.0.1"): 4}},
	} {
		t.Run(c.name, func(t *testing.T) {
			veths := map[int]Veth{}
			for _, v := range c.veths {
				veths[v.Ifindex] = v
			}
			for range 20 { // maps are walked in any order
				if got := match(pods, veths, c.before, func(int, string) bool { return false }); !maps.Equal(got, c.want) {
					t.Fatalf("got %v, want %v", got, c.want)
				}
			}
		})
	}
}
