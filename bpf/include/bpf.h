/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* What the programs need of the kernel's eBPF interface, spelled here so that
 * the objects come out the same on every machine: no system header is read.
 * Numbers and context layouts are kernel ABI. */
#pragma once

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef _Bool bool;
enum { false = 0, true = 1 };
typedef int __s32;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;

#define NULL ((void *)0)
#define SEC(name) __attribute__((section(name), used))
#define __always_inline inline __attribute__((always_inline))
/* A function the verifier checks once, by itself, instead of at every call: its
 * pointers may be NULL as far as it knows. Must not be static. */
#define SUBPROGRAM __attribute__((noinline))
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#define offsetof(type, member) __builtin_offsetof(type, member)

/* All supported targets are little endian. */
#define ntohs(x) __builtin_bswap16(x)
#define htons(x) __builtin_bswap16(x)
#define ntohl(x) __builtin_bswap32(x)
#define htonl(x) __builtin_bswap32(x)

/* Map definitions, read by loaders from BTF. */
#define __uint(name, value) int(*name)[value]
#define __type(name, value) typeof(value) *name

enum {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PERCPU_HASH = 5,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_LPM_TRIE = 11,
	BPF_MAP_TYPE_SOCKMAP = 15,
	BPF_MAP_TYPE_RINGBUF = 27,
};
enum {
	BPF_F_NO_PREALLOC = 1u << 0,
	BPF_F_MMAPABLE = 1u << 10,
};
enum {
	BPF_ANY = 0,
	BPF_NOEXIST = 1,
	BPF_EXIST = 2,
};
enum {
	ENOENT = 2,
	EEXIST = 17,
	EINVAL = 22,
	ECONNREFUSED = 111,
};
enum {
	TC_ACT_UNSPEC = -1,
	TC_ACT_SHOT = 2,
	TC_ACT_REDIRECT = 7,
};
enum {
	SK_DROP = 0,
	SK_PASS = 1,
};
enum {
	BPF_F_INGRESS = 1,    /* redirect */
	BPF_RB_NO_WAKEUP = 1, /* ringbuf_submit */
	BPF_RB_FORCE_WAKEUP = 2,
	BPF_RB_AVAIL_DATA = 0, /* ringbuf_query */
	PACKET_HOST = 0,       /* skb_change_type */
	BPF_HDR_START_NET = 1, /* skb_load_bytes_relative */
};

struct bpf_sock {
	__u32 bound_dev_if;
	__u32 family;
	__u32 type;
	__u32 protocol;
	__u32 mark;
	__u32 priority;
	__u32 src_ip4;
	__u32 src_ip6[4];
	__u32 src_port;
	__be16 dst_port;
	__u16 pad;
	__u32 dst_ip4;
	__u32 dst_ip6[4];
	__u32 state;
	__s32 rx_queue_mapping;
};
_Static_assert(offsetof(struct bpf_sock, state) == 72, "bpf_sock is kernel ABI");
enum {
	TCP_ESTABLISHED = 1, /* bpf_sock.state, also of connected UDP sockets */
	TCP_LISTEN = 10,
};
/* Source is the other end, seen from the socket. */
struct bpf_sock_tuple {
	union {
		struct {
			__be32 saddr, daddr;
			__be16 sport, dport;
		} ipv4;
		struct {
			__be32 saddr[4], daddr[4];
			__be16 sport, dport;
		} ipv6;
	};
};
enum { BPF_F_CURRENT_NETNS = -1 };

struct __sk_buff {
	__u32 len;
	__u32 pkt_type;
	__u32 mark;
	__u32 queue_mapping;
	__u32 protocol;
	__u32 vlan_present;
	__u32 vlan_tci;
	__u32 vlan_proto;
	__u32 priority;
	__u32 ingress_ifindex;
	__u32 ifindex;
	__u32 tc_index;
	__u32 cb[5];
	__u32 hash;
	__u32 tc_classid;
	__u32 data;
	__u32 data_end;
	__u32 napi_id;
	__u32 family;
	__u32 remote_ip4;
	__u32 local_ip4;
	__u32 remote_ip6[4];
	__u32 local_ip6[4];
	__u32 remote_port;
	__u32 local_port;
	__u32 data_meta;
	__u64 flow_keys;
	__u64 tstamp;
	__u32 wire_len;
	__u32 gso_segs;
	struct bpf_sock *sk;
	__u32 gso_size;
};
_Static_assert(offsetof(struct __sk_buff, sk) == 168, "__sk_buff is kernel ABI");

