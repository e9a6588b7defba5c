/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* Who the other end is. */
#pragma once
#include "maps.h"
#include "packet.h"

/* Identities that are the same on every node, see identity/id.go. */
enum {
	IDENTITY_HOST = 1,
	IDENTITY_WORLD_IPV4 = 9,
	IDENTITY_WORLD_IPV6 = 10,
	IDENTITY_UNKNOWN_POD = 11,
};

/* Finds the identities of the other end of a packet, and whether that is a pod
 * of this node. */
SUBPROGRAM int find_peer(struct packet *p)
{
	struct prefix key = {.bits = 128};
	struct endpoint *ep;
	struct peer *peer;
	struct pair both = {};
	__u32 *name, id;

	if (!p || p->peer[0])
		return 0;
	if (p->host) {
		p->peer[0] = IDENTITY_HOST;
		return 0;
	}
	key.addr = p->direction == DIRECTION_EGRESS ? p->tuple.daddr : p->tuple.saddr;
	if (p->direction == DIRECTION_EGRESS) {
		ep = bpf_map_lookup_elem(&endpoints, &key.addr);
		if (ep) {
			p->local_ifindex = ep->ifindex;
			p->local_policy = ep->policy;
			p->peer[0] = ep->identity;
			if (p->peer[0])
				return 0;
		}
	}
	peer = bpf_map_lookup_elem(&ipcache, &key);
	if (peer && peer->identity) {
		p->peer[0] = peer->identity;
		p->own = (peer->flags & PEER_HOST) != 0;
		p->node = (peer->flags & PEER_NODE) != 0;
		if (!(peer->flags & PEER_WORLD))
			return 0;
	} else if (is_link_local6(&key.addr)) {
		/* A neighbor on the pod's own link is not the world. */
		p->peer[0] = IDENTITY_UNKNOWN_POD;
		p->node = true; /* perhaps */
		return 0;
	} else {
		p->peer[0] = is_ipv4(&key.addr) ? IDENTITY_WORLD_IPV4 : IDENTITY_WORLD_IPV6;
	}
	name = bpf_map_lookup_elem(&fqdn, &key.addr);
	if (!name)
		return 0;
	/* A copy: the proxy may write another one after it was looked up. */
	id = *name;
	if (!bpf_map_lookup_elem(&names, &id))
		return 0;
	p->peer[1] = id;
	both.outside = p->peer[0];
	both.names = id;
	name = bpf_map_lookup_elem(&pairs, &both);
	if (name)
		p->pair = *name;
	return 0;
}

/* Finds out whether what a pod sends comes to a service, or to a pod's host port, by
 * an address that is else a node's or the world's: kube-proxy, or portmap, sends it on
 * behind this program. It is then judged as the service's cluster IP is, or as the
 * pod. After find_peer. */
SUBPROGRAM int find_front(struct packet *p)
{
	struct front_key key = {};
	struct endpoint *ep;
	struct front *f;

	if (!p)
		return false;
	if (p->fronted)
		return p->fronted == FRONT;
	p->fronted = FRONT_NONE;
	/* Of the node's own, what has such an address was not translated here. */
	if (p->identity == IDENTITY_HOST || p->kind != KIND_FLOW)
		return false;
	key.addr = p->direction == DIRECTION_EGRESS ? p->tuple.daddr : p->tuple.saddr;
	key.port = p->direction == DIRECTION_EGRESS ? p->tuple.dport : p->tuple.sport;
	key.proto = p->tuple.proto;
	f = bpf_map_lookup_elem(&fronts, &key);
	if (f) {
		/* A pod of this node: the proxy would go there past kube-proxy. */
		ep = bpf_map_lookup_elem(&endpoints, &key.addr);
		p->peer[1] = ep && ep->identity ? 0 : f->identity;
	} else {
		if (!p->node)
			return false;
		key.addr.word[3] = 0;
		if (is_link_local6(&key.addr)) {
			key.addr.word[0] = htonl(0xfe800000);
			key.addr.word[1] = key.addr.word[2] = 0;
			f = bpf_map_lookup_elem(&fronts, &key);
		}
		if (!f) {
			key.addr.word[2] = is_ipv4(&key.addr) ? htonl(0xffff) : 0;
			key.addr.word[0] = key.addr.word[1] = 0;
			f = bpf_map_lookup_elem(&fronts, &key);
		}
		if (!f)
			return false;
		p->peer[1] = f->identity;
	}
	p->front_port = f->port;
	p->fronted = FRONT;
	p->pair = 0;
	p->local_ifindex = 0;
	return true;
}
