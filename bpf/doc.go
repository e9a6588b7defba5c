// Package bpf holds the kernel programs that judge packets, and the typed Go
// handle on them and their tables.
//
// The programs stand on the host side of each pod's veth and of the proxy's,
// and in the proxy's namespace:
//
//	 pod A            host                              proxy's namespace
//	┌─────┐    ┌──────────────────┐                    ┌─────────────────┐
//	│     │veth│ from_pod  to_pod │veth (weir0)    eth0│ steer: any      │
//	│eth0 ├────┤ egress    ingress├─────────────┬──────┤ destination to  │
//	│     │    │ policy    policy │  from_proxy │      │ the listeners   │
//	└─────┘    └──────────────────┘             │      └─────────────────┘
//
// A packet is parsed (parse.h), found in conntrack (conntrack.h), or else judged
// by the pod's policy (policy.h); it then goes on, is dropped, or goes into the
// proxy's namespace (redirect.h). flow.h is where these meet (begin.h for packets of no known flow): read it
// first.
// types.h has the tables' layouts, which the Go types are generated from, and
// maps.h says what each table is for. A verdict is told once, by an event
// (events.h), and counted.
//
// # The Go side
//
// [Load] opens what is pinned or makes it; [Datapath] has a typed [Table] for
// each, attaches, reads events and counters. A successor of the agent loads,
// brings the tables up to date, and calls [Datapath.Activate]: until then what
// was attached goes on with the programs and tables it has. A table's pin is
// named after its layout, so another version of Weir shares those that mean the
// same to it and makes the others anew. On an interface the programs come first,
// as tcx links or as filters, since one before them could let packets pass
// unjudged; [Datapath.Overtaken] tells where that is not so any more.
//
// # The node itself
//
// Where a policy selects the node, from_host and to_host stand on the interfaces
// by which it is joined to networks (host.h); from_pod and to_pod judge what goes
// between it and its pods (ask_host). The row of host names its policy, and one
// that is asked where that denies: fail-safe traffic and node ports.
//
//   - Tunnels and whatever else has no Ethernet headers get from_host_l3 and
//     to_host_l3, which ask the kernel where the IP header is (parse_l3.h).
//   - Only what has an address of the node, by ipcache, is judged, at the end it
//     has it. The rest is pods' or others'.
//   - What the node sends on with its own address (masqueraded, answers of node
//     ports) has come in somewhere, or has no socket. It is remembered as nobody's
//     (CT_FOREIGN), since what is answered arrives before it is translated back.
//   - TCP in mid-stream is told by sockets: without one it is sent on, or comes to
//     nothing. With one the node accepted it if somebody listens at its port, and
//     made it if not. So a policy that comes cuts what it denies and nothing else.
//   - Tagged frames pass: they are judged at the VLAN's interface. Multicast is to
//     no address of the node.
//   - A port of the node that something else than a service translates (hostPort)
//     is judged as the node's, where the node's own policy is asked.
//
// # Services
//
// service.c stands at the sockets of pods, not at interfaces, with the tables in
// service.h; [Services] is its handle. It shares nothing with the rest but the
// directory of pins, and either works without the other.
//
//	connect, sendmsg: named ── services ──> backends ──> the socket's peer
//	                                          │ reverse
//	recvmsg, getpeername: named <─────────────┘
//
// What was not translated there comes to from_pod with an address of the service,
// where policy is asked for the service by it: cluster IPs are in ipcache, the others
// in fronts (find_front). Host ports of pods are like services with one backend, and in
// fronts with the pod's identity.
//
// What is easily got wrong:
//
//   - A connected IPv6 socket for IPv4 has sendmsg4 called with the address it is
//     connected to, the backend's: that is no new name for it.
//   - What a socket named is written before it is sent there, and programs that
//     tell it are attached first and taken off last.
//   - A socket that names a backend by its own address is told that address, also
//     if it came there by a service before.
//
// A connection costs 0.9 microseconds where it is translated and 0.4 where not, a
// datagram of an unconnected socket 1.3 and 0.2 on its way back, on the machine
// below.
//
// # Where the kernel or an attacker asked for more than was planned
//
//   - ICMP echo: only the asking end has the identifier as its port. With both
//     ports alike two pods that ping each other with one identifier, as
//     containers do, would be one flow, and one's requests the other's replies.
//   - ICMP other than echo is judged packet by packet. With one entry for all of
//     it between two addresses, one allowed type would let in every other.
//   - An ICMP error passes with its flow only where the flow was judged by the
//     end that the error comes to, and only to the sender of what it quotes. A
//     pod's own is about packets to that pod: pods have no say in others' flows.
//   - Answers of TCP end soon after what they answer is revoked; those of other
//     protocols may go on by themselves and are judged when policy has moved.
//   - A packet for an address that is not the pod's (multicast, link-local) is
//     judged by the policy of the pod behind the veth, since sockets bound to
//     every address take it. A neighbor's link-local address is not the world.
//   - A pod without a policy may not use an address either that the cluster knows
//     as another pod's or a node's: it would be taken for that where one is
//     allowed. An outside address it may: it may be a router.
//   - DHCP passes unjudged only as a pod without an address needs it: from the
//     unspecified or a link-local address to the link, and back to the link.
//     To a lease's server at its own address a pod needs a rule.
//   - Router advertisements and redirects are neighbor discovery only towards a
//     pod: from one they are an attack on its neighbors.
//   - Neighbor discovery from a pod passes unjudged only where it stays on the
//     link, and no longer than hosts make it: to link-local addresses and groups,
//     and to global addresses that discovery came from to this pod (neighbors).
//     The kernel would route the rest like any packet.
//   - IPv6 packets with IPv4 addresses in IPv6 form, those with a routing header
//     that has segments left, SYN with FIN or RST, and parts of a TCP segment
//     that begin within its header are refused: each is seen otherwise by who
//     takes it than by who judged it.
//   - A packet of this node's own has no incoming interface; but the parts of a
//     forwarded IPv6 datagram can lose theirs, so it must have a socket as well.
//   - What the proxy sends to the initiator of a flow that was taken at the
//     responder's veth goes back through the host, also to a pod of this node:
//     on its way here the destination may have been translated.
//   - A flow through the proxy that is revoked can't just be dropped, since the
//     proxy holds its two halves: its packet becomes a RST for the proxy's
//     socket, its entry in conns goes, and from_proxy lets only RST out.
//   - A flow through the proxy to a pod of this node passes by that pod's to_pod,
//     so from_pod asks the policy of both ends each time that policy moves.
//   - RST of a flow that is being cut passes: it would go round in circles.
//   - TCP in mid-stream, whose connection is older than Weir or lost its entry,
//     may be going either way, so both of the pod's directions are asked. If one
//     wants the proxy it is cut, also where a rule allows the other: that is often
//     one for any port. Else an entry that allows it lets it pass for sure.
//     If one denies the packet and the other is not enforced, it passes until
//     state.midstream_until: five minutes from when an agent found no conntrack
//     and made it, and again from its Activate. An agent that adopts conntrack
//     leaves that time as it is. Later such a packet is dropped, or any pod that
//     is closed in one direction could send by leaving out the SYN; a connection
//     that lost its entry then goes on with the next packet of the other end.
//   - conns is written by the proxy, too, so the kernel takes nothing from it but
//     that a pod's packet goes to the proxy: a flow that conntrack lost is judged
//     again, in the name of the pod at this veth.
//   - Of UDP the proxy reads what pods ask. Nearly every question comes from a port
//     of its own, but what may be asked depends on the server only: so conns has
//     one entry for all of a pod's flows to one server and port, which is written
//     when it would say something else. Each question makes sure that it is there
//     and names the current proxy: a datagram, unlike a connection, can go to
//     another one at any time.
//   - The proxy asks servers from ports of its own choice, so the kernel does not
//     know these flows. from_proxy judges them as the pod's own: only what the pod
//     has to ask by way of the proxy goes out, and only for a pod that did. Of
//     conns it takes the Ethernet addresses, which a pod chooses freely as well.
//     What comes back goes to the proxy alone (CT_ASKED): else a proxy could make
//     such a flow from any port of a pod, to send something to that.
//   - Such a port may be one that the pod has asked a former proxy from, or that one
//     a server. A question makes the flow that of the proxy it comes from: the
//     answer would go to the other one, for as long as that lives.
//   - An entry that the server's side made, by sending something first, does not
//     keep the proxy from asking.
//   - Nor does it make the pod's questions answers: a server could send first, or so
//     late that the question's entry had to make room, and from then on that port of
//     the pod would go past the proxy. What a pod sends on such a flow goes to the
//     proxy if its own policy says so (answer.h); that is looked at once a revision.
//   - A direct flow of UDP that needs the proxy by now just goes there, and answers
//     to what was asked before are dropped: they would not have been seen.
//   - Whoever sends SYNs makes entries in conns, which only user space takes away.
//     So that one pod's leave room for the others', a veth gets no more than a
//     quarter; share.h tells how that is kept by a kernel that can't count them.
//   - A SYN on a connection that the proxy has goes to the proxy. If it made the
//     entry anew, the responder, or anyone in the name of the initiator, could
//     take a connection out of the proxy or abort it.
//   - What fqdn says of an address counts for egress only, and only if the agent
//     has the identity down as a name's (names).
//
// # What it costs
//
// BenchmarkPrograms and TestProgramSize measure it. On a 2-core machine with
// return thunks, where every call of a helper costs some 20 ns, a packet of an
// established flow takes 90 ns, one that is judged anew among 10,000 entries
// 320 ns, beside the 40 ns of the kernel's measuring loop. That is why a
// known flow is not looked up in endpoints (pass_known), headers are copied
// without a call, and the clock is the coarse one. conns is allocated in
// advance: 90 ns less for a redirected flow's first packet.
package bpf
