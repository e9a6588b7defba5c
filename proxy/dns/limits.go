package dns

import "time"

// Bounds of questions by UDP, each with its reason.
const (
	// maxPending bounds the questions of all pods that wait for an answer: half a
	// second of a hundred thousand a second, at under 500 bytes each. One pod may
	// have a quarter: the others must get some.
	maxPending    = 1 << 16
	maxPendingPod = maxPending / 4
	// maxPendingSession bounds those of one pod to one server: the more of them
	// there are, the better are the odds of whoever guesses ids and ports.
	maxPendingSession = 4096
	// maxSessions bounds the servers that pods ask, in all and of one pod: a
	// resolver in a pod asks thousands.
	maxSessions    = 1 << 16
	maxSessionsPod = 4096
	// maxWaiting bounds the answers that wait to be learned.
	maxWaiting = 1024

	// serverTimeout is how long an answer is waited for: no client waits longer
	// before it asks again (resolv.conf: 5 s).
	serverTimeout = 10 * time.Second
	// sessionIdle is how long a session stays after its last question: longer
	// than the kernel keeps the state of a UDP flow (180 s), so that the entry in
	// conns is there as long as one of its flows is.
	sessionIdle = 200 * time.Second
	// upstreamIdle and replierIdle are how long sockets stay open that are not
	// used. The first is longer than serverTimeout: nothing is expected then.
	upstreamIdle = 15 * time.Second
	replierIdle  = 60 * time.Second
	// A socket to a server is used for so many questions and so long: whoever
	// has found out its port does not know it for long.
	upstreamQuestions = 4096
	upstreamAge       = 30 * time.Second
	// learnTimeout bounds how long an answer waits for an identity that the
	// agent has to make; the client asks again soon after.
	learnTimeout = 2 * time.Second

	sweepEvery = time.Second
)

// Bounds of connections.
const (
	// maxPipelined bounds the questions of one connection that wait for an
	// answer; more are not read until there is room.
	maxPipelined = 256
	// messageTimeout is how long a message may take from its first byte on.
	messageTimeout = 10 * time.Second
	// streamTimeout is how long an answer is waited for by TCP.
	streamTimeout = 30 * time.Second
	// streamIdle ends a connection on which nothing moves. It is longer than
	// servers keep one that is idle (30 s, as a rule): it is for them to decide.
	streamIdle = 2 * time.Minute
	// streamHalf is how long a server may take to end its side once the client
	// has, and streamLinger how long is waited for the client's end.
	streamHalf   = 30 * time.Second
	streamLinger = 5 * time.Second
	// streamPause is how long a connection must be idle to be ended by a drain.
	streamPause = time.Second
)
