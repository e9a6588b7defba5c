package proxy

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/bpf"
)

// Bounds of a sweep.
const (
	// An entry gets this long to become a connection: three repeats of a lost
	// answer. Whoever only sends SYNs holds room in the table that long.
	sweepAge   = 10 * time.Second
	sweepEvery = 500 * time.Millisecond
	sweepSteps = 4096 // entries looked at each time: a full table in 8 s
)

// sweep removes entries of conns that no connection belongs to, a few at a
// time: their SYN never became a connection, or the connection ended in a way
// that left it. It returns when ctx ends.
func (d *dataSide) sweep(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now, err := monotonic()
		if err == nil {
			_, err = d.sweepSome(sweepSteps, now)
		}
		if err != nil {
			d.log.Error("sweep redirected flows", "error", err)
		}
	}
}

// sweepSome looks at some entries. end: the table is through.
func (d *dataSide) sweepSome(n int, now uint64) (end bool, err error) {
	type stale struct {
		tuple bpf.Tuple
		id    uint64
	}
	var found []stale
	end, err = d.flows.walk(n, func(t bpf.Tuple, c bpf.Conn) {
		if c.Generation == d.generation && t.Proto == unix.IPPROTO_TCP && c.Id+uint64(sweepAge) < now && !d.pairs.has(t) {
			found = append(found, stale{t, c.Id})
		}
	})
	for _, s := range found {
		if removeErr := d.flows.remove(s.tuple, s.id); removeErr != nil {
			err = errors.Join(err, removeErr)
			continue
		}
		d.counters.swept.Add(1)
	}
	return end, err
}

// monotonic is the clock that entries are stamped with, in nanoseconds.
func monotonic() (uint64, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return 0, err
	}
	return uint64(t.Nano()), nil
}
