package policy

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/weirnet/weir/identity"
)

// KindStranger is no object of the cluster, see Stranger.
const KindStranger = "Stranger"

// Stranger is an interface of this node behind which is no address that an
// object says is a pod's. It is the value of a Change of that kind; the name of
// the change's object is the asker's to choose, and stays the interface's.
//
// The address of a pod comes to its object well after its first packet may have
// left. But the object, with node and labels, is there before the interface is.
// So what comes new belongs to one of the pods of this node that wait for their
// address when it is first spoken of, and is under what is the strictest of their
// policies together. The same objects in another order can therefore make other
// tables, as far as strangers are concerned.
type Stranger struct {
	// Addresses that are behind it, as far as they are known. They should be none
	// that whoever is behind it can choose.
	Addresses []netip.Addr
	// New: it appeared under the eyes of the asker, when everything that was known
	// of pods then had been applied; not: it may be older than any pod that waits.
	New bool
	// Fresh: it is new enough for its pod's object to be still on its way here.
	Fresh bool
	// Left: it was a pod's that is gone; it is none of those that wait.
	Left bool
	// Unread: not all objects could be read, so that a pod may be missing.
	Unread bool
	// Pod, if not nil, is whose it is: somebody told who knows.
	Pod *PodName
	// Unheard: it is a pod's that no object speaks of yet, so none of those that
	// wait. It counts where Pod is nil and all objects could be read.
	Unheard bool
}

// PodName names one life of a pod. UID may be empty: not known.
type PodName struct{ Namespace, Name, UID string }

// String is namespace/name.
func (p PodName) String() string { return p.Namespace + "/" + p.Name }

// Guess is what becomes of a stranger.
type Guess struct {
	// Pods are those that it may be, ordered. None: all that is known is that it is
	// a pod, since its address lies in a range of this node's, and the policy lets
	// nothing pass.
	Pods []PodName
	// Identity is the pod's where there is no doubt, else that of an address which
	// no known pod has.
	Identity identity.ID
	// At are those of its addresses whose identity is another one, since they lie in
	// IP blocks of policies.
	At     map[netip.Addr]identity.ID
	Policy uint32 // key of Delta.Policies
	// Exact: the policy is the pod's own. Pods with equal labels share it, so there
	// may be more than one.
	Exact bool
}

func (g *Guess) equal(o *Guess) bool {
	if g == nil || o == nil {
		return g == o
	}
	return g.Identity == o.Identity && g.Policy == o.Policy && g.Exact == o.Exact && slices.Equal(g.Pods, o.Pods) && maps.Equal(g.At, o.At)
}

// strangers are the interfaces whose pods are not known, and the pods that wait.
type strangers struct {
	byName map[string]*stranger
	at     map[netip.Addr]*stranger // whose address it is, of those with a guess
	// Of this node, not on the host network: all pods, and those without address.
	local, waiting map[*pod]struct{}
	onHost         map[*pod]struct{} // of this node, on the host network
	unions         map[identity.Digest]*union
}

type stranger struct {
	name       string
	src        *Stranger
	candidates map[*pod]struct{} // when it was first spoken of
	pods       []*pod            // who it may be now, ordered
	sure       bool              // that it is one of them
	inside     bool              // its address is in a range of this node's pods
	closed     bool              // it is a pod's, and of none that is known
	alone      bool              // it is none of Weir's business
	claim      *peer             // what its addresses stand for
	union      *union            // nil: the policy is the pod's own
	told       *Guess
}

func newStrangers() *strangers {
	return &strangers{byName: map[string]*stranger{}, at: map[netip.Addr]*stranger{},
		local: map[*pod]struct{}{}, waiting: map[*pod]struct{}{}, onHost: map[*pod]struct{}{}, unions: map[identity.Digest]*union{}}
}

func (e *Engine) takeStranger(name string, src *Stranger) {
	t := e.strangers
	s := t.byName[name]
	if src == nil {
		if s != nil {
			s.src = nil
		}
		return
	}
	if s == nil {
		s = &stranger{name: name}
		t.byName[name] = s
	}
	s.src = src
}

// settleStrangers finds out who strangers may be. The pods are settled.
func (e *Engine) settleStrangers() {
	t := e.strangers
	for p := range e.dirty.pods {
		delete(t.local, p)
		delete(t.waiting, p)
		delete(t.onHost, p)
		if !p.gone && p.src.HostNetwork && p.src.Node == e.nodeName {
			t.onHost[p] = struct{}{}
		}
		if p.gone || p.subject == nil {
			continue
		}
		t.local[p] = struct{}{}
		if !slices.ContainsFunc(p.src.Addresses, netip.Addr.IsValid) {
			t.waiting[p] = struct{}{}
		}
	}
	if len(t.byName) == 0 {
		return
	}
	ranges, follows := e.podRanges()
	list := slices.SortedFunc(maps.Values(t.byName), func(a, b *stranger) int { return strings.Compare(a.name, b.name) })
	taken := map[*pod]*stranger{}
	for _, s := range list {
		if s.src == nil {
			continue
		}
		if s.candidates == nil {
			s.candidates = maps.Clone(t.waiting)
		}
		inside, outside := s.within(ranges)
		s.inside = inside
		s.look(t, inside)
		s.alone = s.src.Pod == nil && (outside && follows || len(s.pods) == 0 && !s.closed && (!inside || s.src.Unread))
		if s.sure && len(s.pods) == 1 && taken[s.pods[0]] == nil {
			taken[s.pods[0]] = s
		}
	}
	t.exclude(list, taken)
	e.claimStrangers(list)
}

