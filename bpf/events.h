/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* What was decided, told and counted. */
#pragma once
#include "maps.h"
#include "packet.h"
#include "policy.h"

/* Events of either sort (drops, others) per CPU and window. */
volatile const __u32 event_limit = 500;
volatile const __u64 event_window = 100 * 1000 * 1000;
/* Bytes from which on each event wakes the reader. Below, only the one that is
 * next to be read does: the reader looks by itself again a while after it has
 * read, and a wake-up costs more than a verdict. */
volatile const __u64 event_wake = 1 << 20;

static __always_inline void count(__u8 reason, __u8 direction, __u32 bytes)
{
	struct metric_key key = {.reason = reason, .direction = direction};
	struct metric first = {.packets = 1, .bytes = bytes}, *m;

	m = bpf_map_lookup_elem(&metrics, &key);
	if (m) {
		m->packets++;
		m->bytes += bytes;
	} else {
		bpf_map_update_elem(&metrics, &key, &first, BPF_NOEXIST);
	}
}

/* Takes an event out of this CPU's budget. */
static __always_inline bool may_tell(struct budget *b, __u64 now, bool drop)
{
	if (now - b->window >= event_window) {
		b->window = now;
		b->spent[0] = b->spent[1] = 0;
	}
	if (b->spent[!drop] >= event_limit) {
		b->limited++;
		return false;
	}
	b->spent[!drop]++;
	return true;
}

/* Counts p's verdict and tells it to user space. */
SUBPROGRAM int tell(struct __sk_buff *skb, struct packet *p, __u8 verdict)
{
	__u32 zero = 0, peer;
	struct budget *b;
	struct event *e;

	if (!p)
		return 0;
	count(p->reason, p->reason_direction, p->bytes);
	b = bpf_map_lookup_elem(&budget, &zero);
	if (!b || !may_tell(b, p->now, verdict == VERDICT_DROPPED))
		return 0;
	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e) {
		b->lost++;
		return 0;
	}
	e->time = bpf_ktime_get_ns();
	e->tuple = p->tuple;
	e->rule = p->found[p->reason_direction & 1].rule;
	peer = p->peer[1] ? p->peer[1] : p->peer[0];
	e->src_identity = p->direction == DIRECTION_EGRESS ? p->identity : peer;
	e->dst_identity = p->direction == DIRECTION_EGRESS ? peer : p->identity;
	e->policy = p->judge;
	e->ifindex = skb->ifindex;
	e->bytes = p->bytes;
	e->verdict = verdict;
	e->reason = p->reason;
	e->direction = p->reason_direction;
	e->tcp_flags = p->tcp_flags;
	e->icmp_type = p->icmp_type;
	e->icmp_code = p->icmp_code;
	e->pad[0] = e->pad[1] = 0;
	bpf_ringbuf_submit(e, bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA) >= event_wake
				      ? BPF_RB_FORCE_WAKEUP
				      : 0);
	return 0;
}

/* Drops the packet, with the reason p has. */
static __always_inline int drop(struct __sk_buff *skb, struct packet *p)
{
	tell(skb, p, VERDICT_DROPPED);
	return TC_ACT_SHOT;
}

/* Drops the packet for a reason of the datapath, not of a policy. */
static __always_inline int drop_for(struct __sk_buff *skb, struct packet *p, __u8 reason)
{
	p->reason = reason;
	p->reason_direction = p->direction;
	p->judge = p->policy;
	p->found[p->direction & 1].rule = 0;
	return drop(skb, p);
}
