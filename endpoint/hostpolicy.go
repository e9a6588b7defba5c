package endpoint

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/policy"
)

// hostKernel is what of the datapath is about the node itself.
type hostKernel struct {
	row    func() (bpf.Host, error)
	setRow func(bpf.Host) error
	// attach and detach the programs of an interface of the node; repeats do no
	// harm. attached tells where any are, and whether both.
	attach, detach func(ifindex int) error
	attached       func() (map[int]bool, error)
}

func hostKernelOf(d *bpf.Datapath) hostKernel {
	return hostKernel{
		row: func() (bpf.Host, error) {
			row, _, err := d.Host.Lookup(0)
			return row, err
		},
		setRow: func(row bpf.Host) error { return d.Host.Update(0, row) },
		attach: func(ifindex int) error {
			l, err := netlink.LinkByIndex(ifindex)
			if err != nil {
				return err
			}
			return d.AttachHost(ifindex, hasEthernet(l))
		},
		detach: d.DetachHost, attached: d.AttachedHost,
	}
}

// hostGuard realises the node's own policy: programs on its interfaces first, then
// the row that makes them judge; the row goes first, too.
type hostGuard struct {
	k       hostKernel
	want    policy.HostPolicy
	have    bpf.Host
	devices map[int]string // where the programs are to be
	// attached are the interfaces with programs, true: both.
	attached map[int]bool
	failed   map[int]error
	lost     int
}

func (g *hostGuard) adopt() error {
	if g.k.row == nil {
		return nil
	}
	var err error
	if g.have, err = g.k.row(); err != nil {
		return fmt.Errorf("read the node's own policy: %w", err)
	}
	if g.attached, err = g.k.attached(); err != nil {
		return fmt.Errorf("which of the node's interfaces have programs: %w", err)
	}
	return nil
}

// wanted tells whether there is, or was, something to do.
func (g *hostGuard) wanted() bool {
	return g.want.Policy != 0 || g.have.Policy != 0 || len(g.attached) > 0
}

// enforce attaches and then writes the row, once what it names is in the kernel.
// changed tells that flows are to be judged again.
func (g *hostGuard) enforce(usable func(uint32) bool) (changed int, err error) {
	if g.want.Policy == 0 || !usable(g.want.Policy) || !usable(g.want.Always) {
		return 0, nil // better the old one
	}
	var errs []error
	g.failed = map[int]error{}
	for _, index := range slices.Sorted(maps.Keys(g.devices)) {
		if g.attached[index] {
			continue
		}
		if err := g.k.attach(index); err != nil {
			g.failed[index] = err
			errs = append(errs, fmt.Errorf("attach to %s: %w", g.devices[index], err))
			continue
		}
		g.attached[index] = true
	}
	if row := (bpf.Host{Policy: g.want.Policy, Always: g.want.Always}); row != g.have {
		if err := g.k.setRow(row); err != nil {
			return 0, errors.Join(append(errs, fmt.Errorf("put the node under its policy: %w", err))...)
		}
		g.have, changed = row, 1
	}
	return changed, errors.Join(errs...)
}

// prune takes the node out of a policy that selects it no more, and programs off
// what is no interface of its own any more.
func (g *hostGuard) prune() (changed int, err error) {
	if g.want.Policy == 0 && g.have != (bpf.Host{}) {
		if err := g.k.setRow(bpf.Host{}); err != nil {
			return 0, fmt.Errorf("take the node out of its policy: %w", err)
		}
		g.have, changed = bpf.Host{}, 1
	}
	var errs []error
	for index := range g.attached {
		if _, stays := g.devices[index]; stays && g.want.Policy != 0 {
			continue
		}
		if err := g.k.detach(index); err != nil {
			errs = append(errs, fmt.Errorf("detach from interface %d: %w", index, err))
			continue
		}
		delete(g.attached, index)
	}
	return changed, errors.Join(errs...)
}

