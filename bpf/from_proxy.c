//go:build ignore
/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* Ingress of the host side of a proxy's veth: what the proxy sends, in the name
 * of a pod's peer or of the pod. */
#include "flow.h"

/* To a pod of this node, as if from its host side. */
static __always_inline int deliver(struct __sk_buff *skb, struct packet *p, struct endpoint *ep)
{
	__u8 macs[12];

	__builtin_memcpy(macs, ep->pod_mac, 6);
	__builtin_memcpy(macs + 6, ep->host_mac, 6);
	if (bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), 0))
		return drop_for(skb, p, REASON_INVALID_PACKET);
	if (skb->pkt_type != PACKET_HOST)
		bpf_skb_change_type(skb, PACKET_HOST);
	return bpf_redirect_peer(ep->ifindex, 0);
}

/* To anyone else, as if from the pod the flow was taken from: through the host
 * as the pod's own packets go. */
static __always_inline int inject(struct __sk_buff *skb, struct packet *p, struct conntrack *ct)
{
	__u8 l2[ETH_HLEN];

	__builtin_memcpy(l2, ct->l2, sizeof(l2));
	if (!ct->ifindex || bpf_skb_store_bytes(skb, 0, l2, sizeof(l2), 0))
		return drop_for(skb, p, REASON_PROXY_UNKNOWN_FLOW);
	skb->mark = MARK_INJECTED;
	return bpf_redirect(ct->ifindex, BPF_F_INGRESS);
}

/* The generation of the proxy behind an interface; 0: none. */
SUBPROGRAM __u8 generation_at(__u32 ifindex)
{
	struct proxy *px;
	__u32 key, i;

	/* A copy as the key: a counter that a helper is shown could change, for all
	 * the verifier knows. */
	for (i = 1; i < 256; i++) {
		key = i;
		px = bpf_map_lookup_elem(&proxies, &key);
		if (px && px->alive && px->ifindex == ifindex)
			return i;
	}
	return 0;
}

/* Makes the entry of a flow by which the proxy asks for a pod, whose session is
 * known. That there is one is no reason to believe what it says, since proxies can
 * write it, but only a pod that asked has one; of its header the proxy can make
 * nothing that the pod could not have sent. Returns a reason or 0. */
SUBPROGRAM int make_question(struct __sk_buff *skb, struct packet *p, __u32 ifindex)
{
	__be16 protocol = skb->protocol;
	struct conntrack ct = {}, *old;
	struct conn conn, *c;
	struct tuple key;

	if (!p)
		return REASON_UDP_NO_FLOW;
	conn_key(p, false, &key);
	c = bpf_map_lookup_elem(&conns, &key);
	if (!c || c->ifindex != ifindex)
		return REASON_UDP_NO_FLOW;
	conn = *c;
	conn.ifindex = ifindex;
	conn.generation = generation_at(skb->ifindex);
	if (!conn.generation)
		return REASON_NO_PROXY;
	__builtin_memcpy(conn.l2 + 12, &protocol, sizeof(protocol));
	redirected_entry(&ct, p, &conn);
	/* Answers are for the pod as well if it uses this port, too. */
	old = ct_find(&p->key, p->now);
	if (!old || (old->flags & (CT_REDIRECTED | CT_ASKED)) != CT_REDIRECTED)
		ct.flags |= CT_ASKED;
	return bpf_map_update_elem(&conntrack, &p->key, &ct, BPF_ANY) ? REASON_CONNTRACK_FULL : 0;
}

/* A datagram of a socket that the proxy asks a server by, and that is not known or
 * was judged at an older revision. It is judged here as if the pod had sent it: a
 * proxy can ask for it nothing that it could not. Returns whether there is an entry
 * of its flow now. */
