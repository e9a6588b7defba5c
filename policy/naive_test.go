package policy

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/weirnet/weir/identity"
)

// compareServices holds the entries for cluster IPs to the backends' verdicts.
func compareServices(t *testing.T, e *Engine, tb *tables) (flows int) {
	for _, svc := range e.services {
		if svc.src == nil || len(svc.src.ClusterIPs) == 0 || e.services[Object{KindService, "red", e.claims.services[svc.src.ClusterIPs[0]][0].object.Name}] != svc {
			continue
		}
		id := tb.who(svc.src.ClusterIPs[0])
		if labels := e.IdentityLabels(id.Identity); len(labels) != 1 || labels[0] != "service:red/"+svc.object.Name {
			continue // another service has the address
		}
		for _, s := range e.subjects {
			for _, sp := range svc.src.Ports {
				var wants []naive
				for _, sl := range e.slices {
					if sl.Service != svc.object.Name || sl.Namespace != "red" {
						continue
					}
					for _, p := range sl.Ports {
						for _, a := range sl.Addresses {
							if p.Name == sp.Name {
								wants = append(wants, naively(e, s.peer, naivePeers(e)[a], Egress, p.Protocol, p.Port))
							}
						}
					}
				}
				if len(wants) == 0 {
					continue
				}
				flows++
				want := wants[0]
				for _, w := range wants {
					switch {
					case w.String() == want.String():
					case w.passesAll() && want.passesAll(): // seen at one, so seen at all
						want = naive{action: Redirect, protocol: max(w.protocol, want.protocol), allowAll: true}
					default:
						want = naive{action: Deny} // mixed
					}
				}
				got := looked(t, tb, tb.policies[s.id], Egress, []identity.ID{id.Identity}, sp.Protocol, sp.Port)
				denied := func(n naive) bool { return n.action == Deny || n.action == 0 || n.reason == RefusedBackends }
				itself := naively(e, s.peer, newServicePeer(svc.object), Egress, sp.Protocol, sp.Port)
				switch {
				case got.String() == want.String(), denied(got) && denied(want):
				case want.action == Allow && got.action == Redirect && got.allowAll && len(got.rules) == 0:
				case got.action == Deny && itself.action == Deny: // the rules for everybody deny that port
				case got.action == Refuse && want.action == Refuse:
				case denied(got) && want.action == Redirect && len(wants) > 1: // equal, but by other rules: another rule set
				default:
					t.Errorf("%v: service %s port %d: tables say %v, backends %v", s.peer.labels, svc.object.Name, sp.Port, got, wants)
				}
			}
		}
	}
	return flows
}

// compareNames holds what tables say of an outside address with names to what
// the rules say of it.
func compareNames(t *testing.T, e *Engine, tb *tables, s *subject, a netip.Addr) (flows int) {
	outside, _ := e.prefixes.lookup(a)
	for id, set := range tb.names {
		named := newNamesPeer(set.Selectors)
		ids := []identity.ID{outside.id, id}
		if both, ok := tb.pairs[Pair{outside.id, id}]; ok {
			ids = []identity.ID{both, outside.id, id}
		}
		for _, q := range askedPorts {
			flows++
			got := looked(t, tb, tb.policies[s.id], Egress, ids, q.proto, q.port)
			want := naively(e, s.peer, newPairPeer(pairKey{newWorldPeer(hostPrefix(a), outside.labels.HasReserved(identity.ReservedKubeAPIServer)), named}), Egress, q.proto, q.port)
			unseen := want.protocol == ProtocolDNS && want.allowAll && len(want.rules) == 0 && got.action == Allow
			if got.String() != want.String() && !unseen {
				t.Errorf("%v: %s as %v protocol %d port %d: tables say %v, rules %v", s.peer.labels, a, set.Selectors, q.proto, q.port, got, want)
				return flows
			}
		}
	}
	return flows
}

