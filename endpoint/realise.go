package endpoint

import (
	"context"
	"errors"
	"net/netip"

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
	fronts    store[bpf.FrontKey, bpf.Front]
	devices   store[uint32, bpf.Device]
	endpoints store[bpf.Addr, bpf.Endpoint]
	names     store[uint32, uint32]
	pairs     store[bpf.Pair, uint32]
	// forget deletes the flows of these addresses.
	forget func(map[bpf.Addr]bool) error
	// unname deletes the rows that say that an address has one of these
	// identities by its names.
	unname func(map[uint32]bool) error
	// attach and detach the programs of a pod's veth; repeats do no harm.
	attach, detach func(ifindex int) error
	// attached lists the interfaces with programs, a predecessor's included,
	// activate puts ours in their place.
	attached func() ([]int, error)
	// sent counts the packets that came out of a veth since it was made.
	sent     func(ifindex int) (uint64, error)
	activate func() error
	// overtaken lists where others' programs run before ours; attach helps, if
	// anything does.
	overtaken func() ([]bpf.Overtaken, error)
	host      hostKernel
	// revise makes every flow be judged again at its next packet.
	revise, revision func() uint32
}

// realiser holds what the tables are to say and brings them there.
type realiser struct {
	k kernel

	numbers   *table[bpf.Number, bpf.Digest]
	policies  *policies
	ipcache   *table[bpf.Prefix, bpf.Peer]
	fronts    *table[bpf.FrontKey, bpf.Front]
	devices   *table[uint32, bpf.Device]
	endpoints *table[bpf.Addr, bpf.Endpoint]
	names     *table[uint32, uint32]
	pairs     *table[bpf.Pair, uint32]

	ruleSets *ruleSets
	nameSets *nameSets
	// mayBeNames are identities that addresses may have had by their names: all
	// of a predecessor's, and those that were names' here.
	mayBeNames map[uint32]bool

	pods     map[netip.Addr]*policy.Endpoint
	veths    map[int]Veth
	owners   map[netip.Addr]owner // of pods, as of the last place
	placed   map[netip.Addr]int
	vacated  map[netip.Addr]owner // pods that are being deleted and whose veth is gone
	cleared  map[bpf.Addr]bool    // flows forgotten, row not written yet
	attached map[int]bool
	failed   map[int]error // attaching, by ifindex
	// unattached counts veths that were left to the next pass.
	unattached int
	// strangers are veths of pods that are not known yet, or not any more.
	strangers map[int]*stranger
	// inside is what was seen of processes behind veths; insiders the UIDs of
	// their pods, where that tells whose they are.
	inside   map[int]insideVeth
	insiders map[int][]string
	// unguarded is told what came out of a veth before it had the programs, and
	// whether that was made while an agent ran.
	unguarded func(packets uint64, live bool)
	active    bool // our programs are attached everywhere
	host      hostGuard
}

func newRealiser(k kernel, rules RuleSets) *realiser {
	return &realiser{
		k:         k,
		numbers:   newTable("numbers", k.numbers),
		policies:  newPolicies(k.entries, k.policies),
		ipcache:   newTable("ipcache", k.ipcache),
		fronts:    newTable("fronts", k.fronts),
		devices:   newTable("devices", k.devices),
		endpoints: newTable("endpoints", k.endpoints),
		names:     newTable("names", k.names),
		pairs:     newTable("pairs", k.pairs),
		ruleSets:  newRuleSets(rules),
		nameSets:  newNameSets(),
		pods:      map[netip.Addr]*policy.Endpoint{}, veths: map[int]Veth{}, placed: map[netip.Addr]int{}, vacated: map[netip.Addr]owner{},
		cleared: map[bpf.Addr]bool{}, mayBeNames: map[uint32]bool{},
		attached: map[int]bool{}, failed: map[int]error{}, strangers: map[int]*stranger{}, inside: map[int]insideVeth{}, insiders: map[int][]string{}, unguarded: func(uint64, bool) {},
		host: hostGuard{k: k.host, attached: map[int]bool{}},
	}
}

