package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	coordination "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// watchedLease is a Lease that another agent holds most of the time. All agents
// wait for it, so they are told of it by a watch; the API server is asked by none
// before what it was told last is about to expire.
type watchedLease struct {
	*resourcelock.LeaseLock
	watched coordination.LeaseInterface
	lasts   time.Duration // what was told, without being asked again
	log     *slog.Logger

	mu     sync.Mutex
	record resourcelock.LeaderElectionRecord
	at     time.Time // when it was told; zero: never
}

// newWatchedLease returns a Lease that expires after the given time.
func newWatchedLease(config *rest.Config, namespace, identity string, expires time.Duration, log *slog.Logger) (*watchedLease, error) {
	leases, err := coordination.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("connect to the API server: %w", err)
	}
	config = rest.CopyConfig(config)
	config.Timeout = 0 // a watch is one long answer
	watched, err := coordination.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("connect to the API server: %w", err)
	}
	return &watchedLease{
		LeaseLock: &resourcelock.LeaseLock{
			LeaseMeta: metav1.ObjectMeta{Namespace: namespace, Name: LeaseName},
			Client:    leases, LockConfig: resourcelock.ResourceLockConfig{Identity: identity},
		},
		watched: watched.Leases(namespace), lasts: expires * 9 / 10, log: log,
	}, nil
}

// Get implements resourcelock.Interface. What was told is enough to know that
// another agent has the Lease, and never enough to take it.
func (l *watchedLease) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	if record, ok := l.heldByAnother(); ok {
		text, err := json.Marshal(record)
		return &record, text, err
	}
	record, text, err := l.LeaseLock.Get(ctx)
	if err == nil {
		l.tell(*record)
	}
	return record, text, err
}

// heldByAnother tells who has the Lease, where that was told of late.
func (l *watchedLease) heldByAnother() (resourcelock.LeaderElectionRecord, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fresh := !l.at.IsZero() && time.Since(l.at) < l.lasts
	return l.record, fresh && l.record.HolderIdentity != "" && l.record.HolderIdentity != l.Identity()
}

func (l *watchedLease) tell(record resourcelock.LeaderElectionRecord) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.record, l.at = record, time.Now()
}

// watch is told of the Lease until ctx is done. Where it can't be, Get asks
// instead.
func (l *watchedLease) follow(ctx context.Context) {
	const least, most = time.Second, time.Minute
	for pause := least; ctx.Err() == nil; {
		told, err := l.watchOnce(ctx)
		if told {
			pause = least
		}
		if err != nil && ctx.Err() == nil {
			l.log.Debug("watching the Lease of the agent that writes conditions; tried again", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait.Jitter(pause, 1)): // not all agents at once
		}
		pause = min(2*pause, most)
	}
}

func (l *watchedLease) watchOnce(ctx context.Context) (told bool, err error) {
	w, err := l.watched.Watch(ctx, metav1.ListOptions{
		FieldSelector: "metadata.name=" + LeaseName, ResourceVersion: "0",
	})
	if err != nil {
		return false, err
	}
	defer w.Stop()
	for e := range w.ResultChan() {
		lease, ok := e.Object.(*coordinationv1.Lease)
		switch {
		case !ok: // the server says why it ends this
		case e.Type == apiwatch.Deleted:
			l.tell(resourcelock.LeaderElectionRecord{})
		default:
			told = true
			l.tell(*resourcelock.LeaseSpecToLeaderElectionRecord(&lease.Spec))
		}
	}
	return told, nil
}
