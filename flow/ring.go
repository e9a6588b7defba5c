package flow

import (
	"context"
	"sync"
	"sync/atomic"
)

// Ring keeps the latest records in bounded memory and lets any number of
// readers follow. It may be used by several goroutines at once.
type Ring struct {
	mu   sync.Mutex
	buf  []*Record
	next uint64        // sequence number of the record to come
	wake chan struct{} // closed at the next Publish; nil while nobody waits
}

// NewRing returns a ring of the latest size records.
func NewRing(size int) *Ring {
	return &Ring{buf: make([]*Record, max(size, 1))}
}

// Publish adds a record, which must not be changed any more. It never waits
// for readers: one that is too slow loses the oldest.
func (r *Ring) Publish(rec *Record) {
	r.mu.Lock()
	r.buf[r.next%uint64(len(r.buf))] = rec
	r.next++
	if r.wake != nil {
		close(r.wake)
		r.wake = nil
	}
	r.mu.Unlock()
}

// Published is the number of records there ever were.
func (r *Ring) Published() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.next
}

// Read gives the records that q asks for to each, oldest first. With
// q.Follow it goes on with those to come until ctx is done, else it returns
// after what is there now. It stops at the first error of each and returns
// it. lost is the number of records that were overwritten before a slow each
// came to them.
func (r *Ring) Read(ctx context.Context, q Query, each func(*Record) error) (lost uint64, err error) {
	match, err := q.Filter.compile()
	if err != nil {
		return 0, err
	}
	pos, end := r.start(q, match)
	var batch []*Record
	for {
		var wake <-chan struct{}
		batch, pos, wake, lost = r.take(batch[:0], pos, end, q.Follow, lost)
		if len(batch) == 0 {
			if wake == nil {
				return lost, nil
			}
			select {
			case <-ctx.Done():
				return lost, nil
			case <-wake:
			}
			continue
		}
		for _, rec := range batch {
			if rec.Time.Before(q.Since) || !match(rec) {
				continue
			}
			if ctx.Err() != nil {
				return lost, nil
			}
			if err := each(rec); err != nil {
				return lost, err
			}
		}
	}
}

// start finds where reading begins and, for those that do not follow, ends.
func (r *Ring) start(q Query, match func(*Record) bool) (pos, end uint64) {
	r.mu.Lock()
	end = r.next
	n := min(end, uint64(len(r.buf)))
	first := end - n
	if q.Last < 0 {
		r.mu.Unlock()
		return first, end
	}
	// Matching is done outside the lock: publishers must not wait for a
	// regular expression.
	held := make([]*Record, 0, n)
	for i := first; i < end; i++ {
		held = append(held, r.buf[i%uint64(len(r.buf))])
	}
	r.mu.Unlock()
	pos = end
	for left := q.Last; left > 0 && pos > first; pos-- {
		if rec := held[pos-1-first]; !rec.Time.Before(q.Since) && match(rec) {
			left--
		}
	}
	return pos, end
}

const readBatch = 256

func (r *Ring) take(batch []*Record, pos, end uint64, follow bool, lost uint64) ([]*Record, uint64, <-chan struct{}, uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if oldest := r.next - min(r.next, uint64(len(r.buf))); pos < oldest {
		lost += oldest - pos
		pos = oldest
	}
	stop := r.next
	if !follow {
		stop = min(stop, end)
	}
	for ; pos < stop && len(batch) < readBatch; pos++ {
		batch = append(batch, r.buf[pos%uint64(len(r.buf))])
	}
	if len(batch) > 0 || !follow {
		return batch, pos, nil, lost
	}
	if r.wake == nil {
		r.wake = make(chan struct{})
	}
	return batch, pos, r.wake, lost
}

// Lost counts what was seen but could not be recorded, by cause.
type Lost struct {
	Kernel  atomic.Uint64 // the kernel's ring was full or its limit on drop events was reached
	Readers atomic.Uint64 // a reader of Ring was too slow
}
