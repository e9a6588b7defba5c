package endpoint

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/policy"
)

// serviceKernel is the part of the kernel's services that is written here.
type serviceKernel struct {
	services store[bpf.ServiceKey, bpf.Service]
	backends store[bpf.Slot, bpf.Backend]
	members  store[bpf.Member, uint32]
	nodes    store[bpf.ServiceAddr, uint32]
}

// serviceTables holds what the tables of services are to say and brings them
// there. A service has its number, and its backends their slots, for as long as
// they are there, also from one agent to the next: what pods have begun goes on.
type serviceTables struct {
	services *table[bpf.ServiceKey, bpf.Service]
	backends *table[bpf.Slot, bpf.Backend]
	members  *table[bpf.Member, uint32]
	nodes    *table[bpf.ServiceAddr, uint32]

	at   map[policy.Frontend]*serviceSet
	sets map[policy.BackendsKey]*serviceSet
	ids  map[uint32]bool // taken
	last uint32          // id given out
}

// serviceSet are the backends of some frontends.
type serviceSet struct {
	key       policy.BackendsKey
	id        uint32
	slots     []bpf.Backend
	affinity  uint32
	members   map[bpf.Backend]uint32
	frontends map[policy.Frontend]struct{}
}

// probeFrontends are services without backends that nobody has: an address that
// never leads anywhere (RFC 7600, RFC 6666), where a connection is refused by the
// programs and by nobody else.
var probeFrontends = [...]netip.AddrPort{bpf.ServiceProbe4, bpf.ServiceProbe6}

func newServiceTables(k serviceKernel) *serviceTables {
	t := &serviceTables{
		services: newTable("services", k.services), backends: newTable("backends", k.backends),
		members: newTable("members", k.members), nodes: newTable("nodes", k.nodes),
		at: map[policy.Frontend]*serviceSet{}, sets: map[policy.BackendsKey]*serviceSet{}, ids: map[uint32]bool{0: true},
	}
	for _, p := range probeFrontends {
		t.services.set(bpf.ServiceKeyOf(p, bpf.ServiceProbeProtocol), bpf.Service{})
	}
	return t
}

// adopt reads what a predecessor left.
func (t *serviceTables) adopt() error {
	for _, adopt := range []func() error{t.services.adopt, t.backends.adopt, t.members.adopt, t.nodes.adopt} {
		if err := adopt(); err != nil {
			return err
		}
	}
	for _, s := range t.services.have {
		t.last = max(t.last, s.Id)
	}
	for s := range t.backends.have {
		t.last = max(t.last, s.Service)
	}
	return nil
}

// fold takes over what changed.
func (t *serviceTables) fold(services map[policy.Frontend]*policy.Backends, nodes map[netip.Addr]bool) {
	for a, serves := range nodes {
		if key := bpf.ServiceAddr(bpf.AddrOf(a)); serves {
			t.nodes.set(key, 1)
		} else {
			t.nodes.unset(key)
		}
	}
	changed := map[*serviceSet]bool{}
	// In order, so that the same objects give the same numbers.
	for _, f := range slices.SortedFunc(maps.Keys(services), policy.Frontend.Compare) {
		b := services[f]
		old := t.at[f]
		if old != nil && (b == nil || old.key != b.Key) {
			delete(old.frontends, f)
			delete(t.at, f)
			if b == nil {
				t.services.unset(frontendKey(f))
			}
			if len(old.frontends) == 0 {
				t.drop(old)
				delete(changed, old)
			}
		}
		if b == nil {
			continue
		}
		s := t.sets[b.Key]
		if s == nil {
			s = t.take(f, b.Key)
		}
		t.at[f], s.frontends[f] = s, struct{}{}
		if !changed[s] {
			changed[s] = true
			t.fill(s, b)
		}
	}
	for s := range changed {
		for f := range s.frontends {
			t.services.set(frontendKey(f), bpf.Service{Id: s.id, Count: uint32(len(s.slots)), Affinity: s.affinity})
		}
	}
}

func frontendKey(f policy.Frontend) bpf.ServiceKey {
	return bpf.ServiceKeyOf(netip.AddrPortFrom(f.Addr, f.Port), f.Protocol)
}

