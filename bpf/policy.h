/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* What a pod's policy says about the other end. The search is policy.Lookup in Go,
 * step by step. */
#pragma once
#include "peer.h"

enum outcome { PASS, DROP, REDIRECT };

/* The best entry found so far; action 0: none. */
struct choice {
	__u8 action;
	__u8 reason;
	__u8 pad[2];
	__u32 rule;
	__u32 rule_set;
};

/* Weighs the entry of a key, if there is one. Returns true if it denies. */
static __always_inline bool consider(const struct policy_key *key, struct choice *c)
{
	struct policy_entry *e = bpf_map_lookup_elem(&policy, key);

	if (!e)
		return false;
	if (e->action == ACTION_ALLOW ? c->action != 0
				      : e->action != ACTION_DENY && c->action > ACTION_ALLOW)
		return false; /* what was found before counts */
	c->action = e->action;
	c->reason = e->reason;
	c->rule = e->rule;
	c->rule_set = e->rule_set;
	return e->action == ACTION_DENY;
}

/* Weighs all entries of one identity. mask tells which can exist. */
SUBPROGRAM int probe(struct policy_key *key, __u32 mask, __u16 port, struct choice *c)
{
	__u32 bits;
	__u8 proto;

	if (!key || !c)
		return false;
	proto = key->proto;
	if (mask & 1u << 16) {
		key->port = port;
		key->port_bits = 16;
		if (consider(key, c))
			return true;
	}
	if (mask & 0xfffe) {
		for (bits = 15; bits > 0; bits--) {
			if (!(mask & 1u << bits))
				continue;
			key->port = port & 0xffff << (16 - bits);
			key->port_bits = bits;
			if (consider(key, c))
				return true;
		}
	}
	key->port = 0;
	key->port_bits = 0;
	if (mask & 1 && consider(key, c))
		return true;
	if (mask & PROBE_ALL_PROTOCOLS) {
		key->proto = 0;
		if (consider(key, c))
			return true;
		key->proto = proto;
	}
	return false;
}

/* Asks a policy about the packet's protocol and p->port, for the given identity
 * or, if that is 0, for the packet's other end. Writes p->found[direction]. */
SUBPROGRAM int judge(struct packet *p, __u32 id, __u32 direction, __u32 known)
{
	struct policy_key key = {.policy = id, .direction = direction & 1};
	__u32 mask, any, all = ~0u, peers[2], pair = 0;
	struct policy_info *info;
	struct choice c = {};
	struct finding *v;
	__u16 port;

	if (!p)
		return DROP;
	port = p->port;
	key.proto = p->tuple.proto;
	v = &p->found[direction & 1];
	v->rule = 0;
	v->rule_set = 0;
	info = bpf_map_lookup_elem(&policies, &id);
	if (!info) {
		v->reason = REASON_POLICY_MISSING;
		return DROP;
	}
	if (!info->enforced[direction & 1]) {
		v->reason = REASON_NOT_ENFORCED;
		return PASS;
	}
	mask = info->port_bits[direction & 1];
	any = info->any_port_bits[direction & 1];
	peers[0] = known;
	peers[1] = 0;
	if (!known)
		find_peer(p);
	if (!known && direction & 1 && find_front(p)) {
		if (!p->peer[1]) {
			v->reason = REASON_SERVICE_CONFLICT;
			return DROP;
		}
		peers[0] = p->peer[1];
		port = p->front_port;
	} else if (!known) {
		peers[0] = p->peer[0];
		/* Names are where a pod goes to, not where something comes from. */
		if (direction & 1) {
			peers[1] = p->peer[1];
			pair = p->pair;
		}
	}
	switch (p->tuple.proto) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		v->reason = REASON_POLICY_DENIED;
		break;
	default:
		/* It has no ports that rules could mean. */
		all = PROBE_ALL_PROTOCOLS | 1;
		v->reason = REASON_UNKNOWN_L4;
	}
	/* Before the parts: what rules for both say together is under it. */
	if (pair && mask & all) {
		key.identity = pair;
		if (probe(&key, mask & all, port, &c))
			goto decided;
		key.proto = p->tuple.proto;
	}
	key.identity = peers[0];
	if (mask & all && probe(&key, mask & all, port, &c))
		goto decided;
	if (peers[1] && mask & all) {
		key.identity = peers[1];
		key.proto = p->tuple.proto;
		if (probe(&key, mask & all, port, &c))
			goto decided;
	}
	key.identity = 0;
	key.proto = p->tuple.proto;
	if (any & all)
		probe(&key, any & all, port, &c);
