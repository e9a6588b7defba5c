package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy/api"
)

// References finds what policies refer to that is not there, so that a rule is for
// nobody: groups, services, ports by name. It also finds policies for nothing but
// pods on the host network, which hold for none of these. All of that is valid, and
// mostly a slip; it changes no verdict.
//
// It keeps the objects it is told of, not copies, and looks again only at what may
// have changed. It is for one goroutine.
type References struct {
	pods       map[string]map[Object]*Pod // by namespace
	namespaces map[string]map[string]string
	services   map[Object]*Service
	slices     map[Object]*EndpointSlice
	groups     map[string]*cidrGroup
	policies   map[Object]*referrer
	addresses  map[netip.Addr]struct{} // of pods, made when first asked for
	labels     map[*Pod]identity.Labels
}

// referrer is a policy, with what was found of it last.
type referrer struct {
	policy *policyObject
	// named: its rules have ports by name; elsewhere: some for other pods than its
	// namespace's. onHost: it selects pods on the host network.
	named, elsewhere, onHost bool
	// What is to be looked at again.
	askObjects, askPods bool
	ofObjects, ofPods   []*api.Error
}

// NewReferences returns References that know no object.
func NewReferences() *References {
	return &References{
		pods: map[string]map[Object]*Pod{}, namespaces: map[string]map[string]string{}, services: map[Object]*Service{},
		slices: map[Object]*EndpointSlice{}, groups: map[string]*cidrGroup{}, policies: map[Object]*referrer{},
	}
}

// Note takes changes, as Engine.Apply does. It tells whether anything may be found
// now that was not, or the other way round. Values of other types are passed over.
func (r *References) Note(changes []Change) (news bool) {
	t := touched{pods: map[string]bool{}}
	for _, c := range changes {
		switch c.Object.Kind {
		case KindPod:
			p, _ := c.Value.(*Pod)
			r.notePod(c.Object, p, &t)
		case KindNamespace:
			var labels map[string]string
			if ns, ok := c.Value.(*Namespace); ok {
				labels = ns.Labels
			}
			if !maps.Equal(labels, r.namespaces[c.Object.Name]) {
				t.pods[c.Object.Name] = true
			}
			keep(r.namespaces, c.Object.Name, labels, labels != nil)
		case KindService:
			s, ok := c.Value.(*Service)
			keep(r.services, c.Object, s, ok)
			t.services = true
		case KindEndpointSlice:
			s, ok := c.Value.(*EndpointSlice)
			keep(r.slices, c.Object, s, ok)
			t.services = true
		case api.KindCiliumCIDRGroup:
			if g, ok := c.Value.(*api.CIDRGroup); ok {
				r.groups[c.Object.Name] = newCIDRGroup(g)
			} else {
				delete(r.groups, c.Object.Name)
			}
			t.groups = true
		case api.KindNetworkPolicy, api.KindCiliumPolicy, api.KindClusterwide:
			p, ok := c.Value.(*api.Policy)
			keep(r.policies, c.Object, r.referrer(c.Object, p), ok)
			news = true
		}
	}
	for _, ref := range r.policies {
		news = ref.policy != nil && ref.ask(&t) || news
	}
	return news
}

// touched is what changes may make another of what was found.
type touched struct {
	groups, services bool
	// pods of these namespaces may be selected by others; true: some of them are, or
	// were, on the host network.
	pods map[string]bool
}

// ask notes what is to be looked at again. Most policies have no ports by name and
// select nobody on the host network, so pods that are not there either don't matter
// to them.
func (ref *referrer) ask(t *touched) bool {
	ref.askObjects = ref.askObjects || t.groups && ref.policy.usesGroups || t.services && ref.policy.usesServices
	for namespace, onHost := range t.pods {
		if ref.askPods {
			break
		}
		if ref.elsewhere || namespace == ref.policy.object.Namespace {
			ref.askPods = ref.named || ref.onHost || onHost
		}
	}
	return ref.askObjects || ref.askPods
}

func keep[K comparable, V any](m map[K]V, key K, value V, there bool) {
	if there {
		m[key] = value
	} else {
		delete(m, key)
	}
}

// referrer makes the rules of a policy, to be looked at.
func (r *References) referrer(o Object, src *api.Policy) *referrer {
	if src == nil || len(src.Refused) > 0 {
		return &referrer{} // it closes, and refers to nothing
	}
	// Which services and groups there are does not matter to what is looked for in
	// the rules: pods, by labels.
	t := &translator{services: func(api.Service) []*service { return nil }}
	ref := &referrer{policy: t.translate(o, src), askObjects: true, askPods: true}
	for _, rule := range ref.policy.rules {
		for _, g := range rule.grants {
			ref.named = ref.named || len(g.names) > 0
			ref.elsewhere = ref.elsewhere || len(g.names) > 0 && rule.direction == Egress
		}
	}
	ref.elsewhere = ref.elsewhere || o.Namespace == ""
	return ref
}

