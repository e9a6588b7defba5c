package dns

import "time"

// Bounds of questions by UDP, each with its reason.
const (
	// maxPending bounds the questions of all pods that wait for an answer: half a
	// second of a hundred thousand a second, at under 700 bytes each. One pod may
	// have a quarter: the others must get some.
	maxPending    = 1 << 16
	maxPendingPod = maxPending / 4
	// maxPendingSession bounds those of one pod to one server: the more of them
	// there are, the better are the odds of whoever guesses ids and ports.
	maxPendingSession = 4096
	// maxAskers bounds those of them that wait for one answer, since they asked the
	// same: so many messages go out at once when it comes. The next makes the
	// proxy ask once more. maxVariants bounds that, and questions that differ in no
	// more than case and flags, per name and type: each is another chance for
	// whoever guesses ids (RFC 5452, section 5).
	maxAskers   = 256
	maxVariants = 16
	// A question that is asked again is sent again, after firstRepeat, twice as
	// long after that, and so on: the first may have been lost.
	firstRepeat = 100 * time.Millisecond
	// maxForeign bounds what comes to a socket and answers nothing, beyond what
	// does: then somebody seems to guess ids, and questions take another socket.
	// Twice as many, and those that still wait on it are given up.
	maxForeign = 64
	// maxSessions bounds the servers that pods ask, in all and of one pod: a
	// resolver in a pod asks thousands.
	maxSessions    = 1 << 16
	maxSessionsPod = 4096
	// maxUpstreams bounds the sockets to servers, and maxRepliers those that
	// answer pods in servers' names, as far as the limit of open files leaves room
	// for so many (socketRoom): there are more servers than either. One pod may
	// have a part of the first. What was not used for longest gives way.
	maxUpstreams    = 1 << 16
	maxRepliers     = 1 << 13
	podUpstreams    = 4 // one part of so many
	upstreamsInRoom = 3 // parts of four; the last is the repliers'
	// maxLooks bounds how many sockets are looked at to find one that can go.
	maxLooks = 64
	// maxWaiting bounds the answers that wait to be learned; the others are passed
	// on unlearned. One pod may have a quarter, or what it makes up would cost all
	// others theirs.
	maxWaiting    = 1024
	maxWaitingPod = maxWaiting / 4
	// A socket to a server is used for so many questions, and so long
	// (limits.socketAge): whoever has found out its port does not know it for
	// long.
	socketQuestions = 4096
)

// Bounds of connections.
const (
	// maxPipelined bounds the questions of one connection that wait for an
	// answer; more are not read until there is room.
	maxPipelined = 256
	// maxStreamed bounds those of all connections, at under 400 bytes each; then
	// each connection may have one at a time.
	maxStreamed = 1 << 16
	// maxStreamedPod bounds those of one pod, and maxStreamsPod its connections: each
	// may hold 300 KiB, if its server helps, of messages that are not whole yet or
	// that nobody takes. Clients have one or a few.
	maxStreamedPod = maxStreamed / 4
	maxStreamsPod  = 512
)

// limits of time. They are looked at every sweep, and that coarse.
type limits struct {
	// answer is how long an answer is waited for by UDP: no client waits longer
	// before it asks again (resolv.conf: 5 s).
	answer time.Duration
	// learn bounds how long an answer waits for an identity that the agent has to
	// make; the client asks again soon after.
	learn time.Duration
	// session is how long a session is kept after its last question. The kernel
	// has a new one made by the next question, so it is for memory only.
	session time.Duration
	// socket and replier are how long sockets stay open that are not used, to
	// servers and to pods. The first is longer than answer: nothing is expected
	// by then.
	socket, replier time.Duration
	socketAge       time.Duration
	sweep           time.Duration

	// message is how long a message may take from its first byte on.
	message time.Duration
	// stream is how long an answer is waited for by TCP.
	stream time.Duration
	// idle ends a connection on which nothing moves. It is longer than servers
	// keep one (30 s, as a rule): it is for them to decide.
	idle time.Duration
	// half is how long a server may take to end its side once the client has, and
	// linger how long is waited for the client's end.
	half, linger time.Duration
	// pause is how long a connection must be idle to be ended by a drain.
	pause time.Duration
}

func defaultLimits() limits {
	return limits{
		answer: 10 * time.Second, learn: 2 * time.Second,
		session: time.Minute, socket: 15 * time.Second, replier: time.Minute, socketAge: 30 * time.Second,
		sweep:   time.Second,
		message: 10 * time.Second, stream: 30 * time.Second, idle: 2 * time.Minute,
		half: 30 * time.Second, linger: 5 * time.Second, pause: time.Second,
	}
}
