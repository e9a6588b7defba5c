package api

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/weirnet/weir/identity"
)

// linter collects what is suspicious about an object that may be fine.
type linter struct {
	d     *decoder
	found []*Error
}

func (l *linter) warn(path, format string, args ...any) {
	l.found = append(l.found, l.d.newError(path, format, args...))
}

// unenforced warns of what Weir does not do.
func (l *linter) unenforced(path, what string) {
	e := l.d.newError(path, "is not enforced by this version: %s", what)
	e.NotEnforced = true
	l.found = append(l.found, e)
}

// lint looks for what is allowed but hardly meant, and for what this version
// doesn't enforce.
func (d *decoder) lint(p *Policy, meta objectMeta) []*Error {
	l := &linter{d: d}
	switch {
	case p.Kind == KindClusterwide && meta.Namespace != "":
		l.warn("metadata.namespace", "does not count: the policy is for the whole cluster")
	case p.Kind != KindClusterwide && meta.Namespace == "":
		l.warn("metadata", "names no namespace: %s is taken", DefaultNamespace)
	}
	if p.NetworkPolicy != nil {
		l.networkPolicy(p.NetworkPolicy)
	}
	if p.Kind != KindNetworkPolicy && len(p.Rules) == 0 && d.has("specs") {
		l.warn("specs", "has no rule: the policy does nothing")
	}
	for i, r := range p.Rules {
		l.rule(r, p.Paths[i], p.Namespace)
	}
	slices.SortStableFunc(l.found, func(a, b *Error) int { return a.Line - b.Line })
	return l.found
}

func (l *linter) cidr(c CIDR, path string) {
	p, err := netip.ParsePrefix(string(c))
	switch {
	case err != nil:
	case p.Addr().Is4In6():
		l.warn(path, "%s is an IPv4 address in IPv6 form: no packet has such an address", c)
	case p != p.Masked():
		l.warn(path, "%s has bits set behind the prefix, which don't count: %s is meant", c, p.Masked())
	}
}

func (l *linter) rule(r *Rule, path, namespace string) {
	l.subjects(r.EndpointSelector, path+".endpointSelector", namespace)
	if r.NodeSelector != nil {
		l.node(r, path)
	}
	if c := r.EnableDefaultDeny; c != nil {
		if c.Ingress != nil && *c.Ingress && len(r.Ingress)+len(r.IngressDeny) == 0 {
			l.warn(path+".enableDefaultDeny.ingress", "has no effect without a rule in ingress or ingressDeny; write ingress: [{}]")
		}
		if c.Egress != nil && *c.Egress && len(r.Egress)+len(r.EgressDeny) == 0 {
			l.warn(path+".enableDefaultDeny.egress", "has no effect without a rule in egress or egressDeny; write egress: [{}]")
		}
	}
	for i := range r.Ingress {
		in, p := &r.Ingress[i], index(path+".ingress", i)
		l.ingressPeers(&in.IngressPeers, p)
		l.portRules(in.ToPorts, p+".toPorts", true)
		l.icmps(in.ICMPs, p+".icmps")
	}
	for i := range r.IngressDeny {
		in, p := &r.IngressDeny[i], index(path+".ingressDeny", i)
		l.ingressPeers(&in.IngressPeers, p)
		l.denyPorts(in.ToPorts, p+".toPorts", true)
		l.icmps(in.ICMPs, p+".icmps")
		if l.bare(p) {
			l.warn(p, "denies nothing: it names neither a peer nor a port")
		}
	}
	for i := range r.Egress {
		e, p := &r.Egress[i], index(path+".egress", i)
		l.egressPeers(&e.EgressPeers, p)
		l.empty(e.ToFQDNs == nil, len(e.ToFQDNs), p+".toFQDNs")
		for j, f := range e.ToFQDNs {
			l.dnsPattern(f.MatchPattern, index(p+".toFQDNs", j)+".matchPattern")
		}
		l.portRules(e.ToPorts, p+".toPorts", false)
		l.icmps(e.ICMPs, p+".icmps")
	}
	for i := range r.EgressDeny {
		e, p := &r.EgressDeny[i], index(path+".egressDeny", i)
		l.egressPeers(&e.EgressPeers, p)
		l.denyPorts(e.ToPorts, p+".toPorts", false)
		l.icmps(e.ICMPs, p+".icmps")
		if l.bare(p) {
			l.warn(p, "denies nothing: it names neither a peer nor a port")
		}
	}
}

