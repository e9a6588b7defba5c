/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* Flows: their key, how long an entry counts, and what a packet changes in it.
 *
 * Which way a packet of a flow goes:
 *   forward  from the end that began the flow; judged by policy
 *   reply    the other way; passes because forward was judged
 * CT_JUDGED_EGRESS is set by the initiator's end, CT_JUDGED_INGRESS by the
 * responder's, so at one pod's veth the flag that lets a packet pass depends
 * only on whether that pod is the initiator: see ct_role. */
#pragma once
#include "maps.h"
#include "packet.h"

#define SECOND 1000000000ull

/* TCP is established for 8000 s, longer than the keep-alives of Linux. */
static __always_inline __u64 ct_lifetime(__u32 flags, __u8 proto)
{
	if (flags & (CT_CUT | CT_RST) ||
	    (flags & (CT_FIN_FORWARD | CT_FIN_REPLY)) == (CT_FIN_FORWARD | CT_FIN_REPLY))
		return 10 * SECOND;
	if (!(flags & CT_REPLIED))
		return 60 * SECOND;
	if (proto == IPPROTO_TCP)
		return 8000 * SECOND;
	if (proto == IPPROTO_UDP || proto == IPPROTO_SCTP)
		return 180 * SECOND;
	return 60 * SECOND;
}

static __always_inline bool ct_expired(const struct conntrack *ct, __u8 proto, __u64 now)
{
	return now > ct->last_seen + ct_lifetime(ct->flags, proto);
}

/* Writes the key of t's flow and returns whether that is t reversed. */
static __always_inline bool ct_key(const struct tuple *t, struct tuple *key)
{
	bool swap = false;
	int i;

	if (ntohs(t->sport) > ntohs(t->dport))
		swap = true;
#pragma unroll
	for (i = 3; i >= 0; i--)
		if (t->saddr.word[i] != t->daddr.word[i])
			swap = ntohl(t->saddr.word[i]) > ntohl(t->daddr.word[i]);
	key->proto = t->proto;
	key->pad[0] = key->pad[1] = key->pad[2] = 0;
	if (swap) {
		key->saddr = t->daddr;
		key->daddr = t->saddr;
		key->sport = t->dport;
		key->dport = t->sport;
	} else {
		key->saddr = t->saddr;
		key->daddr = t->daddr;
		key->sport = t->sport;
		key->dport = t->dport;
	}
	return swap;
}

static __always_inline struct conntrack *ct_find(const struct tuple *key, __u64 now)
{
	struct conntrack *ct = bpf_map_lookup_elem(&conntrack, key);

	return ct && !ct_expired(ct, key->proto, now) ? ct : NULL;
}

/* Whether a packet goes against the direction the flow began in. */
static __always_inline bool ct_is_reply(const struct conntrack *ct, bool swapped)
{
	return !(ct->flags & CT_SWAPPED) == swapped;
}

/* Whose judgement lets a packet pass at a pod's veth: the initiator's pod
 * judges by its egress policy, the responder's by its ingress policy. */
static __always_inline __u8 ct_role(__u8 hook_direction, bool reply)
{
	return reply ? !hook_direction : hook_direction;
}

static __always_inline __u32 ct_judged(__u8 direction)
{
	return direction == DIRECTION_EGRESS ? CT_JUDGED_EGRESS : CT_JUDGED_INGRESS;
}

/* What a packet's headers add to its flow's flags. */
static __always_inline __u32 ct_seen(__u8 tcp_flags, bool reply)
{
	__u32 add = reply ? CT_REPLIED : 0;

	if (tcp_flags & TCP_FIN)
		add |= reply ? CT_FIN_REPLY : CT_FIN_FORWARD;
	if (tcp_flags & TCP_RST)
		add |= CT_RST;
	return add;
}

/* Notes a packet that goes on. last_seen is written once a second, so that the
 * cache line stays shared while nothing changes. */
static __always_inline void ct_note(struct conntrack *ct, const struct packet *p, bool reply)
{
	__u32 add = ct_seen(p->tcp_flags, reply);

	if ((ct->flags & add) != add) {
		__sync_fetch_and_or(&ct->flags, add);
		ct->last_seen = p->now;
	} else if (p->now - ct->last_seen > SECOND) {
		ct->last_seen = p->now;
	}
}

/* The key of the packet's flow in conns: its forward tuple, or its session's. */
static __always_inline void conn_key(const struct packet *p, bool reply, struct tuple *t)
{
	*t = p->tuple;
	if (reply) {
		t->saddr = p->tuple.daddr;
		t->daddr = p->tuple.saddr;
		t->sport = p->tuple.dport;
		t->dport = p->tuple.sport;
	}
	if (is_udp(p))
		t->sport = 0;
}
