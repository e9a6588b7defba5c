package bpf

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"os"
	"time"
	"unsafe"

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

// pollEvery is how long an event waits at most: waking the reader for each one
// costs more than judging the packet.
const pollEvery = 50 * time.Millisecond

// Events reads the ring buffer until ctx ends; there must be one reader at a
// time, the agent. The error, if any, comes last, with a zero Event.
func (d *Datapath) Events(ctx context.Context) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		r, err := ringbuf.NewReader(d.objects.Events)
		if err != nil {
			yield(Event{}, fmt.Errorf("open the ring buffer: %w", err))
			return
		}
		defer letGo(r)
		stop := context.AfterFunc(ctx, func() { letGo(r) })
		defer stop()
		var (
			rec   ringbuf.Record
			clock = newClock()
		)
		// At the deadline the reader first yields all there is.
		r.SetDeadline(time.Now().Add(pollEvery))
		for ctx.Err() == nil {
			switch err := r.ReadInto(&rec); {
			case errors.Is(err, os.ErrDeadlineExceeded):
				clock = newClock() // the wall clock may have been set
				r.SetDeadline(time.Now().Add(pollEvery))
				continue
			case errors.Is(err, ringbuf.ErrClosed):
				return
			case err != nil:
				yield(Event{}, fmt.Errorf("read the ring buffer: %w", err))
				return
			}
			e, err := decodeEvent(rec.RawSample, clock)
			if err != nil {
				yield(Event{}, err)
				return
			}
			if !yield(e, nil) {
				return
			}
		}
	}
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
	return clock{time.Now().Add(-time.Duration(ts.Nano()))}
}

func (c clock) at(ns uint64) time.Time { return c.boot.Add(time.Duration(ns)).Round(0) }
