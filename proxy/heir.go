package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/weirnet/weir/proxy/control"
	"github.com/weirnet/weir/proxy/http"
)

const (
	// heirRoom bounds the connections that wait to be sent to a successor: those
	// that find no room are served on, and offered again.
	heirRoom = 1024
	// heirFlush is how long what waits to be sent may take when the process ends,
	// and what was learned last.
	heirFlush = 5 * time.Second
	// heirPatience is how long a successor may not read.
	heirPatience = 10 * time.Second
)

// heir is the connection to a successor. What goes there goes for good: nothing
// comes back.
type heir struct {
	conn  *net.UnixConn
	queue chan parcel
	leave chan struct{} // closed when nothing more is taken
	again chan struct{} // what was learned since is to be told
	done  chan struct{} // closed when nothing is sent any more

	// told is how many answers were learned when that was told; of serveHeir alone.
	told      uint64
	announced [256]bool // generations that the successor knows of; of serveHeir alone

	mu        sync.Mutex
	taken     int // places in queue that are promised or full
	closed    bool
	elsewhere bool // another one has its place
	declined  bool
}

// parcel is a connection on its way.
type parcel struct {
	pair *pair
	idle http.Idle
}

func newHeir(c *net.UnixConn, room int) *heir {
	return &heir{
		conn: c, queue: make(chan parcel, room), leave: make(chan struct{}),
		again: make(chan struct{}, 1), done: make(chan struct{}),
	}
}

// reserve promises a place in the queue, if there is one.
func (h *heir) reserve() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || h.taken == cap(h.queue) {
		h.declined = true
		return false
	}
	h.taken++
	return true
}

// release gives a place back. again: there is room now for those that found
// none, and none waits.
func (h *heir) release() (again bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.taken--; h.taken == 0 && h.declined && !h.closed {
		h.declined = false
		return true
	}
	return false
}

// close makes the heir take nothing more; what waits is sent. elsewhere: the
// rest goes to another one.
func (h *heir) close(elsewhere bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.closed {
		h.closed, h.elsewhere = true, elsewhere
		close(h.leave)
	}
}

// end says what was learned at the end, or what else the end means.
func (h *heir) end(names nameKeeper) error {
	h.mu.Lock()
	elsewhere := h.elsewhere
	h.mu.Unlock()
	if !elsewhere {
		return h.tell(names)
	}
	return h.write(&control.HandOver{What: &control.HandOver_Elsewhere{Elsewhere: &control.Elsewhere{}}})
}

func (h *heir) waiting() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.taken
}

