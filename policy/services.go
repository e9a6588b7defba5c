package policy

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy/api"
)

// service is a service with what is behind it.
type service struct {
	object  Object
	src     *Service
	peer    *peer // its cluster IPs; nil if it has none
	slices  map[Object]*EndpointSlice
	targets []target // one for each of its ports
	// frontends it claims, and where they lead.
	frontends map[Frontend]*Backends
	claims    map[Frontend]frontClaim
	front     *peer // held for its fronts; nil if it has none
	dns       bool  // it leads to DNS at another port than 53
	outside   bool  // some backend's identity is that of a prefix, not of its address
}

// target is where a port of a service leads.
type target struct {
	proto    uint8
	port     uint16
	backends []backend // each once
}

type backend struct {
	peer *peer
	port uint16
	node string     // where the first of them is
	addr netip.Addr // of the first of them
}

func (s *service) name() string { return s.object.Namespace + "/" + s.object.Name }

// podSelector selects what the service selects.
func (s *service) podSelector() identity.Selector {
	sel := identity.Selector{{Source: identity.SourceK8s, Key: identity.KeyNamespace, Operator: identity.In, Values: []string{s.object.Namespace}}}
	for _, k := range slices.Sorted(maps.Keys(s.src.Selector)) {
		sel = append(sel, identity.Requirement{Source: identity.SourceK8s, Key: k, Operator: identity.In, Values: []string{s.src.Selector[k]}})
	}
	return sel
}

