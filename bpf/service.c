//go:build ignore
/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* Services at the sockets of pods: what connects or sends to the address of a
 * service goes to one of its backends, before there is a packet. Policy then
 * sees the backend, and no translation behind it leads elsewhere. An object of
 * its own, with tables of its own: policy is enforced without it. */
#include "net.h"
#include "service.h"

/* The address that a hook is about, in both families. */
struct ends {
	struct addr addr;
	__be16 port;
};

static __always_inline struct ends ends4(struct bpf_sock_addr *ctx)
{
	struct ends e = {.port = ctx->user_port};

	e.addr.word[2] = htonl(0xffff);
	e.addr.word[3] = ctx->user_ip4;
	return e;
}

static __always_inline struct ends ends6(struct bpf_sock_addr *ctx)
{
	struct ends e = {.port = ctx->user_port};

	e.addr.word[0] = ctx->user_ip6[0];
	e.addr.word[1] = ctx->user_ip6[1];
	e.addr.word[2] = ctx->user_ip6[2];
	e.addr.word[3] = ctx->user_ip6[3];
	return e;
}

static __always_inline void set4(struct bpf_sock_addr *ctx, const struct addr *a, __be16 port)
{
	ctx->user_ip4 = a->word[3];
	ctx->user_port = port;
}

/* IPv4 in an IPv6 socket stays so: tables have it in that form as well. */
static __always_inline void set6(struct bpf_sock_addr *ctx, const struct addr *a, __be16 port)
{
	ctx->user_ip6[0] = a->word[0];
	ctx->user_ip6[1] = a->word[1];
	ctx->user_ip6[2] = a->word[2];
	ctx->user_ip6[3] = a->word[3];
	ctx->user_port = port;
}

enum { REFUSE = 0, PROCEED = 1 }; /* what these programs return */

/* refuse lets the call fail as one to a port where nobody listens. */
static __always_inline int refuse(void)
{
	bpf_set_retval(-ECONNREFUSED);
	return REFUSE;
}

/* left_alone tells whether the socket is none of a pod's. */
static __always_inline bool left_alone(const struct guard *g, __u64 netns)
{
	return netns == g->host || bpf_map_lookup_elem(&aside, &netns);
}

/* forward finds where a socket that names these ends is sent; to says so if it
 * is PROCEED and *moved. remember: the socket is not connected, and all it sends
 * there goes to one backend. */
static __always_inline int forward(struct bpf_sock_addr *ctx, const struct ends *e, bool remember,
				   struct backend *to, bool *moved)
{
	struct service_key key = {.addr = e->addr, .port = e->port, .proto = ctx->protocol};
	struct asker asker = {.named = key};
	struct sent sent = {.backend = {.addr = e->addr, .port = e->port}};
	struct named named = {.addr = e->addr, .port = e->port};
	struct backend *chosen;
	struct service *s;
	struct guard *g;
	__u32 zero = 0;
	__u64 netns;

	if (ctx->protocol != IPPROTO_TCP && ctx->protocol != IPPROTO_UDP)
		return PROCEED;
	g = bpf_map_lookup_elem(&guard, &zero);
	if (!g)
		return PROCEED; /* unreachable: an array */
	s = find_service(&key);
	sent.socket = asker.socket = bpf_get_socket_cookie(ctx);
	if (!s) {
		/* Named by its own address now: that is what it is to see. But the kernel
		 * also names whom a connected IPv6 socket for IPv4 sends to. */
		bool again = remember && ctx->sk && ctx->sk->state == TCP_ESTABLISHED;

		if (!again && bpf_map_lookup_elem(&reverse, &sent))
			bpf_map_delete_elem(&reverse, &sent);
		return PROCEED;
	}
	netns = bpf_get_netns_cookie(ctx);
	if (left_alone(g, netns))
		return PROCEED;
	if (bpf_ktime_get_coarse_ns() > g->alive + stale_after) {
		count_service(SERVICE_STALE);
		return PROCEED;
	}
	if (!s->count) {
		if (s->id) /* else it is a probe's */
			count_service(SERVICE_REFUSED);
		return refuse();
	}
	chosen = remember ? bpf_map_lookup_elem(&choices, &asker) : NULL;
	if (chosen && is_member(s->id, chosen, true)) {
		*to = *chosen;
	} else {
		if (!pick_backend(s, netns, to)) {
			count_service(SERVICE_MISSING);
			return PROCEED;
		}
		if (remember)
			bpf_map_update_elem(&choices, &asker, to, BPF_ANY);
	}
	named.service = s->id;
	sent.backend = *to;
	/* Before the socket can hear from there; without room for it the socket would
	 * not know whom it hears: then rather as if we were not here. */
	if (bpf_map_update_elem(&reverse, &sent, &named, BPF_ANY)) {
		count_service(SERVICE_MISSING);
		return PROCEED;
	}
	count_service(SERVICE_TRANSLATED);
	*moved = true;
	return PROCEED;
}

/* backward finds what the socket named that is told of these ends. */
static __always_inline struct named *backward(struct bpf_sock_addr *ctx, const struct ends *e)
{
	struct sent key = {.backend = {.addr = e->addr, .port = e->port}};

	if (ctx->protocol != IPPROTO_TCP && ctx->protocol != IPPROTO_UDP)
		return NULL;
	key.socket = bpf_get_socket_cookie(ctx);
	return bpf_map_lookup_elem(&reverse, &key);
}

#define FORWARD(ctx, family, remember)                                                             \
	({                                                                                         \
		struct ends e = ends##family(ctx);                                                 \
		struct backend to = {};                                                            \
		bool moved = false;                                                                \
		int verdict = forward(ctx, &e, remember, &to, &moved);                             \
                                                                                                   \
		if (moved)                                                                         \
			set##family(ctx, &to.addr, to.port);                                       \
		verdict;                                                                           \
	})

#define BACKWARD(ctx, family)                                                                      \
	({                                                                                         \
		struct ends e = ends##family(ctx);                                                 \
		struct named *was = backward(ctx, &e);                                             \
                                                                                                   \
		if (was)                                                                           \
			set##family(ctx, &was->addr, was->port);                                   \
		PROCEED;                                                                           \
	})

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	return FORWARD(ctx, 4, false);
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	return FORWARD(ctx, 6, false);
}

SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx)
{
	return FORWARD(ctx, 4, true);
}

SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx)
{
	return FORWARD(ctx, 6, true);
}

SEC("cgroup/recvmsg4")
int recvmsg4(struct bpf_sock_addr *ctx)
{
	return BACKWARD(ctx, 4);
}

SEC("cgroup/recvmsg6")
int recvmsg6(struct bpf_sock_addr *ctx)
{
	return BACKWARD(ctx, 6);
}

SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *ctx)
{
	return BACKWARD(ctx, 4);
}

SEC("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *ctx)
{
	return BACKWARD(ctx, 6);
}

/* bpf_get_socket_cookie and the clock want a licence compatible with the GPL on
 * some kernels. */
char licence[] SEC("license") = "GPL";

const enum service_count *service_count_type __attribute__((unused));