// write sends one message.
func (h *heir) write(m *control.HandOver, fds ...int) error {
	b, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	if err := h.conn.SetWriteDeadline(time.Now().Add(heirPatience)); err != nil {
		return err
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	_, _, err = h.conn.WriteMsgUnix(b, rights, nil)
	return err
}

// send sends a connection, and closes its sockets here.
func (h *heir) send(p parcel) error {
	if !h.announced[p.pair.generation] { // came from a predecessor since
		if err := h.announce("", []uint32{uint32(p.pair.generation)}); err != nil {
			return err
		}
	}
	src, dst := p.pair.tuple.Source(), p.pair.tuple.Destination()
	err := h.write(&control.HandOver{What: &control.HandOver_Connection{Connection: &control.Connection{
		Source: src.Addr().AsSlice(), SourcePort: uint32(src.Port()),
		Destination: dst.Addr().AsSlice(), DestinationPort: uint32(dst.Port()),
		Id: p.pair.entry.Id, Generation: uint32(p.pair.generation),
		Input: p.idle.Input, Opening: p.idle.Opening, Questions: p.pair.asks,
	}}}, p.idle.Client, p.idle.Server)
	if err == nil {
		_ = unix.Close(p.idle.Client) // the successor has them
		_ = unix.Close(p.idle.Server)
	}
	return err
}

// introduce tells the successor what it may expect, and what was learned.
func (h *heir) introduce(boot string, generations []uint32, names nameKeeper) error {
	if err := h.announce(boot, generations); err != nil {
		return err
	}
	return h.tellAll(names)
}

// announce tells the successor what connections may be of.
func (h *heir) announce(boot string, generations []uint32) error {
	for _, g := range generations {
		h.announced[g] = true
	}
	m := &control.Predecessor{Boot: boot, Generations: generations}
	return h.write(&control.HandOver{What: &control.HandOver_Predecessor{Predecessor: m}})
}

// errHeirGone: nobody is at the other end any more.
var errHeirGone = errors.New("it has ended")

// serveHeir sends to the successor until that has ended, or another one has its
// place. What could not be sent is served here again.
func (d *dataSide) serveHeir(h *heir, boot string, names nameKeeper) {
	defer close(h.done)
	defer func() { _ = h.conn.Close() }() // all was sent, or can't be
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		var b [1]byte
		_, _ = h.conn.Read(b[:]) // it says nothing but that it ends
	}()
	err := h.introduce(boot, d.generations(), names)
	for leave := h.leave; err == nil; {
		select {
		case p := <-h.queue:
			err = d.pass(h, p)
		case <-h.again:
			if err = d.passAll(h); err == nil {
				err = h.tell(names)
			}
		case <-leave:
			leave = nil
		case <-gone:
			err = errHeirGone
		}
		if leave == nil && h.waiting() == 0 && err == nil {
			if err := h.end(names); err != nil {
				d.log.Error("take leave of a successor", "error", err)
			}
			return
		}
	}
	d.log.Error("the successor takes nothing more", "error", err)
	d.heir.CompareAndSwap(h, nil)
	h.close(false)
	for h.waiting() > 0 {
		d.takeBack(<-h.queue)
		h.release()
	}
	// One that is late may still take what is on its way.
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		d.pairs.forgetHanded(h)
	}
}

// pass sends a connection to the successor, or serves it again.
func (d *dataSide) pass(h *heir, p parcel) error {
	err := h.send(p)
	if err == nil {
		d.counters.handed.Add(1)
	} else {
		d.takeBack(p)
	}
	if h.release() {
		d.yield()
	}
	return err
}

// passAll sends what waits to be sent: somebody may use it any moment.
func (d *dataSide) passAll(h *heir) (err error) {
	for err == nil {
		select {
		case p := <-h.queue:
			err = d.pass(h, p)
		default:
			return nil
		}
	}
	return err
}

// handTo makes the process at the other end of c the successor.
func (d *dataSide) handTo(c *net.UnixConn) *heir {
	h := newHeir(c, heirRoom)
	if before := d.heir.Swap(h); before != nil {
		before.close(true)
	}
	if d.superseded.Load() {
		d.yield()
	}
	return h
}

// offer is http.Conn.Offer of p.
func (d *dataSide) offer(p *pair) func(http.Idle) {
	h := d.heir.Load()
	if h == nil || !h.reserve() {
		return nil
	}
	if !d.pairs.hand(p, h) {
		h.release() // its client began anew: it is about to be aborted
		return nil
	}
	return func(i http.Idle) {
		i.Input, i.Opening = bytes.Clone(i.Input), bytes.Clone(i.Opening)
		h.queue <- parcel{p, i}
		close(p.done)
	}
}

// takeBack serves a connection again that could not be handed over.
func (d *dataSide) takeBack(p parcel) {
	if err := d.goOn(p.pair.tuple, p.pair.entry, p.idle, p.pair.asks); err != nil {
		d.log.Info("a connection is lost on its way to the successor", "tuple", p.pair.tuple, "error", err)
	}
}

func closeReset(fd int) {
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	_ = unix.Close(fd)
}

// generations are those that connections here can be of.
func (d *dataSide) generations() []uint32 {
	out := []uint32{uint32(d.generation)}
	for _, h := range d.held() {
		out = append(out, h.Generation)
	}
	return out
}

// unixConn opens a connection that came as a descriptor.
func unixConn(f *os.File) (*net.UnixConn, error) {
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("open the connection to another proxy: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		_ = c.Close()
		return nil, fmt.Errorf("open the connection to another proxy: it is %T", c)
	}
	return u, nil
}
