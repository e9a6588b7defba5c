package bpf

import (
	"time"

	"golang.org/x/sys/unix"
)

// Lifetime is how long the flow's entry counts after LastSeen: ct_lifetime in
// conntrack.h.
func (c datapathConntrack) Lifetime(protocol uint8) time.Duration {
	const ended = CTFinForward | CTFinReply
	switch {
	case c.Flags&(CTCut|CTRst) != 0, c.Flags&ended == ended:
		return 10 * time.Second
	case c.Flags&CTReplied == 0:
		return time.Minute
	case protocol == unix.IPPROTO_TCP:
		return 8000 * time.Second
	case protocol == unix.IPPROTO_UDP, protocol == unix.IPPROTO_SCTP:
		return 3 * time.Minute
	}
	return time.Minute
}

// Responder is the end that did not begin the flow, which has this key.
func (c datapathConntrack) Responder(key Tuple) Addr {
	if c.Flags&CTSwapped != 0 {
		return key.Saddr
	}
	return key.Daddr
}
