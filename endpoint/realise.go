package endpoint

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy"
)

// kernel is the part of the datapath that is written here.
type kernel struct {
	numbers   store[bpf.Number, bpf.Digest]
	entries   store[bpf.PolicyKey, bpf.PolicyEntry]
	policies  store[uint32, bpf.PolicyInfo]
	ipcache   store[bpf.Prefix, bpf.Peer]
	devices   store[uint32, bpf.Device]
	endpoints store[bpf.Addr, bpf.Endpoint]
	// forget deletes the flows of these addresses.
	forget func(map[bpf.Addr]bool) error
	// attach and detach the programs of a pod's veth; repeats do no harm.
	attach, detach func(ifindex int) error
	// attached lists the interfaces with programs, a predecessor's included,
	// activate puts ours in their place.
	attached func() ([]int, error)
	activate func() error
	// revise makes every flow be judged again at its next packet.
	revise, revision func() uint32
}

// RuleSets takes the L7 rules to the proxy. It returns when a running proxy
// has them in force, or at once when none runs.
// Synced says, once, that the kernel speaks of no other sets than those given.
type RuleSets interface {
	SetRuleSets(ctx context.Context, upsert []*policy.RuleSet, remove []uint32) error
	Synced(ctx context.Context) error
}

// realiser holds what the tables are to say and brings them there.
type realiser struct {
	k     kernel
	rules RuleSets

	numbers   *table[bpf.Number, bpf.Digest]
	policies  *policies
	ipcache   *table[bpf.Prefix, bpf.Peer]
	devices   *table[uint32, bpf.Device]
	endpoints *table[bpf.Addr, bpf.Endpoint]

	ruleSets map[uint32]*policy.RuleSet
	rulesTo  map[uint32]bool // to be sent
	rulesOff map[uint32]bool // to be taken back

	pods     map[netip.Addr]*policy.Endpoint
	veths    map[int]Veth
	placed   map[netip.Addr]int
	cleared  map[bpf.Addr]bool // flows forgotten, row not written yet
	attached map[int]bool
	failed   map[int]error // attaching, by ifindex
	active   bool          // our programs are attached everywhere
	synced   bool          // the rule sets are known to be all
}

func newRealiser(k kernel, rules RuleSets) *realiser {
	return &realiser{
		k: k, rules: rules,
		numbers:   newTable("numbers", k.numbers),
		policies:  newPolicies(k.entries, k.policies),
		ipcache:   newTable("ipcache", k.ipcache),
		devices:   newTable("devices", k.devices),
		endpoints: newTable("endpoints", k.endpoints),
		ruleSets:  map[uint32]*policy.RuleSet{}, rulesTo: map[uint32]bool{}, rulesOff: map[uint32]bool{},
		pods: map[netip.Addr]*policy.Endpoint{}, veths: map[int]Veth{}, placed: map[netip.Addr]int{},
		cleared:  map[bpf.Addr]bool{},
		attached: map[int]bool{}, failed: map[int]error{},
	}
}

// adopt reads what a predecessor left in force, and returns the numbers it
// gave out.
func (r *realiser) adopt() (policy.Seeds, error) {
	for _, adopt := range []func() error{r.numbers.adopt, r.policies.adopt, r.ipcache.adopt, r.devices.adopt, r.endpoints.adopt} {
		if err := adopt(); err != nil {
			return policy.Seeds{}, err
		}
	}
	attached, err := r.k.attached()
	if err != nil {
		return policy.Seeds{}, err
	}
	for _, index := range attached {
		r.attached[index] = true
	}
	for a, e := range r.endpoints.have {
		r.placed[a.Netip()] = int(e.Ifindex)
	}
	seeds := policy.Seeds{
		Identities: map[uint32]identity.Digest{}, Policies: map[uint32]identity.Digest{},
		RuleSets: map[uint32]identity.Digest{}, Rules: map[uint32]identity.Digest{},
	}
	for n, d := range r.numbers.have {
		if m := seedsOf(&seeds, n.Kind); m != nil {
			m[n.Id] = identity.Digest(d.Sum)
		}
	}
	return seeds, nil
}

