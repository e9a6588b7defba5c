package endpoint

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/policy"
)

const (
	// freshFor is how long the object of a new veth's pod may be on its way here.
	freshFor = 10 * time.Second
	// addressesFor is how long the addresses of a new veth are taken from the
	// interface, from the first that was seen on: the runtime sets all of them
	// before it starts the pod's programs, which could set others.
	addressesFor = 200 * time.Millisecond
)

// stranger is a veth behind which is no address that an object says is a pod's:
// see policy.Stranger.
type stranger struct {
	seen      time.Time
	isNew     bool // it came under our eyes
	left      bool // it was a pod's
	addressed time.Time
	addresses []netip.Addr
	told      *policy.Stranger // to the engine; nil: it does not know of it
	guess     *policy.Guess    // what the engine made of it
}

// guessed takes over what the engine said of a stranger.
func (r *realiser) guessed(name string, g *policy.Guess) {
	index, err := strconv.Atoi(name)
	if s := r.strangers[index]; err == nil && s != nil {
		s.guess = g
	}
}

// placeStrangers adds the rows of veths whose pods are not known.
func (r *realiser) placeStrangers(rows map[bpf.Addr]bpf.Endpoint, devices map[uint32]bpf.Device) {
	for index, s := range r.strangers {
		v, there := r.veths[index]
		if _, known := devices[uint32(index)]; known || !there || s.guess == nil {
			continue
		}
		devices[uint32(index)] = bpf.Device{Policy: s.guess.Policy, Identity: uint32(s.guess.Identity)}
		for _, a := range s.addresses {
			// Of two with one address the first keeps it, as in the engine: what is
			// there already is a pod's, or another stranger's.
			at := bpf.AddrOf(a)
			if _, taken := rows[at]; taken || a.IsLinkLocalUnicast() || r.otherHas(a, index) {
				continue
			}
			id, other := s.guess.At[a.Unmap()]
			if !other {
				id = s.guess.Identity
			}
			rows[at] = bpf.Endpoint{
				Ifindex: uint32(index), Policy: s.guess.Policy, Identity: uint32(id),
				PodMac: v.PodMAC, HostMac: v.HostMAC,
			}
		}
	}
}

// otherHas tells whether an address is an earlier stranger's.
func (r *realiser) otherHas(a netip.Addr, index int) bool {
	for i, s := range r.strangers {
		if i < index && s.guess != nil && slices.Contains(s.addresses, a) {
			return true
		}
	}
	return false
}

// followStrangers tells the engine of veths that no pod's address is behind.
func (m *Manager) followStrangers(now time.Time) error {
	owned := make(map[int]bool, len(m.r.placed))
	for _, index := range m.r.placed {
		owned[index] = true
	}
	var changes []policy.Change
	tell := func(index int, s *policy.Stranger) {
		c := policy.Change{Object: policy.Object{Kind: policy.KindStranger, Name: strconv.Itoa(index)}}
		if s != nil {
			c.Value = s
		}
		changes = append(changes, c)
	}
	m.freshStrangers = false
	for index, v := range m.r.veths {
		s := m.r.strangers[index]
		if s == nil {
			s = &stranger{seen: now, isNew: m.scanned && m.whole}
			m.r.strangers[index] = s
		}
		if owned[index] || v.Ours || m.veths.InSubnet(index) {
			s.left = s.left || owned[index]
			if s.told != nil {
				s.told = nil
				tell(index, nil)
			}
			continue
		}
		s.see(v, now)
		is := &policy.Stranger{Addresses: s.addresses, New: s.isNew, Fresh: s.isNew && now.Sub(s.seen) < freshFor,
			Left: s.left, Unread: !m.whole}
		if pod, addrs := m.announced.behind(v); pod != nil {
			s.addresses, is.Addresses, is.Pod = addrs, addrs, pod
		} else {
			is.Pod, is.Unheard = m.strangerInside(index)
		}
		m.freshStrangers = m.freshStrangers || is.Fresh
		if s.told == nil || !sameStranger(s.told, is) {
			s.told = is
			tell(index, is)
		}
	}
	for index, s := range m.r.strangers {
		if _, there := m.r.veths[index]; !there {
			if s.told != nil {
				tell(index, nil)
			}
			delete(m.r.strangers, index)
		}
	}
	m.scanned = true
	if len(changes) == 0 {
		return nil
	}
	m.mu.Lock()
	err := m.evaluate(changes...)
	clear(m.labels)
	m.mu.Unlock()
	m.r.place()
	if err != nil {
		return fmt.Errorf("compute policy of pods that start: %w", err)
	}
	return nil
}

// see takes the addresses behind the veth while only the runtime can have set
// them.
func (s *stranger) see(v Veth, now time.Time) {
	global := slices.ContainsFunc(v.Addresses, func(a netip.Addr) bool { return !a.IsLinkLocalUnicast() })
	if !s.addressed.IsZero() && now.Sub(s.addressed) > addressesFor {
		return
	}
	if global && s.addressed.IsZero() {
		s.addressed = now
	}
	s.addresses = v.Addresses
}

func sameStranger(a, b *policy.Stranger) bool {
	samePod := a.Pod == b.Pod || a.Pod != nil && b.Pod != nil && *a.Pod == *b.Pod
	return samePod && slices.Equal(a.Addresses, b.Addresses) && a.New == b.New && a.Fresh == b.Fresh && a.Left == b.Left && a.Unread == b.Unread && a.Unheard == b.Unheard
}

// countUnguarded counts what came out of a veth before it gets the programs.
func (r *realiser) countUnguarded(index int) {
	packets, err := r.k.sent(index)
	if err != nil {
		return // gone: attaching tells
	}
	s := r.strangers[index]
	r.unguarded(packets, s != nil && s.isNew)
}

// StrangerStatus is a veth with another namespace behind it that no object says
// whose it is.
type StrangerStatus struct {
	Veth      string       `json:"veth"`
	Ifindex   int          `json:"ifindex"`
	Addresses []netip.Addr `json:"addresses,omitempty"`
	State     string       `json:"state"` // see the constants
	// Pods are those that it may be.
	Pods   []string `json:"pods,omitempty"`
	Policy uint32   `json:"policy,omitempty"`
}

// States of a stranger.
const (
	StrangerStarting = "starting"   // of a pod that has no address yet, and under its policy
	StrangerDoubtful = "doubtful"   // of one of several, and under what is the strictest of their policies together
	StrangerUnknown  = "unknown"    // its address lies in a range of pods, and no pod can own it: closed
	StrangerAlone    = "left alone" // nothing of Weir's is there
)

// strangersShown lists them by interface.
func (m *Manager) strangersShown() (out []StrangerStatus) {
	for index, s := range m.r.strangers {
		if s.told == nil {
			continue
		}
		is := StrangerStatus{Veth: m.r.veths[index].Name, Ifindex: index, Addresses: m.r.veths[index].Addresses, State: StrangerAlone}
		if g := s.guess; g != nil {
			is.Policy = g.Policy
			switch {
			case g.Exact:
				is.State = StrangerStarting
			case len(g.Pods) > 0:
				is.State = StrangerDoubtful
			default:
				is.State = StrangerUnknown
			}
			for _, p := range g.Pods {
				is.Pods = append(is.Pods, p.String())
			}
		}
		out = append(out, is)
	}
	slices.SortFunc(out, func(a, b StrangerStatus) int { return cmp.Compare(a.Ifindex, b.Ifindex) })
	return out
}
