/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* Why a packet was let in or dropped. The one list: flow/reason_gen.go (names,
 * metric labels, explanations) is generated from it by `make generate`.
 * REASON(number, NAME, "label", "what it means, for the person who sees it") */
/* One line each: the generator reads them. */
/* clang-format off */
REASON(0, NONE, "none", "no reason recorded")
REASON(1, POLICY_ALLOWED, "policy-allowed", "a policy rule allows it")
REASON(2, NOT_ENFORCED, "not-enforced", "no policy selects the pod in this direction")
REASON(3, HOST, "host", "the node reaches its own pods")
REASON(4, REPLY, "reply", "reply to an allowed flow")
REASON(5, RELATED, "related", "ICMP error about an allowed flow")
REASON(6, REDIRECTED, "redirected", "goes through the proxy for its L7 rules")
REASON(7, NEIGHBOR, "neighbor", "ARP or neighbor discovery")
REASON(32, POLICY_DENIED, "policy-denied", "no rule allows it and a policy selects the pod")
REASON(33, POLICY_DENY_RULE, "policy-deny-rule", "a deny rule covers it")
REASON(34, POLICY_REFUSED, "policy-refused", "a policy that selects the pod was refused, so the pod is closed")
REASON(35, L7_UNSUPPORTED, "l7-unsupported", "its L7 rules are of a kind that is not enforced yet")
REASON(36, L7_CONFLICT, "l7-conflict", "rules of two L7 kinds meet on this peer and port")
REASON(37, POLICY_CHANGED, "policy-changed", "a running direct flow now needs the proxy, so it was reset")
REASON(38, MIDSTREAM_L7, "midstream-l7", "TCP in mid-stream whose rules need the start of the connection")
REASON(39, NO_PROXY, "no-proxy", "needs the proxy and none is running")
REASON(40, CONNS_FULL, "conns-full", "too many redirected flows")
REASON(41, CONNTRACK_FULL, "conntrack-full", "the conntrack entry could not be made")
REASON(42, UNKNOWN_L3, "unknown-l3", "neither IPv4, IPv6 nor ARP, or tagged for a VLAN")
REASON(43, UNKNOWN_L4, "unknown-l4", "a transport protocol no rule names")
REASON(44, INVALID_PACKET, "invalid-packet", "truncated or inconsistent headers")
REASON(45, INVALID_SOURCE, "invalid-source", "the pod used an address that is not its own")
REASON(46, FRAGMENT_UNKNOWN, "fragment-unknown", "a fragment whose first part was not seen")
REASON(47, IPV6_HEADERS, "ipv6-headers", "too many IPv6 extension headers, or one that leads elsewhere")
REASON(48, ICMP_UNRELATED, "icmp-unrelated", "ICMP error about no known flow")
REASON(49, PROXY_UNKNOWN_FLOW, "proxy-unknown-flow", "left the proxy for a flow that was never redirected")
REASON(50, UDP_NO_FLOW, "udp-no-flow", "datagram for the proxy without a redirected flow")
REASON(51, POLICY_MISSING, "policy-missing", "the pod's policy is not in the kernel yet")
