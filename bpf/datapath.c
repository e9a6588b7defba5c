//go:build ignore
/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* The programs that share the tables, as one object. */
#include "from_pod.c"
#include "to_pod.c"
#include "from_host.c"
#include "to_host.c"
#include "from_proxy.c"

/* bpf_redirect and its kin are open to all, bpf_ktime_get_ns and the ring
 * buffer want a licence compatible with the GPL on some kernels. */
char licence[] SEC("license") = "GPL";

/* Types no map or function names, kept in BTF for the Go side. */
const struct event *event_type __attribute__((unused));
const enum direction *direction_type __attribute__((unused));
const enum action *action_type __attribute__((unused));
const enum verdict *verdict_type __attribute__((unused));
const enum reason *reason_type __attribute__((unused));
const enum number_kind *number_kind_type __attribute__((unused));
const enum conn_bits *conn_bits_type __attribute__((unused));