// take makes a set, with the number and slots that a predecessor gave it.
func (t *serviceTables) take(f policy.Frontend, key policy.BackendsKey) *serviceSet {
	s := &serviceSet{key: key, members: map[bpf.Backend]uint32{}, frontends: map[policy.Frontend]struct{}{}}
	if was, ok := t.services.have[frontendKey(f)]; ok && !t.ids[was.Id] {
		s.id = was.Id
		for n := range was.Count {
			b, ok := t.backends.have[bpf.Slot{Service: s.id, Number: n}]
			if !ok {
				break
			}
			s.slots = append(s.slots, b)
		}
	} else {
		for s.id = t.last + 1; t.ids[s.id]; s.id++ {
		}
		t.last = s.id
	}
	t.ids[s.id], t.sets[key] = true, s
	return s
}

// drop gives up a set that no frontend leads to.
func (t *serviceTables) drop(s *serviceSet) {
	t.fill(s, &policy.Backends{Key: s.key})
	delete(t.sets, s.key)
	delete(t.ids, s.id)
}

// fill gives a set its backends: those that stay keep their slots.
func (t *serviceTables) fill(s *serviceSet, b *policy.Backends) {
	members := make(map[bpf.Backend]uint32, len(b.Ready)+len(b.Draining))
	for _, a := range b.Draining {
		members[bpf.BackendOf(a)] = bpf.MemberDraining
	}
	fresh := make(map[bpf.Backend]bool, len(b.Ready))
	for _, a := range b.Ready {
		members[bpf.BackendOf(a)] = bpf.MemberReady
		fresh[bpf.BackendOf(a)] = true
	}
	var free []int
	for i, have := range s.slots {
		if fresh[have] {
			delete(fresh, have)
		} else {
			free = append(free, i)
		}
	}
	before := len(s.slots)
	for _, a := range b.Ready { // in order
		backend := bpf.BackendOf(a)
		if !fresh[backend] {
			continue
		}
		if len(free) > 0 {
			s.slots[free[0]], free = backend, free[1:]
		} else {
			s.slots = append(s.slots, backend)
		}
	}
	for _, i := range slices.Backward(free) { // the last one moves to each hole
		end := len(s.slots) - 1
		s.slots[i] = s.slots[end]
		s.slots = s.slots[:end]
	}
	for i, backend := range s.slots {
		t.backends.set(bpf.Slot{Service: s.id, Number: uint32(i)}, backend)
	}
	for i := len(s.slots); i < before; i++ {
		t.backends.unset(bpf.Slot{Service: s.id, Number: uint32(i)})
	}
	for backend := range s.members {
		if members[backend] == 0 {
			t.members.unset(bpf.Member{Service: s.id, Backend: backend})
		}
	}
	for backend, as := range members {
		t.members.set(bpf.Member{Service: s.id, Backend: backend}, as)
	}
	s.members = members
	s.affinity = affinitySeconds(b.Affinity)
}

func affinitySeconds(d time.Duration) uint32 {
	if d <= 0 {
		return 0
	}
	return uint32(max(d/time.Second, 1))
}

// realise brings the tables there: who serves before what leads to it, and what
// goes in the reverse order, so that no service leads to an empty slot. It
// returns the backends that do not serve any more.
func (t *serviceTables) realise() (gone []bpf.Member, err error) {
	for m := range t.members.open {
		if _, wanted := t.members.want[m]; wanted {
			continue
		}
		if _, there := t.members.have[m]; there {
			gone = append(gone, m)
		}
	}
	var errs []error
	step := func(_ int, err error) { errs = append(errs, err) }
	step(t.backends.update(nil))
	step(t.members.update(nil))
	step(t.nodes.update(nil))
	step(t.services.update(func(_ bpf.ServiceKey, s bpf.Service) bool { return !t.filled(s) }))
	step(t.services.prune(nil))
	step(t.nodes.prune(nil))
	step(t.members.prune(nil))
	step(t.backends.prune(func(s bpf.Slot) bool { return t.needed(s) }))
	return gone, errors.Join(errs...)
}

// filled tells whether all slots of a service are there.
func (t *serviceTables) filled(s bpf.Service) bool {
	if t.backends.err == nil {
		return true
	}
	for n := range s.Count {
		if _, ok := t.backends.have[bpf.Slot{Service: s.Id, Number: n}]; !ok {
			return false
		}
	}
	return true
}

// needed tells whether a row that could not be written or deleted leads to a
// slot still.
func (t *serviceTables) needed(s bpf.Slot) bool {
	if len(t.services.open) == 0 {
		return false
	}
	for _, row := range t.services.have {
		if row.Id == s.Service && s.Number < row.Count {
			return true
		}
	}
	return false
}
