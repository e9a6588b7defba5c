package policy

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// resolvers are the servers of the cluster's DNS service.
type resolvers struct {
	of   ResolverServices
	now  []Server
	told bool
}

func newResolvers(o Options) *resolvers {
	of := o.Resolvers
	if len(of.Labels) == 0 {
		of = ResolverServices{Namespace: "kube-system", Labels: map[string]string{"k8s-app": "kube-dns"}}
	}
	return &resolvers{of: of}
}

func (r *resolvers) includes(s *service) bool {
	if s.src == nil || r.of.Namespace != "" && s.object.Namespace != r.of.Namespace {
		return false
	}
	for k, v := range r.of.Labels {
		if has, ok := s.src.Labels[k]; !ok || has != v {
			return false
		}
	}
	return true
}

// isDNS tells whether a port of such a service is for questions: it may have
// others, for its metrics.
func (sp *ServicePort) isDNS() bool { return sp.Port == portDNS || strings.HasPrefix(sp.Name, "dns") }

// servers are where a service is asked, by its cluster IPs and directly.
func (e *Engine) servers(s *service, found map[Server]struct{}) {
	for _, sp := range s.src.Ports {
		if !sp.isDNS() {
			continue
		}
		add := func(a netip.Addr, port uint16) {
			if a.IsValid() {
				found[Server{netip.AddrPortFrom(a.Unmap(), port), sp.Protocol}] = struct{}{}
			}
		}
		for _, a := range s.src.ClusterIPs {
			add(a, sp.Port)
		}
		e.behind(s, &sp, add)
	}
}

// settleResolvers puts the servers into the Delta if they are others now.
func (e *Engine) settleResolvers() {
	r := e.resolvers
	if r.told && len(e.dirty.services) == 0 {
		return
	}
	found := map[Server]struct{}{}
	for _, s := range e.services {
		if r.includes(s) {
			e.servers(s, found)
		}
	}
	now := slices.SortedFunc(maps.Keys(found), Server.Compare)
	if r.told && slices.Equal(now, r.now) {
		return
	}
	r.now, r.told = now, true
	e.delta.Resolvers = append([]Server{}, now...)
}
