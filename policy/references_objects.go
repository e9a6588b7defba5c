package policy

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/weirnet/weir/policy/api"
)

// missingObjects looks for the groups and services that a policy names.
func (r *References) missingObjects(src *api.Policy) []*api.Error {
	var out []*api.Error
	// Lines of a policy are found by its name alone.
	p := &policyObject{src: src}
	groups := func(field string, set []api.CIDRRule) {
		for i := range set {
			at := fmt.Sprintf("%s[%d]", field, i)
			switch c := &set[i]; {
			case c.CIDRGroupRef != "" && r.groups[c.CIDRGroupRef] == nil:
				out = append(out, found(p, at+".cidrGroupRef", "there is no CiliumCIDRGroup %s: it stands for nobody", c.CIDRGroupRef))
			case c.CIDRGroupSelector != nil && !r.anyGroup(c.CIDRGroupSelector):
				out = append(out, found(p, at+".cidrGroupSelector", "no CiliumCIDRGroup has these labels: it stands for nobody"))
			}
		}
	}
	services := func(field string, list []api.Service) {
		for i, s := range list {
			if why := r.nobodyBehind(s); why != "" {
				out = append(out, found(p, fmt.Sprintf("%s[%d]", field, i), "%s", why))
			}
		}
	}
	for i, rule := range src.Rules {
		at := func(field string, j int) string { return fmt.Sprintf("%s.%s[%d]", src.Paths[i], field, j) }
		for j := range rule.Ingress {
			groups(at("ingress", j)+".fromCIDRSet", rule.Ingress[j].FromCIDRSet)
		}
		for j := range rule.IngressDeny {
			groups(at("ingressDeny", j)+".fromCIDRSet", rule.IngressDeny[j].FromCIDRSet)
		}
		for j := range rule.Egress {
			groups(at("egress", j)+".toCIDRSet", rule.Egress[j].ToCIDRSet)
			services(at("egress", j)+".toServices", rule.Egress[j].ToServices)
		}
		for j := range rule.EgressDeny {
			groups(at("egressDeny", j)+".toCIDRSet", rule.EgressDeny[j].ToCIDRSet)
			services(at("egressDeny", j)+".toServices", rule.EgressDeny[j].ToServices)
		}
	}
	return out
}

// anyGroup tells whether some group could have labels that a selector asks for.
func (r *References) anyGroup(s *api.EndpointSelector) bool {
	want := selectorOf(s, api.SourceCIDRGroup)
	for _, g := range r.groups {
		meets := true
		for i := range want {
			meets = meets && groupsMeet(&want[i], []*cidrGroup{g}, nil)
		}
		if meets {
			return true
		}
	}
	return false
}

// nobodyBehind says why nobody is behind the services that are meant; "" if
// somebody is or may come to be.
func (r *References) nobodyBehind(want api.Service) string {
	name := ""
	switch {
	case want.K8sServiceSelector != nil:
	case want.K8sService == nil || want.K8sService.ServiceName == "":
		return "" // which is told of without knowing any service
	case want.K8sService.Namespace != "":
		name = want.K8sService.Namespace + "/" + want.K8sService.ServiceName
	default:
		name = want.K8sService.ServiceName
	}
	means, some, pods := meansService(want), false, ""
	for o, s := range r.services {
		switch {
		case !means(o, s):
		case len(s.Selector) > 0 || !r.allPods(o):
			return ""
		default:
			some = true
			if at := o.Namespace + "/" + o.Name; pods == "" || at < pods {
				pods = at
			}
		}
	}
	switch {
	case some:
		return fmt.Sprintf("service %s has no selector, and its endpoints are pods: it stands for none of them; write toEndpoints", pods)
	case name == "":
		return "no service has these labels: it stands for nobody"
	case want.K8sService.Namespace == "":
		return fmt.Sprintf("there is no service %s in any namespace: it stands for nobody", name)
	}
	return fmt.Sprintf("there is no service %s: it stands for nobody", name)
}

// allPods tells whether a service has endpoints, and all of them are pods.
func (r *References) allPods(o Object) bool {
	if r.addresses == nil {
		r.addresses = map[netip.Addr]struct{}{}
		for _, pods := range r.pods {
			for _, p := range pods {
				for _, a := range p.Addresses {
					if !p.HostNetwork {
						r.addresses[a.Unmap()] = struct{}{}
					}
				}
			}
		}
	}
	some := false
	for _, s := range r.slices {
		if s.Namespace != o.Namespace || s.Service != o.Name {
			continue
		}
		some = some || len(s.Addresses) > 0
		if slices.ContainsFunc(s.Addresses, func(a netip.Addr) bool { _, pod := r.addresses[a.Unmap()]; return !pod }) {
			return false
		}
	}
	return some
}
