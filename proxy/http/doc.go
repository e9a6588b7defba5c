// Package http judges HTTP/1.x requests against policy and relays what may
// pass, between one client connection and one server connection.
//
//	client ──▶ head ──▶ judge ──▶ server      a request that rules let pass
//	client ◀── 403 ◀─────┘                    one that they don't
//	client ◀── 400 ◀──┘                       one that could be read in two ways
//	client ◀──────────────────── server       responses, read as strictly
//
// Heads are parsed here, by a parser that takes what RFC 9112 allows and no
// more; they go on byte for byte as they came, unless the path was not in
// normal form, rules change a header, or a hop-by-hop header must not pass.
// Bodies are followed, so that the next request is found where the server
// finds it, and moved without being looked at where they are large.
//
// Connections live in event loops, one per processor, each a goroutine that
// waits for all of its sockets: a small request costs a read, its judgement
// and a write, and the same for its response. Nothing is allocated per
// request, and an idle connection holds nothing but its state.
//
// What ends how:
//   - A denied request is answered with 403 and never reaches the server. Its
//     body is thrown away if it is short; else the connection ends.
//   - What is refused (Reason) is answered with the status that fits, the
//     connection ends, and the server sees its connection end. A response that
//     is refused becomes 502 if nothing of it was passed on, else a reset.
//   - The end of input of either side is passed on behind what was sent; a
//     reset is passed on as a reset. A server that can't be reached is told to
//     the client by a reset, since it is connected already by then.
//   - The proxy never retries, and never answers for the server otherwise.
//
// Upgrades: websocket is passed on once its request is allowed, and relayed
// unread after the server's 101. Every other Upgrade (h2c, TLS) is taken out of
// the request, which the server then answers as if it had not been asked; so
// no request travels inside of something that is not read. CONNECT is denied
// where HTTP rules apply. What was upgraded is judged again by the request it
// began with when its rules change, and reset if that would not pass.
//
// A drain (Server.Drain) closes connections between two messages: unused ones
// at once, others behind a response that says so. Nobody can keep a client from
// asking in the very moment that its idle connection is closed; HTTP lets it ask
// again elsewhere.
package http
