/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* A packet at its pod's veth: found in conntrack it mostly just passes; else
 * one of the functions here decides. from_pod and to_pod differ only in
 * p->direction and in whose policy p->policy is. */
#pragma once
#include "begin.h"
#include "fragments.h"
#include "parse.h"
#include "session.h"
#include "source.h"

/* Judge every forward packet by policy, as if that moved all the time: for
 * benchmarks. */
volatile const __u8 always_judge = 0;

/* Stamps a judgement into the entry. */
static __always_inline void stamp(struct packet *p, struct conntrack *ct, __u8 role)
{
	ct->rule[role & 1] = p->found[role & 1].rule;
	ct->revision[role & 1] = p->revision;
	__sync_fetch_and_or(&ct->flags, ct_judged(role));
}

/* A forward packet of a known flow, where policy has moved on or this end has
 * not judged yet. */
SUBPROGRAM int judge_again(struct __sk_buff *skb, struct packet *p, struct conntrack *ct)
{
	__u32 judged, flags;
	int outcome;

	if (!p || !ct)
		return TC_ACT_SHOT;
	judged = ct_judged(p->direction);
	flags = ct->flags;
	if (p->host) {
		outcome = settle_host(p);
	} else {
		outcome = judge_forward(p, (flags & CT_REDIRECTED) != 0);
	}
	if (outcome == DROP && flags & CT_REDIRECTED)
		return revoke_redirected(skb, p, ct);
	if (outcome == DROP) {
		__sync_fetch_and_and(&ct->flags, ~judged);
		return drop(skb, p);
	}
	if (flags & CT_REDIRECTED && is_udp(p)) {
		/* To the current proxy, or on its own once it has no L7 rules any
		 * more. Answers that come the other way are lost: it is asked again. */
		if (outcome == REDIRECT)
			return redirect_new(skb, p, true);
		forget_conn(p, false);
		return create(skb, p, 0, false);
	}
	if (flags & CT_REDIRECTED) {
		/* The proxy first: once stamped nobody tells it any more. */
		if (renew_conn(p, &p->tuple))
			return drop_for(skb, p, REASON_CONNS_FULL);
		stamp(p, ct, p->direction);
		return GO_ON;
	}
	if (outcome == REDIRECT && p->part == FRAGMENT_LATER) {
		p->reason = REASON_L7_UNSUPPORTED;
		return drop(skb, p);
	}
	/* A datagram needs nothing that went before it. */
	if (outcome == REDIRECT && (is_syn(p) || is_udp(p)))
		return redirect_new(skb, p, false);
	if (outcome == REDIRECT)
		return cut(skb, p, flags & judged ? REASON_POLICY_CHANGED : REASON_MIDSTREAM_L7);
	stamp(p, ct, p->direction);
	/* After the revision that it is about: answer takes it away before. */
	__sync_fetch_and_or(&ct->flags, ct_may_ask(p, false));
	if (!(flags & judged))
		tell(skb, p, VERDICT_FORWARDED);
	return GO_ON;
}

/* A reply of a flow that this pod's end has not judged, allows no more, or may
 * have to revoke: it
 * passes if the flow would be allowed now, or the packet as one of its own. */
SUBPROGRAM int judge_late(struct __sk_buff *skb, struct packet *p, struct conntrack *ct)
{
	int outcome;
	__u32 flags;
	__u8 role;

	if (!p || !ct)
		return TC_ACT_SHOT;
	flags = ct->flags;
	role = ct_role(p->direction, true);
	if (p->host)
		return GO_ON;
	if (is_udp(p) && p->direction == DIRECTION_EGRESS && !(flags & CT_REDIRECTED)) {
		outcome = answer(skb, p, ct);
		if (outcome != GO_ON)
			return outcome;
	}
	outcome = judge_reply(p);
	if (flags & CT_REDIRECTED && outcome != DROP) {
		/* Not stamped: only a forward packet tells the proxy what holds. */
		__sync_fetch_and_or(&ct->flags, ct_judged(role));
		return GO_ON;
	}
	if (outcome == PASS) {
		stamp(p, ct, role);
		return GO_ON;
	}
	__sync_fetch_and_and(&ct->flags, ~ct_judged(role));
	/* What was asked unseen is to be asked again. */
	if (outcome == REDIRECT && is_udp(p)) {
		p->reason = REASON_POLICY_CHANGED;
		return drop(skb, p);
	}
	if (outcome == REDIRECT && p->part != FRAGMENT_LATER)
		return cut(skb, p, REASON_MIDSTREAM_L7);
	if (flags & CT_REDIRECTED)
		return drop(skb, p);
	return stateless(skb, p);
}

