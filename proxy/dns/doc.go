// Package dns judges DNS questions against policy, passes on what may pass, and
// has what is answered learned before it is passed on.
//
//	pod ──▶ question ──▶ judge ──▶ server        one that rules let pass
//	pod ◀── REFUSED ◀──────┘                     one that they don't
//	pod ◀── learn ◀── match ◀──── server         its answer, and nothing else
//
// Messages are read by a parser of their own, as far as rules need it: header,
// question, and of the answer section addresses and aliases. What it reads is
// what every server and client reads, or the message is dropped: names in
// questions are not compressed, pointers in answers lead backwards. All else is
// passed on untouched, but for the id: case, EDNS, signatures, unknown types.
// Rules speak of names, so they let pass every type and class of a name, and
// nothing but questions: updates and notifications pass only where everything
// does.
//
// By UDP a verdict depends on the pod, the server and its port, not on the pod's
// own: all questions from one to the other are a session. It has a socket to
// the server with the pod's address, a random port that is renewed, and random
// ids; an answer counts if it comes to that socket, from that server, with the
// id and the question of one that is waited for. The answer goes back from a
// socket that has the server's address. One goroutine serves all of UDP, with
// many datagrams in one system call; nothing is allocated per question.
//
// Datagrams come to many sockets of each family, by the pod's address (the kernel's
// program steer, seeded at random): lanes, each with a queue of its own, of each of
// which a batch is taken in turn. So a pod that sends faster than is served costs
// those nothing that have another lane. In a lane that overflows, and where
// several send, each has a part of what is read dealt with, and the rest is dropped
// and counted: others in it lose less, and what finds no room in its queue all the
// same is counted, too. Where that lasts, the kernel drops most of what those send
// that send most, before it gets there (sieve): nobody is slowed down whom others
// don't suffer from, however much he asks.
//
// Questions of a session that are equal but for the id are asked once (RFC 5452,
// section 5), and the answer goes to all who asked, so that more of them are no
// better odds for whoever guesses. One that comes again after a while, from whom
// it may be, is sent again by the same port and id: it may have been lost. Those that differ in no more than case,
// flags or EDNS are each asked, since their answers differ, but so many at a time.
// Where more answers are wrong than right by some the socket is given up for
// another. The numbers, and all other bounds, are in limits.go.
//
// By TCP each connection of a client has one to the server, and a goroutine for
// each direction. Questions are judged one by one, whatever order they are
// answered in; a denied one is answered in its place among the others.
//
// What ends how:
//   - A denied question is answered REFUSED (NXDOMAIN by option), with the
//     question as it was asked, and never reaches the server.
//   - A message that can't be read is dropped and counted, also by TCP, where the
//     next one stands behind it. The log tells of it once per session or
//     connection, and of a pod at most once a second.
//   - A server that isn't there (ICMP says so) makes SERVFAIL at once, and so do
//     an answer that can't be read, and a pod that has too many questions
//     unanswered, or too many ways of one. One that is silent makes nothing:
//     clients ask again themselves.
//   - Answers to nothing that was asked (late, repeated, forged) are dropped and
//     counted.
//   - An answer waits until what it says is in the kernel. Where that needs an
//     identity that does not exist yet the agent makes it, for a moment; if it
//     does not, the answer is passed on all the same, since whoever needs no name
//     to go there must not suffer, and who does is denied, not let through.
//
// Whom to believe is not decided here: Rules say so of each answer.
package dns
