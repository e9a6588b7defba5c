//go:build ignore
/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* Egress of the host side of a pod's veth: what the pod is sent. */
#include "flow.h"

SEC("tc")
int to_pod(struct __sk_buff *skb)
{
	struct packet p = {.direction = DIRECTION_INGRESS};
	struct endpoint *self;
	int reason, act;

	/* A forwarded packet has come in somewhere. IPv6 forgets where when it has
	 * to copy the parts of one that it takes apart anew; but they have no
	 * socket. */
	p.host = skb->ingress_ifindex == 0 && skb->sk;
	reason = parse(skb, &p);
	look_at_clock(&p);
	if (unlikely(reason))
		return !p.host && device_enforces(skb, &p, 1 << DIRECTION_INGRESS)
			       ? drop_for(skb, &p, reason)
			       : TC_ACT_UNSPEC;
	if (unlikely(p.kind == KIND_NEIGHBOR)) {
		learn_neighbor(skb, &p);
		return TC_ACT_UNSPEC;
	}
	act = pass_known(skb, &p);
	if (likely(act != GO_ON))
		return act;

	self = bpf_map_lookup_elem(&endpoints, &p.tuple.daddr);
	if (unlikely(!self || (self->ifindex && self->ifindex != skb->ifindex))) {
		/* Multicast, or an address the pod uses besides its own: it may
		 * come in as far as the pod's policy allows its sender. */
		if (p.host || !device_enforces(skb, &p, 1 << DIRECTION_INGRESS) ||
		    is_dhcp(&p, false))
			return TC_ACT_UNSPEC;
		if (p.part != FRAGMENT_NONE && !fragment_resolve(&p))
			return drop_for(skb, &p, REASON_FRAGMENT_UNKNOWN);
		return stateless(skb, &p);
	}
	p.policy = self->policy;
	p.identity = self->identity;
	if (unlikely(p.part != FRAGMENT_NONE) && !fragment_resolve(&p))
		return !p.host && device_enforces(skb, &p, 1 << DIRECTION_INGRESS)
			       ? drop_for(skb, &p, REASON_FRAGMENT_UNKNOWN)
			       : TC_ACT_UNSPEC;
	if (p.host)
		ask_host(&p);
	return decide(skb, &p);
}
