// Package control is the conversation between agent and proxy.
//
//	agent                                             proxy
//	  | connect to /run/weir/NAME/proxy-N.sock          |
//	  | <- Welcome + descriptor of its network namespace |
//	  | -> Wiring  + descriptors of the eBPF maps        |
//	  | <- Wired                                         |
//	  | -> gRPC: rule sets, records, status, drain       |
//
// The first three are frames of the preface, because gRPC can't carry
// descriptors; the rest is gRPC on the same connection. An agent that wants
// something that needs a descriptor of its own (a successor's or a predecessor's
// socket) says so in a Wiring on another connection, and hangs up.
//
// What one proxy says to its successor is a stream of HandOver messages, each a
// packet of a SOCK_SEQPACKET socket with the descriptors that belong to it.
package control