decided:
	v->rule = c.rule;
	v->rule_set = c.rule_set;
	switch (c.action) {
	case 0:
		return DROP;
	case ACTION_ALLOW:
		v->reason = REASON_POLICY_ALLOWED;
		return PASS;
	case ACTION_DENY:
		v->reason = REASON_POLICY_DENY_RULE;
		return DROP;
	case ACTION_REDIRECT:
		/* The proxy reads TCP, and what pods ask by UDP. */
		if (is_tcp(p) || (is_udp(p) && direction & 1)) {
			v->reason = REASON_REDIRECTED;
			return REDIRECT;
		}
		v->reason = REASON_L7_UNSUPPORTED;
		return DROP;
	default: /* ACTION_REFUSE */
		v->reason = c.reason >= REASON_FIRST_DROP ? c.reason : REASON_POLICY_REFUSED;
		return DROP;
	}
}

/* Whether a policy can send anything to the proxy in a direction. */
static __always_inline bool wants_l7(__u32 id, __u32 direction)
{
	struct policy_info *info = bpf_map_lookup_elem(&policies, &id);

	return info && info->l7[direction & 1];
}

static __always_inline int settle(struct packet *p, __u32 id, __u32 direction, int outcome)
{
	p->judge = id;
	p->reason = p->found[direction & 1].reason;
	p->reason_direction = direction;
	return outcome;
}

/* Asks the policy of this node itself about a packet from or to it. direction is
 * the node's, known the identity of the other end, or 0 for the packet's. */
SUBPROGRAM int judge_host(struct packet *p, __u32 direction, __u32 known)
{
	__u32 zero = 0, rule;
	struct host *h = bpf_map_lookup_elem(&host, &zero);
	struct finding *v;
	__u8 reason;

	if (!p)
		return DROP;
	direction &= 1;
	v = &p->found[direction];
	if (!h || !h->policy) {
		v->reason = REASON_NOT_ENFORCED;
		v->rule = 0;
		return settle(p, 0, direction, PASS);
	}
	if (judge(p, h->policy, direction, known) == PASS)
		return settle(p, h->policy, direction, PASS);
	reason = v->reason;
	rule = v->rule;
	if (judge(p, h->always, direction, known) == PASS && v->reason == REASON_POLICY_ALLOWED) {
		v->reason = REASON_FAIL_SAFE;
		return settle(p, h->policy, direction, PASS);
	}
	/* The proxy is not for the node. */
	v->reason = reason < REASON_FIRST_DROP ? REASON_L7_UNSUPPORTED : reason;
	v->rule = rule;
	return settle(p, h->policy, direction, DROP);
}

/* As judge_host of the flow that the packet is a reply of. */
static __always_inline int judge_host_reply(struct packet *p, __u32 direction, __u32 known)
{
	__u16 port = p->port;
	int outcome;

	p->port = ntohs(p->tuple.sport);
	if (is_icmp(p))
		p->port = p->tuple.proto == IPPROTO_ICMP ? ICMP_ECHO : ICMPV6_ECHO;
	outcome = judge_host(p, direction, known);
	p->port = port;
	return outcome;
}

/* Asks the node's own policy about a packet between a pod and the node, of which
 * no other program sees both ends: from the pod, as one to the node and as the
 * reply of one from it; to the pod, as one from the node. What it denies is kept, to
 * be looked at where the pod's policy has been asked. */
