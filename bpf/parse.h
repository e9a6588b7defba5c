/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* From bytes to a struct packet: the only place that reads headers. It copies
 * them out, so no pointer into the packet is ever held that could go stale. */
#pragma once
#include "packet.h"

/* Copies from the packet. What is not in its linear part, which is rare, a
 * helper copies; where it is, that saves a call, of which there would be two in
 * every packet's way. Returns 0, or less if the packet is shorter. */
static __always_inline long load_bytes(struct __sk_buff *skb, __u32 offset, void *to,
				       const __u32 len)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

	/* The verifier follows offsets into a packet up to 64 KiB. */
	if (offset <= 1024 && data + offset + len <= end) {
		__builtin_memcpy(to, data + offset, len);
		return 0;
	}
	return bpf_skb_load_bytes(skb, offset, to, len);
}

/* Where a header ends and what follows it. */
struct cursor {
	__u32 offset;
	__u8 proto;
	__u8 part;
	__u8 frag_proto;
	__u8 pad;
	__u32 frag_offset; /* in bytes */
	__be32 frag_id;
};

/* Follows IPv6 extension headers to the transport header. A packet that names
 * another final destination than the one judged is refused. Returns a reason
 * or 0. */
SUBPROGRAM int skip_ipv6_headers(struct __sk_buff *skb, struct cursor *c)
{
	struct ipv6_frag frag;
	struct ipv6_ext ext;
	__u16 bits;
	int i;

	if (!c)
		return REASON_INVALID_PACKET;
	for (i = 0; i <= 6; i++) {
		switch (c->proto) {
		case IPPROTO_FRAGMENT:
			if (bpf_skb_load_bytes(skb, c->offset, &frag, sizeof(frag)))
				return REASON_INVALID_PACKET;
			/* Two fragment headers: nobody reassembles that as we would. */
			if (c->part != FRAGMENT_NONE)
				return REASON_INVALID_PACKET;
			bits = ntohs(frag.frag_off);
			c->offset += sizeof(frag);
			c->proto = frag.nexthdr;
			if (bits & ~7 || bits & 1) {
				c->frag_proto = frag.nexthdr;
				c->frag_id = frag.id;
				c->frag_offset = bits & ~7;
				c->part = c->frag_offset ? FRAGMENT_LATER : FRAGMENT_FIRST;
			}
			if (c->part == FRAGMENT_LATER)
				return 0;
			break;
		case IPPROTO_HOPOPTS:
		case IPPROTO_DSTOPTS:
		case IPPROTO_ROUTING:
		case IPPROTO_AH:
			if (bpf_skb_load_bytes(skb, c->offset, &ext, sizeof(ext)))
				return REASON_INVALID_PACKET;
			if (c->proto == IPPROTO_ROUTING && ext.segments_left)
				return REASON_IPV6_HEADERS;
			c->offset += c->proto == IPPROTO_AH ? (ext.hdrlen + 2) * 4
							    : (ext.hdrlen + 1) * 8;
			c->proto = ext.nexthdr;
			break;
		default:
			return 0;
		}
	}
	return REASON_IPV6_HEADERS;
}

/* The longest that discovery by a host gets with the options that hosts send:
 * more would carry something else. */
#define NEIGHBOR_MAX 96

/* The shape ND and MLD must have: from the link, not from beyond a router.
 * A pod that advertises routes or redirects is an attack on its neighbors. What
 * a pod sends must also stay on the link, see to_neighbor: the kernel routes a
 * solicitation to a global address like any packet. */