// addresses lists the endpoints, in order.
func (s *service) addresses() []netip.Addr {
	var out []netip.Addr
	for _, sl := range s.slices {
		for _, a := range sl.Addresses {
			out = append(out, a.Unmap())
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// servicesNamed finds the services a toServices item means, in order.
func (e *Engine) servicesNamed(want api.Service) []*service {
	var out []*service
	means := meansService(want)
	for _, s := range e.services {
		if s.src != nil && means(s.object, s.src) {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b *service) int { return compareObjects(a.object, b.object) })
	return out
}

// meansService tells which services a toServices item means. A selector wins over
// a name; no namespace is any.
func meansService(want api.Service) func(Object, *Service) bool {
	switch {
	case want.K8sServiceSelector != nil:
		sel := selectorOf(&want.K8sServiceSelector.Selector, api.SourceAny)
		for i := range sel {
			sel[i].Source = identity.SourceAny // services' labels have no source
		}
		namespace := want.K8sServiceSelector.Namespace
		return func(o Object, s *Service) bool {
			if namespace != "" && namespace != o.Namespace {
				return false
			}
			labels := make([]identity.Label, 0, len(s.Labels))
			for k, v := range s.Labels {
				labels = append(labels, identity.Label{Source: identity.SourceK8s, Key: k, Value: v})
			}
			return sel.Matches(identity.NewLabels(labels...))
		}
	case want.K8sService != nil:
		namespace, name := want.K8sService.Namespace, want.K8sService.ServiceName
		return func(o Object, _ *Service) bool {
			return o.Name == name && (namespace == "" || namespace == o.Namespace)
		}
	}
	return func(Object, *Service) bool { return false }
}

// lookBehind finds the backends of each port of a service.
func (e *Engine) lookBehind(s *service) {
	s.targets, s.outside = nil, false
	if s.src == nil {
		return
	}
	for _, sp := range s.src.Ports {
		t := target{proto: sp.Protocol, port: sp.Port}
		e.behind(s, &sp, func(a netip.Addr, port uint16) {
			at, exact := e.prefixes.lookup(a)
			s.outside = s.outside || !exact
			b := backend{at, port, e.nodeOf(a), a.Unmap()}
			if !slices.ContainsFunc(t.backends, func(o backend) bool { return o.peer == b.peer && o.port == b.port }) {
				t.backends = append(t.backends, b)
			}
		})
		s.targets = append(s.targets, t)
	}
}

// behind shows where a port of a service leads, in order.
func (e *Engine) behind(s *service, sp *ServicePort, add func(netip.Addr, uint16)) {
	for _, name := range slices.SortedFunc(maps.Keys(s.slices), compareObjects) {
		sl := s.slices[name]
		for _, p := range sl.Ports {
			// A single port needs no name, and its slices may have one.
			alone := len(s.src.Ports) == 1 && sp.Name == ""
			if p.Protocol != sp.Protocol || p.Name != sp.Name && !alone {
				continue
			}
			for _, a := range sl.Addresses {
				add(a, p.Port)
			}
		}
	}
	if !s.bySelector() {
		return
	}
	for _, p := range e.selectedBy(s) {
		for _, a := range p.src.Addresses {
			for _, port := range sp.in(p.src) {
				add(a, port)
			}
		}
	}
}

// bySelector tells whether the service's backends are found by its selector:
// nobody has written down its endpoints.
func (s *service) bySelector() bool {
	return s.src != nil && len(s.slices) == 0 && len(s.src.Selector) > 0
}

// selectedBy lists the pods that a service selects, in order.
func (e *Engine) selectedBy(s *service) []*pod {
	var out []*pod
pods:
	for p := range e.byNS[s.object.Namespace] {
		for k, v := range s.src.Selector {
			if has, ok := p.src.Labels[k]; !ok || has != v {
				continue pods
			}
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b *pod) int { return compareObjects(a.object, b.object) })
	return out
}

// in returns the ports of a pod that a service's port leads to.
func (sp *ServicePort) in(p *Pod) []uint16 {
	switch {
	case sp.TargetName != "":
		var out []uint16
		for _, np := range p.Ports {
			if np.Name == sp.TargetName && np.Protocol == sp.Protocol {
				out = append(out, np.Port)
			}
		}
		return out
	case sp.TargetPort != 0:
		return []uint16{sp.TargetPort}
	}
	return []uint16{sp.Port}
}

// nodeOf names the node that an address is on or of; "" if that is not known.
func (e *Engine) nodeOf(a netip.Addr) string {
	a = a.Unmap()
	if e.onHost(a) {
		return e.nodeName
	}
	if p := e.claims.owner(a); p != nil {
		return p.src.Node
	}
	names := e.claims.nodes[a]
	if _, ok := names[e.nodeName]; ok || len(names) == 0 {
		return e.nodeName
	}
	return slices.Min(slices.Collect(maps.Keys(names)))
}

// concerned tells whether what an update left undone may change what is said
// about the service.
func (s *service) concerned(u updated) bool {
	if u.forAny || u.restricts {
		return true
	}
	if _, ok := u.peers[s.peer]; ok {
		return true
	}
	for _, t := range s.targets {
		for _, b := range t.backends {
			if _, ok := u.peers[b.peer]; ok {
				return true
			}
		}
	}
	return false
}

// judgeTarget tells what an egress policy says about a port of a service: what
// it says about every backend, if that is one and the same. mixed is true where
// backends differ, or where there is none to ask and some rule restricts what
// others allow.
func (f *enforcement) judgeTarget(t target, judge func(backend) (Entry, bool)) (e Entry, ok, mixed bool) {
	if len(t.backends) == 0 {
		if f.restricts() {
			return Entry{}, false, true
		}
		e, ok = Lookup(f.forAny.entries(Egress), Egress, nil, 0, 0)
		return e, ok, false
	}
	for i, b := range t.backends {
		be, bok := judge(b)
		switch {
		case i == 0:
			e, ok = be, bok
		case f.compiler.passesAll(e) && f.compiler.passesAll(be):
			if be.Action == Redirect { // seen at one, so seen at all
				e = be
			}
		case bok != ok || be.Action != e.Action || be.RuleSet != e.RuleSet || be.Reason != e.Reason:
			return Entry{}, false, true
		}
	}
	return e, ok, false
}

func (t template) entries(d Direction) map[Key]Entry {
	m := make(map[Key]Entry, len(t))
	t.write(m, d, identity.Any)
	return m
}

// clusterTemplate makes the entries for a service's cluster IP from those for
// its backends.
func (s *subject) clusterTemplate(svc *service, entries map[Key]Entry) (template, error) {
	f := s.directions[Egress]
	if !f.enforced || f.closed != nil {
		return nil, nil
	}
	var out template
	for _, t := range svc.targets {
		e, ok, mixed := f.judgeTarget(t, func(b backend) (Entry, bool) {
			if _, named := f.perPeer[b.peer]; !named && len(f.forAny) == 0 {
				return Entry{}, false
			}
			return Lookup(entries, Egress, []identity.ID{b.peer.id}, t.proto, b.port)
		})
		at := onePort(t.proto, t.port)
		// What the rules for everybody say holds for the cluster IP anyway.
		var byAll Entry
		allOK := false
		if len(f.forAny) > 0 {
			byAll, allOK = Lookup(entries, Egress, nil, t.proto, t.port)
		}
		if !mixed && ok && e.Action == Allow && f.compiler.observes && at.isDNS() {
			// The backends have another port, where nothing is looked at (isFew).
			var err error
			if e, err = f.compiler.seen(e.Rule); err != nil {
				return nil, err
			}
		}
		switch {
		case mixed || !ok:
			// Where nothing is allowed anyway that says it; but of backends some may be.
			if byAll.Action != Deny && (allOK || mixed && len(t.backends) > 0) {
				out = append(out, entryFor{at, Entry{Action: Refuse, Reason: RefusedBackends}})
			}
		case !allOK || byAll != e:
			if e.Action == Allow && allOK && byAll.Action != Allow {
				// An allow would not be found before what is said for everybody.
				var err error
				if e, err = f.compiler.passOver(byAll, e, at); err != nil {
					return nil, err
				}
			}
			out = append(out, entryFor{at, e})
		}
	}
	return out, nil
}

// judgeCluster brings the entries for a service's cluster IP up to date with
// those for its backends, which are current.
func (e *Engine) judgeCluster(s *subject, svc *service, ed *edit) error {
	p := svc.peer
	if p == nil {
		return nil
	}
	t, err := s.clusterTemplate(svc, ed.entries)
	old := s.services[p]
	if err != nil || len(t)+len(old) == 0 {
		return err
	}
	// Denies that name the service itself stay in place. Where they went, they
	// took along what stood at the same place.
	named := s.directions[Egress].perPeer[p]
	if len(named) == 0 && slices.Equal(old, t) && t.in(ed.entries, Egress, p.id) {
		return nil
	}
	ed.erase(old, Egress, p.id)
	ed.write(named, Egress, p.id)
	for _, en := range t {
		k := en.key(Egress, p.id)
		if was, ok := ed.entries[k]; !ok || was.Action != Deny {
			ed.put(k, en.entry)
		}
	}
	if len(t) > 0 {
		s.services[p] = t
	} else {
		delete(s.services, p)
	}
	return nil
}