func (r *References) notePod(o Object, p *Pod, t *touched) {
	in := r.pods[o.Namespace]
	old := in[o]
	if p == nil && old == nil {
		return
	}
	if in == nil {
		in = map[Object]*Pod{}
		r.pods[o.Namespace] = in
	}
	if keep(in, o, p, p != nil); len(in) == 0 {
		delete(r.pods, o.Namespace)
	}
	if old == nil || p == nil || !slices.Equal(old.Addresses, p.Addresses) {
		r.addresses, t.services = nil, true
	}
	if old != nil && p != nil && old.HostNetwork == p.HostNetwork && old.ServiceAccount == p.ServiceAccount &&
		maps.Equal(old.Labels, p.Labels) && slices.Equal(old.Ports, p.Ports) {
		return
	}
	t.pods[o.Namespace] = t.pods[o.Namespace] || old != nil && old.HostNetwork || p != nil && p.HostNetwork
}

// Dangling says of each policy that has any what its rules refer to and is not
// there, in the order of the rules.
func (r *References) Dangling() map[Object][]*api.Error {
	out := map[Object][]*api.Error{}
	for o, ref := range r.policies {
		if ref.askObjects {
			ref.ofObjects, ref.askObjects = r.missingObjects(ref.policy.src), false
		}
		if ref.askPods {
			ref.ofPods, ref.askPods = r.missingPods(ref), false
		}
		if len(ref.ofObjects)+len(ref.ofPods) > 0 {
			out[o] = slices.Concat(ref.ofObjects, ref.ofPods)
		}
	}
	r.labels = nil
	return out
}

// found says something of a field of a policy.
func found(p *policyObject, field, format string, args ...any) *api.Error {
	at := p.ref(field)
	return &api.Error{File: at.File, Line: at.Line, Document: p.src.Source.Document, Field: field, Message: fmt.Sprintf(format, args...)}
}

// missingPods looks at what a policy wants of pods.
func (r *References) missingPods(ref *referrer) []*api.Error {
	var out []*api.Error
	ref.onHost = false
	seen := map[string]bool{}
	for _, rule := range ref.policy.rules {
		if !rule.nodes && !seen[rule.subjectPath()] {
			seen[rule.subjectPath()] = true
			if example := r.onHostAlone(ref, rule); example != "" {
				out = append(out, found(ref.policy, rule.subjectPath(),
					"selects only pods on the host network (%s): those are the node to policies, and no policy for pods holds for them", example))
			}
		}
		for _, g := range rule.grants {
			for _, n := range g.names {
				if pods := r.withoutPort(rule, n); pods > 0 {
					whose := "the policy selects"
					if rule.direction == Egress {
						whose = "the rule is about"
					}
					out = append(out, found(ref.policy, g.path, "port %s stands for nothing: no pod that %s has a port of that name", n.name, whose))
				}
			}
		}
	}
	return out
}

// subjectPath is where the rule's subjects are written.
func (r *rule) subjectPath() string {
	path, _, _ := strings.Cut(r.path, ".")
	if r.policy.src.NetworkPolicy != nil {
		return path + ".podSelector"
	}
	return path + ".endpointSelector"
}

// onHostAlone names a pod on the host network that a rule is meant for, if it is
// for no others; else "".
func (r *References) onHostAlone(ref *referrer, rule *rule) (example string) {
	some := func(onHost bool) (found bool) {
		r.each(rule.namespace, func(p *Pod) bool {
			found = p.HostNetwork == onHost && rule.selects(r.peer(p))
			return !found
		})
		return found
	}
	if !some(true) {
		return ""
	}
	ref.onHost = true
	if some(false) {
		return ""
	}
	r.each(rule.namespace, func(p *Pod) bool {
		if name := p.Namespace + "/" + p.Name; rule.selects(r.peer(p)) && (example == "" || name < example) {
			example = name
		}
		return true
	})
	return example
}

// withoutPort counts the pods that a port by name is about, if none of them has it.
func (r *References) withoutPort(rule *rule, want portName) (n int) {
	namespace := rule.namespace
	about := func(p *peer) bool { return rule.selects(p) }
	if rule.direction == Egress {
		namespace = ""
		about = func(p *peer) bool {
			return rule.any || slices.ContainsFunc(rule.peers, func(s *selector) bool { return s.matches(p) })
		}
	} else if rule.nodes {
		return 0
	}
	r.each(namespace, func(p *Pod) bool {
		if p.HostNetwork || !about(r.peer(p)) {
			return true
		}
		n++
		for _, np := range p.Ports {
			if strings.EqualFold(np.Name, want.name) && slices.Contains(want.protos, np.Protocol) {
				n = 0
				return false
			}
		}
		return true
	})
	return n
}

// each shows the pods of a namespace, of all with "", until show returns false.
func (r *References) each(namespace string, show func(*Pod) bool) {
	if namespace != "" {
		for _, p := range r.pods[namespace] {
			if !show(p) {
				return
			}
		}
		return
	}
	for _, pods := range r.pods {
		for _, p := range pods {
			if !show(p) {
				return
			}
		}
	}
}

// peer is a pod as rules see it, also one on the host network, which they don't see.
func (r *References) peer(p *Pod) *peer {
	labels, ok := r.labels[p]
	if !ok {
		labels = identity.PodLabels(p.Namespace, r.namespaces[p.Namespace], p.ServiceAccount, p.Labels)
		if r.labels == nil {
			r.labels = map[*Pod]identity.Labels{}
		}
		r.labels[p] = labels
	}
	return &peer{kind: podPeer, namespace: p.Namespace, labels: labels}
}
