package endpoint

import (
	"net/netip"
	"slices"

	"github.com/weirnet/weir/policy"
)

// names tells which pod has an address. Of those that claim it and
// are not being deleted the newest does.
type names struct {
	pods   map[policy.Object]*policy.Pod
	byAddr map[netip.Addr][]*policy.Pod
}

func newNames() names {
	return names{pods: map[policy.Object]*policy.Pod{}, byAddr: map[netip.Addr][]*policy.Pod{}}
}

func (n *names) apply(changes []policy.Change) {
	for _, c := range changes {
		if c.Object.Kind != "Pod" {
			continue
		}
		if old := n.pods[c.Object]; old != nil {
			delete(n.pods, c.Object)
			for _, a := range old.Addresses {
				left := slices.DeleteFunc(n.byAddr[a], func(p *policy.Pod) bool { return p == old })
				if len(left) == 0 {
					delete(n.byAddr, a)
				} else {
					n.byAddr[a] = left
				}
			}
		}
		// Addresses of the host network are the node's.
		if p, ok := c.Value.(*policy.Pod); ok && p != nil && !p.HostNetwork {
			n.pods[c.Object] = p
			for _, a := range p.Addresses {
				n.byAddr[a] = append(n.byAddr[a], p)
			}
		}
	}
}

// lookup returns nil where no pod has the address.
func (n *names) lookup(a netip.Addr) *policy.Pod {
	var best *policy.Pod
	for _, p := range n.byAddr[a.Unmap()] {
		if best == nil || best.Deleting && !p.Deleting || p.Created > best.Created && p.Deleting == best.Deleting {
			best = p
		}
	}
	return best
}

// PodAt names the pod that has an address, on whatever node; not ok: none has.
func (m *Manager) PodAt(a netip.Addr) (namespace, name string, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.names.lookup(a)
	if p == nil {
		return "", "", false
	}
	return p.Namespace, p.Name, true
}