// adopt reads what a predecessor left in force, and returns the numbers it
// gave out.
func (r *realiser) adopt() (policy.Seeds, error) {
	for _, adopt := range []func() error{r.numbers.adopt, r.policies.adopt, r.ipcache.adopt, r.fronts.adopt, r.devices.adopt, r.endpoints.adopt, r.names.adopt, r.pairs.adopt, r.host.adopt} {
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
		r.numbers.set(n, d) // stays until the engine frees it
		if m := seedsOf(&seeds, n.Kind); m != nil {
			m[n.Id] = identity.Digest(d.Sum)
		}
		if n.Kind == bpf.NumberIdentity {
			r.mayBeNames[n.Id] = true
		}
	}
	r.blockUnrecorded(&seeds)
	return seeds, nil
}

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
		r.ruleSets.set(id, set)
	}
	for id, set := range d.Names {
		if r.nameSets.set(id, set); set == nil {
			r.names.unset(uint32(id))
		} else {
			r.names.set(uint32(id), 1)
			r.mayBeNames[uint32(id)] = true
		}
	}
	for p, id := range d.Pairs {
		if row := (bpf.Pair{Outside: uint32(p.Outside), Names: uint32(p.Names)}); id == 0 {
			r.pairs.unset(row)
		} else {
			r.pairs.set(row, uint32(id))
		}
	}
	if d.Resolvers != nil {
		r.nameSets.cluster = d.Resolvers
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
			row.Flags |= bpf.PeerWorld
		}
		if peer.Host {
			row.Flags |= bpf.PeerHost
		}
		if peer.Node {
			row.Flags |= bpf.PeerNode
		}
		r.ipcache.set(bpf.PrefixOf(prefix), row)
	}
	for at, to := range d.Fronts {
		key := bpf.FrontKeyOf(netip.AddrPortFrom(at.Addr, at.Port), at.Protocol)
		if to == nil {
			r.fronts.unset(key)
		} else {
			r.fronts.set(key, bpf.Front{Identity: uint32(to.Identity), Port: to.Port})
		}
	}
	if d.Host != nil {
		r.host.want = *d.Host
	}
	for name, g := range d.Strangers {
		r.guessed(name, g)
	}
	for a, e := range d.Endpoints {
		if e == nil {
			delete(r.pods, a)
		} else {
			r.pods[a] = e
		}
	}
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
	_, numbersErr := r.numbers.update(nil)
	count(r.closeNew())
	rulesErr := r.ruleSets.update(ctx, r.unrecorded)
	count(r.policies.update())
	if len(r.policies.stuck) > 0 && mayDelete {
		count(0, r.policies.makeRoom(r.pointedTo))
		count(r.policies.update())
	}
	count(r.ipcache.update(nil))
	count(r.fronts.update(nil))
	// What an address is known as comes when its entries are there.
	count(r.pairs.update(nil))
	count(r.names.update(nil))
	namesErr := r.nameSets.update(ctx)
	count(r.clearMoved())
	count(r.devices.update(func(index uint32, d bpf.Device) bool {
		_, there := r.devices.have[index]
		return there && !r.policies.usable(d.Policy) // better the old one
	}))
	count(r.attachAll())
	count(r.host.enforce(r.policies.usable))
	count(r.endpoints.update(r.holdEndpoint))
	for a := range r.cleared {
		if _, open := r.endpoints.open[a]; !open {
			delete(r.cleared, a)
		}
	}
	r.bump(changed)

	if mayDelete {
		changed = 0
		count(r.host.prune())
		count(r.endpoints.prune(nil))
		stuck, err := r.detachAll()
		count(0, err)
		count(r.devices.prune(func(index uint32) bool { return stuck[index] }))
		count(r.fronts.prune(nil))
		count(r.ipcache.prune(nil))
		if namesErr == nil {
			namesErr = r.nameSets.prune(ctx)
		}
		// Though the proxy may not answer: no address is then believed to be one
		// of these.
		count(r.names.prune(nil))
		count(r.pairs.prune(nil))
		count(r.policies.prune())
		r.bump(changed)
		if len(errs) == 0 && rulesErr == nil {
			rulesErr = r.ruleSets.prune(ctx)
		}
	}
	if namesErr != nil {
		errs = append(errs, namesErr)
	}
	if rulesErr == nil && namesErr == nil && len(r.ruleSets.add) == 0 && r.knowsAllRules() {
		rulesErr = r.ruleSets.sync(ctx)
	}
	if rulesErr != nil {
		errs = append(errs, rulesErr)
	}
	if mayDelete {
		if err := r.pruneNumbers(len(errs) == 0, numbersErr != nil); err != nil {
			return errors.Join(append(errs, err)...)
		}
	}
	if numbersErr == nil {
		return errors.Join(errs...)
	}
	// What was given back has made room.
	if _, err := r.numbers.update(nil); err != nil {
		return errors.Join(append(errs, err)...)
	}
	return r.realise(ctx, mayDelete) // with what waited for a number
}

func (r *realiser) bump(changed int) {
	if changed > 0 {
		r.k.revise()
	}
}

// knowsAllRules tells whether the kernel names no rule set of a predecessor's
// only.
func (r *realiser) knowsAllRules() bool {
	if r.ruleSets.synced {
		return true
	}
	for _, h := range r.policies.have {
		for _, e := range h.entries {
			if e.RuleSet != 0 && r.ruleSets.want[e.RuleSet] == nil {
				return false
			}
		}
	}
	return true
}

func (r *realiser) pointedTo(id uint32) bool {
	if r.host.pointedTo(id) {
		return true
	}
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
