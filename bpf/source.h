/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* What a pod may say besides what its policy allows, and whose packet it is where
 * the address alone doesn't tell. */
#pragma once
#include "parse.h"
#include "policy.h"

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

/* Discovery that a pod sends to one global address: probes of a gateway that it
 * knows already, and answers to other pods on its link. */
static __always_inline bool to_neighbor(struct packet *p)
{
	struct prefix key = {.bits = 128};
	struct endpoint *ep;
	struct peer *peer;

	if (p->kind != KIND_ICMP || p->tuple.proto != IPPROTO_ICMPV6 || p->hop_limit != 255 ||
	    p->part != FRAGMENT_NONE || p->bytes > NEIGHBOR_MAX ||
	    (p->icmp_type != ICMPV6_NEIGHBOR_SOLICIT && p->icmp_type != ICMPV6_NEIGHBOR_ADVERT))
		return false;
	key.addr = p->tuple.daddr;
	peer = bpf_map_lookup_elem(&ipcache, &key);
	if (peer && peer->identity == IDENTITY_HOST)
		return true;
	ep = bpf_map_lookup_elem(&endpoints, &key.addr);
	return ep && p->icmp_type == ICMPV6_NEIGHBOR_ADVERT;
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
