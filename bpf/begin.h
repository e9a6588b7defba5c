/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* Packets that no entry is known for: the first of a flow, one in the middle of
 * a flow that began unseen, and those that have none. */
#pragma once
#include "answer.h"

/* Lets the packet pass and makes its entry. reply: as a reply of a flow whose
 * start was not seen. */
SUBPROGRAM int create(struct __sk_buff *skb, struct packet *p, __u32 flags, bool reply)
{
	struct conntrack ct = {};
	__u8 role;

	if (!p)
		return TC_ACT_SHOT;
	role = ct_role(p->direction, reply);
	ct.last_seen = p->now;
	ct.flags = flags | ct_judged(role) | ct_seen(p->tcp_flags, reply) | ct_may_ask(p, reply) |
		   (p->swapped != reply ? CT_SWAPPED : 0);
	/* Two branches: for one index the compiler computes the address in a way
	 * the verifier refuses. */
	if (role == DIRECTION_EGRESS) {
		ct.revision[1] = p->revision;
		ct.rule[1] = p->found[1].rule;
		ct.veth[1] = skb->ifindex;
	} else {
		ct.revision[0] = p->revision;
		ct.rule[0] = p->found[0].rule;
		ct.veth[0] = skb->ifindex;
	}
	if (bpf_map_update_elem(&conntrack, &p->key, &ct, BPF_ANY))
		return drop_for(skb, p, REASON_CONNTRACK_FULL);
	tell(skb, p, VERDICT_FORWARDED);
	return TC_ACT_UNSPEC;
}

/* The node reaches its own pods, whatever their policy; if its own lets it. */
static __always_inline int settle_host(struct packet *p)
{
	find_peer(p);
	if (p->found[DIRECTION_EGRESS].host_denies)
		return host_drop(p, DIRECTION_EGRESS);
	p->reason = REASON_HOST;
	p->reason_direction = p->direction;
	p->judge = p->policy;
	p->found[DIRECTION_INGRESS].rule = 0;
	return PASS;
}

/* A packet that is judged alone: nothing is remembered of it. */
SUBPROGRAM int stateless(struct __sk_buff *skb, struct packet *p)
{
	if (!p)
		return TC_ACT_SHOT;
	if (p->host) {
		if (settle_host(p) == DROP)
			return drop(skb, p);
		return TC_ACT_UNSPEC;
	}
	switch (judge_forward(p, false)) {
	case PASS:
		tell(skb, p, VERDICT_FORWARDED);
		return TC_ACT_UNSPEC;
	case REDIRECT:
		p->reason = REASON_L7_UNSUPPORTED;
	}
	return drop(skb, p);
}

/* The first packet of a flow. again: a SYN repeated before any answer. */
SUBPROGRAM int begin(struct __sk_buff *skb, struct packet *p, bool again)
{
	if (!p)
		return TC_ACT_SHOT;
	if (p->host) {
		if (settle_host(p) == DROP)
			return drop(skb, p);
		return create(skb, p, 0, false);
	}
	switch (judge_forward(p, false)) {
	case PASS:
		return create(skb, p, 0, false);
	case REDIRECT:
		return redirect_new(skb, p, again);
	}
	return drop(skb, p);
}

/* Whether connections that are older than conntrack still are what is to be
 * expected. */
static __always_inline bool is_lenient(const struct packet *p)
{
	__u32 zero = 0;
	struct state *s = bpf_map_lookup_elem(&state, &zero);

	return s && p->now < s->midstream_until;
}

/* TCP without a start: the connection is older than Weir, or its entry had to
 * make room. It may be going either way, so each of the pod's two directions is
 * asked about it. If either needs the proxy it is cut: what the other one allows,
 * often from any port, would make the pod's requests replies. Else what an entry
 * allows, one way or the other, passes. That a direction is not enforced says little:
 * it does not outweigh, but for a while, that the other one denies the packet. */
SUBPROGRAM int midstream(struct __sk_buff *skb, struct packet *p)
{
	bool open, reset;
	__u8 reason, direction;
	int outcome, other;
	__u32 rule, judge;

	if (!p)
		return TC_ACT_SHOT;
	reset = p->tcp_flags & TCP_RST;
	if (p->host) {
		if (settle_host(p) == DROP)
			return drop(skb, p);
		return reset ? TC_ACT_UNSPEC : create(skb, p, CT_MIDSTREAM, false);
	}
	outcome = judge_forward(p, false);
	if (outcome == REDIRECT)
		return cut(skb, p, REASON_MIDSTREAM_L7);
	open = p->reason == REASON_NOT_ENFORCED;
	if (outcome == PASS && !open && reset)
		return TC_ACT_UNSPEC;
	reason = p->reason;
	direction = p->reason_direction;
	judge = p->judge;
	rule = p->found[direction & 1].rule;
	other = judge_reply(p);
	if (other == REDIRECT)
		return cut(skb, p, REASON_MIDSTREAM_L7);
	if ((outcome != PASS || open) && other == PASS &&
	    (p->reason != REASON_NOT_ENFORCED || (outcome == DROP && is_lenient(p))))
		return reset ? TC_ACT_UNSPEC : create(skb, p, CT_MIDSTREAM, true);
	p->reason = reason;
	p->reason_direction = direction;
	p->judge = judge;
	p->found[direction & 1].rule = rule;
	if (outcome == PASS)
		return reset ? TC_ACT_UNSPEC : create(skb, p, CT_MIDSTREAM, false);
	return drop(skb, p);
}