// pointedTo tells whether the kernel asks that policy about the node.
func (g *hostGuard) pointedTo(id uint32) bool { return g.have.Policy == id || g.have.Always == id }

// lookAtHost brings up to date by which interfaces the node is joined to networks, and
// with check which of them have the programs. It returns those that lost them.
func (m *Manager) lookAtHost(check bool) (lost []string, err error) {
	g := &m.r.host
	if !g.wanted() {
		return nil, nil
	}
	if m.hostDevicesStale() || g.devices == nil {
		devices, err := HostDevices(m.r.isPodVeth, m.hostPattern)
		if err != nil {
			return nil, err
		}
		m.hostLooked = time.Now()
		if !maps.Equal(devices, g.devices) {
			m.log.Info("interfaces of the node itself", "judged", slices.Sorted(maps.Values(devices)))
		}
		g.devices = devices
	}
	if !check {
		return nil, nil
	}
	on, err := g.k.attached()
	if err != nil {
		return nil, fmt.Errorf("which of the node's interfaces have programs: %w", err)
	}
	for index := range g.attached {
		if on[index] || g.devices[index] == "" {
			continue
		}
		lost = append(lost, g.devices[index])
	}
	g.attached = on
	return lost, nil
}

// noteLostHost tells of programs that are not on the node's interfaces where they had been put.
func (m *Manager) noteLostHost(lost []string) {
	for _, name := range lost {
		m.r.host.lost++
		m.metrics.lost.Inc()
		m.log.Error("somebody took Weir's programs off an interface of the node: nothing of its own traffic was judged there; attaching them again", "interface", name)
	}
}

// hostDevicesStale: they are looked at again after events of links and addresses,
// which a new address list shows, and now and then, for routes have no events here.
func (m *Manager) hostDevicesStale() bool {
	changed := m.hostSeen != m.hostChanges
	m.hostSeen = m.hostChanges
	return changed || time.Since(m.hostLooked) >= recheck
}

// isPodVeth tells the host sides of pods' veths, and of those that may be.
func (r *realiser) isPodVeth(index int) bool {
	_, pod := r.devices.want[uint32(index)]
	return pod
}

// HostStatus is what is enforced on the node itself.
type HostStatus struct {
	// Enforced: a policy selects the node, and the kernel asks it.
	Enforced bool   `json:"enforced"`
	Policy   uint32 `json:"policy,omitempty"`
	Ingress  bool   `json:"ingress"` // under default deny
	Egress   bool   `json:"egress"`
	// Policies that select the node, by direction.
	IngressPolicies []string `json:"ingressPolicies,omitempty"`
	EgressPolicies  []string `json:"egressPolicies,omitempty"`
	// Interfaces are those where it is enforced, beside the pods' veths.
	Interfaces []string `json:"interfaces,omitempty"`
	// Unguarded are those where the programs could not be attached.
	Unguarded []string `json:"unguarded,omitempty"`
	// Failsafe is what passes whatever the policies say.
	Failsafe []string `json:"failsafe,omitempty"`
	Lost     int      `json:"lostPrograms,omitempty"` // see LostPrograms
}

// hostShown is what is enforced on the node; nil: no policy selects it.
func (m *Manager) hostShown() *HostStatus {
	g := &m.r.host
	if g.want.Policy == 0 && g.have.Policy == 0 {
		return nil
	}
	s := &HostStatus{Enforced: g.have.Policy != 0, Policy: g.want.Policy, Failsafe: g.want.Failsafe, Lost: g.lost}
	if r := m.r.policies.want[g.want.Policy]; r != nil {
		s.Ingress, s.IngressPolicies = holds(r, policy.Ingress)
		s.Egress, s.EgressPolicies = holds(r, policy.Egress)
	}
	for index, name := range g.devices {
		if g.attached[index] {
			s.Interfaces = append(s.Interfaces, name)
		} else {
			s.Unguarded = append(s.Unguarded, name)
		}
	}
	slices.Sort(s.Interfaces)
	slices.SortFunc(s.Unguarded, strings.Compare)
	return s
}