func seedsOf(s *policy.Seeds, kind uint32) map[uint32]identity.Digest {
	switch kind {
	case bpf.NumberIdentity:
		return s.Identities
	case bpf.NumberPolicy:
		return s.Policies
	case bpf.NumberRuleSet:
		return s.RuleSets
	case bpf.NumberRule:
		return s.Rules
	}
	return nil
}

var numberKinds = []uint32{bpf.NumberIdentity, bpf.NumberPolicy, bpf.NumberRuleSet, bpf.NumberRule}

// fold adds a difference to what is wanted.
func (r *realiser) fold(d policy.Delta) {
	for _, kind := range numberKinds {
		for id := range seedsOf(&d.Freed, kind) {
			r.numbers.unset(bpf.Number{Kind: kind, Id: id})
		}
		for id, digest := range seedsOf(&d.Numbers, kind) {
			r.numbers.set(bpf.Number{Kind: kind, Id: id}, bpf.Digest{Sum: digest})
		}
	}
	for id, set := range d.RuleSets {
		if set == nil {
			delete(r.ruleSets, id)
			delete(r.rulesTo, id)
			r.rulesOff[id] = true
			continue
		}
		r.ruleSets[id] = set
		r.rulesTo[id] = true
		delete(r.rulesOff, id)
	}
	for id, p := range d.Policies {
		r.policies.set(id, p)
	}
	for prefix, peer := range d.Prefixes {
		if peer.Identity == 0 {
			r.ipcache.unset(bpf.PrefixOf(prefix))
			continue
		}
		row := bpf.Peer{Identity: uint32(peer.Identity)}
		if peer.World {
			row.Flags = bpf.PeerWorld
		}
		r.ipcache.set(bpf.PrefixOf(prefix), row)
	}
	for a, e := range d.Endpoints {
		if e == nil {
			delete(r.pods, a)
		} else {
			r.pods[a] = e
		}
	}
}

// place computes the rows of endpoints and devices from the pods and the
// veths that are there.
func (r *realiser) place() {
	owners := make(map[netip.Addr]owner, len(r.pods))
	for a, e := range r.pods {
		owners[a] = owner{e.Namespace, e.Name, e.UID}
	}
	r.placed = match(owners, r.veths, r.placed)
	rows := make(map[bpf.Addr]bpf.Endpoint, len(r.placed))
	devices := make(map[uint32]bpf.Device, len(r.placed))
	for a, index := range r.placed {
		e, v := r.pods[a], r.veths[index]
		rows[bpf.AddrOf(a)] = bpf.Endpoint{
			Ifindex: uint32(index), Policy: e.Policy, Identity: uint32(e.Identity),
			PodMac: v.PodMAC, HostMac: v.HostMAC,
		}
		devices[uint32(index)] = bpf.Device{Policy: e.Policy, Identity: uint32(e.Identity)}
	}
	r.endpoints.replace(rows)
	r.devices.replace(devices)
}

