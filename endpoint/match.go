package endpoint

import (
	"cmp"
	"net/netip"
	"slices"
)

// owner names a pod.
type owner struct{ namespace, name, uid string }

// match finds the veth of each address. A veth belongs to one pod: with the
// right, inside its namespace, a pod could take on another's address, and must
// not get that pod's policy, nor its traffic. So
//
//   - a veth that only one pod's address is behind is that pod's,
//
//   - where several are, it is that of the pod it was before, else of one that
//     has no other,
//
//   - of several veths with an address of one pod (a namespace left over from
//     before), the one it was before, else the youngest, counts,
//
//   - an address that no veth's peer has is looked for on the other interfaces
//     of the namespaces,
//
//   - an address that is nowhere any more stays at the veth where it was: whoever
//     takes it off must not take off the pod's policy with it.
//
//   - whose processes behind a veth are another pod's, who had the address before,
//     does not have that veth.
//
// before is what was found last for these pods; veths that are gone don't count.
func match(pods map[netip.Addr]owner, veths map[int]Veth, before map[netip.Addr]int, anothers func(index int, uid string) bool) map[netip.Addr]int {
	claims := map[int][]owner{} // pods behind a veth
	behind := map[netip.Addr][]int{}
	claim := func(index int, a netip.Addr) {
		o, local := pods[a]
		if !local || anothers(index, o.uid) {
			return
		}
		behind[a] = append(behind[a], index)
		if !slices.Contains(claims[index], o) {
			claims[index] = append(claims[index], o)
		}
	}
	for index, v := range veths {
		for _, a := range v.Addresses {
			claim(index, a)
		}
	}
	direct := make(map[netip.Addr]bool, len(behind))
	for a := range behind {
		direct[a] = true
	}
	for index, v := range veths {
		for _, a := range v.Nearby {
			if !direct[a] {
				claim(index, a)
			}
		}
	}

	for a, index := range before {
		if _, there := veths[index]; there && len(behind[a]) == 0 {
			claim(index, a)
		}
	}

	holder := map[int]owner{}
	has := map[owner]bool{}
	for index, owners := range claims {
		if len(owners) == 1 {
			holder[index] = owners[0]
			has[owners[0]] = true
		}
	}
	was := map[int]owner{}
	for a, index := range before {
		if o, ok := pods[a]; ok {
			was[index] = o
		}
	}
	contested := keysOf(claims)
	slices.Sort(contested)
	for _, index := range contested {
		owners := claims[index]
		if len(owners) < 2 {
			continue
		}
		slices.SortFunc(owners, func(a, b owner) int {
			return cmp.Or(cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.name, b.name), cmp.Compare(a.uid, b.uid))
		})
		choice := owners[0]
		for _, o := range slices.Backward(owners) {
			if !has[o] {
				choice = o
			}
		}
		if o, ok := was[index]; ok && slices.Contains(owners, o) {
			choice = o
		}
		holder[index] = choice
		has[choice] = true
	}

	found := make(map[netip.Addr]int, len(behind))
	for a, indexes := range behind {
		best := 0
		for _, index := range indexes {
			if holder[index] != pods[a] {
				continue
			}
			if index == before[a] {
				best = index
				break
			}
			best = max(best, index)
		}
		if best != 0 {
			found[a] = best
		}
	}
	return found
}
