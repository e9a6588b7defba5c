/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* Every table the programs share; key and value are explained in types.h.
 * max_entries are defaults, Options.Sizes in Go overrides them. */
#pragma once
#include "types.h"

#define TABLE(name, kind, entries, key_type, value_type, flags)                                    \
	struct {                                                                                   \
		__uint(type, kind);                                                                \
		__uint(max_entries, entries);                                                      \
		__uint(map_flags, flags);                                                          \
		__type(key, key_type);                                                             \
		__type(value, value_type);                                                         \
	} name SEC(".maps")

/* Which addresses are pods of this node, and under which policy. */
TABLE(endpoints, BPF_MAP_TYPE_HASH, 16384, struct addr, struct endpoint, 0);
/* Whose veth it is, where the address alone doesn't tell. */
TABLE(devices, BPF_MAP_TYPE_HASH, 8192, __u32, struct device, 0);
/* Who an address is, for everyone but outside names. */
TABLE(ipcache, BPF_MAP_TYPE_LPM_TRIE, 524288, struct prefix, struct peer, BPF_F_NO_PREALLOC);
/* Which addresses and ports are a service's. */
TABLE(fronts, BPF_MAP_TYPE_HASH, 131072, struct front_key, struct front, BPF_F_NO_PREALLOC);
/* Which identity DNS answers gave an outside address. Written by the proxy. */
TABLE(fqdn, BPF_MAP_TYPE_HASH, 524288, struct addr, __u32, BPF_F_NO_PREALLOC);
/* Which identities DNS answers can give: what fqdn says beyond is not believed. */
TABLE(names, BPF_MAP_TYPE_HASH, 65536, __u32, __u32, BPF_F_NO_PREALLOC);
/* What an outside address is as the one and the other, where that matters. */
TABLE(pairs, BPF_MAP_TYPE_HASH, 65536, struct pair, __u32, BPF_F_NO_PREALLOC);
/* Which directions a policy enforces, and the probes worth doing. */
TABLE(policies, BPF_MAP_TYPE_HASH, 16384, __u32, struct policy_info, 0);
/* The entries of all policies. */
TABLE(policy, BPF_MAP_TYPE_HASH, 1048576, struct policy_key, struct policy_entry,
      BPF_F_NO_PREALLOC);
/* Flows that passed or were redirected. */
TABLE(conntrack, BPF_MAP_TYPE_LRU_HASH, 262144, struct tuple, struct conntrack, 0);
/* What the proxy must know of a redirected flow; not LRU, so that a live one stays. */
TABLE(conns, BPF_MAP_TYPE_HASH, 65536, struct tuple, struct conn, 0);
/* How many entries of conns each veth has made, and may make. */
TABLE(shares, BPF_MAP_TYPE_LRU_HASH, 8192, __u32, struct share, 0);
/* What the proxy's last walk through conns found room for. Written by the proxy. */
TABLE(grants, BPF_MAP_TYPE_LRU_HASH, 8192, __u32, struct grant, 0);
/* Ports of datagrams in fragments. */
TABLE(fragments, BPF_MAP_TYPE_LRU_HASH, 8192, struct fragment_key, struct fragment, 0);
/* Who is on a pod's link. */
TABLE(neighbors, BPF_MAP_TYPE_LRU_HASH, 16384, struct neighbor, __u64, 0);
/* How to reach the proxy of each generation. */
TABLE(proxies, BPF_MAP_TYPE_ARRAY, 256, __u32, struct proxy, 0);
/* Which policy the node itself is under. */
TABLE(host, BPF_MAP_TYPE_ARRAY, 1, __u32, struct host, 0);
/* The policy revision and the current proxy. */
TABLE(state, BPF_MAP_TYPE_ARRAY, 1, __u32, struct state, BPF_F_MMAPABLE);
/* Drops and new flows, by reason and direction. */
TABLE(metrics, BPF_MAP_TYPE_PERCPU_HASH, 512, struct metric_key, struct metric, 0);
/* How many events may be sent. */
TABLE(budget, BPF_MAP_TYPE_PERCPU_ARRAY, 1, __u32, struct budget, 0);
/* Numbers the agent gave out. */
TABLE(numbers, BPF_MAP_TYPE_HASH, 1048576, struct number, struct digest, BPF_F_NO_PREALLOC);

/* Verdicts, read by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20);
} events SEC(".maps");
