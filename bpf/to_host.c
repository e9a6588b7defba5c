//go:build ignore
/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* Ingress of an interface of the node: what is sent to the node itself. */
#include "host.h"

SEC("tc")
int to_host(struct __sk_buff *skb)
{
	struct packet p = {.direction = DIRECTION_INGRESS};
	int reason = parse(skb, &p);

	look_at_clock(&p);
	if (reason == REASON_UNKNOWN_L3 || p.kind == KIND_NEIGHBOR || !is_own(&p.tuple.daddr))
		return TC_ACT_UNSPEC;
	return at_host(skb, &p, reason);
}
