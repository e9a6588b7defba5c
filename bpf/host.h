/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* A packet at an interface of the node itself, from or to one of its addresses.
 * Most of what has such an address is not the node's: it is masqueraded, or comes
 * to a node port. So
 *   leaving   the node's own has a socket here and came in nowhere; what it sends
 *             on is remembered (CT_FOREIGN), so that its answers pass
 *   arriving  TCP in mid-stream that no socket here has is sent on, or comes to
 *             nothing; node ports are in the policy that always passes
 * All else is judged by the node's policy, as a flow of a pod is by the pod's. */
#pragma once
#include "flow.h"

static __always_inline bool is_own(const struct addr *a)
{
	struct prefix key = {.bits = 128};
	struct peer *who;

	key.addr = *a;
	who = bpf_map_lookup_elem(&ipcache, &key);
	return who && who->flags & PEER_HOST;
}

/* Whose connection a TCP packet in mid-stream is of. */
enum owner { OWNER_NONE, OWNER_ACCEPTED, OWNER_CONNECTED };

/* The state of the socket here that has a packet's connection, or with any, one
 * with whatever other end; 0: there is none. */
SUBPROGRAM int socket_state(struct __sk_buff *skb, const struct packet *p, bool any)
{
	const struct addr *local, *other;
	struct bpf_sock_tuple t = {};
	__be16 lport, oport;
	struct bpf_sock *sk;
	bool four;
	int state;

	if (!p)
		return 0;
	if (p->direction == DIRECTION_EGRESS) {
		local = &p->tuple.saddr;
		other = &p->tuple.daddr;
		lport = p->tuple.sport;
		oport = p->tuple.dport;
	} else {
		local = &p->tuple.daddr;
		other = &p->tuple.saddr;
		lport = p->tuple.dport;
		oport = p->tuple.sport;
	}
	if (any)
		oport = 0;
	four = is_ipv4(local);
	if (four) {
		t.ipv4.saddr = other->word[3];
		t.ipv4.daddr = local->word[3];
		t.ipv4.sport = oport;
		t.ipv4.dport = lport;
	} else {
		__builtin_memcpy(t.ipv6.saddr, other->word, 16);
		__builtin_memcpy(t.ipv6.daddr, local->word, 16);
		t.ipv6.sport = oport;
		t.ipv6.dport = lport;
	}
	sk = bpf_skc_lookup_tcp(skb, &t, four ? sizeof(t.ipv4) : sizeof(t.ipv6),
				BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return 0;
	state = sk->state;
	bpf_sk_release(sk);
	return state;
}

static __always_inline int owner_of(struct __sk_buff *skb, const struct packet *p)
{
	int state = socket_state(skb, p, false);

	if (!state && p->direction == DIRECTION_INGRESS)
		return OWNER_NONE;
	/* Who still listens there did not connect from there. */
	if (state == TCP_LISTEN || socket_state(skb, p, true) == TCP_LISTEN)
		return OWNER_ACCEPTED;
	return OWNER_CONNECTED;
}

/* Remembers a flow that the node sends on with an address of its own. */
SUBPROGRAM int send_on(struct packet *p)
{
	const __u32 over = CT_FIN_FORWARD | CT_FIN_REPLY | CT_RST | CT_CUT;
	struct conntrack fresh = {}, *ct;
	bool reply;

	if (!p || p->kind != KIND_FLOW || p->part == FRAGMENT_LATER)
		return TC_ACT_UNSPEC;
	p->swapped = ct_key(&p->tuple, &p->key);
	ct = ct_find(&p->key, p->now);
	if (ct) {
		reply = ct_is_reply(ct, p->swapped);
		if (!reply && !is_syn(p))
			__sync_fetch_and_or(&ct->flags, CT_FOREIGN);
		if (!is_syn(p) || (!reply && ct->flags & CT_FOREIGN && !(ct->flags & over))) {
			ct_note(ct, p, reply);
			return TC_ACT_UNSPEC;
		}
	}
	fresh.last_seen = p->now;
	fresh.flags = CT_FOREIGN | ct_seen(p->tcp_flags, false) | (p->swapped ? CT_SWAPPED : 0);
	/* Without room its answers are judged as if they were for the node. */
	bpf_map_update_elem(&conntrack, &p->key, &fresh, BPF_ANY);
	return TC_ACT_UNSPEC;
}

/* Whether an ICMP error is about a packet of a flow that is known. */
SUBPROGRAM int quotes_known(struct __sk_buff *skb, struct packet *p)
{
	const __u32 known = CT_FOREIGN | CT_REDIRECTED | CT_JUDGED_EGRESS | CT_JUDGED_INGRESS;
	struct conntrack *ct;
	struct tuple quoted;

	if (!p || !parse_quoted(skb, p, &quoted) || !same_addr(&quoted.saddr, &p->tuple.daddr))
		return false;
	ct_key(&quoted, &p->key);
	ct = ct_find(&p->key, p->now);
	return ct && ct->flags & known;
}

/* Decides over a packet from or to the node; sent: from it. */
SUBPROGRAM int decide_host(struct __sk_buff *skb, struct packet *p)
{
	const __u32 over =
		CT_REPLIED | CT_CUT | CT_RST | CT_FIN_FORWARD | CT_FIN_REPLY | CT_MIDSTREAM;
	struct conntrack *ct = NULL;
	__u32 flags = 0, judged = 0;
	bool reply = false, alone, denied;
	int owner;
	__u8 role;

	if (!p)
		return TC_ACT_SHOT;
	alone = p->kind != KIND_FLOW;
	if (!alone) {
		p->swapped = ct_key(&p->tuple, &p->key);
		ct = ct_find(&p->key, p->now);
	}
	if (ct) {
		flags = ct->flags;
		reply = ct_is_reply(ct, p->swapped);
		/* That a pod's packets to the node may pass was asked at its veth. */
		if (flags & CT_REDIRECTED)
			return TC_ACT_UNSPEC;
		/* A port that was used to send on may come to be a socket's. */
		if (flags & CT_FOREIGN && !is_syn(p) &&
		    (reply || p->direction == DIRECTION_INGRESS)) {
			ct_note(ct, p, reply);
			return TC_ACT_UNSPEC;
		}
		if (flags & CT_FOREIGN || (is_syn(p) && (reply || flags & over))) {
			ct = NULL;
			reply = false;
			flags = 0;
		} else if (is_icmp(p) && reply != is_echo_reply(p)) {
			alone = true;
		}
	} else if (p->part == FRAGMENT_LATER || is_echo_reply(p)) {
		alone = true;
	}
	if (alone)
		ct = NULL;
	role = ct_role(p->direction, reply);
	if (ct) {
		judged = ct_judged(role);
		if (flags & judged && !always_judge &&
		    (ct->revision[role & 1] == p->revision || (reply && is_tcp(p)))) {
			ct_note(ct, p, reply);
			return TC_ACT_UNSPEC;
		}
	} else if (!alone && is_tcp(p) && !is_syn(p)) {
		owner = owner_of(skb, p);
		if (owner == OWNER_NONE)
			return TC_ACT_UNSPEC;
		reply = (p->direction == DIRECTION_EGRESS) == (owner == OWNER_ACCEPTED);
		role = ct_role(p->direction, reply);
		flags = CT_MIDSTREAM;
	}
	denied = (reply ? judge_host_reply(p, role, 0) : judge_host(p, role, 0)) == DROP;
	if (denied && !ct && flags) {
		/* Who accepted it may listen no more: what a rule allows, one way or
		 * the other, passes. */
		if ((reply ? judge_host(p, !role, 0) : judge_host_reply(p, !role, 0)) == PASS &&
		    p->reason != REASON_NOT_ENFORCED) {
			denied = false;
			reply = !reply;
		} else {
			settle(p, p->policy, role, DROP);
		}
	}
	if (denied) {
		if (ct)
			__sync_fetch_and_and(&ct->flags, ~judged);
		return drop(skb, p);
	}
	if (!ct && !alone && !(flags && p->tcp_flags & TCP_RST))
		return create(skb, p, flags, reply);
	if (ct) {
		stamp(p, ct, role);
		ct_note(ct, p, reply);
	}
	if (!(flags & judged))
		tell(skb, p, VERDICT_FORWARDED);
	return TC_ACT_UNSPEC;
}

/* A packet that is the node's own by its address; reason is what parse said. */
static __always_inline int at_host(struct __sk_buff *skb, struct packet *p, int reason)
{
	struct policy_info *info;
	__u32 zero = 0;
	struct host *h;

	h = bpf_map_lookup_elem(&host, &zero);
	if (!h || !h->policy)
		return TC_ACT_UNSPEC;
	p->policy = h->policy;
	p->identity = IDENTITY_HOST;
	if (!reason && p->part != FRAGMENT_NONE && !fragment_resolve(p))
		reason = REASON_FRAGMENT_UNKNOWN;
	if (reason) {
		info = bpf_map_lookup_elem(&policies, &p->policy);
		if (info && !info->enforced[p->direction & 1])
			return TC_ACT_UNSPEC;
		return drop_for(skb, p, reason);
	}
	if (p->kind == KIND_ICMP_ERROR && quotes_known(skb, p))
		return TC_ACT_UNSPEC;
	return decide_host(skb, p);
}
