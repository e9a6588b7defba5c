// Package proxy is the process that judges redirected flows and relays them.
//
//	client's pod          proxy's namespace                     server
//	   |  SYN   +------------------------------------------+
//	   |------->| sk_lookup -> listener -> accept          |
//	   |        |   original destination = local address   |
//	   |        |   conns[client -> destination]: which    |
//	   |        |   rule sets apply                        |
//	   |<======>| package http <===== relay =====> dial    |<======>|
//	   |        |   from the client's own address and port |
//	            +------------------------------------------+
//
// It has no power over the node: it holds descriptors of a few tables, its
// namespace and its sockets. Its agent connects to its control socket
// (package control), wires it and tells it the rule sets; when the agent goes
// it carries on with what it has.
//
// When it has a successor (heir.go, takeover.go) it hands each connection over by
// its two sockets as soon as that stands between two messages, and ends with the
// last one. Package redirect tells the whole story.
package proxy