// naivePeers says who each address of the random clusters is, by itself and
// without prefixes.
func naivePeers(e *Engine) map[netip.Addr]*peer {
	out := map[netip.Addr]*peer{}
	hostAPI := false
	for _, text := range []string{"1.2.3.4", "1.2.3.5", "1.2.3.9", "1.2.200.1", "1.200.0.1", "9.9.9.9", "10.0.0.99", "10.0.0.12", "10.200.0.1",
		"192.168.0.1", "192.168.0.2", "192.168.0.3", "2001:db8::1", "2002::1", "10.0.0.10", "10.0.0.11", "10.0.0.13", "fd00::a", "fd00::b", "fd00::10", "10.96.0.1"} {
		a := netip.MustParseAddr(text)
		var owner *Pod
		for _, p := range e.pods {
			if !p.src.HostNetwork && slices.Contains(p.src.Addresses, a) && (owner == nil || p.src.Created > owner.Created ||
				p.src.Created == owner.Created && p.src.Namespace+"/"+p.src.Name < owner.Namespace+"/"+owner.Name) {
				owner = p.src
			}
		}
		nodes := map[string]int{}
		for _, n := range e.nodes {
			if slices.Contains(n.Addresses, a) {
				nodes[n.Name]++
			}
		}
		for _, p := range e.pods {
			if p.src.HostNetwork && slices.Contains(p.src.Addresses, a) {
				nodes[p.src.Node]++
			}
		}
		api := e.slices[Object{KindEndpointSlice, "default", "kubernetes"}]
		isAPI := api != nil && slices.Contains(api.Addresses, a)
		_, inRange := e.nodes["n1"]
		_, here := e.claims.host[a]
		service := false
		for _, s := range e.services {
			service = service || s.src != nil && slices.Contains(s.src.ClusterIPs, a)
		}
		here = here && (owner == nil || owner.Node != "n1") && (!service || len(nodes) > 0)
		_, named := nodes["n1"]
		if here || owner == nil && named {
			out[a] = newHostPeer(false)
			hostAPI = hostAPI || isAPI
			continue
		}
		switch {
		case service && owner == nil && len(nodes) == 0:
			continue // its entries are made otherwise
		case owner != nil:
			out[a] = e.podPeer(owner)
		case len(nodes) > 0:
			out[a] = e.nodePeerOf(nodes, isAPI)
		case e.strangers.at[a] != nil:
			out[a] = e.strangers.at[a].claim
		case isAPI:
			out[a] = newWorldPeer(hostPrefix(a), true)
		case inRange && netip.MustParsePrefix("10.0.0.0/25").Contains(a):
			out[a] = newUnknownPeer()
		default:
			out[a] = newWorldPeer(hostPrefix(a), false)
		}
	}
	for a, p := range out {
		if p.kind == hostPeer {
			p = newHostPeer(hostAPI)
		}
		out[a] = p.within(naiveBlocks(e, a))
	}
	return out
}

// naiveBlocks lists the IP blocks of all policies that an address lies in.
func naiveBlocks(e *Engine, a netip.Addr) []string {
	keys := map[string]struct{}{}
	for _, p := range e.policies {
		if p.src.NetworkPolicy == nil || len(p.src.Refused) > 0 {
			continue
		}
		var peers []networkingv1.NetworkPolicyPeer
		types := p.src.NetworkPolicy.PolicyTypes
		if len(types) == 0 || slices.Contains(types, networkingv1.PolicyTypeIngress) {
			for _, r := range p.src.NetworkPolicy.Ingress {
				peers = append(peers, r.From...)
			}
		}
		if len(types) == 0 || slices.Contains(types, networkingv1.PolicyTypeEgress) {
			for _, r := range p.src.NetworkPolicy.Egress {
				peers = append(peers, r.To...)
			}
		}
		for _, peer := range peers {
			b := peer.IPBlock
			if b == nil || !netip.MustParsePrefix(b.CIDR).Contains(a) ||
				slices.ContainsFunc(b.Except, func(x string) bool { return netip.MustParsePrefix(x).Contains(a) }) {
				continue
			}
			key := b.CIDR
			if len(b.Except) > 0 {
				except := slices.Sorted(slices.Values(b.Except))
				key += " except " + strings.Join(except, ",")
			}
			keys[key] = struct{}{}
		}
	}
	return slices.Sorted(maps.Keys(keys))
}
