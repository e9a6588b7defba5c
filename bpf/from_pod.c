//go:build ignore
/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* Ingress of the host side of a pod's veth: what the pod sends. */
#include "flow.h"

SEC("tc")
int from_pod(struct __sk_buff *skb)
{
	struct packet p = {.direction = DIRECTION_EGRESS};
	struct endpoint *self;
	int reason, act;

	if (skb->mark == MARK_INJECTED) {
		skb->mark = 0;
		return TC_ACT_UNSPEC;
	}
	reason = parse(skb, &p);
	look_at_clock(&p);
	if (unlikely(reason))
		return device_enforces(skb, &p, 1 << DIRECTION_EGRESS) ? drop_for(skb, &p, reason)
								       : TC_ACT_UNSPEC;
	if (unlikely(p.kind == KIND_NEIGHBOR || (p.kind == KIND_ICMP && to_neighbor(skb, &p))))
		return TC_ACT_UNSPEC;
	act = pass_known(skb, &p);
	if (likely(act != GO_ON))
		return act;

	self = bpf_map_lookup_elem(&endpoints, &p.tuple.saddr);
	if (unlikely(!self || self->ifindex != skb->ifindex)) {
		bool enforced =
			device_enforces(skb, &p, 1 << DIRECTION_EGRESS | 1 << DIRECTION_INGRESS);

		/* The address of another pod, or of a node, would be taken for that. */
		if ((self && self->ifindex) || is_anothers(skb, &p))
			return drop_for(skb, &p, REASON_INVALID_SOURCE);
		if (!enforced || is_dhcp(&p, true))
			return TC_ACT_UNSPEC;
		return drop_for(skb, &p, REASON_INVALID_SOURCE);
	}
	p.policy = self->policy;
	p.identity = self->identity;
	if (unlikely(p.part != FRAGMENT_NONE) && !fragment_resolve(&p))
		return device_enforces(skb, &p, 1 << DIRECTION_EGRESS)
			       ? drop_for(skb, &p, REASON_FRAGMENT_UNKNOWN)
			       : TC_ACT_UNSPEC;
	ask_host(&p);
	return decide(skb, &p);
}