/* Whether a packet's flow is a connection that the proxy still has. A SYN on one
 * goes there like its other packets: TCP itself asks the sender, if it has no such
 * connection any more, to say so by a RST, and then its next SYN begins anew. For
 * if that could be had for a SYN, anyone could make the flow a direct one, or
 * another. */
SUBPROGRAM int proxy_has(struct packet *p, struct conntrack *ct)
{
	const __u32 closed = CT_FIN_FORWARD | CT_FIN_REPLY;
	struct proxy *px;
	struct tuple t;
	__u32 flags, key;
	bool reply;

	if (!p || !ct)
		return false;
	flags = ct->flags;
	if (!(flags & CT_REDIRECTED) || flags & CT_CUT)
		return false;
	reply = ct_is_reply(ct, p->swapped);
	/* The initiator may use its port anew once it is done with the last use. */
	if (!reply && (!(flags & CT_REPLIED) || flags & CT_RST || (flags & closed) == closed))
		return false;
	key = ct->generation;
	px = bpf_map_lookup_elem(&proxies, &key);
	if (!px || !px->alive)
		return false;
	conn_key(p, reply, &t);
	return bpf_map_lookup_elem(&conns, &t) != NULL;
}

/* A SYN begins anew, whatever was known of its tuple; only one that is repeated
 * before any answer belongs to what the first one began. */
SUBPROGRAM int syn(struct __sk_buff *skb, struct packet *p)
{
	const __u32 over =
		CT_REPLIED | CT_CUT | CT_RST | CT_FIN_FORWARD | CT_FIN_REPLY | CT_MIDSTREAM;
	struct conntrack *ct;
	bool again, redirected, reply;
	int act;

	if (!p)
		return TC_ACT_SHOT;
	ct = ct_find(&p->key, p->now);
	if (!ct)
		return begin(skb, p, false);
	reply = ct_is_reply(ct, p->swapped);
	again = !reply && !(ct->flags & over);
	redirected = ct->flags & CT_REDIRECTED;
	if (again && !redirected) {
		act = judge_again(skb, p, ct);
		if (act != GO_ON)
			return act;
		ct_note(ct, p, false);
		return TC_ACT_UNSPEC;
	}
	act = begin(skb, p, again);
	/* Now a direct flow: what the proxy knows of its tuple is another's. */
	if (redirected && act == TC_ACT_UNSPEC)
		forget_conn(p, reply);
	return act;
}

/* An ICMP error belongs to the flow of the packet it quotes. */
SUBPROGRAM int icmp_error(struct __sk_buff *skb, struct packet *p)
{
	struct conntrack *ct = NULL;
	struct tuple quoted;
	bool reply;
	__u8 role;

	if (!p)
		return TC_ACT_SHOT;
	/* It is sent to where the quoted packet came from; by a pod, about what came
	 * to that pod: it is no router, and has no say in others' flows. */
	if (parse_quoted(skb, p, &quoted) && same_addr(&quoted.saddr, &p->tuple.daddr) &&
	    (p->direction == DIRECTION_INGRESS || same_addr(&quoted.daddr, &p->tuple.saddr))) {
		p->swapped = ct_key(&quoted, &p->key);
		ct = ct_find(&p->key, p->now);
	}
	if (ct) {
		if (ct->flags & (CT_REDIRECTED | CT_CUT))
			return into_proxy(skb, p, ct->generation);
		/* The error goes against the packet it quotes. */
		reply = !ct_is_reply(ct, p->swapped);
		role = ct_role(p->direction, reply);
		if (ct->flags & ct_judged(role))
			return TC_ACT_UNSPEC;
	}
	if (p->host) {
		if (settle_host(p) == DROP)
			return drop(skb, p);
		return TC_ACT_UNSPEC;
	}
	if (judge_forward(p, false) == PASS) {
		tell(skb, p, VERDICT_FORWARDED);
		return TC_ACT_UNSPEC;
	}
	if (p->reason == REASON_POLICY_DENIED)
		p->reason = REASON_ICMP_UNRELATED;
	return drop(skb, p);
}

/* No entry, and no SYN. */
SUBPROGRAM int unknown(struct __sk_buff *skb, struct packet *p)
{
	if (!p)
		return TC_ACT_SHOT;
	if (p->part == FRAGMENT_LATER || is_echo_reply(p))
		return stateless(skb, p);
	return is_tcp(p) ? midstream(skb, p) : begin(skb, p, false);
}

