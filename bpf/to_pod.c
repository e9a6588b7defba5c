//go:build ignore
/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
#include "maps.h"
SEC("tc") int to_pod(struct __sk_buff *skb)
{
	return skb->len ? TC_ACT_UNSPEC : TC_ACT_SHOT;
}
