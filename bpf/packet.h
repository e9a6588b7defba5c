/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* A packet as the programs see it, and what can be said of it at a glance. */
#pragma once
#include "net.h"
#include "types.h"

/* The caller goes on with the packet itself. Not a TC_ACT_*. */
#define GO_ON 0x100

enum kind {
	KIND_FLOW,	 /* belongs to a flow that conntrack can hold */
	KIND_NEIGHBOR,	 /* ARP, or neighbor discovery as it must look */
	KIND_ICMP,	 /* ICMP without a flow */
	KIND_ICMP_ERROR, /* about a packet that is quoted */
};
enum fragment_part { FRAGMENT_NONE, FRAGMENT_FIRST, FRAGMENT_LATER };

/* Whether the other end's address and port are a service's, or a host port. FRONT: they
 * are, and peer[1] is the identity of that or of its pod, or 0 if nobody can tell whose. */
enum fronted { FRONT_UNASKED, FRONT_NONE, FRONT };

/* What one search in a policy gave, see policy.h. */
struct finding {
	__u8 reason;
	/* Why the node's own policy denies it, in this direction of the node; 0: it
	 * does not, or is not asked. See ask_host. */
	__u8 host_denies;
	__u8 pad[2];
	__u32 rule;
	__u32 rule_set;
};

/* One packet on its way through a program: what parse found, then who it
 * concerns, then what was decided. */
struct packet {
	struct tuple tuple;
	struct tuple key; /* in conntrack */
	__u32 bytes;	  /* of the IP packet */
	__u32 frag_id;
	__u16 port; /* what policy asks for: destination port, or ICMP type */
	__u16 l4;   /* offset of the transport header */
	__u16 l4_len;
	__u8 kind;
	__u8 part;	 /* enum fragment_part */
	__u8 frag_proto; /* as the fragment header has it */
	__u8 tcp_flags;
	__u8 icmp_type, icmp_code;
	__u8 hop_limit;
	__u8 swapped;	/* tuple is the reverse of key */
	__u8 direction; /* of the pod at this veth: DIRECTION_EGRESS in from_pod */
	__u8 host;	/* sent by a socket of this node */

	__u64 now;
	__u32 revision;	     /* of policy, read before it is asked */
	__u32 policy;	     /* of the pod at this veth */
	__u32 identity;	     /* of the pod at this veth */
	__u32 peer[2];	     /* identities of the other end; 0: not looked up, none; see fronted */
	__u32 pair;	     /* the identity that both of them make; 0: none */
	__u32 host_policy;   /* of the node itself, where host_denies tells of it */
	__u32 local_ifindex; /* of the destination, where it is a pod of this node */
	__u32 local_policy;

	struct finding found[2]; /* by direction */
	__u32 judge;		 /* policy id that decided */
	__u8 reason;
	__u8 reason_direction;
	__u8 l7;  /* bit (1 << direction): goes to the proxy because of it */
	__u8 own; /* with peer[0]: the other end is an address of this node */

	__u16 front_port; /* of the service that the other end's address and port are */
	__u8 fronted;	  /* enum fronted */
	__u8 node;	  /* with peer[0]: the other end may serve node ports */
};

static __always_inline bool is_tcp(const struct packet *p)
{
	return p->tuple.proto == IPPROTO_TCP;
}

static __always_inline bool is_udp(const struct packet *p)
{
	return p->tuple.proto == IPPROTO_UDP;
}

static __always_inline bool is_icmp(const struct packet *p)
{
	return p->tuple.proto == IPPROTO_ICMP || p->tuple.proto == IPPROTO_ICMPV6;
}

/* The start of a connection. (A SYN with FIN or RST was refused by parse.) */
static __always_inline bool is_syn(const struct packet *p)
{
	return (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

static __always_inline bool is_echo_reply(const struct packet *p)
{
	return (p->tuple.proto == IPPROTO_ICMP && p->icmp_type == ICMP_ECHO_REPLY) ||
	       (p->tuple.proto == IPPROTO_ICMPV6 && p->icmp_type == ICMPV6_ECHO_REPLY);
}

static __always_inline bool is_ipv4(const struct addr *a)
{
	return a->word[0] == 0 && a->word[1] == 0 && a->word[2] == htonl(0xffff);
}

static __always_inline bool is_link_local6(const struct addr *a)
{
	return (a->word[0] & htonl(0xffc00000)) == htonl(0xfe800000);
}

/* A group on the link: ff02::/16. */
static __always_inline bool is_link_multicast6(const struct addr *a)
{
	return (a->word[0] & htonl(0xffff0000)) == htonl(0xff020000);
}

/* The group ff02::N. */
static __always_inline bool is_link_group(const struct addr *a, __u32 n)
{
	return a->word[0] == htonl(0xff020000) && a->word[1] == 0 && a->word[2] == 0 &&
	       a->word[3] == htonl(n);
}

static __always_inline bool is_unspecified(const struct addr *a)
{
	return a->word[0] == 0 && a->word[1] == 0 && a->word[3] == 0 &&
	       (a->word[2] == 0 || a->word[2] == htonl(0xffff));
}

static __always_inline bool same_addr(const struct addr *a, const struct addr *b)
{
	return a->word[0] == b->word[0] && a->word[1] == b->word[1] && a->word[2] == b->word[2] &&
	       a->word[3] == b->word[3];
}

static __always_inline void addr4(struct addr *a, __be32 ip)
{
	a->word[0] = 0;
	a->word[1] = 0;
	a->word[2] = htonl(0xffff);
	a->word[3] = ip;
}

static __always_inline void addr6(struct addr *a, const __be32 *ip)
{
	a->word[0] = ip[0];
	a->word[1] = ip[1];
	a->word[2] = ip[2];
	a->word[3] = ip[3];
}

/* DHCP and DHCPv6, as a pod without an address needs them: asked from no address
 * to whoever is on the link, and answered on the link. All else between these
 * ports is judged, or it would be a tunnel. */
static __always_inline bool is_dhcp(const struct packet *p, bool request)
{
	__u16 client = ntohs(request ? p->tuple.sport : p->tuple.dport);
	__u16 server = ntohs(request ? p->tuple.dport : p->tuple.sport);
	const struct addr *from = &p->tuple.saddr, *to = &p->tuple.daddr;

	if (p->kind != KIND_FLOW || p->tuple.proto != IPPROTO_UDP || p->part != FRAGMENT_NONE)
		return false;
	if (is_ipv4(to))
		return client == 68 && server == 67 && to->word[3] == ~0u &&
		       (!request || is_unspecified(from));
	return client == 546 && server == 547 &&
	       (is_link_local6(to) || (request && is_link_group(to, 0x00010002))) &&
	       (!request || is_link_local6(from));
}
