package control

import (
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// PeerUser is the user at the other end of a unix socket when it was connected
// or made, by its number in the caller's user namespace: one that has none
// there is the overflow user (65534 as a rule).
func PeerUser(c *net.UnixConn) (uint32, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("who is the peer: %w", err)
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, fmt.Errorf("who is the peer: %w", err)
	}
	if credErr != nil {
		return 0, fmt.Errorf("who is the peer: %w", credErr)
	}
	return cred.Uid, nil
}
