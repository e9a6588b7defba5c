package policy

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/weirnet/weir/identity"
)

// service judges a flow to a service by its backends.
func (x *explanation) service() (egress, ingress *Side, err error) {
	svc := x.to.service
	name := "service " + svc.object.Namespace + "/" + svc.object.Name
	i := slices.IndexFunc(svc.targets, func(t target) bool { return t.proto == x.proto && t.port == x.port })
	if i < 0 {
		return nil, nil, fmt.Errorf("%s has no port %d of that protocol", name, x.port)
	}
	t := svc.targets[i]
	if len(t.backends) == 0 {
		return x.noBackends(name)
	}
	for _, b := range t.backends {
		to := end{name: "a backend of " + name, other: b.peer, addrs: []netip.Addr{b.addr}}
		switch b.peer.kind {
		case podPeer:
			to.other, to.pod, to.node = nil, b.peer.plain(), b.node
		case hostPeer, nodePeer:
			to.isNode, to.node, to.apiServer = true, b.node, b.peer.labels.HasReserved(identity.ReservedKubeAPIServer)
		}
		settleAddresses(&x.from, &to, x.proto)
		eg, err := x.egress(to, b.port)
		if err != nil {
			return nil, nil, err
		}
		in, err := x.ingress(to, b.port)
		if err != nil {
			return nil, nil, err
		}
		egress, ingress = stricter(egress, eg), stricter(ingress, in)
	}
	return egress, ingress, nil
}

// stricter picks the side that stops more: a service is allowed if every
// backend is.
func stricter(a, b *Side) *Side {
	rank := func(s *Side) int {
		return slices.Index([]Verdict{NotApplicable, Allowed, NeedsRequest, Denied}, s.Verdict)
	}
	if a == nil || rank(b) > rank(a) {
		return b
	}
	return a
}

func (x *explanation) noBackends(name string) (egress, ingress *Side, err error) {
	ingress = &Side{Verdict: NotApplicable, Reason: name + " has no endpoints"}
	if _, ok := x.nodeAt(x.from, x.to); ok {
		return &Side{Verdict: Allowed, Reason: name + " has no endpoints: the node sends nothing to it"}, ingress, nil
	}
	if x.from.pod == nil {
		return x.noPolicy(x.from), ingress, nil
	}
	f, err := x.engine.asked(x.from, Egress)
	if err != nil {
		return nil, nil, err
	}
	if !f.enforced {
		return &Side{Verdict: Allowed, Reason: "not enforced: no policy selects " + x.from.name + " for egress"}, ingress, nil
	}
	entry, ok, mixed := f.judgeTarget(target{}, nil)
	if mixed {
		return &Side{Verdict: Denied, Reason: name + " has no endpoints to judge it by"}, ingress, nil
	}
	egress, err = x.verdict(f, x.from, entry, ok)
	return egress, ingress, err
}