SUBPROGRAM int ask_host(struct packet *p)
{
	__u32 zero = 0;
	struct host *h = bpf_map_lookup_elem(&host, &zero);
	bool sent;

	if (!p || !h || !h->policy)
		return 0;
	sent = p->direction == DIRECTION_INGRESS;
	if (!sent) {
		find_peer(p);
		if (!p->own)
			return 0;
		if (judge_host(p, DIRECTION_INGRESS, p->identity) == DROP)
			p->found[0].host_denies = p->reason;
	}
	if ((sent ? judge_host(p, DIRECTION_EGRESS, p->identity)
		  : judge_host_reply(p, DIRECTION_EGRESS, p->identity)) == DROP)
		p->found[1].host_denies = p->reason;
	p->host_policy = h->policy;
	return 0;
}

/* Drops what ask_host found to be denied. */
static __always_inline int host_drop(struct packet *p, __u32 direction)
{
	p->reason = p->found[direction & 1].host_denies;
	p->reason_direction = direction;
	p->judge = p->host_policy;
	return DROP;
}

/* Judges the packet as one in the direction its flow began in, by everything
 * this veth is to ask. What decided is told by p->reason and the rest;
 * p->found and p->l7 say what goes to the proxy and why. redirected: the flow
 * goes through the proxy already, which passes its packets to a pod of this
 * node without that pod's to_pod, so what that would ask is asked here. */
SUBPROGRAM int judge_forward(struct packet *p, bool redirected)
{
	int outcome, other;

	if (!p)
		return DROP;
	p->l7 = 0;
	outcome = judge(p, p->policy, p->direction, 0);
	if (outcome == REDIRECT)
		p->l7 = 1 << (p->direction & 1);
	settle(p, p->policy, p->direction, outcome);
	if (outcome == DROP || p->direction == DIRECTION_INGRESS)
		return outcome;
	if (p->found[DIRECTION_INGRESS].host_denies)
		return host_drop(p, DIRECTION_INGRESS);
	/* Of UDP the other end never needs the proxy. */
	if (is_udp(p) ? outcome == PASS : !is_tcp(p))
		return outcome;
	/* The destination's own veth judges what comes in there; but what needs
	 * the proxy at either end goes there from here, once. */
	find_peer(p);
	if (!p->local_ifindex)
		return outcome;
	if (outcome == PASS && !redirected && !wants_l7(p->local_policy, DIRECTION_INGRESS))
		return outcome;
	other = judge(p, p->local_policy, DIRECTION_INGRESS, p->identity);
	if (other == REDIRECT) {
		p->l7 |= 1 << DIRECTION_INGRESS;
		if (outcome == PASS)
			settle(p, p->local_policy, DIRECTION_INGRESS, other);
		return REDIRECT;
	}
	if (other == DROP && (outcome == REDIRECT || redirected))
		return settle(p, p->local_policy, DIRECTION_INGRESS, DROP);
	return outcome;
}

/* Judges the packet as a reply: whether this pod's policy allows the flow that
 * it would be a reply of. */
SUBPROGRAM int judge_reply(struct packet *p)
{
	int outcome;
	__u16 port;
	__u8 role;

	if (!p)
		return DROP;
	role = p->direction == DIRECTION_EGRESS ? DIRECTION_INGRESS : DIRECTION_EGRESS;
	port = p->port;
	p->port = ntohs(p->tuple.sport);
	if (is_icmp(p))
		p->port = p->tuple.proto == IPPROTO_ICMP ? ICMP_ECHO : ICMPV6_ECHO;
	outcome = judge(p, p->policy, role, 0);
	p->port = port;
	if (outcome != DROP && p->direction == DIRECTION_EGRESS &&
	    p->found[DIRECTION_EGRESS].host_denies)
		return host_drop(p, DIRECTION_EGRESS);
	return settle(p, p->policy, role, outcome);
}
