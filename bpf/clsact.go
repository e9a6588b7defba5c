package bpf

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Kernels before 6.6 have no tcx: there the programs are filters of a clsact
// qdisc. A filter outlives the process by nature and is replaced in place. Its
// name says whose it is: "weir PROGRAM PINS".

func filterName(program, pins string) string { return "weir " + program + " " + pins }

func parentOf(a ebpf.AttachType) uint32 {
	if a == ebpf.AttachTCXEgress {
		return netlink.HANDLE_MIN_EGRESS
	}
	return netlink.HANDLE_MIN_INGRESS
}

func clsactOf(ifindex int) netlink.Qdisc {
	return &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: ifindex,
		Handle:    netlink.MakeHandle(0xffff, 0),
		Parent:    netlink.HANDLE_CLSACT,
	}}
}

// spot is a place among an interface's filters. Those of a lower priority run
// first, and of those with one priority the latest that was added.
type spot struct {
	priority uint16
	handle   uint32
}

// firstHandle is ours where nobody has it, so that nobody's filter is replaced:
// others like to take the first.
const firstHandle = 0x77650001

// bestSpot is where a filter of that name runs as early as it can: before all
// filters of its kind, and of another kind unless that has the first priority.
// there: it is in that place already.
func bestSpot(all []filter, name string) (best spot, there bool) {
	best.priority = 1
	for slices.ContainsFunc(all, func(f filter) bool { return f.priority == best.priority && !f.shares() }) {
		best.priority++
	}
	for _, f := range all {
		if f.priority < best.priority {
			continue // not to be overtaken
		}
		if f.name == name && f.priority == best.priority {
			return f.spot, true
		}
		break
	}
	best.handle = firstHandle
	for slices.ContainsFunc(all, func(f filter) bool { return f.spot == best }) {
		best.handle++
	}
	return best, false
}

// putFilter attaches the program as a filter, in place of one that was there.
func putFilter(h hook, ifindex int, pins string) error {
	if err := netlink.QdiscAdd(clsactOf(ifindex)); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add clsact to interface %d: %w", ifindex, err)
	}
	all, err := listFilters(ifindex, h.attach)
	if err != nil {
		return err
	}
	name := filterName(h.name, pins)
	best, there := bestSpot(all, name)
	f := &netlink.BpfFilter{
		FilterAttrs:  filterAttrs(ifindex, h.attach, best),
		Fd:           h.program.FD(),
		Name:         name,
		DirectAction: true,
	}
	put := netlink.FilterAdd
	if there {
		put = netlink.FilterReplace
	}
	if err := put(f); err != nil {
		return fmt.Errorf("attach %s to interface %d as a filter: %w", h.name, ifindex, err)
	}
	// The one before goes last, so that one is always there.
	for _, old := range all {
		if old.name == name && old.spot != best {
			if err := removeSpot(ifindex, h.attach, old.spot); err != nil {
				return err
			}
		}
	}
	return nil
}

func filterAttrs(ifindex int, a ebpf.AttachType, at spot) netlink.FilterAttrs {
	return netlink.FilterAttrs{
		LinkIndex: ifindex, Parent: parentOf(a), Handle: at.handle, Priority: at.priority, Protocol: unix.ETH_P_ALL,
	}
}

func removeSpot(ifindex int, a ebpf.AttachType, at spot) error {
	err := netlink.FilterDel(&netlink.BpfFilter{FilterAttrs: filterAttrs(ifindex, a, at)})
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("take a filter off interface %d: %w", ifindex, err)
	}
	return nil
}

// removeFilter takes the program's filter off, and the qdisc if nothing else is
// on it.
func removeFilter(program string, ifindex int, pins string, a ebpf.AttachType) error {
	if ifindex == 0 { // gone, and nobody knows its number any more
		return nil
	}
	filters, err := listFilters(ifindex, a)
	if err != nil {
		return err
	}
	removed := false
	for _, f := range filters {
		if f.name == filterName(program, pins) {
			if err := removeSpot(ifindex, a, f.spot); err != nil {
				return err
			}
			removed = true
		}
	}
	if !removed {
		return nil
	}
	for _, side := range bothSides() {
		left, err := listFilters(ifindex, side)
		if err != nil || len(left) > 0 {
			return err
		}
	}
	if err := netlink.QdiscDel(clsactOf(ifindex)); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("take clsact off interface %d: %w", ifindex, err)
	}
	return nil
}

// ownFilter is a filter of this datapath.
type ownFilter struct {
	attachment
	attach ebpf.AttachType
	before *filter // another's that runs first; nil: none
}

// ownFilters finds the filters of this datapath in the network namespace.
func ownFilters(pins string) ([]ownFilter, error) {
	qdiscs, err := whole(func() ([]netlink.Qdisc, error) { return netlink.QdiscList(nil) })
	if err != nil {
		return nil, fmt.Errorf("list qdiscs: %w", err)
	}
	var out []ownFilter
	for _, q := range qdiscs {
		if q.Type() != "clsact" {
			continue
		}
		index := q.Attrs().LinkIndex
		for _, a := range bothSides() {
			filters, err := listFilters(index, a)
			if err != nil {
				return nil, err
			}
			out = append(out, ownAmong(filters, index, a, pins)...)
		}
	}
	return out, nil
}

// ownAmong picks this datapath's filters out of those of one side of an
// interface.
func ownAmong(filters []filter, index int, a ebpf.AttachType, pins string) (out []ownFilter) {
	var other *filter
	for i, f := range filters {
		rest, mine := strings.CutPrefix(f.name, "weir ")
		program, dir, _ := strings.Cut(rest, " ")
		if mine && dir == pins {
			out = append(out, ownFilter{attachment{program, index}, a, other})
		} else if other == nil {
			other = &filters[i]
		}
	}
	return out
}

func bothSides() []ebpf.AttachType {
	return []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress}
}