// exclude takes the pods that have a stranger for sure from what the others may
// be.
func (t *strangers) exclude(list []*stranger, taken map[*pod]*stranger) {
	for again := len(taken) > 0; again; {
		again = false
		for _, s := range list {
			anothers := func(p *pod) bool { return taken[p] != nil && taken[p] != s }
			if s.src == nil || s.src.Pod != nil || !slices.ContainsFunc(s.pods, anothers) {
				continue
			}
			left := slices.DeleteFunc(slices.Clone(s.pods), anothers)
			if len(left) == 0 {
				if !s.inside {
					continue // another interface of that pod, maybe
				}
				s.sure = false
				if s.src.Fresh {
					left = slices.DeleteFunc(t.all(), anothers)
				}
			}
			s.pods, again = left, true
			if s.sure && len(left) == 1 {
				taken[left[0]] = s
			}
		}
	}
}

// all lists the pods that wait, ordered.
func (t *strangers) all() []*pod {
	return slices.SortedFunc(maps.Keys(t.waiting), func(a, b *pod) int { return compareObjects(a.object, b.object) })
}

// look finds the pods that a stranger may be.
func (s *stranger) look(t *strangers, inside bool) {
	wasClosed := s.closed
	s.pods, s.sure, s.closed = nil, s.src.New && inside, false
	if told := s.src.Pod; told != nil {
		s.sure = true
		for p := range t.local {
			if p.src.Namespace == told.Namespace && p.src.Name == told.Name && (told.UID == "" || told.UID == p.src.UID) {
				s.pods = append(s.pods, p)
			}
		}
		return
	}
	for p := range s.candidates {
		if _, still := t.waiting[p]; still {
			s.pods = append(s.pods, p)
		} else {
			delete(s.candidates, p)
		}
	}
	if s.src.Left {
		s.pods = nil
	}
	if len(s.pods) == 0 && inside && s.src.Fresh && !s.src.Left {
		s.pods, s.sure = t.all(), false
	}
	if s.src.Unheard && !s.src.Unread {
		s.closed = wasClosed || s.src.Fresh || len(s.pods) > 0
		s.pods, s.sure = nil, false
		return
	}
	slices.SortFunc(s.pods, func(a, b *pod) int { return compareObjects(a.object, b.object) })
}

// PodsOfNode finds the pods of this node with a UID, and tells whether one of them
// is on the host network. Objects could claim the UID of another.
func (e *Engine) PodsOfNode(uid string) (pods []PodName, onHost bool) {
	for _, all := range []map[*pod]struct{}{e.strangers.local, e.strangers.onHost} {
		for p := range all {
			if p.src.UID == uid {
				pods = append(pods, PodName{p.src.Namespace, p.src.Name, uid})
				onHost = onHost || p.src.HostNetwork
			}
		}
	}
	return pods, onHost
}

// within tells whether one of a stranger's addresses lies in the pod ranges of
// this node, or it has addresses and none does.
func (s *stranger) within(ranges []netip.Prefix) (inside, outside bool) {
	for _, a := range s.src.Addresses {
		a = a.Unmap()
		if slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(a) }) {
			return true, false
		}
		outside = outside || a.IsValid() && !a.IsLinkLocalUnicast()
	}
	return false, outside
}

// podRanges are this node's, and whether pods are seen to get their addresses
// from there: not every CNI asks the Node object.
func (e *Engine) podRanges() (ranges []netip.Prefix, follows bool) {
	n := e.nodes[e.nodeName]
	if n == nil {
		return nil, false
	}
	for _, p := range n.PodCIDRs {
		if p.IsValid() {
			ranges = append(ranges, p.Masked())
		}
	}
	for p := range e.strangers.local {
		for _, a := range p.src.Addresses {
			if !slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Contains(a.Unmap()) }) {
				return ranges, false
			}
			follows = true
		}
	}
	return ranges, follows
}

// claimStrangers says what the strangers' addresses stand for. Of two that have
// one address the one that had it before keeps it.
func (e *Engine) claimStrangers(list []*stranger) {
	t := e.strangers
	was := maps.Clone(t.at)
	claims := map[*stranger]*peer{}
	clear(t.at)
	for _, s := range list {
		old := s.claim
		if claims[s] = old; s.src == nil || s.alone {
			continue
		}
		s.claim = newUnknownPeer()
		if s.sure && s.sameSubject() {
			s.claim = s.pods[0].peer
		}
		for _, a := range s.src.Addresses {
			if a = a.Unmap(); !a.IsValid() || a.IsLinkLocalUnicast() {
				continue
			}
			if first := was[a]; t.at[a] == nil || first == s {
				t.at[a] = s
			}
		}
	}
	for a, s := range t.at {
		if was[a] != s || claims[s] == nil || claims[s].digest != s.claim.digest {
			e.claims.touch(a)
		}
	}
	for a := range was {
		if t.at[a] == nil {
			e.claims.touch(a)
		}
	}
}

// sameSubject tells whether all that it may be share one policy.
func (s *stranger) sameSubject() bool {
	for _, p := range s.pods {
		if p.subject != s.pods[0].subject {
			return false
		}
	}
	return len(s.pods) > 0
}
