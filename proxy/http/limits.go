package http

import "time"

// Limits, each with its reason. They bound what one connection can cost.
const (
	// maxHead bounds a request's or response's head: four times what Apache
	// and twice what nginx take, about Envoy's 60 KiB.
	maxHead = 64 << 10
	// maxTarget bounds the request target, which rules are matched over.
	maxTarget = 16 << 10
	// maxMethod bounds the method; the longest registered one has 17 letters.
	maxMethod = 32
	// maxFields bounds the number of header fields; Envoy's limit is 100.
	maxFields = 128
	// maxOptions bounds the options in Connection fields, each of which is
	// looked for among the fields.
	maxOptions = 16
	// maxChunkLine bounds the line of a chunk's size with its extensions,
	// which nearly nobody sends.
	maxChunkLine = 256
	// maxChunkExcess bounds how many bytes of a chunked body may be no data
	// beyond 16 a chunk and the size of its data: chunks of one byte pass,
	// a body that is all extensions does not.
	maxChunkExcess = 16 << 10
	// maxTrailer bounds the trailer section of a chunked body.
	maxTrailer = 16 << 10

	// maxDrain bounds the body of a denied request that is read and thrown
	// away to keep the connection; what is longer ends the connection.
	maxDrain = 64 << 10
	// maxInterim bounds the interim (1xx) responses to one request.
	maxInterim = 16

	// maxOpening bounds the head of an upgrade's request that is kept to judge
	// it again, maxOpenings those of one loop. A tunnel whose head was not kept
	// ends when its rules change.
	maxOpening  = 16 << 10
	maxOpenings = 32 << 20

	// maxLinger bounds the input that is thrown away after the last response.
	maxLinger = 16 << 20
)

// timeouts of a connection. They are looked at every sweep, and that coarse.
type timeouts struct {
	// head: how long a head may take from its first byte on.
	head time.Duration
	// idle ends a connection on which nothing moves in either direction. It is
	// long: it is for peers to decide how long they stay.
	idle time.Duration
	// half: how long a server may stay when the client has ended its input and
	// everything is answered.
	half time.Duration
	// linger: how long input is still read and thrown away after the last
	// response, so that a reset does not take that response away.
	linger time.Duration
	// pause: how long a connection between requests must have been silent to be
	// ended by a drain. One that is in use is told by its next response.
	pause time.Duration
	// open: when a response that still runs is told as an open Record.
	open  time.Duration
	sweep time.Duration
}

var defaultTimeouts = timeouts{
	head: 30 * time.Second, idle: time.Hour, half: time.Minute, linger: 5 * time.Second, pause: time.Second,
	open: time.Second, sweep: time.Second,
}

// dialTimeout is Options.DialTimeout's default.
const dialTimeout = 30 * time.Second
