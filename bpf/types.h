/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* Layouts shared with user space. bpf2go generates the Go types from these, so
 * this is their only spelling. All padding is explicit and zero in keys. */
#pragma once
#include "bpf.h"

/* IPv6, or IPv4 as ::ffff:a.b.c.d; network byte order. */
struct addr {
	__be32 word[4];
};

/* The forward direction of a flow. ICMP echo: the port of the end that asks is
 * the identifier, the other's is 0, so that two ends that ping each other with
 * one identifier are two flows. Protocols without ports: 0. */
struct tuple {
	struct addr saddr, daddr;
	__be16 sport, dport;
	__u8 proto;
	__u8 pad[3];
};

/* endpoints: address of a pod of this node -> where it is and its policy. */
struct endpoint {
	__u32 ifindex; /* host side of its veth; 0: not found yet */
	__u32 policy;  /* policy id */
	__u32 identity;
	__u32 pad;
	__u8 pod_mac[6];  /* of the pod's own interface */
	__u8 host_mac[6]; /* of the host side */
	__u8 pad2[4];
};

/* devices: ifindex of a host veth -> the pod behind it, for packets whose
 * source address is none of the pod's (link-local, spoofed). */
struct device {
	__u32 policy;
	__u32 identity;
};

/* ipcache: address prefix -> who that is. */
struct prefix {
	__u32 bits; /* of the 128-bit address: an IPv4 /24 is 120 */
	struct addr addr;
};
struct peer {
	__u32 identity;
	__u32 flags;
};
#define PEER_WORLD 1 /* ask fqdn, too */
#define PEER_HOST 2  /* an address of this node, whatever its identity */
#define PEER_NODE 4  /* an address of a node, this one or another: it may serve node ports */

/* fronts: an address and port that lead to the backends of a service, beside its
 * cluster IPs -> the service; or by a host port to a pod -> the pod. The address 0 of
 * a family (:: or ::ffff:0.0.0.0) stands for every address of a node, and before it
 * fe80:: for every one on the pod's own link. */
struct front_key {
	struct addr addr;
	__be16 port;
	__u8 proto;
	__u8 pad;
};
struct front {
	__u32 identity; /* of the service or pod; 0: nobody can tell whose */
	__u16 port;	/* of the service or pod, as policy is asked; host byte order */
	__u16 pad;
};

/* pairs: what ipcache and fqdn say of an outside address -> the identity of
 * both together, for policies that say something else of both than of each. */
struct pair {
	__u32 outside;
	__u32 names;
};

/* policies: policy id -> what policy_key probes are worth doing. Go's
 * PolicyInfoOf computes it. */
struct policy_info {
	__u8 enforced[2]; /* by direction; 0: everything passes */
	__u8 l7[2];	  /* by direction; 0: no entry redirects */
	/* By direction, bit n: entries with port_bits n exist (0..16), of one
	 * protocol; PROBE_ALL_PROTOCOLS: entries for all protocols exist. */
	__u32 port_bits[2];	/* among the entries of one identity */
	__u32 any_port_bits[2]; /* among the entries for every peer */
};
#define PROBE_ALL_PROTOCOLS (1u << 17)

/* policy: see policy.Key and policy.Lookup in Go. */
struct policy_key {
	__u32 policy;
	__u32 identity; /* 0: every peer */
	__u16 port;	/* host byte order, bits beyond port_bits 0; ICMP: type */
	__u8 port_bits; /* 16 exact .. 0 every port */
	__u8 proto;	/* 0: every protocol */
	__u8 direction; /* enum direction */
	__u8 pad[3];
};
struct policy_entry {
	__u8 action; /* enum action */
	__u8 reason; /* enum reason, of ACTION_REFUSE */
	__u8 pad[2];
	__u32 rule_set; /* of ACTION_REDIRECT; 0: every request passes */
	__u32 rule;	/* number of the deciding rule */
};
enum direction { DIRECTION_INGRESS = 0, DIRECTION_EGRESS = 1 };
enum action { ACTION_DENY = 1, ACTION_ALLOW = 2, ACTION_REDIRECT = 3, ACTION_REFUSE = 4 };

/* conntrack: one entry per flow, whichever way its packets go: the key has
 * the lower (address, port) first, compared as bytes on the wire. A packet of an
 * established flow writes nothing here: both ends of it, on whatever CPUs, then
 * share the cache lines. */
struct conntrack {
	__u64 last_seen;   /* bpf_ktime_get_ns() (CLOCK_MONOTONIC) */
	__u32 revision[2]; /* by direction: policy revision a forward packet was last judged at */
	__u32 ifindex;	   /* redirected: host veth of the pod the proxy speaks for */
	__u32 flags;	   /* CT_* */
	__u8 l2[14];	   /* redirected: Ethernet header that makes a packet come from that pod */
	__u8 generation;   /* redirected: the proxy it went to */
	__u8 pad;
	__u32 rule[2]; /* by direction: deciding rule */
	__u32 veth[2]; /* by direction: host veth of the pod that judged */
};
#define CT_SWAPPED 1u	     /* the initiator is the higher (address, port) of the key */
#define CT_JUDGED_INGRESS 2u /* ingress policy of the responder allowed it (revision[0] holds) */
#define CT_JUDGED_EGRESS 4u  /* egress policy of the initiator allowed it (revision[1] holds) */
#define CT_REDIRECTED 8u     /* goes through the proxy, both directions */
/* Being reset: both directions go where a RST comes back. With CT_REDIRECTED: was
 * revoked, the proxy may only send RST. */
