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
// descriptors; the rest is gRPC on the same connection.
package control