struct bpf_sk_lookup {
	__u64 cookie;
	__u32 family;
	__u32 protocol;
	__u32 remote_ip4;
	__u32 remote_ip6[4];
	__be16 remote_port;
	__u16 pad;
	__u32 local_ip4;
	__u32 local_ip6[4];
	__u32 local_port;
	__u32 ingress_ifindex;
};

struct bpf_sock_addr {
	__u32 user_family;
	__u32 user_ip4;
	__u32 user_ip6[4];
	__u32 user_port; /* network byte order */
	__u32 family;
	__u32 type;
	__u32 protocol;
	__u32 msg_src_ip4;
	__u32 msg_src_ip6[4];
	struct bpf_sock *sk;
};
_Static_assert(offsetof(struct bpf_sock_addr, sk) == 64, "bpf_sock_addr is kernel ABI");

/* Helpers, by their ABI number. */
#define HELPER(number) (void *)number
static void *(*bpf_map_lookup_elem)(void *map, const void *key) = HELPER(1);
static long (*bpf_map_update_elem)(void *map, const void *key, const void *value,
				   __u64 flags) = HELPER(2);
static long (*bpf_map_delete_elem)(void *map, const void *key) = HELPER(3);
static __u64 (*bpf_ktime_get_ns)(void) = HELPER(5);
static __u32 (*bpf_get_prandom_u32)(void) = HELPER(7);
static long (*bpf_skb_store_bytes)(struct __sk_buff *skb, __u32 offset, const void *from, __u32 len,
				   __u64 flags) = HELPER(9);
static long (*bpf_l4_csum_replace)(struct __sk_buff *skb, __u32 offset, __u64 from, __u64 to,
				   __u64 flags) = HELPER(11);
static long (*bpf_clone_redirect)(struct __sk_buff *skb, __u32 ifindex, __u64 flags) = HELPER(13);
static long (*bpf_redirect)(__u32 ifindex, __u64 flags) = HELPER(23);
static long (*bpf_skb_load_bytes)(const void *skb, __u32 offset, void *to, __u32 len) = HELPER(26);
static long (*bpf_skb_change_type)(struct __sk_buff *skb, __u32 type) = HELPER(32);
static long (*bpf_skb_pull_data)(struct __sk_buff *skb, __u32 len) = HELPER(39);
static __u64 (*bpf_get_socket_cookie)(void *ctx) = HELPER(46);
static long (*bpf_skb_load_bytes_relative)(const void *skb, __u32 offset, void *to, __u32 len,
					   __u32 start) = HELPER(68);
static void *(*bpf_skc_lookup_tcp)(void *ctx, const struct bpf_sock_tuple *tuple, __u32 len,
				   __u64 netns, __u64 flags) = HELPER(99);
static long (*bpf_sk_release)(void *sock) = HELPER(86);
static __u64 (*bpf_get_netns_cookie)(void *ctx) = HELPER(122);
static long (*bpf_sk_assign)(void *ctx, void *sk, __u64 flags) = HELPER(124);
static void *(*bpf_ringbuf_reserve)(void *ringbuf, __u64 size, __u64 flags) = HELPER(131);
static void (*bpf_ringbuf_submit)(void *data, __u64 flags) = HELPER(132);
static __u64 (*bpf_ringbuf_query)(void *ringbuf, __u64 flags) = HELPER(134);
static long (*bpf_redirect_peer)(__u32 ifindex, __u64 flags) = HELPER(155);
static __u64 (*bpf_ktime_get_coarse_ns)(void) = HELPER(160);
static int (*bpf_set_retval)(int retval) = HELPER(187);
#undef HELPER
