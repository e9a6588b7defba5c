package endpoint

import (
	"context"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/flow"
	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy"
)

// Records reads the kernel's verdicts until ctx is done and publishes each as
// a record, with the names that hold at that time. The record is publish's
// until it returns; what it points to is never changed.
func (m *Manager) Records(ctx context.Context, d *bpf.Datapath, publish func(*flow.Record)) error {
	var r flow.Record // one for all, as there are thousands a second
	for e, err := range d.Events(ctx) {
		if err != nil {
			return fmt.Errorf("read the kernel's verdicts: %w", err)
		}
		m.record(&r, &e)
		publish(&r)
	}
	return nil
}

// record makes r the record of an event.
func (m *Manager) record(r *flow.Record, e *bpf.Event) {
	*r = flow.Record{
		Time: e.Time, Layer: "L3/L4", Verdict: e.Verdict, Reason: e.Reason.String(), Direction: e.Direction.String(),
		Source:   flow.Peer{Addr: e.Source.Addr(), Port: e.Source.Port(), Identity: uint32(e.SourceIdentity)},
		Dest:     flow.Peer{Addr: e.Dest.Addr(), Port: e.Dest.Port(), Identity: uint32(e.DestIdentity)},
		Protocol: protocolName(e.Protocol),
	}
	if e.Protocol == unix.IPPROTO_ICMP || e.Protocol == unix.IPPROTO_ICMPV6 {
		r.ICMPType = &m.icmpTypes[e.ICMPType]
	}
	m.mu.Lock()
	m.explain(r, e.Rule, e.Policy, e.Direction)
	m.mu.Unlock()
}

// Complete adds names to a record that the proxy made: pods and labels of both
// ends, the node, and the policies that a default deny comes from.
func (m *Manager) Complete(r *flow.Record, rule uint32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	direction, at := policy.Ingress, r.Dest
	if r.Direction == policy.Egress.String() {
		direction, at = policy.Egress, r.Source
	}
	id := uint32(0)
	if e := m.r.pods[at.Addr]; e != nil {
		id = e.Policy
	}
	m.explain(r, rule, id, direction)
}

// explain adds names and causes; id is the policy of the pod that judged.
func (m *Manager) explain(r *flow.Record, rule, id uint32, direction policy.Direction) {
	r.Node = m.node
	m.name(&r.Source)
	m.name(&r.Dest)
	if r.Rule == nil && rule != 0 {
		r.Rule = m.engine.Rule(rule)
	}
	if r.Rule == nil && r.Verdict == flow.Dropped && id != 0 {
		if p := m.r.policies.want[id]; p != nil {
			r.Policies = p.Selecting[direction]
		}
	}
}

func (m *Manager) name(p *flow.Peer) {
	if pod := m.names.lookup(p.Addr); pod != nil {
		p.Namespace, p.Pod = pod.Namespace, pod.Name
	}
	if p.Identity == 0 {
		return
	}
	labels, ok := m.labels[p.Identity]
	if !ok {
		labels = m.engine.IdentityLabels(identity.ID(p.Identity))
		m.labels[p.Identity] = labels
	}
	p.Labels = labels
}

func protocolName(p uint8) string {
	switch p {
	case unix.IPPROTO_TCP:
		return "TCP"
	case unix.IPPROTO_UDP:
		return "UDP"
	case unix.IPPROTO_SCTP:
		return "SCTP"
	case unix.IPPROTO_ICMP:
		return "ICMP"
	case unix.IPPROTO_ICMPV6:
		return "ICMPv6"
	}
	return strconv.Itoa(int(p))
}
