package api

import (
	"slices"
	"strconv"
	"strings"
)

// scope is where a port rule stands.
type scope struct {
	ingress bool
	nodes   bool // in a policy for nodes
}

func (d *decoder) portRules(rules []PortRule, path string, s scope) {
	for i := range rules {
		r, p := &rules[i], index(path, i)
		d.ports(r.Ports, p+".ports", r.Rules != nil && len(r.Rules.DNS) > 0)
		d.serverNames(r, p)
		d.intercepted(r.TerminatingTLS, p+".terminatingTLS")
		d.intercepted(r.OriginatingTLS, p+".originatingTLS")
		d.listener(r, p, s)
		if r.Rules != nil {
			d.l7Rules(r, p, s)
		}
		for j := range i {
			d.conflict(&rules[j], r, p)
		}
	}
}

// conflict refuses two items of one rule that ask for different parsers on a
// port: the peers are the same, so they can't both hold.
func (d *decoder) conflict(first, second *PortRule, path string) {
	a, b := first.parser(), second.parser()
	if a == "" || b == "" || a == b {
		return
	}
	for i, q := range second.Ports {
		if slices.ContainsFunc(first.Ports, q.overlaps) {
			d.errorf(index(path+".ports", i), "port %q has %s rules here and %s rules in an item before: they can't both hold", q.Port, b, a)
		}
	}
}

// parser names the parser that the rule needs; "" if none.
func (r *PortRule) parser() string {
	switch {
	case len(r.ServerNames) > 0:
		return "TLS"
	case r.Rules.Empty():
		return ""
	case len(r.Rules.HTTP) > 0:
		return "HTTP"
	case len(r.Rules.DNS) > 0:
		return "DNS"
	}
	return "Kafka"
}

func (d *decoder) denyPorts(rules []PortDenyRule, path string) {
	for i := range rules {
		d.ports(rules[i].Ports, index(path, i)+".ports", false)
	}
}

func (d *decoder) ports(ports []PortProtocol, path string, dns bool) {
	if len(ports) > maxPorts {
		d.errorf(path, "has %d items, more than %d", len(ports), maxPorts)
	}
	for i := range ports {
		d.port(&ports[i], index(path, i), dns)
	}
}

func (d *decoder) port(p *PortProtocol, path string, dns bool) {
	if d.has(path+".protocol") && (p.Protocol == "" || p.Protocol.Numbers() == nil) && !d.failed(path+".protocol") {
		d.errorf(path+".protocol", "%q is none of TCP, UDP, SCTP, ANY, VRRP, IGMP, GRE, IPIP, IPV6, ESP, AH", p.Protocol)
	}
	if p.EndPort < 0 || p.EndPort > 65535 {
		d.errorf(path+".endPort", "%d is not a port: 0 to 65535", p.EndPort)
	}
	if d.failed(path + ".port") {
		return
	}
	if p.Port == "" {
		d.errorf(path+".port", "is missing; \"0\" stands for all ports")
		return
	}
	if p.Name() != "" {
		return
	}
	first, _, ok := p.Range()
	switch {
	case !p.Protocol.HasPorts() && p.Port != "0":
		d.errorf(path+".port", "%q: protocol %s has no ports, write \"0\"", p.Port, p.Protocol)
	case ok:
	case strings.Trim(p.Port, "0123456789") != "":
		d.errorf(path+".port", "%q is neither a port number nor a name (at most 15 letters, digits and single hyphens, a letter among them)", p.Port)
	case strings.HasPrefix(p.Port, "0"):
		d.errorf(path+".port", "%q begins with 0 and would be read as octal: write it without", p.Port)
	default:
		d.errorf(path+".port", "%q is not a port: 0 to 65535", p.Port)
	}
	if ok && dns && p.EndPort > int32(first) {
		d.errorf(path+".endPort", "DNS rules don't take a range of ports")
	}
}

func (d *decoder) serverNames(r *PortRule, path string) {
	p := path + ".serverNames"
	if !d.has(p) || d.failed(p) {
		return
	}
	if len(r.ServerNames) == 0 {
		d.errorf(p, "must not be empty")
		return
	}
	for i, name := range r.ServerNames {
		d.pattern(name, index(p, i))
		if first := slices.Index(r.ServerNames, name); first < i {
			d.errorf(index(p, i), "%q is there already, as item %d", name, first)
		}
	}
	if !r.Rules.Empty() && r.TerminatingTLS == nil {
		d.errorf(p, "can't stand beside L7 rules: what is inside TLS can't be seen")
	}
}

func (d *decoder) intercepted(t *TLSContext, path string) {
	if t == nil {
		return
	}
	if t.Secret == nil {
		d.errorf(path+".secret", "is missing")
	} else {
		d.secret(path + ".secret")
	}
	d.unsupported(true, path)
}

func (d *decoder) secret(path string) {
	if !d.has(path + ".name") {
		d.errorf(path+".name", "is missing")
	}
}

func (d *decoder) listener(r *PortRule, path string, s scope) {
	l, p := r.Listener, path+".listener"
	if l == nil {
		return
	}
	switch {
	case l.EnvoyConfig == nil:
		d.errorf(p+".envoyConfig", "is missing")
	case l.EnvoyConfig.Name == "":
		d.errorf(p+".envoyConfig.name", "is missing")
	}
	if k := p + ".envoyConfig.kind"; d.has(k) && l.EnvoyConfig.Kind != "CiliumEnvoyConfig" && l.EnvoyConfig.Kind != "CiliumClusterwideEnvoyConfig" {
		d.errorf(k, "%q is neither CiliumEnvoyConfig nor CiliumClusterwideEnvoyConfig", l.EnvoyConfig.Kind)
	}
	if l.Name == "" {
		d.errorf(p+".name", "is missing")
	}
	if d.has(p+".priority") && (l.Priority < 1 || l.Priority > 100) {
		d.errorf(p+".priority", "%s is not within 1 to 100", strconv.Itoa(int(l.Priority)))
	}
	if s.ingress {
		d.errorf(p, "is not allowed in ingress")
	}
	if !r.Rules.Empty() {
		d.errorf(p, "can't stand beside L7 rules")
	}
	d.unsupported(true, p)
}
