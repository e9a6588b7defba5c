package dns

import (
	"time"

	"github.com/weirnet/weir/fqdn"
	"github.com/weirnet/weir/policy"
)

// Verdict on a question.
type Verdict uint8

const (
	// Denied: no rule lets it pass; the client was told by REFUSED or NXDOMAIN.
	Denied Verdict = iota
	// Allowed: it went to the server.
	Allowed
	// Refused: the message can't be read, and was dropped.
	Refused
	// Failed: rules let it pass, but it could not be served.
	Failed
)

// Reason tells why a Record's verdict is what it is, or what happened to an
// allowed question (Record.Failure), or why something was dropped that is told
// of by no Record. String is its label in flows and metrics.
type Reason uint8

const (
	ReasonNone Reason = iota

	// Allowed.
	ReasonRule     // a rule allows it
	ReasonAllowAll // a rule without L7 allows everything, or nothing is enforced
	// Denied.
	ReasonNoRule // no rule allows it
	ReasonClosed // the rules are not known, so nothing passes
	ReasonOpcode // no question, but an update, a notification and the like, where rules for names apply
	// Refused.
	ReasonMalformed // it can't be read, or asks nothing or several things
	// Failed, or what became of an allowed question.
	ReasonFlood           // too many questions of this pod are unanswered
	ReasonServerRefused   // the server's host says that nobody listens there
	ReasonServerTimeout   // no answer
	ReasonUnsendable      // it could not be sent
	ReasonMemory          // no socket to be had
	ReasonServerClosed    // the connection to the server ended
	ReasonRevoked         // policy changed while it was under way
	ReasonAborted         // the proxy ends
	ReasonAnswerMalformed // the answer can't be read, so it was dropped
	// ReasonRenewed is also told of each socket that is given up for it, without a Record.
	ReasonRenewed // its socket got too many answers to nothing that was asked
	// What is dropped without a Record.
	ReasonAnswerForeign // an answer to nothing that was asked: late, repeated, or forged
	ReasonNoSession     // a datagram that no pod's question to a server can be
	ReasonLearn         // an answer was released though not all of it was learned
	ReasonOverrun       // datagrams found no room in the queue where this pod's come

	reasons
)

var reasonLabels = [reasons]string{
	ReasonNone:            "none",
	ReasonRule:            "dns-rule",
	ReasonAllowAll:        "dns-allow-all",
	ReasonNoRule:          "dns-denied",
	ReasonClosed:          "dns-closed",
	ReasonOpcode:          "dns-opcode",
	ReasonMalformed:       "dns-malformed",
	ReasonFlood:           "dns-flood",
	ReasonServerRefused:   "dns-server-refused",
	ReasonServerTimeout:   "dns-server-timeout",
	ReasonUnsendable:      "dns-unsendable",
	ReasonMemory:          "dns-no-socket",
	ReasonServerClosed:    "dns-server-closed",
	ReasonRevoked:         "dns-revoked",
	ReasonAborted:         "dns-aborted",
	ReasonAnswerMalformed: "dns-answer-malformed",
	ReasonRenewed:         "dns-port-renewed",
	ReasonAnswerForeign:   "dns-answer-foreign",
	ReasonNoSession:       "dns-no-session",
	ReasonLearn:           "dns-not-learned",
	ReasonOverrun:         "dns-overrun",
}

// String implements fmt.Stringer.
func (r Reason) String() string {
	if r < reasons {
		return reasonLabels[r]
	}
	return "unknown"
}

func (r Reason) verdict() Verdict {
	switch {
	case r == ReasonRule || r == ReasonAllowAll:
		return Allowed
	case r == ReasonMalformed:
		return Refused
	case r >= ReasonNoRule && r <= ReasonOpcode:
		return Denied
	}
	return Failed
}

// Record is one question and what became of it, told when that is known.
type Record struct {
	Verdict Verdict
	// Reason of the verdict. That an allowed question was not answered is told
	// by Failure, ReasonNone if it was.
	Reason, Failure Reason
	// Direction is the side that denied. EgressRule and IngressRule are the
	// numbers of the rules that let it pass (policy.Engine.Rule); 0: none.
	Direction               policy.Direction
	EgressRule, IngressRule uint32
	// ClientPort is the pod's.
	ClientPort uint16
	// Question is the question section as it was asked (AppendName reads it);
	// empty of a message that can't be read.
	Question    []byte
	Kind, Class uint16
	// RCode is the server's, or of the proxy's own response; Answered: there was
	// one of either.
	RCode    uint8
	Answered bool
	// Chain and Records are what the server's answer says.
	Chain   []string
	Records []fqdn.Record
	// Start is when the question came, Latency how long its answer took.
	Start   time.Time
	Latency time.Duration
}
