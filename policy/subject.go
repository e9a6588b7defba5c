package policy

import (
	"fmt"
	"maps"
	"slices"

	"github.com/weirnet/weir/identity"
)

// subject is a set of pods with equal labels and named ports, and the policy
// they share.
type subject struct {
	peer *peer
	id   uint32 // policy id; 0: it is asked about only, and not in the tables
	pods int    // of this node
	// alwaysDeny: under default deny even where no rule selects it.
	alwaysDeny bool

	directions [2]*enforcement
	services   map[*peer]template // by cluster IP, egress
	resolved   *Resolved
	// unsure: the entries were changed, and an error kept that from being told.
	unsure bool
}

// policyChange is what happened to the policies that select a subject.
type policyChange struct {
	olds, news []*policyObject
}

// edit changes the entries of a policy map in place, and notes which.
type edit struct {
	entries map[Key]Entry
	keys    map[Key]struct{} // what was written or erased, unless whole
	// whole: who was told of the policy before must read all of it.
	whole bool
}

func newEdit(s *subject) *edit {
	ed := &edit{keys: map[Key]struct{}{}}
	if s.resolved == nil {
		ed.entries, ed.whole = map[Key]Entry{}, true
	} else {
		ed.entries = s.resolved.Entries
	}
	return ed
}

func (ed *edit) note(k Key) {
	if !ed.whole {
		ed.keys[k] = struct{}{}
	}
}

func (ed *edit) put(k Key, e Entry) {
	ed.entries[k] = e
	ed.note(k)
}

// write puts a template into the entries.
func (ed *edit) write(t template, d Direction, id identity.ID) {
	for _, e := range t {
		ed.put(e.key(d, id), e.entry)
	}
}

func (ed *edit) erase(t template, d Direction, id identity.ID) {
	for _, e := range t {
		k := e.key(d, id)
		delete(ed.entries, k)
		ed.note(k)
	}
}

// replace puts the entries of one template in the place of another's.
func (ed *edit) replace(d Direction, id identity.ID, old, new template) {
	if !slices.Equal(old, new) {
		ed.erase(old, d, id)
		ed.write(new, d, id)
	}
}

// edited lists what was changed since the policy was handed out; nil: it is to
// be read as a whole.
func (ed *edit) edited() []Key {
	if ed.whole {
		return nil
	}
	return slices.AppendSeq(make([]Key, 0, len(ed.keys)), maps.Keys(ed.keys))
}

// key is where the entry stands in the policy map.
func (e *entryFor) key(d Direction, id identity.ID) Key {
	k := e.ports.key(d)
	k.Identity = id
	return k
}

// write puts a template into the entries of a policy map.
func (t template) write(m map[Key]Entry, d Direction, id identity.ID) {
	for _, e := range t {
		m[e.key(d, id)] = e.entry
	}
}

// in tells whether all of it stands there.
func (t template) in(m map[Key]Entry, d Direction, id identity.ID) bool {
	for _, e := range t {
		if m[e.key(d, id)] != e.entry {
			return false
		}
	}
	return true
}

// follow brings a subject's policy up to date with policies, peers and
// services that changed. A subject that is new gets all of it.
func (e *Engine) follow(s *subject, change policyChange, removed []*peer, services map[*service]struct{}) error {
	ed := newEdit(s)
	if s.resolved == nil {
		change = policyChange{news: e.policiesFor(s.peer)}
		s.services = map[*peer]template{}
		for d := range s.directions {
			s.directions[d] = e.newEnforcement(s, Direction(d))
		}
	}
	if s.unsure {
		ed.whole = true
	}
	s.unsure = true
	var egress updated
	for _, f := range s.directions {
		e.forgetPeers(s, f, removed, ed)
		forAny := f.forAny
		u, err := e.update(f, change.olds, change.news)
		if err == nil {
			e.dnsBehind.touch(f, u.peers)
			u.forAny = u.forAny && !slices.Equal(forAny, f.forAny)
			ed.replace(f.direction, identity.Any, forAny, f.forAny)
			err = f.rejudge(u.peers, ed)
		}
		if err == nil {
			err = e.judgePairs(f, ed)
		}
		if err != nil {
			return fmt.Errorf("compile the %s policy of %v: %w", f.direction, s.peer.labels, err)
		}
		if f.direction == Egress {
			egress = u
		}
	}
	for _, svc := range e.services {
		_, dirty := services[svc]
		if dirty || s.resolved == nil || svc.concerned(egress) {
			if err := e.judgeCluster(s, svc, ed); err != nil {
				return err
			}
		}
	}
	r := &Resolved{Entries: ed.entries, Edited: ed.edited()}
	for d, f := range s.directions {
		r.Enforced[d], r.Open[d], r.Selecting[d], r.Adding[d] = f.enforced, f.open, f.selecting, f.adding
		e.holdUsed(f)
	}
	if old := s.resolved; old == nil || ed.whole || len(ed.keys) > 0 || !old.sameAround(r) {
		s.resolved = r
		e.delta.Policies[s.id] = r
	}
	s.unsure = false
	return nil
}

// sameAround tells whether two policies differ in their entries at most.
func (r *Resolved) sameAround(o *Resolved) bool {
	for d := range r.Enforced {
		if !slices.Equal(r.Selecting[d], o.Selecting[d]) || !slices.Equal(r.Adding[d], o.Adding[d]) {
			return false
		}
	}
	return r.Enforced == o.Enforced && r.Open == o.Open
}

// forgetPeers takes out what is said about peers that are gone.
func (e *Engine) forgetPeers(s *subject, f *enforcement, removed []*peer, ed *edit) {
	for _, p := range removed {
		if t, ok := s.services[p]; ok {
			ed.erase(t, Egress, p.id)
			delete(s.services, p)
		}
		if t, ok := f.perPeer[p]; ok {
			ed.erase(t, f.direction, p.id)
			delete(f.perPeer, p)
		}
		delete(f.own, p)
		delete(f.pending, p)
	}
}

// rejudge makes the templates of peers anew.
func (f *enforcement) rejudge(peers map[*peer]struct{}, ed *edit) error {
	for p := range peers {
		t, err := f.templateFor(p, f.own[p])
		if err != nil {
			return err
		}
		ed.replace(f.direction, p.id, f.perPeer[p], t)
		if len(t) > 0 {
			f.perPeer[p] = t
		} else {
			delete(f.perPeer, p)
		}
	}
	return nil
}

// nothingToDo tells that follow would find nothing changed.
func (s *subject) nothingToDo() bool {
	return s.resolved != nil && len(s.directions[Ingress].pending)+len(s.directions[Egress].pending) == 0
}
