package endpoint

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

func subscribe() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	groups := uint32(1<<(unix.RTNLGRP_LINK-1) | 1<<(unix.RTNLGRP_IPV4_IFADDR-1) | 1<<(unix.RTNLGRP_IPV6_IFADDR-1))
	// A large buffer for bursts; where that is not permitted, a lost event is
	// noticed (ENOBUFS) and answered with a full scan.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20)
	err = errors.Join(
		// Events of the pods' namespaces come, too.
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_LISTEN_ALL_NSID, 1),
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}),
	)
	if err != nil {
		_ = unix.Close(fd) // nothing was sent
		return nil, err
	}
	return os.NewFile(uintptr(fd), "netlink events"), nil
}

// Changed has a value when a Scan is worthwhile.
func (v *Veths) Changed() <-chan struct{} { return v.changed }

// Invalidate makes the next Scan and HostAddresses read everything again.
func (v *Veths) Invalidate() {
	v.mu.Lock()
	v.all, v.hostStale = true, true
	v.mu.Unlock()
	v.wake()
}

func (v *Veths) wake() {
	select {
	case v.changed <- struct{}{}:
	default:
	}
}

// Run follows link and address events until ctx is done.
func (v *Veths) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = v.events.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	conn, err := v.events.SyscallConn()
	if err != nil {
		return fmt.Errorf("read link events: %w", err)
	}
	buf, oob := make([]byte, 64<<10), make([]byte, 256)
	for {
		var n, oobn int
		var rerr error
		err := conn.Read(func(fd uintptr) bool {
			n, oobn, _, _, rerr = unix.Recvmsg(int(fd), buf, oob, 0)
			return rerr != unix.EAGAIN
		})
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("read link events: %w", err)
		case rerr == unix.ENOBUFS:
			v.Invalidate()
		case rerr == unix.EINTR:
		case rerr != nil:
			return fmt.Errorf("read link events: %w", rerr)
		case n > 0:
			nsid, foreign := senderNamespace(oob[:oobn])
			v.mu.Lock()
			if foreign {
				v.stale[nsid] = true
			} else {
				v.hostStale = true
			}
			v.mu.Unlock()
			v.wake()
		}
	}
}

// senderNamespace reads the control message that NETLINK_LISTEN_ALL_NSID adds
// to events of other namespaces.
func senderNamespace(oob []byte) (nsid int32, foreign bool) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return 0, false
	}
	for _, m := range msgs {
		if m.Header.Level == unix.SOL_NETLINK && m.Header.Type == unix.NETLINK_LISTEN_ALL_NSID && len(m.Data) >= 4 {
			return int32(binary.NativeEndian.Uint32(m.Data)), true
		}
	}
	return 0, false
}
