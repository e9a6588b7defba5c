/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* Packet headers as they are on the wire. */
#pragma once
#include "bpf.h"

enum {
	AF_INET = 2,
	AF_INET6 = 10,
};
enum {
	ETH_P_IP = 0x0800,
	ETH_P_ARP = 0x0806,
	ETH_P_IPV6 = 0x86DD,
};
enum {
	IPPROTO_HOPOPTS = 0,
	IPPROTO_ICMP = 1,
	IPPROTO_TCP = 6,
	IPPROTO_UDP = 17,
	IPPROTO_ROUTING = 43,
	IPPROTO_FRAGMENT = 44,
	IPPROTO_AH = 51,
	IPPROTO_ICMPV6 = 58,
	IPPROTO_NONE = 59,
	IPPROTO_DSTOPTS = 60,
	IPPROTO_SCTP = 132,
};
enum {
	ICMP_ECHO_REPLY = 0,
	ICMP_UNREACHABLE = 3,
	ICMP_ECHO = 8,
	ICMP_TIME_EXCEEDED = 11,
	ICMP_PARAMETER = 12,
	ICMPV6_UNREACHABLE = 1,
	ICMPV6_PARAMETER = 4,
	ICMPV6_ECHO = 128,
	ICMPV6_ECHO_REPLY = 129,
	ICMPV6_MLD_QUERY = 130,
	ICMPV6_MLD_REPORT = 131,
	ICMPV6_MLD_DONE = 132,
	ICMPV6_ROUTER_SOLICIT = 133,
	ICMPV6_ROUTER_ADVERT = 134,
	ICMPV6_NEIGHBOR_SOLICIT = 135,
	ICMPV6_NEIGHBOR_ADVERT = 136,
	ICMPV6_REDIRECT = 137,
	ICMPV6_MLD2_REPORT = 143,
};
enum {
	TCP_FIN = 0x01,
	TCP_SYN = 0x02,
	TCP_RST = 0x04,
	TCP_ACK = 0x10,
};
enum {
	ETH_HLEN = 14,
	IP_MF = 0x2000,
	IP_OFFSET = 0x1fff, /* in 8 bytes */
};

struct iphdr {
	__u8 version_ihl;
	__u8 tos;
	__be16 tot_len;
	__be16 id;
	__be16 frag_off;
	__u8 ttl;
	__u8 protocol;
	__be16 check;
	__be32 saddr, daddr;
};
struct ipv6hdr {
	__u8 version_class;
	__u8 flow[3];
	__be16 payload_len;
	__u8 nexthdr;
	__u8 hop_limit;
	__be32 saddr[4], daddr[4];
};
struct ipv6_ext {
	__u8 nexthdr;
	__u8 hdrlen; /* in 8 bytes beyond the first 8; AH: in 4 bytes beyond 8 */
	__u8 type;   /* routing header only */
	__u8 segments_left;
};
struct ipv6_frag {
	__u8 nexthdr;
	__u8 reserved;
	__be16 frag_off; /* offset in the upper 13 bits, more fragments in bit 0 */
	__be32 id;
};
struct tcphdr {
	__be16 source, dest;
	__be32 seq, ack;
	__u8 doff; /* upper 4 bits, in 4 bytes */
	__u8 flags;
	__be16 window, check, urgent;
};
struct udphdr {
	__be16 source, dest;
	__be16 len, check;
};
struct icmphdr {
	__u8 type, code;
	__be16 check;
	__be16 id, sequence; /* of echo */
};
