// Package endpoint is the pods of this node and their realised policy.
//
//	changes --> policy.Engine --Delta--> wanted tables --+
//	                                                     |  realise
//	netlink --> Veths --match--> wanted endpoints -------+----------> kernel
//	              |                                      +----------> rule sets in the proxy
//	              +-- the node's own addresses --> policy.Engine
//
// Where policies select the node itself, programs go on the interfaces that join it
// to networks, and then a row tells them which policy that is (hostGuard).
//
// Services are beside that: what the engine says of them goes to Services, whose
// own goroutine writes their tables once the kernel knows who the backends are,
// and tells the kernel every second that it keeps them.
//
// A veth behind which is no address that an object tells is a stranger: the
// engine guesses whose it is (policy.Stranger), and that policy is in force before
// the pod's first packet. Processes of a pod that are seen behind the veth tell
// (Inhabitants), from the one on that holds the pod's namespace; this needs the
// node's process ids. Or a CNI plugin does (Manager.Announce).
//
// One goroutine, Manager.Run, computes, and writes all else. It holds what the tables
// are to say and what they say; every pass writes the difference, so a
// restart, a lost event and a failed write take the same path. What is pointed
// to is written before what points to it and deleted after.
package endpoint
