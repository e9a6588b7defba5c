package policy

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy/api"
)

// Engine holds the objects of a cluster and computes from them what the
// kernel's tables of one node must say. It is not safe for concurrent use.
type Engine struct {
	nodeName string

	pods       map[Object]*pod
	byNS       map[string]map[*pod]struct{} // pods by namespace
	namespaces map[string]map[string]string // labels
	nodes      map[string]*Node
	services   map[Object]*service
	slices     map[Object]*EndpointSlice
	policies   map[Object]*policyObject
	scoped     map[string][]*policyObject // by namespace, "" the clusterwide ones; ordered
	groups     map[string]*cidrGroup
	groupsSeen uint64 // counts changes of groups
	nodeKeys   map[string]int

	claims    *claims
	blocks    *blockTable
	prefixes  *prefixTable
	endpoints map[netip.Addr]*Endpoint
	peers     *peerTable
	selectors *selectorTable
	ruleSets  *ruleSetTable
	subjects  map[identity.Digest]*subject
	names     *nameTable
	pairs     map[pairKey]*pair
	resolvers *resolvers
	frontends *frontends
	fronts    *frontTable
	hostPorts *hostPortTable
	dnsBehind *dnsBehind
	strangers *strangers
	// host is this node as a subject, failsafe what its policies are not asked
	// about.
	host     hostPolicy
	failsafe []Failsafe
	// apiServerHere: the API server has an address of this node.
	apiServerHere bool

	policyNumbers *numbering
	rules         *ruleTable

	delta Delta
	dirty dirty
	// askedOf are pods that questions were about and no table is.
	askedOf map[identity.Digest]*subject
}

// dirty is what a batch of changes touched so far.
type dirty struct {
	policies map[Object]*api.Policy // new value; nil: gone
	again    map[Object]struct{}    // policies to translate anew
	pods     map[*pod]struct{}
	services map[*service]struct{}
	dns      bool // among them are some that lead, or led, to DNS at other ports
	subjects map[*subject]*policyChange
	nodeKeys map[string]struct{}
}

func newDirty() dirty {
	return dirty{policies: map[Object]*api.Policy{}, again: map[Object]struct{}{}, pods: map[*pod]struct{}{},
		services: map[*service]struct{}{}, subjects: map[*subject]*policyChange{}, nodeKeys: map[string]struct{}{}}
}

// pod is a pod as the engine keeps it.
type pod struct {
	object  Object
	src     *Pod
	gone    bool
	peer    *peer    // by its labels; nil: on the host network, or without address
	held    bool     // the peer is in the tables whether some address has it or not
	subject *subject // nil: not of this node
}

func (p *pod) newer(q *pod) bool {
	if p.src.Deleting != q.src.Deleting {
		return q.src.Deleting
	}
	return cmp.Or(cmp.Compare(p.src.Created, q.src.Created), compareObjects(q.object, p.object)) > 0
}

func compareObjects(a, b Object) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// NewEngine makes an engine that knows no object.
func NewEngine(o Options) (*Engine, error) {
	ids := newNumbering(uint32(identity.FirstLocal), o.Seeds.Identities)
	return &Engine{
		nodeName: o.NodeName, failsafe: o.Failsafe,
		pods: map[Object]*pod{}, byNS: map[string]map[*pod]struct{}{}, namespaces: map[string]map[string]string{},
		nodes: map[string]*Node{}, services: map[Object]*service{}, slices: map[Object]*EndpointSlice{},
		policies: map[Object]*policyObject{}, scoped: map[string][]*policyObject{}, groups: map[string]*cidrGroup{}, nodeKeys: map[string]int{},
		claims: newClaims(), blocks: newBlockTable(), prefixes: newPrefixTable(), endpoints: map[netip.Addr]*Endpoint{},
		peers: newPeerTable(ids), selectors: newSelectorTable(), ruleSets: newRuleSetTable(newNumbering(1, o.Seeds.RuleSets)),
		subjects: map[identity.Digest]*subject{}, names: newNameTable(), pairs: map[pairKey]*pair{}, resolvers: newResolvers(o), frontends: newFrontends(), fronts: newFrontTable(), hostPorts: newHostPortTable(), dnsBehind: newDNSBehind(), strangers: newStrangers(),
		policyNumbers: newNumbering(1, o.Seeds.Policies), rules: newRuleTable(newNumbering(1, o.Seeds.Rules)),
		dirty: newDirty(), askedOf: map[identity.Digest]*subject{},
	}, nil
}