static __always_inline bool is_neighbor(const struct packet *p)
{
	bool link = is_link_local6(&p->tuple.saddr);
	bool sent = p->direction == DIRECTION_EGRESS;
	bool near = is_link_local6(&p->tuple.daddr);

	switch (p->icmp_type) {
	case ICMPV6_ROUTER_SOLICIT:
		near |= is_link_group(&p->tuple.daddr, 2);
		return p->hop_limit == 255 && p->bytes <= NEIGHBOR_MAX && (near || !sent);
	case ICMPV6_NEIGHBOR_SOLICIT:
	case ICMPV6_NEIGHBOR_ADVERT:
		near |= is_link_multicast6(&p->tuple.daddr);
		return p->hop_limit == 255 && p->bytes <= NEIGHBOR_MAX && (near || !sent);
	case ICMPV6_ROUTER_ADVERT:
	case ICMPV6_REDIRECT:
		return p->hop_limit == 255 && link && p->direction == DIRECTION_INGRESS;
	case ICMPV6_MLD_QUERY:
	case ICMPV6_MLD_REPORT:
	case ICMPV6_MLD_DONE:
	case ICMPV6_MLD2_REPORT:
		return p->hop_limit == 1 && (link || is_unspecified(&p->tuple.saddr));
	}
	return false;
}

static __always_inline int parse_icmp(struct __sk_buff *skb, struct packet *p)
{
	bool v6 = p->tuple.proto == IPPROTO_ICMPV6;
	struct icmphdr icmp;

	if (p->l4_len < sizeof(icmp) || load_bytes(skb, p->l4, &icmp, sizeof(icmp)))
		return REASON_INVALID_PACKET;
	p->icmp_type = icmp.type;
	p->icmp_code = icmp.code;
	p->port = icmp.type;
	p->kind = KIND_ICMP;
	if (icmp.type == (v6 ? ICMPV6_ECHO : ICMP_ECHO)) {
		p->kind = KIND_FLOW;
		p->tuple.sport = icmp.id;
	} else if (icmp.type == (v6 ? ICMPV6_ECHO_REPLY : ICMP_ECHO_REPLY)) {
		p->kind = KIND_FLOW;
		p->tuple.dport = icmp.id;
	} else if (p->part != FRAGMENT_NONE) {
		/* Errors and discovery fit into one packet. */
	} else if (v6) {
		if (icmp.type >= ICMPV6_UNREACHABLE && icmp.type <= ICMPV6_PARAMETER)
			p->kind = KIND_ICMP_ERROR;
		else if (is_neighbor(p))
			p->kind = KIND_NEIGHBOR;
	} else if (icmp.type == ICMP_UNREACHABLE || icmp.type == ICMP_TIME_EXCEEDED ||
		   icmp.type == ICMP_PARAMETER) {
		p->kind = KIND_ICMP_ERROR;
	}
	return 0;
}

/* Reads the transport header at p->l4. Returns a reason or 0. */
static __always_inline int parse_l4(struct __sk_buff *skb, struct packet *p, bool gso)
{
	struct tcphdr tcp;
	struct udphdr udp;
	__u32 doff;

	if (p->part == FRAGMENT_LATER)
		return 0;
	switch (p->tuple.proto) {
	case IPPROTO_TCP:
		/* The whole header, also of a first fragment: flags in a second one
		 * could not be judged. */
		if (p->l4_len < sizeof(tcp) || load_bytes(skb, p->l4, &tcp, sizeof(tcp)))
			return REASON_INVALID_PACKET;
		doff = (tcp.doff >> 4) * 4;
		if (doff < sizeof(tcp) || (p->part == FRAGMENT_NONE && doff > p->l4_len))
			return REASON_INVALID_PACKET;
		if (tcp.flags & TCP_SYN && tcp.flags & (TCP_FIN | TCP_RST))
			return REASON_INVALID_PACKET;
		p->tuple.sport = tcp.source;
		p->tuple.dport = tcp.dest;
		p->tcp_flags = tcp.flags;
		break;
	case IPPROTO_UDP:
		if (p->l4_len < sizeof(udp) || load_bytes(skb, p->l4, &udp, sizeof(udp)))
			return REASON_INVALID_PACKET;
		/* Segments that travel as one packet may say the length of one. */
		if (!gso && (ntohs(udp.len) < sizeof(udp) ||
			     (p->part == FRAGMENT_NONE && ntohs(udp.len) > p->l4_len)))
			return REASON_INVALID_PACKET;
		p->tuple.sport = udp.source;
		p->tuple.dport = udp.dest;
		break;
	case IPPROTO_SCTP:
		/* Its header is longer by 4 bytes than UDP's and begins like it. */
		if (p->l4_len < 12 || load_bytes(skb, p->l4, &udp, 4))
			return REASON_INVALID_PACKET;
		p->tuple.sport = udp.source;
		p->tuple.dport = udp.dest;
		break;
	case IPPROTO_ICMP:
		return is_ipv4(&p->tuple.saddr) ? parse_icmp(skb, p) : 0;
	case IPPROTO_ICMPV6:
		return is_ipv4(&p->tuple.saddr) ? 0 : parse_icmp(skb, p);
	default:
		return 0;
	}
	p->port = ntohs(p->tuple.dport);
	return 0;
}