// bare tells whether the rule at path has no field at all.
func (l *linter) bare(path string) bool { return !l.d.readable(path) }

// subjects warns of a namespace that a policy can't select.
func (l *linter) subjects(s *EndpointSelector, path, namespace string) {
	if s == nil {
		return
	}
	l.selector(s, path)
	for _, r := range s.Requirements(SourceAny) {
		if r.Source == SourceReserved && (r.Operator == In || r.Operator == Exists) {
			l.warn(path, "%s:%s is no label that pods have: it selects nobody; a nodeSelector in a %s selects nodes", r.Source, r.Key, KindClusterwide)
		}
		if r.Key == namespaceLabel && namespace != "" && r.Operator == In && !slices.Contains(r.Values, namespace) {
			l.warn(path, "asks for namespace %s: a policy in namespace %s selects pods of its own only", strings.Join(r.Values, ", "), namespace)
		}
	}
}

const namespaceLabel = "io.kubernetes.pod.namespace"

// selector warns of labels that select nobody.
func (l *linter) selector(s *EndpointSelector, path string) {
	for _, r := range s.Requirements(SourceAny) {
		if r.Operator != In && r.Operator != Exists {
			continue
		}
		switch {
		case r.Source == SourceReserved && r.Key == string(EntityWorld):
			l.warn(path, "%s:%s selects nobody where both IPv4 and IPv6 are in use: write the entity world", r.Source, r.Key)
		case (r.Source == SourceK8s || r.Source == SourceAny) && !identity.CountsForIdentity(r.Key):
			l.warn(path, "label %s does not count towards a pod's identity: the selector is for nobody", r.Key)
		}
	}
}

func (l *linter) ports(ports []PortProtocol, path string, ingress bool) {
	for i, port := range ports {
		p := index(path, i)
		first, _, numbered := port.Range()
		switch {
		case numbered && len(port.Port) > 1 && port.Port[0] == '0':
			l.warn(p+".port", "%q is read as octal: port %d", port.Port, first)
		case port.Name() != "" && strings.HasPrefix(port.Name(), "0x"):
			l.warn(p+".port", "%q is the name of a port, not a number", port.Port)
		case port.Name() != "" && !port.Protocol.HasPorts():
			l.warn(p+".port", "%q never matches: protocol %s has no ports", port.Port, port.Protocol)
		}
		switch {
		case port.EndPort == 0:
		case port.Name() != "" && !ingress:
			l.warn(p+".endPort", "does not count with a named port in egress")
		case numbered && port.EndPort < int32(first):
			l.warn(p+".endPort", "does not count: it is below port %s", strconv.Itoa(int(first)))
		case numbered && first == 0:
			l.warn(p+".endPort", "does not count: port %q stands for all ports", port.Port)
		}
	}
}

func (l *linter) denyPorts(rules []PortDenyRule, path string, ingress bool) {
	for i := range rules {
		p := index(path, i)
		if len(rules[i].Ports) == 0 {
			l.warn(p, "denies nothing: it has no ports")
		}
		l.ports(rules[i].Ports, p+".ports", ingress)
	}
}

func (l *linter) icmps(rules []ICMPRule, path string) {
	for i, r := range rules {
		if len(r.Fields) == 0 {
			l.warn(index(path, i), "matches nothing: it has no fields")
		}
		for j := range r.Fields {
			if _, ok := r.Fields[j].Number(); !ok {
				l.warn(index(index(path, i)+".fields", j)+".type", "%s matches nothing: types of ICMP are 0 to 255", r.Fields[j].Type.String())
			}
		}
	}
}
