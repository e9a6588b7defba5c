package endpoint

import (
	"cmp"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/flow"
)

// kernelOf is the part of a datapath that is written here.
func kernelOf(d *bpf.Datapath) kernel {
	return kernel{
		numbers: d.Numbers, entries: d.Policy, policies: d.Policies,
		ipcache: d.IPCache, fronts: d.Fronts, devices: d.Devices, endpoints: d.Endpoints, names: d.Names, pairs: d.Pairs,
		forget: func(addrs map[bpf.Addr]bool) error { return forget(d, addrs) },
		unname: func(ids map[uint32]bool) error { return unname(d, ids) },
		attach: d.AttachPod, detach: d.DetachPod, attached: d.Attached, activate: d.Activate, sent: sentFrom,
		overtaken: d.Overtaken, host: hostKernelOf(d),
		revision: d.Revision, revise: d.BumpRevision,
	}
}

// sentFrom counts the packets that came out of a veth.
func sentFrom(ifindex int) (uint64, error) {
	l, err := netlink.LinkByIndex(ifindex)
	if err != nil || l.Attrs().Statistics == nil {
		return 0, err
	}
	return l.Attrs().Statistics.RxPackets, nil
}

// forget deletes all flows from and to these addresses.
func forget(d *bpf.Datapath, addrs map[bpf.Addr]bool) error {
	if err := forgetIn(d.Conns, addrs); err != nil {
		return err
	}
	return forgetIn(d.Conntrack, addrs)
}

func forgetIn[V comparable](t bpf.Table[bpf.Tuple, V], addrs map[bpf.Addr]bool) error {
	var gone []bpf.Tuple
	err := t.Scan(func(tuple bpf.Tuple, _ V) {
		if addrs[tuple.Saddr] || addrs[tuple.Daddr] {
			gone = append(gone, tuple)
		}
	})
	if err != nil {
		return err
	}
	for _, tuple := range gone {
		if err := t.Delete(tuple); err != nil {
			return err
		}
	}
	return nil
}

// unname deletes the rows of fqdn that say one of these identities. A proxy may
// write others meanwhile.
func unname(d *bpf.Datapath, ids map[uint32]bool) error {
	var found []bpf.Addr
	err := d.FQDN.Scan(func(a bpf.Addr, id uint32) {
		if ids[id] {
			found = append(found, a)
		}
	})
	if err != nil {
		return err
	}
	for _, a := range found {
		id, ok, err := d.FQDN.Lookup(a)
		if err == nil && ok && ids[id] {
			err = d.FQDN.Delete(a)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// KernelCounts reads what the kernel counted.
func KernelCounts(d *bpf.Datapath) (flow.KernelCounts, error) {
	counters, err := d.Counters()
	if err != nil {
		return flow.KernelCounts{}, err
	}
	lost, err := d.LostEvents()
	if err != nil {
		return flow.KernelCounts{}, err
	}
	out := flow.KernelCounts{Limited: lost.Limited, Full: lost.Full}
	for _, c := range counters {
		out.Reasons = append(out.Reasons, flow.KernelCount{
			Reason: c.Reason.String(), Direction: c.Direction.String(), Drop: c.Reason.Drops(),
			Packets: c.Packets, Bytes: c.Bytes,
		})
	}
	slices.SortFunc(out.Reasons, func(a, b flow.KernelCount) int {
		return cmp.Or(cmp.Compare(a.Reason, b.Reason), cmp.Compare(a.Direction, b.Direction))
	})
	return out, nil
}
