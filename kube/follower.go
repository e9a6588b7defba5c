package kube

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apiwatch "k8s.io/apimachinery/pkg/watch"
)

const (
	// pageSize is how many objects a page of a list has.
	pageSize = 500
	// A request that fails is made again after the first, at the longest after
	// the second, in both cases up to half of it more or less.
	againFirst, againLast = 200 * time.Millisecond, 10 * time.Second
	// watchLimit is how long the server holds a watch, up to twice that: all
	// agents' watches must not end together.
	watchLimit = 5 * time.Minute
	// steady is a watch that counts as a good one.
	steady = 5 * time.Second
	// silence is how long the objects that are there when a watch begins may
	// pause before the end of them is told.
	silence = 20 * time.Second
	// lookAgain is how often a kind is looked for that the cluster does not
	// have; one that it had is believed to be gone after that time.
	lookAgain = 30 * time.Second
)

// follower feeds the objects of one kind from the API server. It asks for a
// stream that begins with all objects, one by one, and goes on with what
// changes; of a server without such streams, for a list in pages and then a
// watch. A watch that ends, for whatever reason, goes on at the version that
// was reached; only when the server does not have that any more, everything is
// read again, and what differs is a change.
//
// It is no Reflector of client-go, as that one reads everything again after
// most errors, keeps a copy of what it reads, and does not stop while it waits.
type follower struct {
	*client
	log    *slog.Logger
	prods  chan struct{}
	limits limits

	// Of run alone.
	version string    // reached; "": everything must be read
	gone    time.Time // since when the kind, which was there, is not served
}

// limits are the times above, for tests.
type limits struct{ first, last, silence, lookAgain time.Duration }

func newFollower(c *client, log *slog.Logger) *follower {
	return &follower{
		client: c, log: log.With("kind", c.of.kind), prods: make(chan struct{}, 1),
		limits: limits{againFirst, againLast, silence, lookAgain},
	}
}

func (w *follower) look(ctx context.Context) (map[name]string, string, error) { return w.versions(ctx) }

func (w *follower) prod() {
	select {
	case w.prods <- struct{}{}:
	default:
	}
}

func (w *follower) run(ctx context.Context, in *inbox) {
	pause := w.limits.first
	for first := true; ; first = false {
		if !first {
			in.again(w.version == "")
			if w.of.optional {
				in.out.interrupt()
			}
		}
		began := time.Now()
		var err error
		if w.version == "" {
			err = w.everything(ctx, in)
		} else {
			err = w.follow(ctx, in)
		}
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > steady {
			pause = w.limits.first
		}
		sleep := jitter(pause)
		switch {
		case err == nil && time.Since(began) > steady:
			continue // the server ends every watch after a while
		case err == nil: // so soon that it may be broken
		case w.missing(err) && w.without(in):
			if w.comes(ctx, in) {
				pause = w.limits.first // it may take a moment until it is served
			}
			sleep = jitter(pause)
		case expired(err), errors.Is(err, errBack):
			w.log.Info("what was missed can't be had any more; all objects are read again", "error", err)
			w.version = ""
		default:
			w.complain(in, err)
		}
		pause = min(2*pause, w.limits.last)
		select {
		case <-ctx.Done():
			return
		case <-w.prods:
		case <-time.After(sleep):
		}
	}
}

func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d) }

// missing tells whether an error means that there is no such kind.
func (w *follower) missing(err error) bool { return w.of.optional && apierrors.IsNotFound(err) }

// without notes that the cluster does not have the kind. It is false as long as
// there were objects of it until shortly: one of several servers may be behind
// the others, so they stay until the answer has been the same for a while.
func (w *follower) without(in *inbox) bool {
	if len(in.objects) > 0 {
		if w.gone.IsZero() {
			w.gone = time.Now()
		}
		if time.Since(w.gone) < w.limits.lookAgain {
			return false
		}
	}
	w.version, w.gone = "", time.Time{}
	in.absent()
	return true
}

// comes waits until a missing kind is worth another look: its CRD was installed
// or changed, somebody asks, or enough time has passed. It tells whether that
// took a while.
func (w *follower) comes(ctx context.Context, in *inbox) bool {
	began := time.Now()
	limit, cancel := context.WithTimeout(ctx, jitter(w.limits.lookAgain))
	defer cancel()
	defined := make(chan error, 1)
	go func() { defined <- w.defined(limit) }()
	for {
		select {
		case <-w.prods:
			return true
		case <-limit.Done():
			return true
		case err := <-defined:
			if err == nil {
				return time.Since(began) > steady
			}
			if limit.Err() == nil {
				in.unnoticed(err)
			}
		}
	}
}

