package api

import "strings"

func (l *linter) ingressPeers(p *IngressPeers, path string) {
	l.selectors(p.FromEndpoints, path+".fromEndpoints")
	l.empty(p.FromEndpoints == nil, len(p.FromEndpoints), path+".fromEndpoints")
	l.empty(p.FromNodes == nil, len(p.FromNodes), path+".fromNodes")
	l.cidrs(p.FromCIDR, path+".fromCIDR")
	l.cidrRules(p.FromCIDRSet, path+".fromCIDRSet")
	l.entities(p.FromEntities, path+".fromEntities")
	l.empty(p.FromGroups == nil, len(p.FromGroups), path+".fromGroups")
}

func (l *linter) egressPeers(p *EgressPeers, path string) {
	l.selectors(p.ToEndpoints, path+".toEndpoints")
	l.empty(p.ToEndpoints == nil, len(p.ToEndpoints), path+".toEndpoints")
	l.empty(p.ToNodes == nil, len(p.ToNodes), path+".toNodes")
	l.cidrs(p.ToCIDR, path+".toCIDR")
	l.cidrRules(p.ToCIDRSet, path+".toCIDRSet")
	l.entities(p.ToEntities, path+".toEntities")
	l.empty(p.ToGroups == nil, len(p.ToGroups), path+".toGroups")
	l.empty(p.ToServices == nil, len(p.ToServices), path+".toServices")
	for i, s := range p.ToServices {
		sp := index(path+".toServices", i)
		switch {
		case s.K8sServiceSelector == nil && (s.K8sService == nil || s.K8sService.ServiceName == ""):
			l.warn(sp, "selects no service: it has neither a name nor a selector")
		case s.K8sServiceSelector != nil && s.K8sService != nil:
			l.warn(sp+".k8sService", "does not count beside k8sServiceSelector")
		}
	}
}

// empty warns of a list of peers that is there and has nobody in it.
func (l *linter) empty(unset bool, items int, path string) {
	if !unset && items == 0 {
		l.warn(path, "is empty: the rule is for nobody")
	}
}

func (l *linter) selectors(list []EndpointSelector, path string) {
	for i := range list {
		l.selector(&list[i], index(path, i))
	}
}

func (l *linter) cidrs(list []CIDR, path string) {
	l.empty(list == nil, len(list), path)
	for i, c := range list {
		l.cidr(c, index(path, i))
	}
}

func (l *linter) cidrRules(list []CIDRRule, path string) {
	l.empty(list == nil, len(list), path)
	for i, r := range list {
		p := index(path, i)
		l.cidr(r.CIDR, p+".cidr")
		for j, e := range r.Except {
			l.cidr(e, index(p+".except", j))
		}
	}
}

func (l *linter) entities(list []Entity, path string) {
	l.empty(list == nil, len(list), path)
	for i, e := range list {
		switch e {
		case EntityNone, EntityInit, EntityHealth, EntityUnmanaged, EntityIngress:
			l.warn(index(path, i), "entity %s stands for nobody here", e)
		}
	}
}

func (l *linter) portRules(rules []PortRule, path string, ingress bool) {
	for i := range rules {
		r, p := &rules[i], index(path, i)
		if len(r.Ports) == 0 {
			l.warn(p, "allows nothing: it has no ports")
		}
		l.ports(r.Ports, p+".ports", ingress)
		if len(r.ServerNames) > 0 {
			l.unenforced(p+".serverNames", "the traffic is denied")
		}
		if r.Rules == nil {
			continue
		}
		if len(r.Rules.Kafka) > 0 {
			l.unenforced(p+".rules.kafka", "the traffic is denied")
		}
		for j, d := range r.Rules.DNS {
			l.dnsPattern(d.MatchPattern, index(p+".rules.dns", j)+".matchPattern")
		}
		for j := range r.Rules.HTTP {
			l.httpRule(&r.Rules.HTTP[j], index(p+".rules.http", j))
		}
	}
}

func (l *linter) dnsPattern(pattern, path string) {
	name := strings.TrimLeft(pattern, "*")
	if name != "" && len(name) < len(pattern) && name[0] != '.' {
		l.warn(path, "%q also matches names such as %q and %q, but not %q: write \"*.%s\" for those below",
			pattern, name, "evil"+name, "www."+name, name)
	}
}

func (l *linter) httpRule(r *HTTPRule, path string) {
	if c := firstLiteral(r.Path); c != 0 && c != '/' && c != '*' {
		l.warn(path+".path", "%q matches nothing: the expression is for the whole path, which begins with /", r.Path)
	}
	if r.Method != "" && r.Method == strings.ToLower(r.Method) && letters(r.Method) {
		l.warn(path+".method", "%q matches nothing usual: methods are written in capitals", r.Method)
	}
	for i, m := range r.HeaderMatches {
		if m.Mismatch != "" {
			l.warn(index(path+".headerMatches", i)+".mismatch", "%s lets the request pass where the header does not match", m.Mismatch)
		}
	}
}

// firstLiteral returns the first character that a match must have; 0 where the
// expression does not begin with a plain letter, digit or slash.
func firstLiteral(expr string) byte {
	if len(expr) == 0 || (!isAlphanumeric(expr[:1]) && expr[0] != '/') {
		return 0
	}
	if strings.Contains(expr, "|") || len(expr) > 1 && strings.IndexByte("*?{", expr[1]) >= 0 {
		return 0
	}
	return expr[0]
}

func letters(s string) bool {
	for _, c := range []byte(s) {
		if c < 'a' || c > 'z' {
			return false
		}
	}
	return s != ""
}
