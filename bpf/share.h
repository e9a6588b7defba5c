/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* A pod's part of conns, so that one that only sends SYNs leaves room for the
 * others' flows.
 *
 * Entries go in user space, which the kernel can't count, so it counts none that
 * go: only those it makes. A proxy walks through conns again and again, and then
 * grants each veth
 *
 *	made, as it was before the walk + its part - the entries the walk found
 *
 * An entry that is there later was found, or was made since and so counts. However
 * old a grant is and whichever proxy gave it, no veth gets more than its part by
 * it; it only gets less than it could, until the next walk. */
#pragma once
#include "maps.h"

/* Entries of conns that one veth may have: a quarter. Set when loaded. */
volatile const __u32 conns_share = 16384;

/* A veth that is seen for the first time has no entries. (One whose share the
 * kernel dropped may have, and so twice its part until the next walk.) */
static __always_inline struct share *share_of(__u32 ifindex)
{
	struct share first = {}, *s = bpf_map_lookup_elem(&shares, &ifindex);

	if (likely(s))
		return s;
	first.born = bpf_ktime_get_ns();
	first.until = conns_share;
	bpf_map_update_elem(&shares, &ifindex, &first, BPF_NOEXIST);
	return bpf_map_lookup_elem(&shares, &ifindex);
}

/* Whether a veth may make another entry. */
static __always_inline bool has_room(struct share *s, __u32 ifindex)
{
	struct grant *g;
	__u64 until;

	if (likely(s->made < s->until))
		return true;
	g = bpf_map_lookup_elem(&grants, &ifindex);
	if (!g || g->born != s->born)
		return false;
	until = g->until;
	/* No true grant goes further, and this one could be half of each of two. */
	if (until > s->made + conns_share)
		until = s->made + conns_share;
	if (until <= s->until)
		return false;
	s->until = until;
	return true;
}
