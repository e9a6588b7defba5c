/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* Tables of services, and where a socket that names one goes. */
#pragma once
#include "types.h"

/* services: what a socket may name -> where that leads. The address 0 of a
 * family (:: or ::ffff:0.0.0.0) stands for every address in nodes. */
struct service_key {
	struct addr addr;
	__be16 port;
	__u8 proto;
	__u8 pad;
};
struct service {
	__u32 id;	/* of backends, members and affinity; rows may share one; 0: for a probe */
	__u32 count;	/* slots; 0: refused */
	__u32 affinity; /* seconds a client stays with a backend after its last use; 0: no such */
	__u32 pad;
};

/* backends: the slots 0 .. count-1 of a service -> who serves. */
struct slot {
	__u32 service; /* id */
	__u32 number;
};
struct backend {
	struct addr addr;
	__be16 port;
	__u8 pad[2];
};

/* members: a backend that serves -> MEMBER_*, for those who chose it before. */
struct member {
	__u32 service;
	struct backend backend;
};
enum { MEMBER_READY = 1, MEMBER_DRAINING = 2 }; /* draining: none begin, who is there stays */

/* affinity: a pod that used a service with affinity -> the backend it stays with. */
struct client {
	__u64 netns; /* cookie */
	__u32 service;
	__u32 pad;
};
struct stay {
	__u64 used; /* bpf_ktime_get_coarse_ns() */
	struct backend backend;
	__u32 pad;
};

/* choices: an unconnected UDP socket and whom it names -> the backend that its
 * datagrams go to, all of them. */
struct asker {
	__u64 socket; /* cookie */
	struct service_key named;
	__u32 pad;
};

/* reverse: a socket and a backend it was sent to -> what it named. */
struct sent {
	__u64 socket;
	struct backend backend;
	__u32 pad;
};
struct named {
	struct addr addr;
	__be16 port;
	__u8 pad[2];
	__u32 service; /* id */
};

/* guard: one entry, mapped into user space by the agent. */
struct guard {
	/* When the agent last said that the tables are as they should be
	 * (CLOCK_MONOTONIC, ns); 0: never yet. */
	__u64 alive;
	__u64 host; /* netns cookie of the node's own sockets */
};

/* service_counts: per-CPU, by this. */
enum service_count {
	SERVICE_TRANSLATED = 0, /* connections, and datagrams of unconnected sockets */
	SERVICE_REFUSED = 1,	/* no backend */
	SERVICE_STALE = 2,	/* left to kube-proxy, since no agent keeps the tables */
	SERVICE_MISSING = 3,	/* left to kube-proxy, since a slot was empty */
	SERVICE_COUNTS = 4,
};

#define TABLE(name, kind, entries, key_type, value_type, flags)                                    \
	struct {                                                                                   \
		__uint(type, kind);                                                                \
		__uint(max_entries, entries);                                                      \
		__uint(map_flags, flags);                                                          \
		__type(key, key_type);                                                             \
		__type(value, value_type);                                                         \
	} name SEC(".maps")

/* Where the addresses of services lead. */
TABLE(services, BPF_MAP_TYPE_HASH, 131072, struct service_key, struct service, BPF_F_NO_PREALLOC);
/* Who is behind a service, in slots. */
TABLE(backends, BPF_MAP_TYPE_HASH, 524288, struct slot, struct backend, BPF_F_NO_PREALLOC);
/* The same by address. */
TABLE(members, BPF_MAP_TYPE_HASH, 524288, struct member, __u32, BPF_F_NO_PREALLOC);
/* On which addresses node ports are served: all nodes' own. */
TABLE(nodes, BPF_MAP_TYPE_HASH, 65536, struct addr, __u32, BPF_F_NO_PREALLOC);
/* Which backend a pod stays with. */
TABLE(affinity, BPF_MAP_TYPE_LRU_HASH, 65536, struct client, struct stay, 0);
/* Which backend an unconnected socket stays with. */
TABLE(choices, BPF_MAP_TYPE_LRU_HASH, 65536, struct asker, struct backend, 0);
/* What a socket named that was sent to a backend. */
TABLE(reverse, BPF_MAP_TYPE_LRU_HASH, 131072, struct sent, struct named, 0);
/* Network namespaces (cookies) besides the host's that are left alone: the proxies'. */
TABLE(aside, BPF_MAP_TYPE_HASH, 512, __u64, __u32, 0);
/* Whether to translate at all, and for whom not. */
TABLE(guard, BPF_MAP_TYPE_ARRAY, 1, __u32, struct guard, BPF_F_MMAPABLE);
/* What became of sockets that named a service. */
TABLE(service_counts, BPF_MAP_TYPE_PERCPU_ARRAY, SERVICE_COUNTS, __u32, __u64, 0);

static __always_inline void count_service(__u32 what)
{
	__u64 *n = bpf_map_lookup_elem(&service_counts, &what);

	if (n)
		*n += 1;
}

/* stale_after is how old the agent's last sign may be. It gives one every
 * second; an agent that is being replaced is back within a few, and until it is
 * the tables only age. Any longer, and pods would be sent to backends that are
 * gone while kube-proxy knows better. */
static const __u64 stale_after = 10ull * 1000 * 1000 * 1000;

/* find_service finds what an address and port that a socket names stand for. */
static __always_inline struct service *find_service(struct service_key *key)
{
	struct service *s = bpf_map_lookup_elem(&services, key);
	struct service_key any = {};

	if (s || !bpf_map_lookup_elem(&nodes, &key->addr))
		return s;
	/* A node port. */
	if (key->addr.word[0] == 0 && key->addr.word[1] == 0 && key->addr.word[2] == htonl(0xffff))
		any.addr.word[2] = htonl(0xffff);
	any.port = key->port;
	any.proto = key->proto;
	return bpf_map_lookup_elem(&services, &any);
}

static __always_inline bool is_member(__u32 service, const struct backend *b, bool draining_too)
{
	struct member key = {.service = service, .backend = *b};
	__u32 *as = bpf_map_lookup_elem(&members, &key);

	return as && (*as == MEMBER_READY || draining_too);
}

/* pick_backend chooses a backend for somebody new. */
static __always_inline bool pick_backend(struct service *s, __u64 netns, struct backend *to)
{
	struct client client = {.netns = netns, .service = s->id};
	struct slot slot = {.service = s->id};
	__u32 count = s->count;
	struct backend *b;
	__u64 now = 0;

	if (s->affinity) {
		struct stay *stay = bpf_map_lookup_elem(&affinity, &client);

		now = bpf_ktime_get_coarse_ns();
		if (stay && now - stay->used < s->affinity * 1000000000ull &&
		    is_member(s->id, &stay->backend, false)) {
			stay->used = now;
			*to = stay->backend;
			return true;
		}
	}
	if (!count) /* just emptied: it was asked before */
		return false;
	slot.number = bpf_get_prandom_u32() % count;
	b = bpf_map_lookup_elem(&backends, &slot);
	if (!b && slot.number) {
		/* The service has just become smaller: the first slot goes last. */
		slot.number = 0;
		b = bpf_map_lookup_elem(&backends, &slot);
	}
	if (!b)
		return false;
	*to = *b;
	if (s->affinity) {
		struct stay stay = {.used = now, .backend = *b};

		bpf_map_update_elem(&affinity, &client, &stay, BPF_ANY);
	}
	return true;
}
