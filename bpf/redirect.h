/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* The ways of a packet that doesn't just go on: into a proxy's namespace, out
 * of it, and the end of a flow that must not go on.
 *
 *   from_pod --redirect_peer--> eth0 of the proxy's namespace
 *   to_pod   --redirect-->      the same, by way of its host side
 *   from_proxy --redirect_peer--> a pod of this node
 *              --redirect-->      ingress of the veth the flow was taken from,
 *                                 as if the pod there had sent it
 */
#pragma once
#include "conntrack.h"
#include "events.h"
#include "session.h"
#include "share.h"

/* Marks a packet that from_proxy puts on a veth's ingress, until from_pod there
 * has seen it. A pod can't set it: crossing a namespace clears marks. */
#define MARK_INJECTED 0x57454952

/* The proxy of a generation if it lives; else the current one, where a flow of
 * a dead one finds no socket and so gets a RST. */
static __always_inline struct proxy *find_proxy(__u8 generation)
{
	__u32 key = generation, zero = 0;
	struct proxy *px = bpf_map_lookup_elem(&proxies, &key);
	struct state *s;

	if (px && px->alive)
		return px;
	s = bpf_map_lookup_elem(&state, &zero);
	if (!s)
		return NULL; /* can't happen: an array of one */
	key = s->generation;
	px = bpf_map_lookup_elem(&proxies, &key);
	return px && px->alive ? px : NULL;
}

static __always_inline int enter(struct __sk_buff *skb, struct packet *p, struct proxy *px)
{
	if (p->direction == DIRECTION_EGRESS) {
		/* A bridged pod's packet is for another MAC; older kernels would
		 * leave it PACKET_OTHERHOST. */
		if (skb->pkt_type != PACKET_HOST)
			bpf_skb_change_type(skb, PACKET_HOST);
		return bpf_redirect_peer(px->ifindex, 0);
	}
	if (bpf_skb_store_bytes(skb, 0, px->mac, sizeof(px->mac), 0))
		return drop_for(skb, p, REASON_INVALID_PACKET);
	return bpf_redirect(px->ifindex, 0);
}

/* Sends the packet into the namespace of the proxy that has its flow. */
SUBPROGRAM int into_proxy(struct __sk_buff *skb, struct packet *p, __u8 generation)
{
	struct proxy *px;

	if (!p)
		return TC_ACT_SHOT;
	px = find_proxy(generation);
	return px ? enter(skb, p, px) : drop_for(skb, p, REASON_NO_PROXY);
}

/* The Ethernet header that makes a packet come from the pod at this veth. */
static __always_inline void pod_l2(struct __sk_buff *skb, struct packet *p, __u8 *l2)
{
	__u8 header[ETH_HLEN];

	if (bpf_skb_load_bytes(skb, 0, header, sizeof(header)))
		return; /* can't happen: parse read beyond it */
	if (p->direction == DIRECTION_INGRESS) {
		__builtin_memcpy(l2, header + 6, 6);
		__builtin_memcpy(l2 + 6, header, 6);
		__builtin_memcpy(l2 + 12, header + 12, 2);
	} else {
		__builtin_memcpy(l2, header, ETH_HLEN);
	}
}

/* A redirected flow that conntrack let go of, or whose entry ran out, while the
 * proxy still has it: made again at a packet of one of its ends. The proxy can
 * write conns, so that is believed for nothing but that the packet goes there: the
 * flow is to be judged again, and speaks for the pod at this veth or, where both
 * are pods of this node, for the one it names. Returns whether it is one. */
SUBPROGRAM int ct_recover(struct __sk_buff *skb, struct packet *p)
{
	struct conntrack ct = {};
	struct endpoint *other;
	struct conn *conn;
	struct tuple t;
	bool reply = false;
	__be16 protocol;

	if (!p)
		return false;
	conn_key(p, false, &t);
	conn = bpf_map_lookup_elem(&conns, &t);
	if (!conn) {
		reply = true;
		conn_key(p, true, &t);
		conn = bpf_map_lookup_elem(&conns, &t);
		if (!conn)
			return false;
	}
	ct.ifindex = conn->ifindex;
	if (ct.ifindex == skb->ifindex) {
		pod_l2(skb, p, ct.l2);
	} else {
		other = bpf_map_lookup_elem(&endpoints, p->direction == DIRECTION_EGRESS
								? &p->tuple.daddr
								: &p->tuple.saddr);
		if (!other || !other->ifindex || other->ifindex != ct.ifindex)
			return false;
		protocol = skb->protocol;
		__builtin_memcpy(ct.l2, other->host_mac, 6);
		__builtin_memcpy(ct.l2 + 6, other->pod_mac, 6);
		__builtin_memcpy(ct.l2 + 12, &protocol, 2);
	}
	ct.flags = CT_REDIRECTED | CT_REPLIED | (p->swapped != reply ? CT_SWAPPED : 0);
	ct.last_seen = p->now;
	/* Not the current one, so the next forward packet tells the proxy anew. */
	ct.revision[0] = ct.revision[1] = p->revision - 1;
	ct.generation = conn->generation;
	return !bpf_map_update_elem(&conntrack, &p->key, &ct, BPF_ANY);
}