/* l2: where the IP header is. */
static __always_inline int parse_ipv4(struct __sk_buff *skb, struct packet *p, __u32 l2, __u32 *end)
{
	__u32 header, total, bits;
	struct iphdr ip;

	if (load_bytes(skb, l2, &ip, sizeof(ip)) || ip.version_ihl >> 4 != 4)
		return REASON_INVALID_PACKET;
	addr4(&p->tuple.saddr, ip.saddr);
	addr4(&p->tuple.daddr, ip.daddr);
	p->tuple.proto = ip.protocol;
	p->hop_limit = ip.ttl;
	header = (ip.version_ihl & 15) * 4;
	total = ntohs(ip.tot_len);
	/* A packet of segments beyond 64 KiB has no length of its own. */
	if (!total && skb->gso_size)
		total = skb->len - l2;
	if (header < sizeof(ip) || total < header || total > skb->len - l2)
		return REASON_INVALID_PACKET;
	p->bytes = total;
	p->l4 = l2 + header;
	*end = l2 + total;
	bits = ntohs(ip.frag_off);
	if (unlikely(bits & (IP_MF | IP_OFFSET))) {
		p->part = bits & IP_OFFSET ? FRAGMENT_LATER : FRAGMENT_FIRST;
		p->frag_id = ip.id;
		p->frag_proto = ip.protocol;
		/* It would overwrite the header that was judged. */
		if (ip.protocol == IPPROTO_TCP && p->part == FRAGMENT_LATER &&
		    (bits & IP_OFFSET) * 8 < sizeof(struct tcphdr))
			return REASON_INVALID_PACKET;
	}
	return 0;
}

static __always_inline int parse_ipv6(struct __sk_buff *skb, struct packet *p, __u32 l2, __u32 *end)
{
	struct cursor c = {};
	struct ipv6hdr ip;
	__u32 total;
	int reason;

	if (load_bytes(skb, l2, &ip, sizeof(ip)) || ip.version_class >> 4 != 6)
		return REASON_INVALID_PACKET;
	addr6(&p->tuple.saddr, ip.saddr);
	addr6(&p->tuple.daddr, ip.daddr);
	/* IPv4 addresses in IPv6 form never travel; here they would pass as IPv4. */
	if (is_ipv4(&p->tuple.saddr) || is_ipv4(&p->tuple.daddr))
		return REASON_INVALID_PACKET;
	p->tuple.proto = ip.nexthdr;
	p->hop_limit = ip.hop_limit;
	total = sizeof(ip) + ntohs(ip.payload_len);
	if (!ip.payload_len && skb->gso_size)
		total = skb->len - l2;
	if (total > skb->len - l2)
		return REASON_INVALID_PACKET;
	p->bytes = total;
	*end = l2 + total;
	c.offset = l2 + sizeof(ip);
	if (ip.nexthdr != IPPROTO_TCP && ip.nexthdr != IPPROTO_UDP &&
	    ip.nexthdr != IPPROTO_ICMPV6) {
		c.proto = ip.nexthdr;
		reason = skip_ipv6_headers(skb, &c);
		if (reason)
			return reason;
		if (c.offset > *end)
			return REASON_INVALID_PACKET;
		p->tuple.proto = c.proto;
		p->part = c.part;
		p->frag_id = c.frag_id;
		p->frag_proto = c.frag_proto;
		if (c.part == FRAGMENT_LATER && c.proto == IPPROTO_TCP &&
		    c.frag_offset < sizeof(struct tcphdr))
			return REASON_INVALID_PACKET;
	}
	p->l4 = c.offset;
	return 0;
}