// Apply takes a batch of changes and returns what it made of the tables. A
// change that makes no sense is left out and reported; all others count, so
// the Delta holds with an error, too.
func (e *Engine) Apply(changes []Change) (Delta, error) {
	e.delta = Delta{Prefixes: map[netip.Prefix]Peer{}, Policies: map[uint32]*Resolved{},
		Endpoints: map[netip.Addr]*Endpoint{}, Names: map[identity.ID]*NameSet{}, Pairs: map[Pair]identity.ID{}, Strangers: map[string]*Guess{}}
	clear(e.askedOf)
	var errs []error
	for _, c := range changes {
		if err := e.take(c); err != nil {
			errs = append(errs, fmt.Errorf("apply %s %s/%s: %w", c.Object.Kind, c.Object.Namespace, c.Object.Name, err))
		}
	}
	errs = append(errs, e.settle())
	e.delta.RuleSets = e.ruleSets.flush()
	for _, n := range [...]struct {
		n            *numbering
		fresh, freed *map[uint32]identity.Digest
	}{
		{e.peers.numbers, &e.delta.Numbers.Identities, &e.delta.Freed.Identities},
		{e.policyNumbers, &e.delta.Numbers.Policies, &e.delta.Freed.Policies},
		{e.ruleSets.numbers, &e.delta.Numbers.RuleSets, &e.delta.Freed.RuleSets},
		{e.rules.numbers, &e.delta.Numbers.Rules, &e.delta.Freed.Rules},
	} {
		*n.fresh, *n.freed = n.n.flush()
	}
	d := e.delta
	e.delta, e.dirty = Delta{}, newDirty()
	return d, errors.Join(errs...)
}

// DropUnusedSeeds frees the numbers of Options.Seeds that no object needed.
// Call it once all objects of the cluster were applied; the next Delta's Freed
// names them.
func (e *Engine) DropUnusedSeeds() {
	for _, n := range [...]*numbering{e.peers.numbers, e.policyNumbers, e.ruleSets.numbers, e.rules.numbers} {
		n.releaseUnused()
	}
}

// Rule names the rule behind a number of an Entry or a RuleSet; nil if it is
// not known. What it points to is never changed, by the caller neither: a rule
// that moved is another RuleRef from the Apply on that moved it.
func (e *Engine) Rule(id uint32) *RuleRef {
	at := e.rules.at[id]
	if at == nil {
		return nil
	}
	if at.ref == nil {
		ref := at.policy.ref(at.path)
		at.ref = &ref
	}
	return at.ref
}

// settle computes everything that follows from what take noted.
func (e *Engine) settle() error {
	var errs []error
	note := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	e.settlePolicies()
	note(e.settleNode())
	note(e.settleNames())
	for key := range e.dirty.nodeKeys {
		e.touchNodes(key)
	}
	note(e.settlePods())
	e.settleStrangers()
	e.settleHost()
	e.settleBlocks()
	e.settleNodeAddresses()
	e.settleHostPorts()
	changed, err := e.settlePrefixes()
	note(err)
	e.servicesBehind(changed)
	e.servicesOfPods(changed)
	e.touchBehind(changed)
	note(e.settleFronts())
	for s := range e.dirty.services {
		s.peer = e.peers.held(newServicePeer(s.object))
		e.lookBehind(s)
		dns := s.leadsToDNS()
		e.dirty.dns = e.dirty.dns || s.dns || dns
		s.dns = dns
		e.settleFrontends(s)
		if s.src == nil && len(s.slices) == 0 {
			delete(e.services, s.object)
		}
	}
	for f := range e.hostPorts.touched {
		e.tellFrontend(f)
		e.dirty.dns = e.dirty.dns || onePort(f.Protocol, f.Port).isDNS()
	}
	clear(e.hostPorts.touched)
	e.settleDNSBehind()
	e.settleResolvers()
	added, removed := e.peers.sweep()
	e.selectors.update(added, removed)
	bySubject := func(a, b *subject) int { return cmp.Compare(a.id, b.id) }
	for _, s := range slices.SortedFunc(maps.Values(e.subjects), bySubject) {
		change, changed := e.dirty.subjects[s]
		if !changed {
			if s.nothingToDo() && len(removed)+len(e.dirty.services) == 0 && !e.dirty.dns {
				continue
			}
			change = &policyChange{}
		}
		note(e.follow(s, *change, removed, e.dirty.services))
	}
	e.settlePairs()
	note(e.settleUnions())
	note(e.settleHostPolicy())
	return errors.Join(errs...)
}

