//go:build ignore
/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* sk_lookup in a proxy's namespace: whatever address a redirected connection
 * goes to, it reaches the proxy's listener. An object of its own, because each
 * generation of the proxy has its own listeners. */
#include "net.h"

/* The proxy's listening sockets, by enum listener. Written by the proxy. */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} listeners SEC(".maps");

enum listener { LISTENER_TCP4 = 0, LISTENER_TCP6 = 1 };

SEC("sk_lookup")
int steer(struct bpf_sk_lookup *ctx)
{
	__u32 key = LISTENER_TCP4;
	struct bpf_sock *sock;
	long err;

	if (ctx->protocol != IPPROTO_TCP)
		return SK_DROP;
	if (ctx->family == AF_INET6)
		key = LISTENER_TCP6;
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
