package endpoint

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/policy"
)

// place computes the rows of endpoints and devices from the pods and the
// veths that are there.
func (r *realiser) place() {
	owners := make(map[netip.Addr]owner, len(r.pods))
	for a, e := range r.pods {
		o := owner{e.Namespace, e.Name, e.UID}
		if _, there := r.veths[r.placed[a]]; e.Deleting && !there && r.placed[a] != 0 {
			r.vacated[a] = o
		}
		// Who comes with its address now is another pod.
		if v, ok := r.vacated[a]; !ok || v != o {
			owners[a] = o
		}
	}
	for a, o := range r.vacated {
		if e := r.pods[a]; e == nil || o != (owner{e.Namespace, e.Name, e.UID}) {
			delete(r.vacated, a)
		}
	}
	for a, o := range r.owners {
		if owners[a] != o {
			delete(r.placed, a) // it was another pod's
		}
	}
	r.owners = owners
	r.placed = match(owners, r.veths, r.placed, r.isAnothers)
	rows := make(map[bpf.Addr]bpf.Endpoint, len(r.placed))
	devices := make(map[uint32]bpf.Device, len(r.placed))
	for a, index := range r.placed {
		e, v := r.pods[a], r.veths[index]
		if old, ok := r.endpoints.have[bpf.AddrOf(a)]; ok && v.PodMAC == [6]byte{} && old.Ifindex == uint32(index) {
			v.PodMAC = old.PodMac // its namespace could not be read
		}
		rows[bpf.AddrOf(a)] = bpf.Endpoint{
			Ifindex: uint32(index), Policy: e.Policy, Identity: uint32(e.Identity),
			PodMac: v.PodMAC, HostMac: v.HostMAC,
		}
		devices[uint32(index)] = bpf.Device{Policy: e.Policy, Identity: uint32(e.Labels)}
	}
	r.placeStrangers(rows, devices)
	r.endpoints.replace(rows)
	r.devices.replace(devices)
}

// attachBudget is how long one pass attaches: the kernel takes some tens of
// milliseconds for each, and a change of policy must not wait for a crowd of
// new pods.
const attachBudget = 60 * time.Millisecond

// attachAll attaches the programs to the veths of pods, once each, and writes
// the endpoint right after: in between the pod's own packets are strangers to
// the programs, and dropped.
func (r *realiser) attachAll() (written int, err error) {
	var errs []error
	clear(r.failed)
	r.unattached = 0
	var rows map[uint32][]bpf.Addr
	start := time.Now()
	for index := range r.devices.want {
		i := int(index)
		if _, there := r.devices.have[index]; !there || r.attached[i] {
			continue
		}
		if time.Since(start) > attachBudget {
			r.unattached++
			continue
		}
		r.countUnguarded(i)
		if err := r.k.attach(i); err != nil {
			r.failed[i] = err
			errs = append(errs, fmt.Errorf("attach to %s: %w", r.veths[i].Name, err))
			continue
		}
		r.attached[i] = true
		if rows == nil {
			rows = map[uint32][]bpf.Addr{}
			for a, e := range r.endpoints.want {
				rows[e.Ifindex] = append(rows[e.Ifindex], a)
			}
		}
		n, err := r.endpoints.updateOnly(rows[index], r.holdEndpoint)
		written += n
		if err != nil {
			errs = append(errs, err)
		}
	}
	return written, errors.Join(errs...)
}

// closeNew puts the programs on veths that have just come, before the proxy is
// waited for: their pods are about to send. Until the policy is there they let
// nothing pass.
func (r *realiser) closeNew() (written int, err error) {
	var fresh []uint32
	for index := range r.devices.want {
		_, there := r.devices.have[index]
		if s := r.strangers[int(index)]; !there && s != nil && s.isNew {
			fresh = append(fresh, index)
		}
	}
	if len(fresh) == 0 {
		return 0, nil
	}
	devices, err := r.devices.updateOnly(fresh, nil)
	rows, attachErr := r.attachAll()
	return devices + rows, errors.Join(err, attachErr)
}

// readAttached asks the kernel which interfaces have the programs.
func (r *realiser) readAttached() (map[int]bool, error) {
	list, err := r.k.attached()
	if err != nil {
		return nil, fmt.Errorf("which programs are attached: %w", err)
	}
	on := make(map[int]bool, len(list))
	for _, index := range list {
		on[index] = true
	}
	return on, nil
}