// servicesBehind notes the services whose backends or cluster IPs are other
// peers now.
func (e *Engine) servicesBehind(changed []netip.Prefix) {
	for _, p := range changed {
		if p.IsSingleIP() {
			for s := range e.claims.backends[p.Addr()] {
				e.dirty.services[s] = struct{}{}
			}
			for _, s := range e.claims.services[p.Addr()] {
				e.dirty.services[s] = struct{}{}
			}
			continue
		}
		for _, s := range e.services {
			if s.outside {
				e.dirty.services[s] = struct{}{}
			}
		}
	}
}

// servicesOfPods notes the services that find their pods by selector, where
// pods changed, or addresses that some pod of them may have.
func (e *Engine) servicesOfPods(changed []netip.Prefix) {
	if len(e.dirty.pods)+len(changed) == 0 {
		return
	}
	for _, s := range e.services {
		if s.bySelector() {
			e.dirty.services[s] = struct{}{}
		}
	}
}

// settlePods brings pods' identities and policies up to date. What is new is
// taken before what was is let go, so that numbers stay where pods with the
// same labels come and go together.
func (e *Engine) settlePods() error {
	type held struct {
		peer    *peer
		subject *subject
	}
	var before []held
	var errs []error
	for p := range e.dirty.pods {
		if p.held {
			before = append(before, held{p.peer, p.subject})
		}
		p.peer, p.subject, p.held = nil, nil, false
		if p.gone {
			continue
		}
		for _, a := range p.src.Addresses {
			e.claims.touch(a)
		}
		local := e.isLocal(p.src)
		if p.src.HostNetwork || !local && len(p.src.Addresses) == 0 {
			continue
		}
		if p.peer = e.podPeer(p.src); !local {
			continue
		}
		var err error
		if p.peer, err = e.peers.acquire(p.peer); err == nil {
			p.held = true
			p.subject, err = e.subjectOf(p.peer)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("pod %s/%s: %w", p.src.Namespace, p.src.Name, err))
		}
	}
	for _, h := range before {
		e.dropSubject(h.subject)
		e.peers.release(h.peer)
	}
	return errors.Join(errs...)
}

func (e *Engine) podPeer(p *Pod) *peer {
	return newPodPeer(p.Namespace, identity.PodLabels(p.Namespace, e.namespaces[p.Namespace], p.ServiceAccount, p.Labels), p.Ports)
}

// subjectOf finds or makes the subject of a local pod, and counts the pod.
func (e *Engine) subjectOf(p *peer) (*subject, error) {
	if s, ok := e.subjects[p.digest]; ok {
		s.pods++
		return s, nil
	}
	id, err := e.policyNumbers.get(p.digest)
	if err != nil {
		return nil, fmt.Errorf("number a policy: %w", err)
	}
	s := &subject{peer: p, id: id, pods: 1}
	e.subjects[p.digest] = s
	return s, nil
}

func (e *Engine) dropSubject(s *subject) {
	if s == nil {
		return
	}
	if s.pods--; s.pods > 0 {
		return
	}
	for _, f := range s.directions {
		e.letGo(f)
	}
	delete(e.subjects, s.peer.digest)
	delete(e.dirty.subjects, s)
	if s.resolved != nil {
		e.delta.Policies[s.id] = nil
	}
	e.policyNumbers.release(s.id)
}
