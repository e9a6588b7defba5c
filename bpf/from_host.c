//go:build ignore
/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* Egress of an interface of the node: what the node itself sends. */
#include "host.h"
#include "parse_l3.h"

static __always_inline int leaves(struct __sk_buff *skb, struct packet *p, int reason)
{
	look_at_clock(p);
	/* What is no IP has no address of the node, or is judged where it is. */
	if (reason == REASON_UNKNOWN_L3 || p->kind == KIND_NEIGHBOR || !is_own(&p->tuple.saddr))
		return TC_ACT_UNSPEC;
	/* See to_pod. */
	if (skb->ingress_ifindex || !skb->sk)
		return reason ? TC_ACT_UNSPEC : send_on(p);
	return at_host(skb, p, reason);
}

SEC("tc")
int from_host(struct __sk_buff *skb)
{
	struct packet p = {.direction = DIRECTION_EGRESS};
	int reason = parse(skb, &p);

	return leaves(skb, &p, reason);
}

/* At an interface without Ethernet. */
SEC("tc")
int from_host_l3(struct __sk_buff *skb)
{
	struct packet p = {.direction = DIRECTION_EGRESS};
	int reason = parse_l3(skb, &p);

	return leaves(skb, &p, reason);
}