/* What writes of conns fail with: for tests. */
volatile const __s32 conns_error = 0;

/* Tells the proxy what now holds for a flow it has. Returns an error if the
 * proxy has the flow and can't be told. */
SUBPROGRAM int renew_conn(struct packet *p, const struct tuple *forward)
{
	struct conn *old, new;
	long err;

	if (!p || !forward)
		return -EINVAL;
	old = bpf_map_lookup_elem(&conns, forward);
	if (!old)
		return 0;
	new = *old;
	new.revision = p->revision;
	new.l7 = p->l7 | (old->l7 & ~3);
	new.rule_set[0] = p->l7 & 1 ? p->found[0].rule_set : 0;
	new.rule_set[1] = p->l7 & 2 ? p->found[1].rule_set : 0;
	new.rule[0] = p->found[0].rule;
	new.rule[1] = p->found[1].rule;
	if (conns_error)
		return conns_error;
	/* A new element, so that the proxy never reads half of each; but none if
	 * the proxy has just let go of the flow. */
	err = bpf_map_update_elem(&conns, forward, &new, BPF_EXIST);
	return err == -ENOENT ? 0 : err;
}

/* Fills the entry of a flow that goes through a proxy, in the name of the pod at
 * the veth that conn says. */
static __always_inline void redirected_entry(struct conntrack *ct, const struct packet *p,
					     const struct conn *conn)
{
	ct->last_seen = p->now;
	ct->revision[0] = ct->revision[1] = p->revision;
	ct->ifindex = conn->ifindex;
	ct->generation = conn->generation;
	ct->flags = CT_REDIRECTED | ct_judged(p->direction) | (p->swapped ? CT_SWAPPED : 0);
	if (p->direction == DIRECTION_INGRESS) {
		ct->veth[DIRECTION_INGRESS] = conn->ifindex;
	} else {
		ct->veth[DIRECTION_EGRESS] = conn->ifindex;
		ct->veth[DIRECTION_INGRESS] = p->local_ifindex;
		if (p->local_ifindex)
			ct->flags |= CT_JUDGED_INGRESS;
	}
	ct->rule[0] = p->found[0].rule;
	ct->rule[1] = p->found[1].rule;
	__builtin_memcpy(ct->l2, conn->l2, sizeof(ct->l2));
}

/* Writes what the proxy must know of a flow, and fills conn with it. generation:
 * the proxy. Returns a reason or 0. */
SUBPROGRAM int tell_proxy(struct __sk_buff *skb, struct packet *p, struct conn *conn, bool again,
			  __u8 generation)
{
	__u32 ifindex = skb->ifindex;
	struct conn *old = NULL;
	struct share *share;
	struct tuple key;
	bool room;
	long err;

	if (!p || !conn)
		return REASON_CONNS_FULL;
	share = share_of(ifindex);
	if (!share)
		return REASON_CONNS_SHARE; /* no memory */
	room = has_room(share, ifindex);
	conn_key(p, false, &key);
	/* An entry that is replaced needs no room. */
	if (again || !room || is_udp(p))
		old = bpf_map_lookup_elem(&conns, &key);
	if (!room && !old)
		return REASON_CONNS_SHARE;

	conn->generation = generation;
	if (old && (again || is_udp(p)) && old->generation == generation && old->ifindex == ifindex)
		conn->id = old->id;
	else
		conn->id = bpf_ktime_get_ns();
	conn->ifindex = ifindex;
	conn->revision = p->revision;
	conn->src_identity = p->direction == DIRECTION_EGRESS ? p->identity : p->peer[0];
	conn->dst_identity = p->direction == DIRECTION_EGRESS ? p->peer[0] : p->identity;
	if (p->fronted == FRONT)
		conn->dst_identity = p->peer[1];
	conn->l7 = p->l7 | CONN_LOCAL << (p->direction & 1);
	if (p->local_ifindex)
		conn->l7 |= CONN_LOCAL << DIRECTION_INGRESS;
	if (p->l7 & 1)
		conn->rule_set[0] = p->found[0].rule_set;
	if (p->l7 & 2)
		conn->rule_set[1] = p->found[1].rule_set;
	conn->rule[0] = p->found[0].rule;
	conn->rule[1] = p->found[1].rule;
	pod_l2(skb, p, conn->l2);
	/* Every question may be a flow of its own; few make a session another one. */
	if (is_udp(p) && old && same_conn(old, conn))
		return 0;
	err = conns_error;
	if (!err)
		err = bpf_map_update_elem(&conns, &key, conn, old ? BPF_ANY : BPF_NOEXIST);
	/* Counted when it is there: a walk may count it twice, but never miss it. */
	if (!err && !old)
		__sync_fetch_and_add(&share->made, 1);
	else if (err == -EEXIST)
		err = bpf_map_update_elem(&conns, &key, conn, BPF_ANY);
	return err ? REASON_CONNS_FULL : 0;
}

