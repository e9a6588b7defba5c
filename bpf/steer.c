//go:build ignore
/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* sk_lookup in a proxy's namespace: whatever address a redirected connection
 * or datagram goes to, it reaches one of the proxy's listeners. An object of its own, because each
 * generation of the proxy has its own listeners. */
#include "net.h"

/* How many sockets datagrams of a family come to, each with a queue of its own: a
 * pod that floods its queue costs those others something that happen to have the
 * same one. */
#define LANES 64

enum listener {
	LISTENER_TCP4 = 0,
	LISTENER_TCP6 = 1,
	LISTENER_UDP4 = 2,
	LISTENER_UDP6 = LISTENER_UDP4 + LANES,
	LISTENERS = LISTENER_UDP6 + LANES,
};

/* The proxy's listening sockets, and the unconnected ones for datagrams, by enum
 * listener. Written by the proxy. Whoever changes their number makes a table that
 * proxies of other versions can't be wired with. */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, LISTENERS);
	__type(key, __u32);
	__type(value, __u64);
} listeners SEC(".maps");

/* Set at random when the program is loaded: who shares whose lane can't be read
 * off the addresses. */
volatile const __u32 lane_seed = 0;

static __always_inline __u32 lane_mix(__u32 h, __u32 word)
{
	h = (h ^ word) * 0x85ebca6b;
	h = (h ^ h >> 13) * 0xc2b2ae35;
	return h ^ h >> 16;
}

/* lane_of is the lane of all that a pod's address sends. */
static __always_inline __u32 lane_of(struct bpf_sk_lookup *ctx)
{
	__u32 h = lane_mix(lane_seed, ctx->family);

	if (ctx->family == AF_INET)
		return lane_mix(h, ctx->remote_ip4) % LANES;
	h = lane_mix(h, ctx->remote_ip6[0]);
	h = lane_mix(h, ctx->remote_ip6[1]);
	h = lane_mix(h, ctx->remote_ip6[2]);
	return lane_mix(h, ctx->remote_ip6[3]) % LANES;
}

SEC("sk_lookup")
int steer(struct bpf_sk_lookup *ctx)
{
	struct bpf_sock *sock;
	__u32 key;
	long err;

	if (ctx->family != AF_INET && ctx->family != AF_INET6)
		return SK_DROP;
	/* Sockets that are connected to the sender were found before. */
	if (ctx->protocol == IPPROTO_TCP)
		key = ctx->family == AF_INET ? LISTENER_TCP4 : LISTENER_TCP6;
	else if (ctx->protocol == IPPROTO_UDP)
		key = (ctx->family == AF_INET ? LISTENER_UDP4 : LISTENER_UDP6) + lane_of(ctx);
	else
		return SK_DROP;
	sock = bpf_map_lookup_elem(&listeners, &key);
	if (!sock)
		return SK_DROP;
	err = bpf_sk_assign(ctx, sock, 0);
	bpf_sk_release(sock);
	return err ? SK_DROP : SK_PASS;
}

char licence[] SEC("license") = "GPL";
