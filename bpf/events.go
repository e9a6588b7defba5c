package bpf

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"os"
	"syscall"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/flow"
	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy"
)

// Event is a new flow's verdict, a changed verdict, or a drop.
type Event struct {
	Time time.Time
	// Source and Dest are the packet's own; the zero Addr where it had none.
	// ICMP has no ports.
	Source, Dest                 netip.AddrPort
	Protocol                     uint8
	SourceIdentity, DestIdentity identity.ID
	Rule, Policy                 uint32 // the rule that decided, the policy id of the pod that judged
	Ifindex                      int
	Bytes                        uint32
	Verdict                      flow.Verdict
	Reason                       flow.Reason
	Direction                    policy.Direction // of the pod that judged
	TCPFlags, ICMPType, ICMPCode uint8
}

const (
	// eventPause is how long events gather after the reader has looked, and so
	// how long one waits at most: a wake-up costs more than judging a packet.
	eventPause = 100 * time.Millisecond
	// eventPatience is how long the reader relies on being woken: the programs
	// of a predecessor may not do it.
	eventPatience = 5 * time.Second
)

// Events reads the ring buffer until ctx ends; there must be one reader at a
// time, the agent. The error, if any, comes last, with a zero Event. An event
// comes at once if there was none before for eventPause, else within that time.
func (d *Datapath) Events(ctx context.Context) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		r, err := openEvents(d.objects.Events)
		if err != nil {
			yield(Event{}, fmt.Errorf("open the ring buffer: %w", err))
			return
		}
		defer r.close()
		stop := context.AfterFunc(ctx, func() { letGo(r.file) })
		defer stop()
		for {
			err := r.await(1, eventPatience)
			if err == nil && r.ring.AvailableBytes() > 0 {
				if err = r.drain(yield); err == nil {
					err = r.await(r.many, eventPause)
				}
			}
			switch {
			case ctx.Err() != nil || errors.Is(err, errEnough):
				return
			case err != nil:
				yield(Event{}, fmt.Errorf("read the ring buffer: %w", err))
				return
			}
		}
	}
}

// eventReader reads the ring buffer. It waits with the runtime's own poller:
// a thread that waits by itself keeps the scheduler busy.
type eventReader struct {
	ring *ringbuf.Reader
	rec  ringbuf.Record
	file *os.File // the ring buffer; closing it ends await
	conn syscall.RawConn
	many int // bytes that end a pause; event_wake of the programs
}

func openEvents(m *ebpf.Map) (*eventReader, error) {
	fd, err := unix.FcntlInt(uintptr(m.FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil { // or the poller does not take it
		_ = unix.Close(fd)
		return nil, err
	}
	r := &eventReader{file: os.NewFile(uintptr(fd), "events")}
	if r.conn, err = r.file.SyscallConn(); err == nil {
		r.ring, err = ringbuf.NewReader(m)
	}
	if err != nil {
		letGo(r.file)
		return nil, err
	}
	r.ring.SetDeadline(time.Unix(1, 0)) // it yields what there is and does not wait
	r.many = r.ring.BufferSize() / 4
	return r, nil
}

func (r *eventReader) close() {
	letGo(r.file)
	letGo(r.ring)
}

// await returns when at least so many bytes of events are there, or the time
// is over.
func (r *eventReader) await(bytes int, limit time.Duration) error {
	if err := r.file.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	err := r.conn.Read(func(uintptr) bool { return r.ring.AvailableBytes() >= bytes })
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}

var errEnough = errors.New("nobody wants more")

// drain yields all events there are.
func (r *eventReader) drain(yield func(Event, error) bool) error {
	clock := newClock() // the wall clock may have been set
	for r.ring.AvailableBytes() > 0 {
		switch err := r.ring.ReadInto(&r.rec); {
		case errors.Is(err, os.ErrDeadlineExceeded): // what was there was discarded
			return nil
		case err != nil:
			return err
		}
		e, err := decodeEvent(r.rec.RawSample, clock)
		if err != nil {
			return err
		}
		if !yield(e, nil) {
			return errEnough
		}
	}
	return nil
}

// decodeEvent reads one record. The kernel's and this side's layout are one by
// generation, so only the length can be wrong.
func decodeEvent(b []byte, c clock) (Event, error) {
	const size = int(unsafe.Sizeof(datapathEvent{}))
	if len(b) < size {
		return Event{}, fmt.Errorf("event of %d bytes, want %d", len(b), size)
	}
	var raw datapathEvent
	// Reading it field by field, by reflection, took a third of the reader's time.
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&raw)), size), b)
	e := Event{
		Time:   c.at(raw.Time),
		Source: raw.Tuple.Source(), Dest: raw.Tuple.Destination(), Protocol: raw.Tuple.Proto,
		SourceIdentity: identity.ID(raw.SrcIdentity), DestIdentity: identity.ID(raw.DstIdentity),
		Rule: raw.Rule, Policy: raw.Policy, Ifindex: int(raw.Ifindex), Bytes: raw.Bytes,
		Verdict: flow.Verdict(raw.Verdict), Reason: flow.Reason(raw.Reason),
		Direction: policy.Direction(raw.Direction),
		TCPFlags:  raw.TcpFlags, ICMPType: raw.IcmpType, ICMPCode: raw.IcmpCode,
	}
	if raw.Tuple.Saddr == (Addr{}) && raw.Tuple.Daddr == (Addr{}) {
		e.Source, e.Dest = netip.AddrPort{}, netip.AddrPort{}
	}
	if raw.Tuple.Proto == unix.IPPROTO_ICMP || raw.Tuple.Proto == unix.IPPROTO_ICMPV6 {
		e.Source = netip.AddrPortFrom(e.Source.Addr(), 0)
		e.Dest = netip.AddrPortFrom(e.Dest.Addr(), 0)
	}
	return e, nil
}

// clock turns the kernel's monotonic time into wall time.
type clock struct{ boot time.Time }

func newClock() clock {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return clock{time.Now()} // can't happen: the clock and the pointer are valid
	}
	return clock{time.Now().Round(0).Add(-time.Duration(ts.Nano()))}
}

func (c clock) at(ns uint64) time.Time { return c.boot.Add(time.Duration(ns)) }
