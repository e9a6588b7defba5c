package flow

import (
	"context"
	"sync"
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
// it. lost is the number of records, right before this one, that were
// overwritten before a slow each came to them; r is nil if that is all there
// is to tell.
func (r *Ring) Read(ctx context.Context, q Query, each func(r *Record, lost uint64) error) error {
	match, err := q.Filter.compile()
	if err != nil {
		return err
	}
	pos, end := r.start(q, match)
	var batch []*Record
	for {
		var wake <-chan struct{}
		var lost uint64
		batch, pos, lost, wake = r.take(batch[:0], pos, end, q.Follow)
		if len(batch) == 0 {
			if wake == nil {
				return nil
			}
			select {
			case <-ctx.Done():
				return nil
			case <-wake:
			}
			continue
		}
		for _, rec := range batch {
			if ctx.Err() != nil {
				return nil
			}
			if rec.Time.Before(q.Since) || !match(rec) {
				continue
			}
			if err := each(rec, lost); err != nil {
				return err
			}
			lost = 0
		}
		if lost > 0 {
			if err := each(nil, lost); err != nil {
				return err
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

func (r *Ring) take(batch []*Record, pos, end uint64, follow bool) (_ []*Record, next, lost uint64, wake <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if oldest := r.next - min(r.next, uint64(len(r.buf))); pos < oldest {
		lost = oldest - pos
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
		return batch, pos, lost, nil
	}
	if r.wake == nil {
		r.wake = make(chan struct{})
	}
	return batch, pos, lost, r.wake
}
