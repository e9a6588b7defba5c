package kube

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	coordination "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// oneLease is an API server's only Lease, of which watches tell at command.
type oneLease struct {
	coordination.LeaseInterface
	mu    sync.Mutex
	lease *coordinationv1.Lease // nil: not there
	gets  int
	says  *apiwatch.FakeWatcher // nil: it can't be watched
}

func (o *oneLease) Leases(string) coordination.LeaseInterface { return o }

func (o *oneLease) Get(context.Context, string, metav1.GetOptions) (*coordinationv1.Lease, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.gets++
	if o.lease == nil {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "leases"}, LeaseName)
	}
	return o.lease.DeepCopy(), nil
}

func (o *oneLease) Watch(_ context.Context, opts metav1.ListOptions) (apiwatch.Interface, error) {
	if o.says == nil || opts.FieldSelector != "metadata.name="+LeaseName {
		return nil, errors.New("not to be watched")
	}
	return o.says, nil
}

func (o *oneLease) hold(holder string) *coordinationv1.Lease {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.lease = &coordinationv1.Lease{Spec: coordinationv1.LeaseSpec{HolderIdentity: &holder}}
	return o.lease.DeepCopy()
}

func (o *oneLease) asked() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.gets
}

// TestLeaseIsHeardOf: who has the Lease is asked only where nobody says, and
// always before it is taken.
func TestLeaseIsHeardOf(t *testing.T) {
	o := &oneLease{says: apiwatch.NewFake()}
	l := &watchedLease{
		LeaseLock: &resourcelock.LeaseLock{
			LeaseMeta: metav1.ObjectMeta{Name: LeaseName}, Client: o,
			LockConfig: resourcelock.ResourceLockConfig{Identity: "own"},
		},
		watched: o, lasts: time.Hour, log: slog.New(slog.DiscardHandler),
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.follow(ctx)
	}()
	defer func() {
		stop()
		o.says.Stop()
		<-done
	}()
	// get returns who has it, and how often the server was asked for that.
	get := func() (holder string, asked int) {
		t.Helper()
		before := o.asked()
		record, text, err := l.Get(ctx)
		if apierrors.IsNotFound(err) {
			return "nobody", o.asked() - before
		}
		if err != nil || len(text) == 0 {
			t.Fatal(string(text), err)
		}
		return record.HolderIdentity, o.asked() - before
	}
	want := func(holder string, asked int) {
		t.Helper()
		if h, n := get(); h != holder || n != asked {
			t.Errorf("held by %q, asked %d times, want %q and %d", h, n, holder, asked)
		}
	}
	// heard waits until the word of the watch is in.
	heard := func(holder string) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			l.mu.Lock()
			is := l.record.HolderIdentity
			l.mu.Unlock()
			if is == holder {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("not heard of %q", holder)
			}
		}
	}
	want("nobody", 1)
	o.says.Add(o.hold("a"))
	heard("a")
	want("a", 0)
	o.hold("b") // nobody says so yet
	want("a", 0)
	o.says.Modify(o.hold("b"))
	heard("b")
	want("b", 0)
	// What may be taken is looked at.
	o.says.Modify(o.hold(""))
	heard("")
	want("", 1)
	o.says.Modify(o.hold("own"))
	heard("own")
	want("own", 1)
	o.says.Modify(o.hold("c"))
	heard("c")
	l.lasts = 0 // too long ago
	want("c", 1)
	l.lasts = time.Hour
	want("c", 0)
	o.says.Delete(o.hold("c"))
	heard("")
	want("c", 1)
}

// TestLeaseThatCannotBeWatched is asked for, though not each time.
func TestLeaseThatCannotBeWatched(t *testing.T) {
	o := &oneLease{}
	o.hold("a")
	l := &watchedLease{
		LeaseLock: &resourcelock.LeaseLock{Client: o, LockConfig: resourcelock.ResourceLockConfig{Identity: "own"}},
		watched:   o, lasts: time.Hour, log: slog.New(slog.DiscardHandler),
	}
	if told, err := l.watchOnce(t.Context()); told || err == nil {
		t.Errorf("told %v, %v", told, err)
	}
	for range 3 {
		if record, _, err := l.Get(t.Context()); err != nil || record.HolderIdentity != "a" {
			t.Fatal(record, err)
		}
	}
	if n := o.asked(); n != 1 {
		t.Errorf("asked %d times", n)
	}
}
