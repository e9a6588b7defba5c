/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* Datagrams of a pod that look like answers, since the other end began the flow,
 * and may be questions: a server that sends first, or an answer so late that nobody
 * remembers its question, would else make a port of the pod a way past the proxy. */
#pragma once
#include "conntrack.h"
#include "events.h"
#include "policy.h"
#include "redirect.h"

/* The flag for a packet that comes to a pod: its answers are to be looked at, if
 * its policy sends questions to the proxy at all. */
static __always_inline __u32 ct_may_ask(const struct packet *p, bool reply)
{
	return is_udp(p) && p->direction == DIRECTION_INGRESS && !reply &&
			       wants_l7(p->policy, DIRECTION_EGRESS)
		       ? CT_MAY_ASK
		       : 0;
}

/* A datagram of a pod on a direct flow that the other end began. If the pod's own
 * policy sends it to the proxy it is a question, and begins a flow of the pod's.
 * What else that policy says of it does not matter: a pod answers whoever may ask
 * it. GO_ON if it is an answer. */
SUBPROGRAM int answer(struct __sk_buff *skb, struct packet *p, struct conntrack *ct)
{
	int outcome;

	if (!p || !ct)
		return TC_ACT_SHOT;
	if (wants_l7(p->policy, DIRECTION_EGRESS)) {
		outcome = judge_forward(p, false);
		if (p->l7 && outcome != REDIRECT)
			return drop(skb, p); /* by the policy of the other end */
		if (p->l7 && p->part == FRAGMENT_LATER)
			return drop_for(skb, p, REASON_L7_UNSUPPORTED);
		if (p->l7)
			return redirect_new(skb, p, false);
	}
	__sync_fetch_and_and(&ct->flags, ~CT_MAY_ASK);
	return GO_ON;
}
