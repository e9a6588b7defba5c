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
	/* conns has no say here: the proxy itself may have written it. */
	if (!ct || !(ct->flags & (CT_REDIRECTED | CT_CUT)))
		return drop_for(skb, &p, REASON_PROXY_UNKNOWN_FLOW);
	reply = ct_is_reply(ct, p.swapped);

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
