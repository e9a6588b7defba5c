/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* What a pod may say besides what its policy allows, and whose packet it is where
 * the address alone doesn't tell. */
#pragma once
#include "conntrack.h"
#include "parse.h"
#include "policy.h"

/* How long an address stays known to be on a pod's link. */
#define NEIGHBOR_LIFE (600 * SECOND)

/* Whether the source of a packet, which is not one of the pod's at this veth, is
 * one that the cluster knows as somebody's. A veth that is no pod's may be a
 * router's. */
SUBPROGRAM int is_anothers(struct __sk_buff *skb, struct packet *p)
{
	struct prefix key = {.bits = 128};
	__u32 ifindex = skb->ifindex;
	struct peer *owner;

	if (!p)
		return true;
	if (is_unspecified(&p->tuple.saddr) || is_link_local6(&p->tuple.saddr) ||
	    !bpf_map_lookup_elem(&devices, &ifindex))
		return false;
	key.addr = p->tuple.saddr;
	owner = bpf_map_lookup_elem(&ipcache, &key);
	return owner && owner->identity && !(owner->flags & PEER_WORLD);
}

/* Remembers who speaks discovery to a pod: that it was not routed shows that it is
 * on the pod's link. */
SUBPROGRAM int learn_neighbor(struct __sk_buff *skb, struct packet *p)
{
	struct neighbor key = {};
	__u64 now;

	if (!p)
		return 0;
	if (p->tuple.proto != IPPROTO_ICMPV6 || is_link_local6(&p->tuple.saddr) ||
	    (p->icmp_type != ICMPV6_NEIGHBOR_SOLICIT && p->icmp_type != ICMPV6_NEIGHBOR_ADVERT))
		return 0;
	key.addr = p->tuple.saddr;
	key.ifindex = skb->ifindex;
	now = p->now;
	bpf_map_update_elem(&neighbors, &key, &now, BPF_ANY);
	return 0;
}

/* Discovery that a pod sends to one global address: an answer to, or a question
 * whether it is still there, somebody on its link. */
SUBPROGRAM int to_neighbor(struct __sk_buff *skb, struct packet *p)
{
	struct neighbor key = {};
	__u64 *seen;

	if (!p)
		return false;
	if (p->tuple.proto != IPPROTO_ICMPV6 || p->hop_limit != 255 || p->part != FRAGMENT_NONE ||
	    p->bytes > NEIGHBOR_MAX ||
	    (p->icmp_type != ICMPV6_NEIGHBOR_SOLICIT && p->icmp_type != ICMPV6_NEIGHBOR_ADVERT))
		return false;
	key.addr = p->tuple.daddr;
	key.ifindex = skb->ifindex;
	seen = bpf_map_lookup_elem(&neighbors, &key);
	return seen && p->now - *seen < NEIGHBOR_LIFE;
}

/* The pod behind this veth, for a packet that is not of one of its addresses.
 * Returns false if no policy holds for it in the directions of mask. */
SUBPROGRAM int device_enforces(struct __sk_buff *skb, struct packet *p, __u32 mask)
{
	__u32 key = skb->ifindex;
	struct policy_info *info;
	struct device *dev;

	if (!p)
		return true;
	dev = bpf_map_lookup_elem(&devices, &key);
	if (!dev)
		return false;
	p->policy = dev->policy;
	p->identity = dev->identity;
	info = bpf_map_lookup_elem(&policies, &dev->policy);
	if (!info)
		return true;
	return (mask & 1 << DIRECTION_INGRESS && info->enforced[DIRECTION_INGRESS]) ||
	       (mask & 1 << DIRECTION_EGRESS && info->enforced[DIRECTION_EGRESS]);
}
