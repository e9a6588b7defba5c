/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* What the proxy is told of flows in conns: one entry for a connection, and one for
 * all that a pod asks one server and port by UDP, which is a session. */
#pragma once
#include "conntrack.h"

static __always_inline bool same_conn(const struct conn *a, const struct conn *b)
{
	const __u64 *x = (const __u64 *)a, *y = (const __u64 *)b;
	__u64 differ = 0;
	__u32 i;

#pragma unroll
	for (i = 0; i < sizeof(*a) / sizeof(*x); i++)
		differ |= x[i] ^ y[i];
	return !differ;
}

/* Takes from the proxy what it knows of the packet's flow. A function for the
 * sake of its stack. */
SUBPROGRAM int forget_conn(struct packet *p, bool reply)
{
	struct tuple t;

	if (!p)
		return 0;
	conn_key(p, reply, &t);
	return bpf_map_delete_elem(&conns, &t);
}

/* Whether the proxy has to be told of a redirected flow's session before it can be
 * asked: it is another one by now, has let go of the session, or the flow was but
 * its own. */
SUBPROGRAM int session_stale(struct packet *p, struct conntrack *ct)
{
	__u32 zero = 0;
	struct state *s;
	struct tuple t;

	if (!p || !ct)
		return true;
	s = bpf_map_lookup_elem(&state, &zero);
	if (!s || ct->generation != s->generation || ct->flags & CT_ASKED)
		return true;
	conn_key(p, false, &t);
	return !bpf_map_lookup_elem(&conns, &t);
}
