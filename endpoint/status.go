package endpoint

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/weirnet/weir/policy"
)

// Status is what of the policy is realised.
type Status struct {
	// Started: the first read of all objects is in.
	Started bool `json:"started"`
	// Inherited: a predecessor left something in force, which stays until then.
	Inherited bool `json:"inherited"`
	// Realised: the kernel holds everything that was submitted.
	Realised  bool             `json:"realised"`
	At        time.Time        `json:"at,omitzero"` // of the last pass
	TookNs    time.Duration    `json:"tookNs,omitempty"`
	Revision  uint32           `json:"revision"`
	Endpoints []EndpointStatus `json:"endpoints"`
	// Strangers are veths that no object says whose they are.
	Strangers []StrangerStatus `json:"strangers,omitempty"`
	// HostAddresses are where the node itself is reached, by what its interfaces
	// have. Those of its Node object count besides.
	HostAddresses []netip.Addr `json:"hostAddresses"`
	// Host is what is enforced on the node itself; nil: no policy selects it.
	Host   *HostStatus   `json:"host,omitempty"`
	Tables []TableStatus `json:"tables"`
	Errors []string      `json:"errors,omitempty"`
	Lost   LostPrograms  `json:"lostPrograms,omitzero"`
	// Overtaken are programs behind those of others.
	Overtaken OvertakenPrograms `json:"overtakenPrograms,omitzero"`
}

// LostPrograms counts how often programs were not on a pod's interface where
// they had been put: somebody took them off. They were attached again.
type LostPrograms struct {
	Count     int       `json:"count"`
	At        time.Time `json:"at"` // noticed last
	Interface string    `json:"interface"`
}

// EndpointStatus is one pod of this node.
type EndpointStatus struct {
	Namespace string       `json:"namespace"`
	Pod       string       `json:"pod"`
	Addresses []netip.Addr `json:"addresses"`
	Identity  uint32       `json:"identity"`
	Labels    []string     `json:"labels,omitempty"`
	Policy    uint32       `json:"policy"`
	Ingress   bool         `json:"ingress"` // under default deny
	Egress    bool         `json:"egress"`
	// Policies that select the pod, by direction; with none of them under default
	// deny, what their rules don't deny is allowed.
	IngressPolicies []string `json:"ingressPolicies,omitempty"`
	EgressPolicies  []string `json:"egressPolicies,omitempty"`
	Veth            string   `json:"veth,omitempty"`
	Ifindex         int      `json:"ifindex,omitempty"`
	State           string   `json:"state"` // see the constants
	Error           string   `json:"error,omitempty"`
}

// States of an endpoint.
const (
	EndpointReady   = "ready"   // enforced as its policy says
	EndpointWaiting = "waiting" // no veth with its address is there
	EndpointPending = "pending" // not all of its policy is in the kernel yet
)

// TableStatus is one table of the kernel.
type TableStatus struct {
	Name    string `json:"name"`
	Entries int    `json:"entries"`
	Pending int    `json:"pending,omitempty"` // entries that are not as wanted yet
	Error   string `json:"error,omitempty"`
}

// Status returns what the last pass left.
func (m *Manager) Status() Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.shown
	s.Revision = m.r.k.revision()
	return s
}

// show keeps a status for readers; it is called by Run after each pass.
func (m *Manager) show(err error, took time.Duration) {
	s := Status{Started: m.started, Inherited: m.inherited, TookNs: took, HostAddresses: m.host, Tables: m.r.tables(), Lost: m.lost, Overtaken: m.overtaken}
	if m.started {
		s.At = time.Now()
		s.Realised = err == nil && m.r.unattached == 0
	}
	for _, e := range unjoin(err) {
		s.Errors = append(s.Errors, e.Error())
	}
	type podKey struct{ namespace, name string }
	pods := map[podKey]*EndpointStatus{}
	m.mu.Lock()
	defer m.mu.Unlock()
	for a, e := range m.r.pods {
		k := podKey{e.Namespace, e.Name}
		p := pods[k]
		if p == nil {
			p = &EndpointStatus{
				Namespace: e.Namespace, Pod: e.Name, Identity: uint32(e.Labels), Policy: e.Policy,
				Labels: m.engine.IdentityLabels(e.Labels), State: EndpointWaiting,
			}
			if r := m.r.policies.want[e.Policy]; r != nil {
				p.Ingress, p.IngressPolicies = holds(r, policy.Ingress)
				p.Egress, p.EgressPolicies = holds(r, policy.Egress)
			}
			pods[k] = p
		}
		p.Addresses = append(p.Addresses, a)
		index, found := m.r.placed[a]
		if !found {
			continue
		}
		p.Veth, p.Ifindex = m.r.veths[index].Name, index
		if p.State == EndpointWaiting {
			p.State = EndpointReady
		}
		if why := m.r.unready(a, index, e); why != "" {
			p.State, p.Error = EndpointPending, why
		}
	}
	s.Strangers = m.strangersShown()
	s.Host = m.hostShown()
	for _, p := range pods {
		slices.SortFunc(p.Addresses, netip.Addr.Compare)
		s.Endpoints = append(s.Endpoints, *p)
	}
	slices.SortFunc(s.Endpoints, func(a, b EndpointStatus) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Pod, b.Pod))
	})
	m.shown = s
}

// holds tells whether default deny holds in a direction, and whose rules count.
func holds(r *policy.Resolved, d policy.Direction) (deny bool, policies []string) {
	return r.Enforced[d] && !r.Open[d], slices.Concat(r.Selecting[d], r.Adding[d])
}

func unjoin(err error) []error {
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		var out []error
		for _, e := range j.Unwrap() {
			out = append(out, unjoin(e)...)
		}
		return out
	}
	if err == nil {
		return nil
	}
	return []error{err}
}
