/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* Ports of datagrams that come in parts: only the first part has them. */
#pragma once
#include "maps.h"
#include "packet.h"

/* Remembers a first part, or gives a later one what it lacks; returns false if
 * the first was not seen. A pod can't teach ports for another's datagram: its
 * source address was checked before. */
SUBPROGRAM int fragment_resolve(struct packet *p)
{
	struct fragment value = {}, *seen;
	struct fragment_key key = {};

	if (!p)
		return false;
	key.saddr = p->tuple.saddr;
	key.daddr = p->tuple.daddr;
	key.id = p->frag_id;
	key.proto = p->frag_proto;
	if (p->part == FRAGMENT_FIRST) {
		value.sport = p->tuple.sport;
		value.dport = p->tuple.dport;
		value.proto = p->tuple.proto;
		value.type = p->icmp_type;
		value.kind = p->kind;
		bpf_map_update_elem(&fragments, &key, &value, BPF_ANY);
		return true;
	}
	seen = bpf_map_lookup_elem(&fragments, &key);
	if (!seen)
		return false;
	p->tuple.sport = seen->sport;
	p->tuple.dport = seen->dport;
	p->tuple.proto = seen->proto;
	p->icmp_type = seen->type;
	p->kind = seen->kind;
	p->port = is_icmp(p) ? seen->type : ntohs(seen->dport);
	return true;
}
