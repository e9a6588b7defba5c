package flow

import (
	"context"
	"sync"
)

// Ring keeps the latest records in bounded memory and lets any number of
// readers follow. It may be used by several goroutines at once.
type Ring struct {
	mu   sync.Mutex
	buf  []Record      // by value: a record costs no allocation
	next uint64        // sequence number of the record to come
	wake chan struct{} // closed at the next Publish; nil while nobody waits
}

// NewRing returns a ring of the latest size records.
func NewRing(size int) *Ring {
	return &Ring{buf: make([]Record, max(size, 1))}
}

// Publish adds a copy of a record; what the record points to must not be
// changed any more. It never waits for readers: one that is too slow loses the
// oldest.
func (r *Ring) Publish(rec *Record) {
	r.mu.Lock()
	*r.at(r.next) = *rec
	r.next++
	if r.wake != nil {
		close(r.wake)
		r.wake = nil
	}
	r.mu.Unlock()
}

func (r *Ring) at(n uint64) *Record { return &r.buf[n%uint64(len(r.buf))] }

// oldest is the sequence number of the first record that is still there.
func (r *Ring) oldest() uint64 { return r.next - min(r.next, uint64(len(r.buf))) }

// Published is the number of records there ever were.
func (r *Ring) Published() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.next
}

// Read gives the records that q asks for to each, oldest first. With
// q.Follow it goes on with those to come until ctx is done, else it returns
// after what is there now. It stops at the first error of each and returns
// it. The record is a copy that is each's until it returns; what it points to
// is shared. lost is the number of records, right before this one, that were
// overwritten before a slow each came to them; r is nil if that is all there
// is to tell.
func (r *Ring) Read(ctx context.Context, q Query, each func(r *Record, lost uint64) error) error {
	match, err := q.Filter.compile()
	if err != nil {
		return err
	}
	wanted := func(rec *Record) bool { return !rec.Time.Before(q.Since) && match(rec) }
	r.mu.Lock()
	pos, end := r.oldest(), r.next
	r.mu.Unlock()
	if q.Last >= 0 {
		latest := r.latest(ctx, q.Last, end, wanted)
		for i := len(latest) - 1; i >= 0 && ctx.Err() == nil; i-- {
			if err := each(&latest[i], 0); err != nil {
				return err
			}
		}
		pos = end
	}
	batch := make([]Record, readBatch)
	for ctx.Err() == nil {
		n, lost, wake := r.take(batch, &pos, end, q.Follow)
		if n == 0 {
			if wake == nil {
				return nil
			}
			select {
			case <-ctx.Done():
			case <-wake:
			}
			continue
		}
		for i := range batch[:n] {
			if ctx.Err() != nil {
				return nil
			}
			if rec := &batch[i]; wanted(rec) {
				if err := each(rec, lost); err != nil {
					return err
				}
				lost = 0
			}
		}
		if lost > 0 {
			if err := each(nil, lost); err != nil {
				return err
			}
		}
	}
	return nil
}

// readBatch is how many records are copied while publishers wait: a few
// microseconds. What is done with them, as matching a regular expression, is
// done while none does.
const readBatch = 64

// latest returns the n latest of the records before end that are wanted, the
// newest first.
func (r *Ring) latest(ctx context.Context, n int, end uint64, wanted func(*Record) bool) (found []Record) {
	batch := make([]Record, readBatch)
	for len(found) < n && ctx.Err() == nil {
		r.mu.Lock()
		start := max(r.oldest(), end-min(end, readBatch))
		for i := start; i < end; i++ {
			batch[i-start] = *r.at(i)
		}
		r.mu.Unlock()
		if start >= end {
			break
		}
		for ; end > start && len(found) < n; end-- {
			if rec := &batch[end-1-start]; wanted(rec) {
				found = append(found, *rec)
			}
		}
	}
	return found
}

// take copies the records from pos on, up to end for those who do not follow,
// and advances pos. Where there are none, wake is closed when one comes.
func (r *Ring) take(batch []Record, pos *uint64, end uint64, follow bool) (n int, lost uint64, wake <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if oldest := r.oldest(); *pos < oldest {
		lost = oldest - *pos
		*pos = oldest
	}
	stop := r.next
	if !follow {
		stop = min(stop, end)
	}
	for ; *pos < stop && n < len(batch); n++ {
		batch[n] = *r.at(*pos)
		*pos++
	}
	if n == 0 && follow {
		if r.wake == nil {
			r.wake = make(chan struct{})
		}
		wake = r.wake
	}
	return n, lost, wake
}