#define CT_CUT 16u
#define CT_REPLIED 32u /* a reply was seen */
#define CT_FIN_FORWARD 64u
#define CT_FIN_REPLY 128u
#define CT_RST 256u
#define CT_MIDSTREAM 512u /* its start was not seen */
/* With CT_REDIRECTED: begun by the proxy in the pod's name. Answers are for it, the pod
 * gets none. */
#define CT_ASKED 1024u
/* UDP: the responder's answers may be questions that its own policy sends to the
 * proxy; at revision[0] its end has not looked yet. */
#define CT_MAY_ASK 2048u
/* The node sends it on, with an address of its own as the source: of none of its
 * sockets. Answers come to that address. */
#define CT_FOREIGN 4096u

/* conns: forward tuple of a redirected flow -> what the proxy must know.
 * All UDP flows from one pod to one server and port are a session and have one
 * entry, whose tuple has sport 0: what is asked there does not depend on where
 * from. Not LRU; the proxy deletes an entry when its flow has ended (only its own:
 * id tells a successor with the same tuple apart), and a session's when nothing was
 * asked for a while, or any time else: the next datagram makes it anew. */
struct conn {
	__u64 id;	/* bpf_ktime_get_ns() of the SYN, or of a session's first datagram */
	__u32 ifindex;	/* host veth of the pod it speaks for */
	__u32 revision; /* policy revision of what follows; rewritten by the kernel when a later forward packet is judged anew */
	__u32 src_identity, dst_identity;
	__u32 rule_set[2]; /* by direction; counts where L7 has the direction's bit */
	__u32 rule[2];	   /* by direction: deciding rule of the L4 verdict */
	__u8 l7;	   /* bit (1 << direction): the rule set of it must be applied;
			    * (CONN_LOCAL << direction): that end is a pod of this node */
	__u8 generation;
	__u8 l2[14];
};

enum conn_bits { CONN_LOCAL = 4 };

/* shares: ifindex of a pod's host veth -> its part of conns, see share.h.
 * Only the kernel writes it. */
struct share {
	__u64 born;  /* bpf_ktime_get_ns() of this entry: a grant is for one life of it */
	__u64 made;  /* entries of conns that were made at this veth */
	__u64 until; /* made may get so far: a copy of the last grant */
};

/* grants: the same key -> how far made may get. Written by proxies. */
struct grant {
	__u64 born;
	__u64 until;
};

/* proxies: generation -> how to reach it. alive 0: gone or draining to none. */
struct proxy {
	__u32 ifindex; /* host side of its veth */
	__u32 alive;
	__u8 mac[6]; /* of the namespace's eth0 */
	__u8 pad[2];
};

/* state: one entry, mapped into user space by the agent. The proxy maps a copy
 * of the revision (revision.go). */
struct state {
	__u32 revision; /* bumped by the agent after each batch of changes */
	__u32 generation; /* proxy that new flows go to; proxies[generation].alive tells whether there is one */
	/* Until then (bpf_ktime_get_ns()) a TCP connection whose start was not seen
	 * may be what the pod's open direction allows; written by the agent when it
	 * begins with an empty conntrack. */
	__u64 midstream_until;
};

/* fragments: datagram of a first fragment -> what its later ones lack. */
struct fragment_key {
	struct addr saddr, daddr;
	__be32 id;
	__u8 proto; /* as the fragment header has it */
	__u8 pad[3];
};
struct fragment {
	__be16 sport, dport;
	__u8 proto; /* behind all extension headers */
	__u8 type;  /* ICMP */
	__u8 kind;  /* enum kind */
	__u8 pad;
};

/* neighbors: an IPv6 address that discovery came to a pod from, and so from its
 * own link -> when (bpf_ktime_get_ns()). */
struct neighbor {
	struct addr addr;
	__u32 ifindex; /* host veth of the pod */
};

/* host: one entry: what is enforced on this node itself. */
struct host {
	__u32 policy; /* policy id; 0: nothing is */
	__u32 always; /* another one, asked where that denies: what it allows passes */
};

/* numbers: what the agent gave out, for a successor. Programs don't read it. */
struct number {
	__u32 kind; /* enum number_kind */
	__u32 id;
};
enum number_kind { NUMBER_IDENTITY = 1, NUMBER_POLICY = 2, NUMBER_RULE_SET = 3, NUMBER_RULE = 4 };
struct digest {
	__u8 sum[16];
};

/* budget: per-CPU, one entry: what events were sent of late, which were not. */
struct budget {
	__u64 window;	/* start of the current one */
	__u32 spent[2]; /* events in it: drops, others */
	__u64 limited;	/* not sent: too many in a window */
	__u64 lost;	/* not sent: the ring buffer was full */
};

/* metrics: per-CPU. */
struct metric_key {
	__u8 reason; /* enum reason */
	__u8 direction;
	__u8 pad[2];
};
struct metric {
	__u64 packets, bytes;
};

/* events: a new flow's verdict, a changed verdict, or a drop. */
struct event {
	__u64 time;	    /* bpf_ktime_get_ns() */
	struct tuple tuple; /* as in the packet */
	__u32 src_identity, dst_identity;
	__u32 rule;   /* number of the deciding rule, 0 none */
	__u32 policy; /* policy id of the pod that judged */
	__u32 ifindex;
	__u32 bytes;
	__u8 verdict; /* enum verdict */
	__u8 reason;
	__u8 direction;
	__u8 tcp_flags;
	__u8 icmp_type, icmp_code;
	__u8 pad[2];
};
enum verdict { VERDICT_DROPPED = 0, VERDICT_FORWARDED = 1, VERDICT_REDIRECTED = 2 };

/* reasons, see reasons.h. */
enum reason {
#define REASON(number, name, label, means) REASON_##name = number,
#include "reasons.h"
#undef REASON
};
#define REASON_FIRST_DROP 32
