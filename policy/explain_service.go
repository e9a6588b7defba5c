package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weirnet/weir/identity"
)

// front judges a flow to an address and port in front of a service or a pod.
func (x *explanation) front(f Frontend) (egress, ingress *Side, err error) {
	e := x.engine
	claims, pods := e.fronts.claims[f], e.hostPorts.claims[f]
	if e.fronts.told[f].Identity == 0 || x.to.pod != nil && x.to.node == x.from.node {
		if len(pods) > 0 {
			claims = slices.Concat(claims, e.fronts.claims[f.nodePort()])
		}
		return x.anyonesFront(claims, pods)
	}
	if len(pods) > 0 {
		return x.hostPort(newest(pods))
	}
	at := x.to.name
	x.to = end{name: "service " + claims[0].service.name(), service: claims[0].service, six: x.to.six, four: x.to.four}
	x.port = claims[0].port
	if egress, ingress, err = x.service(); err == nil {
		egress.Reason += fmt.Sprintf("; %s at that port is service %s, judged by its backends", at, claims[0].service.name())
	}
	return egress, ingress, err
}

// hostPort judges a flow to a host port as one to the pod.
func (x *explanation) hostPort(c hostPortClaim) (egress, ingress *Side, err error) {
	at := x.to.name
	to := x.engine.endOf(c.pod)
	to.six, to.four, to.addrs = x.to.six, x.to.four, []netip.Addr{c.to.Addr()}
	settleAddresses(&x.from, &to, x.proto)
	if egress, err = x.egress(to, c.to.Port()); err != nil {
		return nil, nil, err
	}
	if ingress, err = x.ingress(to, c.to.Port()); err != nil {
		return nil, nil, err
	}
	egress.Reason += fmt.Sprintf("; %s at that port is port %d of %s, a host port of its", at, c.to.Port(), to.name)
	if ingress.Verdict == Denied {
		ingress.Reason += "; what is not translated by Weir may come with the node's address, and counts as the node's"
	}
	return egress, ingress, nil
}

// anyonesFront is one of which nobody can tell where it leads to.
func (x *explanation) anyonesFront(claims []frontClaim, pods []hostPortClaim) (egress, ingress *Side, err error) {
	var names []string
	for _, c := range claims {
		names = append(names, "service "+c.service.name())
	}
	for _, c := range pods {
		names = append(names, "pod "+c.pod.src.Namespace+"/"+c.pod.src.Name)
	}
	if x.to.pod != nil {
		names = append(names, x.to.name)
	}
	f, err := x.engine.asked(x.from, Egress)
	if err != nil {
		return nil, nil, err
	}
	ingress = &Side{Verdict: NotApplicable, Reason: "nobody can tell where it leads to"}
	if !f.enforced {
		return x.notEnforced(x.from, Egress), ingress, nil
	}
	return &Side{Verdict: Denied, Reason: fmt.Sprintf("%s have that address and port, so nobody can tell where it leads to", strings.Join(names, " and "))}, ingress, nil
}

// service judges a flow to a service by its backends.
func (x *explanation) service() (egress, ingress *Side, err error) {
	svc := x.to.service
	name := "service " + svc.name()
	i := slices.IndexFunc(svc.targets, func(t target) bool { return t.proto == x.proto && t.port == x.port })
	if i < 0 {
		return nil, nil, fmt.Errorf("%s has no port %d of that protocol", name, x.port)
	}
	t := svc.targets[i]
	if len(t.backends) == 0 {
		return x.noBackends(name)
	}
	passes := false
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
		passes = passes || eg.Verdict != Denied
	}
	mixed, err := x.backendsDiffer(t)
	if mixed && passes {
		egress.Reason += "; not for all backends of " + name +
			" do policies say the same: what is sent to its own addresses and not translated by Weir is denied"
	}
	return egress, ingress, err
}

// backendsDiffer tells whether packets of a pod that bear the service's own address
// are denied because its backends differ: those that Weir does not translate at
// the pod's socket, but kube-proxy on their way.
func (x *explanation) backendsDiffer(t target) (bool, error) {
	if x.from.pod == nil {
		return false, nil
	}
	f, err := x.engine.asked(x.from, Egress)
	if err != nil || !f.enforced || f.closed != nil {
		return false, err
	}
	var failed error
	_, _, mixed := f.judgeTarget(t, func(b backend) (Entry, bool) {
		e, ok, err := f.judge(b.peer, t.proto, b.port)
		failed = errors.Join(failed, err)
		return e, ok
	})
	return mixed, failed
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
		return x.notEnforced(x.from, Egress), ingress, nil
	}
	entry, ok, mixed := f.judgeTarget(target{}, nil)
	if mixed {
		return &Side{Verdict: Denied, Reason: name + " has no endpoints to judge it by"}, ingress, nil
	}
	egress, err = x.verdict(f, x.from, entry, ok)
	return egress, ingress, err
}