SUBPROGRAM int ask(struct __sk_buff *skb, struct packet *p)
{
	struct endpoint *self;
	__u32 ifindex;
	int reason;

	if (!p)
		return false;
	self = bpf_map_lookup_elem(&endpoints, &p->tuple.saddr);
	if (!self || !self->ifindex || p->part == FRAGMENT_LATER) {
		drop_for(skb, p, REASON_UDP_NO_FLOW);
		return false;
	}
	ifindex = self->ifindex;
	p->policy = self->policy;
	p->identity = self->identity;
	switch (judge_forward(p, true)) {
	case REDIRECT:
		reason = make_question(skb, p, ifindex);
		break;
	case PASS:
		/* The pod's own goes there without a proxy. */
		reason = REASON_UDP_NO_FLOW;
		break;
	default:
		drop(skb, p);
		return false;
	}
	if (reason)
		drop_for(skb, p, reason);
	return !reason;
}

/* Whether what comes by the wire for a flow goes to the proxy behind an interface. */
static __always_inline bool answered_at(const struct conntrack *ct, __u32 ifindex)
{
	__u32 generation = ct->generation;
	struct proxy *px = bpf_map_lookup_elem(&proxies, &generation);

	return px && px->alive && px->ifindex == ifindex;
}

/* Whether a datagram is to be judged: as one of the pod's, not as an answer to
 * it. An entry that the server made, or that is older than the rules, does not
 * count; nor does one of another proxy, by which the pod has asked from this port, or
 * which has itself: that one would get the answer. */
static __always_inline bool is_question(struct __sk_buff *skb, const struct packet *p,
					const struct conntrack *ct)
{
	if (!is_udp(p))
		return false;
	if (!ct || !(ct->flags & CT_REDIRECTED))
		return true;
	if (ct_is_reply(ct, p->swapped))
		return false;
	return ct->revision[DIRECTION_EGRESS] != p->revision || !answered_at(ct, skb->ifindex);
}

SEC("tc")
int from_proxy(struct __sk_buff *skb)
{
	struct packet p = {.direction = DIRECTION_EGRESS};
	bool error, reset, reply;
	struct tuple quoted;
	struct conntrack *ct;
	struct endpoint *ep;

	/* The namespace's own chatter: its neighbors are permanent. */
	if (parse(skb, &p))
		return drop_for(skb, &p, REASON_PROXY_UNKNOWN_FLOW);
	look_at_clock(&p);
	if (p.kind == KIND_NEIGHBOR)
		return TC_ACT_SHOT;
	if (p.part != FRAGMENT_NONE && !fragment_resolve(&p))
		return drop_for(skb, &p, REASON_FRAGMENT_UNKNOWN);

	error = p.kind == KIND_ICMP_ERROR;
	if (error) {
		if (!parse_quoted(skb, &p, &quoted) || !same_addr(&quoted.saddr, &p.tuple.daddr))
			return drop_for(skb, &p, REASON_PROXY_UNKNOWN_FLOW);
		p.swapped = !ct_key(&quoted, &p.key);
	} else {
		p.swapped = ct_key(&p.tuple, &p.key);
	}
	ct = ct_find(&p.key, p.now);
	if (!error && is_question(skb, &p, ct)) {
		if (!ask(skb, &p))
			return TC_ACT_SHOT;
		ct = ct_find(&p.key, p.now);
	}
	/* What else conns says doesn't count: the proxy itself may have written it. */
	if (!ct || !(ct->flags & (CT_REDIRECTED | CT_CUT)))
		return drop_for(skb, &p, REASON_PROXY_UNKNOWN_FLOW);
	reply = ct_is_reply(ct, p.swapped);

	/* Nor could it speak to a port that the pod didn't ask from. */
	if (reply && !error && ct->flags & CT_ASKED)
		return drop_for(skb, &p, REASON_PROXY_UNKNOWN_FLOW);

	/* The end of a flow is all that may still be said about it. */
	reset = p.tcp_flags & TCP_RST;
	if (ct->flags & CT_CUT && !reset)
		return TC_ACT_SHOT;
	if (!(ct->flags & CT_CUT) && !error)
		ct_note(ct, &p, reply);

	/* Back to the initiator by the way it came: where the flow was taken at
	 * the responder's veth, address translation may lie in between. */
	ep = bpf_map_lookup_elem(&endpoints, &p.tuple.daddr);
	if (ep && ep->ifindex && (!reply || ep->ifindex == ct->ifindex))
		return deliver(skb, &p, ep);
	return inject(skb, &p, ct);
}
