package dns

import (
	"encoding/binary"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// batchSize is how many datagrams one system call takes in or sends at most.
const batchSize = 64

const (
	maxMessage = 65535
	// slotSize is the room of one datagram: slots don't begin at multiples of a
	// power of two, where all would share a few lines of the processor's caches.
	slotSize    = maxMessage + 1 + 320
	controlSize = 96
)

// mmsghdr is struct mmsghdr.
type mmsghdr struct {
	header unix.Msghdr
	length uint32
	_      [4]byte
}

// receiver is where datagrams are read to.
type receiver struct {
	headers *[batchSize]mmsghdr   // of the last call
	sets    [2][batchSize]mmsghdr // without and with ends
	used    [2]int                // of them
	vectors [batchSize]unix.Iovec
	names   [batchSize]sockaddr
	control [batchSize][controlSize]byte
	slots   []byte
}

func newReceiver() *receiver {
	r := &receiver{slots: make([]byte, batchSize*slotSize)}
	r.headers, r.used[1] = &r.sets[0], batchSize
	for i := range batchSize {
		r.vectors[i].Base = &r.slots[i*slotSize]
		r.vectors[i].SetLen(maxMessage)
		for k := range r.sets {
			h := &r.sets[k][i].header
			h.Iov = &r.vectors[i]
			h.SetIovlen(1)
		}
	}
	return r
}

// receive reads what is there, without waiting. ends: where from and where to
// is wanted as well.
func (r *receiver) receive(fd int, ends bool) (n int, errno syscall.Errno) {
	set := 0
	if ends {
		set = 1
	}
	r.headers = &r.sets[set]
	for i := range r.used[set] { // the kernel has written there
		h := &r.headers[i].header
		h.Flags = 0
		if ends {
			h.Name, h.Namelen = (*byte)(unsafe.Pointer(&r.names[i])), uint32(unsafe.Sizeof(r.names[i]))
			h.Control = &r.control[i][0]
			h.SetControllen(controlSize)
		}
	}
	for {
		got, _, errno := syscall.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(r.headers)), batchSize, unix.MSG_DONTWAIT, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		// One that failed may have been begun.
		if r.used[set] = min(int(got)+1, batchSize); errno != 0 {
			r.used[set] = batchSize
		}
		return int(got), errno
	}
}

// message is a datagram that was received, whole: there are none larger than a
// slot. A response of the proxy's own fits into its place.
func (r *receiver) message(i int) []byte {
	begin := i * slotSize
	return r.slots[begin : begin+int(r.headers[i].length) : begin+slotSize]
}

// destination is where a datagram was sent to, before it was steered here.
func (r *receiver) destination(i int) (to sockaddr, ok bool) {
	for b := r.told(i); len(b) > 0; {
		var c *unix.Cmsghdr
		var data []byte
		if c, data, b = cut(b); c == nil {
			break
		}
		if c.Level == unix.SOL_IP && c.Type == unix.IP_ORIGDSTADDR && len(data) >= unix.SizeofSockaddrInet4 ||
			c.Level == unix.SOL_IPV6 && c.Type == unix.IPV6_ORIGDSTADDR && len(data) >= unix.SizeofSockaddrInet6 {
			copy((*[unsafe.Sizeof(to)]byte)(unsafe.Pointer(&to))[:], data)
			return to, true
		}
	}
	return to, false
}

// lost is how many found no room in the socket's queue, since it was made, until
// a datagram did.
func (r *receiver) lost(i int) uint32 {
	for b := r.told(i); len(b) > 0; {
		var c *unix.Cmsghdr
		var data []byte
		if c, data, b = cut(b); c == nil {
			break
		}
		if c.Level == unix.SOL_SOCKET && c.Type == unix.SO_RXQ_OVFL && len(data) == 4 {
			return binary.NativeEndian.Uint32(data)
		}
	}
	return 0
}

// told is what the kernel tells of a datagram.
func (r *receiver) told(i int) []byte { return r.control[i][:r.headers[i].header.Controllen] }

// cut cuts the first piece off of what the kernel tells; nil: there is none.
func cut(b []byte) (c *unix.Cmsghdr, data, rest []byte) {
	if len(b) < unix.SizeofCmsghdr {
		return nil, nil, nil
	}
	c = (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	size := int(c.Len)
	if size < unix.SizeofCmsghdr || size > len(b) {
		return nil, nil, nil
	}
	return c, b[unix.CmsgLen(0):size], b[min(unix.CmsgSpace(size-unix.CmsgLen(0)), len(b)):]
}

// sender queues datagrams, each with the socket that it goes to, so that those
// of one socket go out in one system call. What is queued must stay as it is
// until it has been sent.
type sender struct {
	entries [batchSize]outgoing
	n       int
	dirty   []*sock

	headers [batchSize]mmsghdr
	vectors [batchSize][2]unix.Iovec
}

// outgoing is a datagram to be sent. scratch is room for a message that lies
// nowhere else.
type outgoing struct {
	message []byte
	// split: the message goes on behind id, which others have another of.
	id      [idSize]byte
	split   bool
	to      sockaddr // not of connected sockets
	named   bool
	next    int32
	scratch [maxReply]byte
}

// full tells that nothing can be queued before a flush.
func (s *sender) full() bool { return s.n == batchSize }

// queue returns room for a datagram to be sent by a socket; message has to be
// set.
func (s *sender) queue(to *sock) *outgoing {
	i := int32(s.n)
	s.n++
	e := &s.entries[i]
	e.next, e.named, e.split = -1, false, false
	if to.queued == 0 {
		to.first = i
		s.dirty = append(s.dirty, to)
	} else {
		s.entries[to.last].next = i
	}
	to.last = i
	to.queued++
	return e
}

// flush sends all that is queued. failed is told of each datagram that could
// not be sent; it must not queue.
func (s *sender) flush(failed func(*sock, syscall.Errno)) {
	for _, to := range s.dirty {
		n := 0
		for i := to.first; i >= 0; i = s.entries[i].next {
			e := &s.entries[i]
			h, v := &s.headers[n].header, s.vectors[n][:0]
			if e.split {
				v = append(v, vectorOf(e.id[:]))
			}
			v = append(v, vectorOf(e.message))
			h.Iov = &v[0]
			h.SetIovlen(len(v))
			h.Name, h.Namelen = nil, 0
			if e.named {
				h.Name, h.Namelen = (*byte)(unsafe.Pointer(&e.to)), e.to.size()
			}
			n++
		}
		to.queued = 0
		s.send(to, n, failed)
	}
	s.dirty, s.n = s.dirty[:0], 0
}

func vectorOf(b []byte) (v unix.Iovec) {
	v.Base = unsafe.SliceData(b)
	v.SetLen(len(b))
	return v
}

func (s *sender) send(to *sock, n int, failed func(*sock, syscall.Errno)) {
	for at := 0; at < n; {
		if to.fd < 0 {
			return // closed when an earlier one failed
		}
		sent, _, errno := syscall.RawSyscall6(unix.SYS_SENDMMSG, uintptr(to.fd), uintptr(unsafe.Pointer(&s.headers[at])), uintptr(n-at), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		switch errno {
		case 0:
			at += int(sent)
		case unix.EINTR:
		default:
			failed(to, errno)
			at++
		}
	}
}