/* Whether a packet is judged anew once policy has moved on. Replies of TCP are
 * not: the next forward packet comes soon, or they end. Those of other protocols
 * may go on without one. The node's to its pods never are. */
static __always_inline bool goes_stale(const struct packet *p, bool reply)
{
	return !reply || (!p->host && !is_tcp(p));
}

/* The shortest way: a packet of a flow that was judged at this veth, at the
 * current revision. That it came by this veth then makes its addresses the
 * pod's, and nothing else has to be asked. GO_ON if it is another case. */
static __always_inline int pass_known(struct __sk_buff *skb, struct packet *p)
{
	struct proxy *px = NULL;
	struct conntrack *ct;
	__u32 flags;
	bool reply;
	__u8 role;

	if (p->kind != KIND_FLOW || p->part != FRAGMENT_NONE || is_syn(p) || is_icmp(p))
		return GO_ON;
	p->swapped = ct_key(&p->tuple, &p->key);
	ct = ct_find(&p->key, p->now);
	if (!ct)
		return GO_ON;
	flags = ct->flags;
	reply = ct_is_reply(ct, p->swapped);
	role = ct_role(p->direction, reply);
	if ((flags & (CT_CUT | (reply ? CT_MAY_ASK : 0) | ct_judged(role))) != ct_judged(role) ||
	    ct->veth[role & 1] != skb->ifindex)
		return GO_ON;
	if (goes_stale(p, reply) && (ct->revision[role & 1] != p->revision || always_judge))
		return GO_ON;
	if (flags & CT_REDIRECTED) {
		if (is_udp(p) && !reply && session_stale(p, ct))
			return GO_ON;
		px = find_proxy(ct->generation);
		if (!px)
			return GO_ON;
	}
	ct_note(ct, p, reply);
	return px ? enter(skb, p, px) : TC_ACT_UNSPEC;
}

/* Decides over a packet of a pod whose policy is p->policy. */
SUBPROGRAM int decide(struct __sk_buff *skb, struct packet *p)
{
	struct conntrack *ct;
	__u32 flags, judged;
	int act = GO_ON;
	bool reply;
	__u8 role;

	if (!p)
		return TC_ACT_SHOT;
	if (unlikely(p->kind == KIND_ICMP_ERROR))
		return icmp_error(skb, p);
	if (unlikely(p->kind != KIND_FLOW))
		return stateless(skb, p);
	p->swapped = ct_key(&p->tuple, &p->key);
	ct = ct_find(&p->key, p->now);
	if (is_syn(p) && !(ct && proxy_has(p, ct)))
		return syn(skb, p);
	if (!ct && is_tcp(p) && ct_recover(skb, p))
		ct = ct_find(&p->key, p->now);
	if (!ct)
		return unknown(skb, p);
	reply = ct_is_reply(ct, p->swapped);
	/* Echo with identifier 0 both ways: its requests look like replies. */
	if (unlikely(is_icmp(p) && reply != is_echo_reply(p)))
		return stateless(skb, p);

	flags = ct->flags;
	if (unlikely(flags & CT_CUT)) {
		if (p->tcp_flags & TCP_RST && !(flags & CT_REDIRECTED))
			return TC_ACT_UNSPEC;
		return into_proxy(skb, p, ct->generation);
	}
	role = ct_role(p->direction, reply);
	judged = ct_judged(role);
	if (!(flags & judged))
		act = reply ? judge_late(skb, p, ct) : judge_again(skb, p, ct);
	else if (goes_stale(p, reply) && (ct->revision[role & 1] != p->revision || always_judge))
		act = reply ? judge_late(skb, p, ct) : judge_again(skb, p, ct);
	else if (flags & CT_MAY_ASK && reply && p->direction == DIRECTION_EGRESS)
		act = answer(skb, p, ct);
	else if (flags & CT_REDIRECTED && is_udp(p) && !reply && session_stale(p, ct))
		act = judge_again(skb, p, ct);
	if (unlikely(act != GO_ON))
		return act;
	ct->veth[role & 1] = skb->ifindex;
	ct_note(ct, p, reply);
	if (flags & CT_REDIRECTED)
		return into_proxy(skb, p, ct->generation);
	return TC_ACT_UNSPEC;
}

/* What every program does first. */
static __always_inline void look_at_clock(struct packet *p)
{
	__u32 zero = 0;
	struct state *s = bpf_map_lookup_elem(&state, &zero);

	p->now = bpf_ktime_get_coarse_ns();
	if (s)
		p->revision = s->revision;
}