// expired tells whether the server does not have a version any more.
func expired(err error) bool { return apierrors.IsResourceExpired(err) || apierrors.IsGone(err) }

// complain notes an error after which the next try may go better.
func (w *follower) complain(in *inbox, err error) {
	in.out.mu.Lock()
	again, known, started := in.status.Error == err.Error(), in.status.Known && in.out.delivered, in.out.started
	in.out.mu.Unlock()
	switch {
	case again:
	case known:
		w.log.Warn("objects are not followed; those read before stay in force", "error", err)
	case started:
		w.log.Error("objects of a kind can't be read; all others are enforced", "error", err)
	default:
		w.log.Error("objects of a kind can't be read; until then nothing of what is in force changes, and on a node where nothing is, nothing comes into force", "error", err)
	}
	in.late(err)
}

// everything reads all objects, and follows them as long as the stream holds.
func (w *follower) everything(ctx context.Context, in *inbox) error {
	// A small question first: a watch does not tell whether it may be asked for
	// lists, which are the way out where streams are not to be had.
	if _, err := w.list(ctx, 1, ""); err != nil {
		return err
	}
	err := w.stream(ctx, in)
	if w.version != "" || !noStreams(err) {
		return err
	}
	w.log.Debug("the API server does not stream all objects; they are listed in pages", "reason", err)
	all := map[name]*item{}
	for next := ""; ; {
		p, err := w.list(ctx, pageSize, next)
		if err != nil {
			return err
		}
		for _, i := range p.items {
			all[i.name] = i
		}
		if next = p.next; next == "" {
			in.keep(all, p.version)
			w.version = p.version
			return w.follow(ctx, in)
		}
	}
}

var errSilent = errors.New("the end of what there is was not told in time")

// noStreams tells whether the server refuses to begin a watch with everything
// (that is a fault of the request to some, and one of their own to those with
// an old etcd), or takes no notice of being asked.
func noStreams(err error) bool {
	status := apierrors.APIStatus(nil)
	if !errors.As(err, &status) {
		return errors.Is(err, errSilent)
	}
	code := status.Status().Code
	return code == http.StatusBadRequest || code == http.StatusUnprocessableEntity || code == http.StatusInternalServerError
}

// stream reads all objects as the beginning of a watch, and follows it on.
func (w *follower) stream(ctx context.Context, in *inbox) error {
	watch, err := w.watch(ctx, "", seconds(watchLimit))
	if err != nil {
		return err
	}
	defer watch.Stop()
	all := map[name]*item{}
	timer := time.NewTimer(w.limits.silence)
	defer timer.Stop()
	for {
		var e apiwatch.Event
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
			return errSilent
		case e = <-watch.ResultChan():
		}
		timer.Reset(w.limits.silence)
		i, err := w.take(e)
		switch {
		case err != nil:
			return err
		case e.Type == apiwatch.Added || e.Type == apiwatch.Modified:
			all[i.name] = in.reuse(i)
		case e.Type == apiwatch.Deleted:
			delete(all, i.name)
		case e.Type == apiwatch.Bookmark && i.end:
			in.keep(all, i.version)
			w.version = i.version
			return w.events(ctx, in, watch)
		}
	}
}

// follow goes on where the last watch ended.
func (w *follower) follow(ctx context.Context, in *inbox) error {
	watch, err := w.watch(ctx, w.version, seconds(watchLimit))
	if err != nil {
		return err
	}
	defer watch.Stop()
	return w.events(ctx, in, watch)
}

// events takes what a watch brings until it ends; the server ends each.
func (w *follower) events(ctx context.Context, in *inbox, watch apiwatch.Interface) error {
	in.followed()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e, open := <-watch.ResultChan():
			if !open {
				return nil
			}
			i, err := w.take(e)
			if err != nil {
				return err
			}
			if older(i.version, w.version) {
				return errBack
			}
			w.gone = time.Time{}
			switch e.Type {
			case apiwatch.Added, apiwatch.Modified:
				in.set(i)
			case apiwatch.Deleted:
				in.remove(i)
			case apiwatch.Bookmark:
				in.bookmark(i.version)
			}
			w.version = i.version
		}
	}
}

// errBack: the server has come from a copy of its data.
var errBack = errors.New("the API server tells of versions before those it told already")

var errEnded = errors.New("the watch ended before all objects had come")

// take returns an event's item.
func (w *follower) take(e apiwatch.Event) (*item, error) {
	switch o := e.Object.(type) {
	case *item:
		return o, nil
	case nil:
		return nil, errEnded
	default:
		return nil, w.inWords("watch", apierrors.FromObject(o))
	}
}

// seconds is a random time between d and twice that.
func seconds(d time.Duration) int64 { return int64((d + rand.N(d)).Seconds()) }
