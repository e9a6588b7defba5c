package endpoint

import (
	"slices"
	"time"

	"github.com/weirnet/weir/policy"
)

// insideVeth is what was seen of the processes behind one.
type insideVeth struct {
	space int32
	uids  []string // of their pods
}

// sawInside keeps what was found of the processes in namespaces.
func (m *Manager) sawInside(found map[int32][]string) {
	for index, v := range m.r.veths {
		if uids, ok := found[v.Space]; ok {
			m.r.inside[index] = insideVeth{v.Space, uids}
		}
	}
}

// lookInside brings up to date whose processes are behind the veths.
func (m *Manager) lookInside() {
	clear(m.r.insiders)
	for index, is := range m.r.inside {
		if v, there := m.r.veths[index]; !there || v.Space != is.space {
			delete(m.r.inside, index) // the number is another namespace's
			continue
		}
		if pod, unheard := m.podInside(index); pod != nil || unheard {
			m.r.insiders[index] = is.uids
		}
	}
}

// podInside tells of which pod of this node the processes behind a veth are.
// unheard: of one that no object speaks of. Those of pods on the host network,
// which may be at work on others, don't count.
func (m *Manager) podInside(index int) (pod *policy.PodName, unheard bool) {
	var known []policy.PodName
	for _, uid := range m.r.inside[index].uids {
		pods, onHost := m.engine.PodsOfNode(uid)
		if onHost {
			continue
		}
		known = append(known, pods...)
		unheard = unheard || len(pods) == 0
	}
	switch {
	case len(known) == 0:
		return nil, unheard && m.whole
	case len(known) == 1 && !unheard:
		return &known[0], false
	}
	return nil, false
}

// strangerInside is podInside for what no object speaks of. Further interfaces of
// a pod whose address is at another one are not told from what is no pod's.
func (m *Manager) strangerInside(index int) (pod *policy.PodName, unheard bool) {
	pod, unheard = m.podInside(index)
	if pod == nil {
		return nil, unheard
	}
	for a, at := range m.r.placed {
		if e := m.r.pods[a]; e != nil && at != index && e.Namespace == pod.Namespace && e.Name == pod.Name && e.UID == pod.UID {
			return nil, false
		}
	}
	return pod, false
}

// askInside asks for what is to be known of processes: behind veths that are new,
// whatever is known of them, and those that are guessed at.
func (m *Manager) askInside(now time.Time) {
	want := map[int32]bool{}
	for index, v := range m.r.veths {
		s := m.r.strangers[index]
		if s == nil || v.Ours || m.veths.InSubnet(index) {
			continue
		}
		if pod, _ := m.podInside(index); pod != nil {
			continue
		}
		guessed := s.told != nil && s.told.Pod == nil && s.guess != nil
		if guessed || s.isNew && now.Sub(s.seen) < freshFor {
			want[v.Space] = true
		}
	}
	m.inhabitants.ask(want)
}

// isAnothers tells whether the processes behind a veth are of other pods than the
// one with this UID.
func (r *realiser) isAnothers(index int, uid string) bool {
	uids := r.insiders[index]
	return uid != "" && len(uids) > 0 && !slices.Contains(uids, uid)
}
