// Package redirect brings flows that need the proxy to it and on: the proxy's
// process, its namespace, the veth pair into it and the programs at both ends.
//
//	agent                         launcher (root)         proxy (nobody)
//	Manager ---- starts, detached --> Launch ---- clone ----> Confine, then
//	   |                              supervises              proxy.Run
//	   |<------------------- proxy-N.sock, package control ----->|
//	   |
//	 weirN <===== veth ===== eth0 in the proxy's network namespace
//
// A generation is one life of the proxy process, with a namespace of its own.
// The Manager makes a generation current only when everything behind it
// stands: interface, programs, listeners, rule sets; the tables that point to
// it are written last.
//
// # Replacement
//
// Several proxies may run at a time, each with its launcher in a place of the run
// directory. The one in the last place takes the new flows, or is about to; those
// before it are on their way out. So a proxy is replaced by starting another: by
// `weir proxy` beside a running one (as a container's successor does), by `weir
// proxy replace`, or by an agent that finds a proxy of another binary that an
// agent started. Then the Manager goes, one step after the other (settle):
//
//	1 wire       the new proxy gets a generation: namespace, veth, programs,
//	             listeners of its own; then all rule sets and names
//	2 bridge     old and new get the two ends of a socket. What names the old one
//	             learned goes over before anybody needs it
//	3 current    state.generation moves: new flows, and the next question by UDP
//	             of every pod. One that was under way still finds the old one
//	4 Drain      the old one hands over each connection that stands between two
//	             messages: both sockets, the input that was read and not dealt
//	             with, the number of its row in conns. The idle ones go at once, the
//	             others when their message ends; upgraded ones when nothing is on
//	             its way, and those for questions when none waits for an answer.
//	             What it learns yet goes over, too, until its end
//	5 end        when it has no connection left, none that is just being made, no
//	             question without an answer; or when its time is up (Options.Drain)
//	6 clean      what was handed over goes on in the old namespace: a socket works
//	             there whoever holds it, and keeps the namespace. conntrack says as
//	             before which generation a flow is of, so veth, programs and
//	             proxies[old].alive stay. With the last socket the kernel removes
//	             the namespace, and the veth with it; then the Manager takes away
//	             the rest
//
// The new proxy believes nothing it is told of a connection: the row in conns
// must be there under that number and generation, and both sockets must have the
// ends it says. It judges the next request by its own rule sets. Rows of a
// generation are swept by who accounts for its connections: the old proxy also
// for those that it handed over, and the new one for all once the old one is gone.
// A connection handed over twice is as one handed over once.
//
// Whoever is killed when, the next settle goes on from what there is; it keeps
// nothing in mind that it can't see again:
//
//   - The agent: proxies go on, and hand over what they were told to. A new one is
//     wired or made current by the next agent; a bridge is built anew, which does
//     no harm.
//   - The new proxy before it is current: the old one has all the flows. After
//     that: what it had taken over is lost with it; its launcher starts another,
//     which is a new generation, and the old one hands over to that.
//   - The old proxy: what it was in the middle of is lost. What it had handed over
//     goes on.
//   - A launcher: its proxy goes on; it holds the place until it ends.
//   - One that hangs, in whichever place, is killed (hang.go). One that is started
//     again in a place before the last is told to end.
//
// A proxy that is told to end by whoever runs it (SIGTERM) goes on as before for
// some seconds: its agent starts a successor, if nobody else does, or an agent
// that is just taking over from another gives its flows to one.
//
// A binary that does not come up changes nothing: the old proxy stays current
// until the new one is wired and has all rule sets. Proxies at a time are bounded
// (maxPlaces), and so are generations (maxGenerations): of too many the oldest's
// connections are ended, each behind its next message.
//
// A proxy of another protocol can be asked for nothing but its end: it closes idle
// connections and finishes the others. One whose tables are not this agent's, since
// this is a version with other layouts, can do nothing any more once this agent's
// programs have taken over. So they do that when it has ended (severed.go): it has
// two seconds to finish what it is in the middle of, and resets the rest.
package redirect
