//go:build ignore
/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* sk_lookup in a proxy's namespace: whatever address a redirected connection
 * or datagram goes to, it reaches the proxy's listener. An object of its own, because each
 * generation of the proxy has its own listeners. */
#include "net.h"

/* The proxy's listening sockets, and the unconnected ones for datagrams, by enum
 * listener. Written by the proxy. */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u64);
} listeners SEC(".maps");

enum listener { LISTENER_TCP4 = 0, LISTENER_TCP6 = 1, LISTENER_UDP4 = 2, LISTENER_UDP6 = 3 };

SEC("sk_lookup")
int steer(struct bpf_sk_lookup *ctx)
{
	struct bpf_sock *sock;
	__u32 key;
	long err;

	/* Sockets that are connected to the sender were found before. */
	if (ctx->protocol == IPPROTO_TCP)
		key = LISTENER_TCP4;
	else if (ctx->protocol == IPPROTO_UDP)
		key = LISTENER_UDP4;
	else
		return SK_DROP;
	if (ctx->family == AF_INET6)
		key++;
	else if (ctx->family != AF_INET)
		return SK_DROP;
	sock = bpf_map_lookup_elem(&listeners, &key);
	if (!sock)
		return SK_DROP;
	err = bpf_sk_assign(ctx, sock, 0);
	bpf_sk_release(sock);
	return err ? SK_DROP : SK_PASS;
}

char licence[] SEC("license") = "GPL";
