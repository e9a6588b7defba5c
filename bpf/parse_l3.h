/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* Packets of interfaces without Ethernet: tunnels, tun, WireGuard, PPP. Mostly
 * nothing comes before the IP header there; but GRE without a fixed other end, and
 * tunnels of kernels before 5.14, show programs an outer header, too. Where the
 * network layer begins the kernel knows, and tells by a helper what is there, if
 * not where that is. */
#pragma once
#include "parse.h"

/* How much of a packet is made linear: all headers that parse reads. */
#define HEADERS_MAX 256

union ip_header {
	struct iphdr v4;
	struct ipv6hdr v6;
	__u32 word[10];
};

/* The header of the network layer, wherever it is; size is that of its version.
 * The helper reads what is linear only. */
static __always_inline bool load_network(struct __sk_buff *skb, union ip_header *ip,
					 const __u32 size)
{
	__u32 len = skb->len;

	if (!bpf_skb_load_bytes_relative(skb, 0, ip, size, BPF_HDR_START_NET))
		return true;
	if (len > HEADERS_MAX)
		len = HEADERS_MAX;
	return !bpf_skb_pull_data(skb, len) &&
	       !bpf_skb_load_bytes_relative(skb, 0, ip, size, BPF_HDR_START_NET);
}

static __always_inline bool is_at(struct __sk_buff *skb, __u32 offset, const union ip_header *ip,
				  const __u32 size)
{
	union ip_header there = {};
	__u32 i, differs = 0;

	if (bpf_skb_load_bytes(skb, offset, &there, size))
		return false;
	for (i = 0; i < size / 4; i++)
		differs |= there.word[i] ^ ip->word[i];
	return !differs;
}

/* Like parse. A packet whose IP header is not found is refused with the addresses
 * that it has. */
SUBPROGRAM int parse_l3(struct __sk_buff *skb, struct packet *p)
{
	union ip_header ip = {};
	__u32 total, before = 0;
	bool four, there;

	if (!p)
		return REASON_INVALID_PACKET;
	p->bytes = skb->len;
	if (unlikely(skb->vlan_present))
		return REASON_UNKNOWN_L3;
	four = skb->protocol == htons(ETH_P_IP);
	if (!four && skb->protocol != htons(ETH_P_IPV6))
		return REASON_UNKNOWN_L3;
	if (four ? !load_network(skb, &ip, sizeof(ip.v4)) : !load_network(skb, &ip, sizeof(ip.v6)))
		return REASON_INVALID_PACKET;
	there = four ? is_at(skb, 0, &ip, sizeof(ip.v4)) : is_at(skb, 0, &ip, sizeof(ip.v6));
	if (unlikely(!there)) {
		total = four ? ntohs(ip.v4.tot_len) : sizeof(ip.v6) + ntohs(ip.v6.payload_len);
		before = skb->len - total;
		there = total < skb->len && before <= HEADERS_MAX &&
			(four ? is_at(skb, before, &ip, sizeof(ip.v4))
			      : is_at(skb, before, &ip, sizeof(ip.v6)));
	}
	if (likely(there))
		return parse_at(skb, p, before);
	if (four) {
		addr4(&p->tuple.saddr, ip.v4.saddr);
		addr4(&p->tuple.daddr, ip.v4.daddr);
	} else {
		addr6(&p->tuple.saddr, ip.v6.saddr);
		addr6(&p->tuple.daddr, ip.v6.daddr);
	}
	return REASON_INVALID_PACKET;
}
