package proxy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// sockDestroy is SOCK_DESTROY of linux/sock_diag.h.
const sockDestroy = 21

// destroySocket ends the TCP socket of this namespace with these ends,
// whatever its state: with a RST where the other end would expect more. No
// such socket is not an error.
func destroySocket(local, remote netip.AddrPort) error {
	req := nl.NewNetlinkRequest(sockDestroy, unix.NLM_F_ACK)
	req.AddData(diagRequest{local, remote})
	_, err := req.Execute(unix.NETLINK_INET_DIAG, 0)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("destroy socket %v to %v: %w", local, remote, err)
	}
	return nil
}

// diagRequest is struct inet_diag_req_v2 for one TCP socket.
type diagRequest struct{ local, remote netip.AddrPort }

func (diagRequest) Len() int { return 56 }

func (r diagRequest) Serialize() []byte {
	b := make([]byte, r.Len())
	b[0] = unix.AF_INET
	if r.local.Addr().Is6() {
		b[0] = unix.AF_INET6
	}
	b[1] = unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(b[4:], ^uint32(0)) // states: all
	id := b[8:]
	binary.BigEndian.PutUint16(id, r.local.Port())
	binary.BigEndian.PutUint16(id[2:], r.remote.Port())
	copy(id[4:20], r.local.Addr().AsSlice())
	copy(id[20:36], r.remote.Addr().AsSlice())
	// Interface 0: any. Cookie: none.
	binary.NativeEndian.PutUint32(id[40:], ^uint32(0))
	binary.NativeEndian.PutUint32(id[44:], ^uint32(0))
	return b
}