/* Writes what the proxy must know, then the flow's entry, and only then lets
 * the first packet go there. again: it went there before (a repeated SYN, or a
 * datagram whose session has changed). */
SUBPROGRAM int redirect_new(struct __sk_buff *skb, struct packet *p, bool again)
{
	struct conntrack ct = {};
	struct conn conn = {};
	struct proxy *px;
	__u32 zero = 0;
	struct state *s;
	int reason;

	if (!p)
		return TC_ACT_SHOT;
	s = bpf_map_lookup_elem(&state, &zero);
	if (!s)
		return drop_for(skb, p, REASON_NO_PROXY); /* can't happen */
	zero = s->generation;
	px = bpf_map_lookup_elem(&proxies, &zero);
	if (!px || !px->alive)
		return drop_for(skb, p, REASON_NO_PROXY);
	reason = tell_proxy(skb, p, &conn, again, zero);
	if (reason)
		return drop_for(skb, p, reason);
	redirected_entry(&ct, p, &conn);
	if (bpf_map_update_elem(&conntrack, &p->key, &ct, BPF_ANY)) {
		if (is_tcp(p))
			bpf_map_delete_elem(&conns, &p->tuple);
		return drop_for(skb, p, REASON_CONNTRACK_FULL);
	}
	if (!again)
		tell(skb, p, VERDICT_REDIRECTED);
	return enter(skb, p, px);
}

/* Makes the packet a RST of the direction it goes in. */
static __always_inline void make_rst(struct __sk_buff *skb, struct packet *p)
{
	__be16 from, to;
	__u8 flags = TCP_RST | TCP_ACK;

	if (bpf_skb_load_bytes(skb, p->l4 + 12, &from, sizeof(from)))
		return; /* can't happen: parse read it */
	/* doff is the first byte on the wire, flags the second. */
	to = (from & htons(0xff00)) | htons(flags);
	bpf_l4_csum_replace(skb, p->l4 + 16, from, to, sizeof(to));
	bpf_skb_store_bytes(skb, p->l4 + 13, &flags, sizeof(flags), 0);
}

/* Ends a direct flow that can't go on without the proxy: a copy of the packet
 * goes into the proxy's namespace, where nobody knows the flow, so that TCP
 * there resets the sender; the packet itself resets the receiver. Without a
 * proxy the sender learns at its next packet, once there is one. */
SUBPROGRAM int cut(struct __sk_buff *skb, struct packet *p, __u8 reason)
{
	struct conntrack ct = {}, *old;
	__u8 mac[6];
	struct proxy *px;
	__u32 zero = 0;
	struct state *s;

	if (!p)
		return TC_ACT_SHOT;
	p->reason = reason;
	tell(skb, p, VERDICT_DROPPED);
	if (p->tcp_flags & TCP_RST)
		return TC_ACT_SHOT;
	old = bpf_map_lookup_elem(&conntrack, &p->key);
	if (old)
		ct = *old;
	else
		ct.flags = p->swapped ? CT_SWAPPED : 0;
	s = bpf_map_lookup_elem(&state, &zero);
	if (s)
		ct.generation = s->generation;
	ct.flags |= CT_CUT;
	ct.last_seen = p->now;
	ct.ifindex = skb->ifindex;
	pod_l2(skb, p, ct.l2);
	if (bpf_map_update_elem(&conntrack, &p->key, &ct, BPF_ANY))
		return TC_ACT_SHOT;
	px = find_proxy(ct.generation);
	if (px) {
		if (bpf_skb_load_bytes(skb, 0, mac, sizeof(mac)) ||
		    bpf_skb_store_bytes(skb, 0, px->mac, sizeof(px->mac), 0) ||
		    bpf_clone_redirect(skb, px->ifindex, 0) ||
		    bpf_skb_store_bytes(skb, 0, mac, sizeof(mac), 0))
			return TC_ACT_SHOT;
	}
	make_rst(skb, p);
	return TC_ACT_UNSPEC;
}

/* Ends a redirected flow that policy allows no more: the packet resets the
 * proxy's end, which passes that on; from_proxy lets nothing else out. A datagram is
 * just dropped: from_proxy lets out none without an entry, and judges those for
 * the server anew. */
SUBPROGRAM int revoke_redirected(struct __sk_buff *skb, struct packet *p, struct conntrack *ct)
{
	struct tuple key;
	__u8 generation;

	if (!p || !ct)
		return TC_ACT_SHOT;
	if (is_udp(p)) {
		conn_key(p, false, &key);
		bpf_map_delete_elem(&conns, &key);
		bpf_map_delete_elem(&conntrack, &p->key);
		return drop(skb, p);
	}
	generation = ct->generation;
	__sync_fetch_and_or(&ct->flags, CT_CUT);
	ct->last_seen = p->now;
	bpf_map_delete_elem(&conns, &p->tuple);
	tell(skb, p, VERDICT_DROPPED);
	if (!(p->tcp_flags & TCP_RST) && p->part != FRAGMENT_LATER)
		make_rst(skb, p);
	return into_proxy(skb, p, generation);
}