// realise brings the tables to what is wanted: what is pointed to before what
// points to it, all additions before the deletions in the reverse order. It
// goes on after errors where that can only deny more; what is left undone is
// done by the next call. Without mayDelete nothing is taken away.
func (r *realiser) realise(ctx context.Context, mayDelete bool) error {
	var errs []error
	changed := 0
	count := func(n int, err error) {
		changed += n
		if err != nil {
			errs = append(errs, err)
		}
	}
	if _, err := r.numbers.update(nil); err != nil {
		return err // a successor must know the numbers that are in use
	}
	rulesErr := r.sendRules(ctx)
	count(r.policies.update())
	if len(r.policies.stuck) > 0 && mayDelete {
		count(0, r.policies.makeRoom(r.pointedTo))
		count(r.policies.update())
	}
	count(r.ipcache.update(nil))
	count(r.clearMoved())
	count(r.devices.update(func(index uint32, d bpf.Device) bool {
		_, there := r.devices.have[index]
		return there && !r.policies.usable(d.Policy) // better the old one
	}))
	count(0, r.attachAll())
	count(r.endpoints.update(r.holdEndpoint))
	for a := range r.cleared {
		if _, open := r.endpoints.open[a]; !open {
			delete(r.cleared, a)
		}
	}
	r.bump(changed)

	if mayDelete {
		changed = 0
		count(r.endpoints.prune(nil))
		stuck, err := r.detachAll()
		count(0, err)
		count(r.devices.prune(func(index uint32) bool { return stuck[index] }))
		count(r.ipcache.prune(nil))
		count(r.policies.prune())
		r.bump(changed)
		if len(errs) == 0 && rulesErr == nil {
			rulesErr = r.takeRules(ctx)
		}
	}
	if rulesErr == nil {
		rulesErr = r.syncRules(ctx)
	}
	if rulesErr != nil {
		errs = append(errs, rulesErr)
	}
	if len(errs) == 0 && mayDelete {
		// Only when nothing can stand for them any more.
		_, err := r.numbers.prune(nil)
		return err
	}
	return errors.Join(errs...)
}

func (r *realiser) bump(changed int) {
	if changed > 0 {
		r.k.revise()
	}
}

// rulesTimeout keeps a proxy that hangs from holding up what the kernel
// enforces. A rule set it does not know it denies.
const rulesTimeout = 2 * time.Second

func (r *realiser) sendRules(ctx context.Context) error {
	if len(r.rulesTo) == 0 {
		return nil
	}
	ids := keysOf(r.rulesTo)
	slices.Sort(ids)
	sets := make([]*policy.RuleSet, len(ids))
	for i, id := range ids {
		sets[i] = r.ruleSets[id]
	}
	ctx, cancel := context.WithTimeout(ctx, rulesTimeout)
	defer cancel()
	if err := r.rules.SetRuleSets(ctx, sets, nil); err != nil {
		return fmt.Errorf("send %d rule sets to the proxy: %w", len(sets), err)
	}
	clear(r.rulesTo)
	return nil
}

func (r *realiser) takeRules(ctx context.Context) error {
	if len(r.rulesOff) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, rulesTimeout)
	defer cancel()
	if err := r.rules.SetRuleSets(ctx, nil, slices.Sorted(maps.Keys(r.rulesOff))); err != nil {
		return fmt.Errorf("take %d rule sets from the proxy: %w", len(r.rulesOff), err)
	}
	clear(r.rulesOff)
	return nil
}

// syncRules tells the proxy that it has all rule sets, as soon as no entry in
// the kernel names another.
func (r *realiser) syncRules(ctx context.Context) error {
	if r.synced {
		return nil
	}
	for _, entries := range r.policies.have {
		for _, e := range entries {
			if e.RuleSet != 0 && r.ruleSets[e.RuleSet] == nil {
				return nil
			}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, rulesTimeout)
	defer cancel()
	if err := r.rules.Synced(ctx); err != nil {
		return fmt.Errorf("tell the proxy that it has all rule sets: %w", err)
	}
	r.synced = true
	return nil
}

func (r *realiser) pointedTo(id uint32) bool {
	for _, e := range r.endpoints.have {
		if e.Policy == id {
			return true
		}
	}
	for _, d := range r.devices.have {
		if d.Policy == id {
			return true
		}
	}
	return false
}

// attachAll attaches the programs to the veths of pods, once each.
func (r *realiser) attachAll() error {
	var errs []error
	clear(r.failed)
	for index := range r.devices.want {
		i := int(index)
		if _, there := r.devices.have[index]; !there || r.attached[i] {
			continue
		}
		if err := r.k.attach(i); err != nil {
			r.failed[i] = err
			errs = append(errs, fmt.Errorf("attach to %s: %w", r.veths[i].Name, err))
			continue
		}
		r.attached[i] = true
	}
	return errors.Join(errs...)
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