static __always_inline int parse_at(struct __sk_buff *skb, struct packet *p, __u32 l2)
{
	__u32 end = 0, len;
	int reason;

	if (skb->protocol == htons(ETH_P_IP)) {
		reason = parse_ipv4(skb, p, l2, &end);
	} else if (skb->protocol == htons(ETH_P_IPV6)) {
		reason = parse_ipv6(skb, p, l2, &end);
	} else if (skb->protocol == htons(ETH_P_ARP)) {
		p->kind = KIND_NEIGHBOR;
		return 0;
	} else {
		return REASON_UNKNOWN_L3;
	}
	if (!reason) {
		len = end - p->l4;
		p->l4_len = len > 0xffff ? 0xffff : len;
		reason = parse_l4(skb, p, skb->gso_size != 0);
	}
	if (unlikely(reason)) {
		p->tuple.sport = 0;
		p->tuple.dport = 0;
	}
	return reason;
}

/* Fills p, which must be zero but for direction. Returns a reason to drop the
 * packet where a policy holds, or 0. With a reason the tuple is whole or zero. */
SUBPROGRAM int parse(struct __sk_buff *skb, struct packet *p)
{
	if (!p)
		return REASON_INVALID_PACKET;
	p->bytes = skb->len;
	if (unlikely(skb->vlan_present))
		return REASON_UNKNOWN_L3;
	if (unlikely(skb->len < ETH_HLEN))
		return REASON_INVALID_PACKET;
	return parse_at(skb, p, ETH_HLEN);
}

/* The tuple of the packet that an ICMP error quotes, as that packet had it.
 * Returns false if there is none to be read. */
SUBPROGRAM int parse_quoted(struct __sk_buff *skb, const struct packet *p, struct tuple *t)
{
	struct cursor c = {};
	struct icmphdr l4;
	union {
		struct iphdr v4;
		struct ipv6hdr v6;
	} ip;

	if (!p || !t)
		return false;
	__builtin_memset(t, 0, sizeof(*t));
	c.offset = p->l4 + sizeof(struct icmphdr);
	if (p->tuple.proto == IPPROTO_ICMP) {
		if (load_bytes(skb, c.offset, &ip.v4, sizeof(ip.v4)) ||
		    ip.v4.version_ihl >> 4 != 4 || (ip.v4.version_ihl & 15) < 5 ||
		    ip.v4.frag_off & htons(IP_OFFSET))
			return false;
		addr4(&t->saddr, ip.v4.saddr);
		addr4(&t->daddr, ip.v4.daddr);
		c.proto = ip.v4.protocol;
		c.offset += (ip.v4.version_ihl & 15) * 4;
	} else {
		if (load_bytes(skb, c.offset, &ip.v6, sizeof(ip.v6)) ||
		    ip.v6.version_class >> 4 != 6)
			return false;
		addr6(&t->saddr, ip.v6.saddr);
		addr6(&t->daddr, ip.v6.daddr);
		c.proto = ip.v6.nexthdr;
		c.offset += sizeof(ip.v6);
		if (skip_ipv6_headers(skb, &c) || c.part == FRAGMENT_LATER)
			return false;
	}
	t->proto = c.proto;
	switch (c.proto) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
		/* The first 8 bytes are always quoted; ports are the first 4. */
		if (load_bytes(skb, c.offset, &l4, 4))
			return false;
		__builtin_memcpy(&t->sport, &l4, 4);
		return true;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if (load_bytes(skb, c.offset, &l4, sizeof(l4)))
			return false;
		if (l4.type == (c.proto == IPPROTO_ICMP ? ICMP_ECHO : ICMPV6_ECHO))
			t->sport = l4.id;
		else if (l4.type == (c.proto == IPPROTO_ICMP ? ICMP_ECHO_REPLY : ICMPV6_ECHO_REPLY))
			t->dport = l4.id;
		else
			return false;
		return true;
	}
	return true;
}
