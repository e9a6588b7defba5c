package proxy

import (
	"io"

	"github.com/weirnet/weir/proxy/control"
)

// nameKeeper is what was learned of names: a fqdn.Cache.
type nameKeeper interface {
	Export(io.Writer) error
	Import(io.Reader) error
	Retire() error
	// Answers is how many were learned here so far.
	Answers() uint64
}

// learnedPart is how much of what was learned goes in one message.
const learnedPart = 32 << 10

// learnedWriter sends what is exported in parts.
type learnedWriter struct{ *heir }

func (w learnedWriter) Write(b []byte) (n int, err error) {
	for n < len(b) {
		part := b[n:min(len(b), n+learnedPart)]
		m := &control.HandOver{What: &control.HandOver_Learned{Learned: &control.Learned{Part: part}}}
		if err := w.write(m); err != nil {
			return n, err
		}
		n += len(part)
	}
	return n, nil
}

// tell tells what was learned, if there is something new.
func (h *heir) tell(names nameKeeper) error {
	if names == nil || names.Answers() == h.told {
		return nil
	}
	return h.tellAll(names)
}

func (h *heir) tellAll(names nameKeeper) error {
	if names != nil {
		h.told = names.Answers() // those that come meanwhile may be missed
		if err := names.Export(learnedWriter{h}); err != nil {
			return err
		}
	}
	return h.write(&control.HandOver{What: &control.HandOver_LearnedAll{LearnedAll: &control.LearnedAll{}}})
}

// tellAgain has the successor told what was learned since it was told.
func (d *dataSide) tellAgain() {
	if h := d.heir.Load(); h != nil {
		select {
		case h.again <- struct{}{}:
		default: // it is going to be
		}
	}
}

// learn takes a part of what was learned.
func (r *receiver) learn(part []byte) {
	if r.names == nil {
		return
	}
	if r.learned == nil {
		r.beginLearned()
	}
	_, _ = r.learned.Write(part) // fails if there is no one who reads
}

// beginLearned begins to take in an export, once the one before is in.
func (r *receiver) beginLearned() {
	from, to := io.Pipe()
	before, in := r.imported, make(chan struct{})
	r.learned, r.imported = to, in
	go func() {
		defer close(in)
		if before != nil {
			<-before
		}
		if err := r.names.Import(from); err != nil {
			r.log.Error("not all that a predecessor learned was taken over", "error", err)
		}
		_, _ = io.Copy(io.Discard, from) // whoever writes must not wait
	}()
}

// endLearned tells that an export is over.
func (r *receiver) endLearned() {
	if r.learned != nil {
		_ = r.learned.Close() // then what was said is taken in
		r.learned = nil
	}
	r.said.Do(func() {
		if r.imported == nil {
			close(r.ready)
			return
		}
		go func(in chan struct{}) {
			<-in
			close(r.ready)
		}(r.imported)
	})
}
