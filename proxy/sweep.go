package proxy

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/bpf"
)

// Bounds of a sweep.
const (
	// An entry gets this long to become a connection: three repeats of a lost
	// answer. Whoever only sends SYNs holds room in the table that long.
	sweepAge = 10 * time.Second
	// How often it is looked whether a pod needs room, and how long a walk may
	// be off where none does.
	sweepEvery = 250 * time.Millisecond
	sweepIdle  = 5 * time.Second
	sweepSteps = 4096 // entries read at a time
)

// sweeper walks through conns again and again. It removes entries that no
// connection belongs to: their SYN never became a connection, or the connection
// ended in a way that left it. And it grants each veth the room that is left of
// its part, which only user space can know (bpf/share.h).
type sweeper struct {
	*dataSide
	part    uint64               // entries that one veth may have
	granted map[uint32]allowance // by veth
	walked  time.Time            // the last time
}

// standing is how many entries have no connection yet, and may come to have one.
type standing struct {
	walks    atomic.Uint64 // through the whole table
	halfOpen atomic.Int64  // in the last one
	// supersededAt is how many walks there were when there was a successor.
	supersededAt atomic.Uint64
}

// allowance is a grant and what was made before.
type allowance struct {
	grant bpf.Grant
	made  uint64
}

func newSweeper(d *dataSide) *sweeper {
	return &sweeper{dataSide: d, part: uint64(bpf.ConnsShare(uint32(d.flows.size()))), granted: map[uint32]allowance{}}
}

// run sweeps until ctx ends. The first walk comes at once: what is in the table
// may be a predecessor's.
func (s *sweeper) run(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		if err := s.look(time.Now()); err != nil {
			s.log.Error("sweep redirected flows", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// look walks if it is time to, or a veth has used up much of its room.
func (s *sweeper) look(now time.Time) error {
	shares, err := s.shares.read()
	if err != nil {
		return err
	}
	if now.Sub(s.walked) < sweepIdle && !s.needed(shares) && !s.superseded.Load() {
		return nil
	}
	clock, err := monotonic()
	if err != nil {
		return err
	}
	s.walked = now
	return s.walk(shares, clock)
}

// needed tells whether a veth has used a quarter of what it was granted, or has
// nothing left to use.
func (s *sweeper) needed(shares map[uint32]bpf.Share) bool {
	for veth, share := range shares {
		room, used := s.part, share.Made
		if a := s.granted[veth]; a.grant.Born == share.Born {
			room, used = a.grant.Until-a.made, share.Made-a.made
		}
		if used*4 >= room {
			return true
		}
	}
	return false
}

// walk goes through the whole table once. shares were read before: what is made
// meanwhile may be counted twice, but never missed.
func (s *sweeper) walk(shares map[uint32]bpf.Share, now uint64) error {
	type stale struct {
		tuple bpf.Tuple
		id    uint64
	}
	var failed error
	halfOpen := int64(0)
	entries := map[uint32]uint64{}
	for end := false; !end; {
		var found []stale
		var err error
		end, err = s.flows.walk(sweepSteps, func(t bpf.Tuple, c bpf.Conn) {
			// Also what goes now: it may be a new flow's by then.
			entries[c.Ifindex]++
			if c.Generation != s.generation && !s.sweeps(c.Generation) || s.pairs.accounts(t, c.Id) || s.sessions.has(t) {
				return
			}
			if c.Id+uint64(sweepAge) < now {
				found = append(found, stale{t, c.Id})
			} else if t.Proto == unix.IPPROTO_TCP {
				halfOpen++
			}
		})
		if err != nil {
			return errors.Join(failed, err)
		}
		for _, f := range found {
			if err := s.flows.remove(f.tuple, f.id); err != nil {
				failed = errors.Join(failed, err)
				continue
			}
			s.counters.swept.Add(1)
		}
	}
	s.halfOpen.Store(halfOpen)
	s.walks.Add(1)
	granted := make(map[uint32]allowance, len(shares))
	for veth, share := range shares {
		a := allowance{bpf.Grant{Born: share.Born, Until: share.Made + s.part - min(s.part, entries[veth])}, share.Made}
		if s.granted[veth] != a {
			if err := s.shares.grant(veth, a.grant); err != nil {
				failed = errors.Join(failed, err)
				continue
			}
		}
		granted[veth] = a
	}
	s.granted = granted
	return failed
}

// monotonic is the clock that entries are stamped with, in nanoseconds.
func monotonic() (uint64, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return 0, err
	}
	return uint64(t.Nano()), nil
}
