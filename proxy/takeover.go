package proxy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/proxy/control"
	"github.com/weirnet/weir/proxy/http"
)

// receiver takes over what a predecessor has. Nothing it says is believed:
// what it could say wrongly is compared with the kernel's table and with the
// sockets themselves.
type receiver struct {
	*dataSide
	conn     *net.UnixConn
	names    nameKeeper
	learned  *io.PipeWriter // of the export that comes; nil: none does
	imported chan struct{}  // closed when the latest is in; nil: there was none
	ready    chan struct{}  // closed when the first is in, or there is none
	said     sync.Once
}

// Bounds of a predecessor's message.
const (
	maxMessage     = 128 << 10
	maxDescriptors = 8
)

// takeOver begins to take over what comes on c. It lasts until run returns.
func (d *dataSide) takeOver(c *net.UnixConn, names nameKeeper) *receiver {
	return &receiver{dataSide: d, conn: c, names: names, ready: make(chan struct{})}
}

// run returns when the predecessor has nothing more to hand over, or has died.
func (r *receiver) run() {
	defer func() { _ = r.conn.Close() }() // it was read only
	message, rights := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(4*maxDescriptors))
	for {
		n, rn, flags, _, err := r.conn.ReadMsgUnix(message, rights)
		fds := descriptors(rights[:rn])
		if err != nil {
			closeAll(fds)
			if !errors.Is(err, io.EOF) {
				r.log.Error("hear a predecessor out", "error", err)
			}
			break
		}
		if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
			closeAll(fds)
			r.counters.deny(denyFull)
			r.log.Error("a connection of a predecessor is lost: no room for its descriptors")
			continue
		}
		if err := r.take(message[:n], fds); err != nil {
			// Without what it says the rest is still good.
			r.log.Error("a predecessor's message", "error", err)
		}
	}
	r.endLearned()
	r.inherit(r)
}

// take deals with a message; the descriptors are its own.
func (r *receiver) take(b []byte, fds []int) error {
	m := &control.HandOver{}
	if err := proto.Unmarshal(b, m); err != nil {
		closeAll(fds)
		return err
	}
	if c := m.GetConnection(); c != nil {
		return r.adopt(c, fds)
	}
	closeAll(fds)
	switch what := m.What.(type) {
	case *control.HandOver_Predecessor:
		generations, err := generationsOf(what.Predecessor)
		if err != nil {
			return err
		}
		r.expect(r, generations)
	case *control.HandOver_Learned:
		r.learn(what.Learned.Part)
	case *control.HandOver_LearnedAll:
		r.endLearned()
	case *control.HandOver_Elsewhere:
		r.leave(r)
	}
	return nil
}

func generationsOf(p *control.Predecessor) ([]uint8, error) {
	var out []uint8
	for _, g := range p.Generations {
		if g == 0 || g > 255 || len(out) == 255 {
			return nil, fmt.Errorf("generations %v", p.Generations)
		}
		out = append(out, uint8(g))
	}
	return out, nil
}

// adopt goes on with a connection, if the kernel knows it as what it is said to
// be and the sockets are its.
func (r *receiver) adopt(m *control.Connection, fds []int) error {
	tuple, err := r.check(m, fds)
	var entry bpf.Conn
	if err == nil {
		var ok bool
		entry, ok, err = r.flows.get(tuple)
		if err == nil && (!ok || entry.Id != m.Id || uint32(entry.Generation) != m.Generation) {
			r.counters.deny(denyRevoked) // on its way here, or its client has begun anew
			resetAll(fds)
			return nil
		}
	}
	if err != nil {
		resetAll(fds)
		if errors.Is(err, unix.ENOTCONN) {
			return nil // it ended on its way; its entry is swept
		}
		return fmt.Errorf("take over a connection: %w", err)
	}
	r.counters.takenOver.Add(1)
	idle := http.Idle{Client: fds[0], Server: fds[1], Input: m.Input, Opening: m.Opening}
	if err := r.goOn(tuple, entry, idle, m.Questions); err != nil {
		return fmt.Errorf("take over %v: %w", tuple, err)
	}
	return nil
}

// check reads what is said of a connection.
func (r *receiver) check(m *control.Connection, fds []int) (bpf.Tuple, error) {
	client, server, err := endsOf(m)
	if err != nil {
		return bpf.Tuple{}, err
	}
	if !r.expects(r, m.Generation) {
		return bpf.Tuple{}, fmt.Errorf("generation %d", m.Generation)
	}
	if len(fds) != 2 {
		return bpf.Tuple{}, fmt.Errorf("%d sockets", len(fds))
	}
	for i, ends := range [2][2]netip.AddrPort{{server, client}, {client, server}} {
		if err := r.checkSocket(fds[i], ends[0], ends[1]); err != nil {
			return bpf.Tuple{}, fmt.Errorf("socket %d of %v to %v: %w", i, client, server, err)
		}
	}
	return bpf.TupleOf(client, server, unix.IPPROTO_TCP), nil
}

// endsOf reads a connection's ends.
func endsOf(m *control.Connection) (client, server netip.AddrPort, err error) {
	src, srcOK := netip.AddrFromSlice(m.Source)
	dst, dstOK := netip.AddrFromSlice(m.Destination)
	if !srcOK || !dstOK || src.Is4() != dst.Is4() || src.Is4In6() || dst.Is4In6() {
		return client, server, fmt.Errorf("addresses %x and %x", m.Source, m.Destination)
	}
	if m.SourcePort-1 >= 1<<16-1 || m.DestinationPort-1 >= 1<<16-1 {
		return client, server, fmt.Errorf("ports %d and %d", m.SourcePort, m.DestinationPort)
	}
	return netip.AddrPortFrom(src, uint16(m.SourcePort)), netip.AddrPortFrom(dst, uint16(m.DestinationPort)), nil
}

// checkSocket makes sure that fd is a TCP connection with these ends, and that
// it never blocks.
func checkSocket(fd int, local, remote netip.AddrPort) error {
	protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil {
		return err
	}
	if protocol != unix.IPPROTO_TCP {
		return fmt.Errorf("protocol %d", protocol)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return err
	}
	own, err := unix.Getsockname(fd)
	if err != nil {
		return err
	}
	peer, err := unix.Getpeername(fd)
	if err != nil {
		return err
	}
	if addrPort(own) != local || addrPort(peer) != remote {
		return fmt.Errorf("%w: it is %v to %v", errOtherEnds, addrPort(own), addrPort(peer))
	}
	return nil
}

// errOtherEnds: a socket is another connection's.
var errOtherEnds = errors.New("not the connection it is said to be")

func addrPort(s unix.Sockaddr) netip.AddrPort {
	switch s := s.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(s.Addr), uint16(s.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(s.Addr).Unmap(), uint16(s.Port))
	}
	return netip.AddrPort{}
}

// descriptors are those in a control message.
func descriptors(rights []byte) (fds []int) {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return nil // the kernel's own; it can't be
	}
	for i := range messages {
		if got, err := unix.ParseUnixRights(&messages[i]); err == nil {
			fds = append(fds, got...)
		}
	}
	return fds
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

func resetAll(fds []int) {
	for _, fd := range fds {
		closeReset(fd)
	}
}
