// Package redirect brings flows that need the proxy to it and on: the proxy's
// process, its namespace, the veth pair into it and the programs at both ends.
//
//	agent                         launcher (root)         proxy (nobody)
//	Manager ---- starts, detached --> Launch ---- clone ----> Confine, then
//	   |                              supervises              proxy.Run
//	   |<------------------- proxy.sock, package control ------->|
//	   |
//	 weirN <===== veth ===== eth0 in the proxy's network namespace
//
// A generation is one life of the proxy process, with a namespace of its own.
// The Manager makes a generation current only when everything behind it
// stands: interface, programs, listeners, rule sets; the tables that point to
// it are written last.
package redirect