// dropLost returns the pods' interfaces that are to have the programs and are
// not among those that do, and leaves them to attachAll.
func (r *realiser) dropLost(on map[int]bool) (lost []int) {
	for index := range r.attached {
		_, wanted := r.devices.want[uint32(index)]
		if wanted && !on[index] {
			lost = append(lost, index)
			delete(r.attached, index)
		}
	}
	slices.Sort(lost)
	return lost
}

// activate replaces a predecessor's programs, once the tables that ours look
// into are filled: with another layout they were empty at first.
func (r *realiser) activate() error {
	if r.active {
		return nil
	}
	if err := r.k.activate(); err != nil {
		return fmt.Errorf("activate programs: %w", err)
	}
	r.active = true
	return nil
}

// detachAll takes the programs off the veths that are no pod's any more.
// Those in stuck still have them.
func (r *realiser) detachAll() (stuck map[uint32]bool, err error) {
	var errs []error
	stuck = map[uint32]bool{}
	known := maps.Clone(r.attached)
	for index := range r.devices.have {
		known[int(index)] = true
	}
	for i := range known {
		if _, wanted := r.devices.want[uint32(i)]; wanted {
			continue
		}
		if err := r.k.detach(i); err != nil {
			errs = append(errs, fmt.Errorf("detach from interface %d: %w", i, err))
			stuck[uint32(i)] = true
			continue
		}
		delete(r.attached, i)
	}
	return stuck, errors.Join(errs...)
}

// clearMoved prepares addresses that are new, or at another veth than before:
// the old row and what was known of their flows go before the new owner is
// seen, so that it inherits nothing.
func (r *realiser) clearMoved() (deleted int, err error) {
	moved := map[bpf.Addr]bool{}
	for a := range r.endpoints.open {
		e, wanted := r.endpoints.want[a]
		if old, there := r.endpoints.have[a]; wanted && !r.cleared[a] && (!there || old.Ifindex != e.Ifindex) {
			moved[a] = true
		}
	}
	if len(moved) == 0 {
		return 0, nil
	}
	deleted, err = r.endpoints.drop(keysOf(moved))
	if err == nil {
		err = r.k.forget(moved)
	}
	if err != nil {
		return deleted, fmt.Errorf("forget the flows of addresses that change hands: %w", err)
	}
	maps.Copy(r.cleared, moved)
	return deleted, nil
}

// holdEndpoint tells which rows must wait: before the programs are there, and
// before the address is free of its last owner. A pod that has a policy keeps
// it until the new one is complete.
func (r *realiser) holdEndpoint(a bpf.Addr, e bpf.Endpoint) bool {
	old, there := r.endpoints.have[a]
	if !r.attached[int(e.Ifindex)] {
		return true
	}
	if !there || old.Ifindex != e.Ifindex {
		return !r.cleared[a]
	}
	return !r.policies.usable(e.Policy)
}

// unready tells why an endpoint with a veth is not as wanted; "" if it is.
func (r *realiser) unready(a netip.Addr, index int, e *policy.Endpoint) string {
	if err := r.failed[index]; err != nil {
		return err.Error()
	}
	if err := r.policies.stuck[e.Policy]; err != nil {
		return err.Error()
	}
	if _, open := r.endpoints.open[bpf.AddrOf(a)]; open {
		return "not in the kernel yet"
	}
	if _, open := r.policies.open[e.Policy]; open {
		return "policy not complete in the kernel yet"
	}
	return ""
}

func (r *realiser) tables() []TableStatus {
	row := func(name string, entries, pending int, err error) TableStatus {
		s := TableStatus{Name: name, Entries: entries, Pending: pending}
		if err != nil {
			s.Error = err.Error()
		}
		return s
	}
	var stuck error
	for _, err := range r.policies.stuck {
		stuck = err
	}
	p := r.policies
	return []TableStatus{
		row("endpoints", len(r.endpoints.have), len(r.endpoints.open), r.endpoints.err),
		row("devices", len(r.devices.have), len(r.devices.open), r.devices.err),
		row("ipcache", len(r.ipcache.have), len(r.ipcache.open), r.ipcache.err),
		row("policies", len(p.infos.have), len(p.infos.open), p.infos.err),
		row("policy", p.held, len(p.open), stuck),
		row("numbers", len(r.numbers.have), len(r.numbers.open), r.numbers.err),
	}
}
