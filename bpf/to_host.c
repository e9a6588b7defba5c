//go:build ignore
/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* Ingress of an interface of the node: what is sent to the node itself. */
#include "host.h"
#include "parse_l3.h"

static __always_inline int arrives(struct __sk_buff *skb, struct packet *p, int reason)
{
	look_at_clock(p);
	if (reason == REASON_UNKNOWN_L3 || p->kind == KIND_NEIGHBOR || !is_own(&p->tuple.daddr))
		return TC_ACT_UNSPEC;
	return at_host(skb, p, reason);
}

SEC("tc")
int to_host(struct __sk_buff *skb)
{
	struct packet p = {.direction = DIRECTION_INGRESS};
	int reason = parse(skb, &p);

	return arrives(skb, &p, reason);
}

/* At an interface without Ethernet. */
SEC("tc")
int to_host_l3(struct __sk_buff *skb)
{
	struct packet p = {.direction = DIRECTION_INGRESS};
	int reason = parse_l3(skb, &p);

	return arrives(skb, &p, reason);
}
