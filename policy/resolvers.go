package policy

import (
	"maps"
	"net/netip"
	"slices"
)

// resolvers are the addresses of the cluster's DNS service.
type resolvers struct {
	of   ResolverServices
	now  []netip.Addr
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

// settleResolvers puts the addresses into the Delta if they are others now.
func (e *Engine) settleResolvers() {
	r := e.resolvers
	if r.told && len(e.dirty.services) == 0 {
		return
	}
	found := map[netip.Addr]struct{}{}
	for _, s := range e.services {
		if !r.includes(s) {
			continue
		}
		for _, a := range s.src.ClusterIPs {
			if a.IsValid() {
				found[a.Unmap()] = struct{}{}
			}
		}
		for _, a := range s.addresses() {
			found[a] = struct{}{}
		}
		if s.bySelector() {
			for _, p := range e.selectedBy(s) {
				for _, a := range p.src.Addresses {
					found[a.Unmap()] = struct{}{}
				}
			}
		}
	}
	now := slices.SortedFunc(maps.Keys(found), netip.Addr.Compare)
	if r.told && slices.Equal(now, r.now) {
		return
	}
	r.now, r.told = now, true
	e.delta.Resolvers = append([]netip.Addr{}, now...)
}
