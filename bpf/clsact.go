package bpf

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Kernels before 6.6 have no tcx: there the programs are filters of a clsact
// qdisc. A filter outlives the process by nature and is replaced in place. Its
// name says whose it is: "weir PROGRAM PINS".

// priority of the filters, in a range where nobody puts theirs by default.
const priority = 0x7765

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

// putFilter attaches the program as a filter, in place of one that was there.
func putFilter(h hook, ifindex int, pins string) error {
	if err := netlink.QdiscAdd(clsactOf(ifindex)); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add clsact to interface %d: %w", ifindex, err)
	}
	if err := netlink.FilterReplace(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: ifindex,
			Parent:    parentOf(h.attach),
			Handle:    1,
			Priority:  priority,
			Protocol:  unix.ETH_P_ALL,
		},
		Fd:           h.program.FD(),
		Name:         filterName(h.name, pins),
		DirectAction: true,
	}); err != nil {
		return fmt.Errorf("attach %s to interface %d as a filter: %w", h.name, ifindex, err)
	}
	return nil
}

// removeFilter takes the program's filter off, and the qdisc if nothing else is
// on it.
func removeFilter(program string, ifindex int, pins string, a ebpf.AttachType) error {
	if ifindex == 0 { // gone, and nobody knows its number any more
		return nil
	}
	l, err := netlink.LinkByIndex(ifindex)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find interface %d: %w", ifindex, err)
	}
	filters, err := netlink.FilterList(l, parentOf(a))
	if err != nil {
		return fmt.Errorf("list filters of interface %d: %w", ifindex, err)
	}
	removed := false
	for _, f := range filters {
		if b, ok := f.(*netlink.BpfFilter); ok && b.Name == filterName(program, pins) {
			if err := netlink.FilterDel(f); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("take the filter of %s off interface %d: %w", program, ifindex, err)
			}
			removed = true
		}
	}
	if !removed {
		return nil
	}
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		left, err := netlink.FilterList(l, parent)
		if err != nil || len(left) > 0 {
			return err
		}
	}
	if err := netlink.QdiscDel(clsactOf(ifindex)); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("take clsact off interface %d: %w", ifindex, err)
	}
	return nil
}

// ownFilter is a filter of this datapath.
type ownFilter struct {
	attachment
	attach ebpf.AttachType
}

// ownFilters finds the filters of this datapath in the network namespace.
func ownFilters(pins string) ([]ownFilter, error) {
	links, err := whole(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	qdiscs, err := whole(func() ([]netlink.Qdisc, error) { return netlink.QdiscList(nil) })
	if err != nil {
		return nil, fmt.Errorf("list qdiscs: %w", err)
	}
	clsact := map[int]bool{}
	for _, q := range qdiscs {
		if q.Type() == "clsact" {
			clsact[q.Attrs().LinkIndex] = true
		}
	}
	var out []ownFilter
	for _, l := range links {
		if !clsact[l.Attrs().Index] {
			continue
		}
		for _, a := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
			filters, err := whole(func() ([]netlink.Filter, error) { return netlink.FilterList(l, parentOf(a)) })
			if err != nil {
				return nil, fmt.Errorf("list filters of %s: %w", l.Attrs().Name, err)
			}
			for _, f := range filters {
				b, ok := f.(*netlink.BpfFilter)
				if !ok {
					continue
				}
				rest, mine := strings.CutPrefix(b.Name, "weir ")
				program, dir, _ := strings.Cut(rest, " ")
				if mine && dir == pins {
					out = append(out, ownFilter{attachment{program, l.Attrs().Index}, a})
				}
			}
		}
	}
	return out, nil
}

// whole asks for a list again when interfaces came or went while the kernel
// listed: what it gave then is not all.
func whole[T any](list func() ([]T, error)) ([]T, error) {
	const tries = 100
	for try := 1; ; try++ {
		all, err := list()
		if try == tries || !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
		time.Sleep(time.Duration(try) * time.Millisecond)
	}
}
