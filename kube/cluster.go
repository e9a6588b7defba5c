package kube

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Cluster follows the objects of an API server: all pods, namespaces, nodes,
// services, endpoint slices and policies of the cluster.
//
// The sink gets nothing before all kinds were read: where one can't be, nothing
// that a predecessor left in force is touched. Only policies of a kind that never
// came into force on this node are left out then (Continue). A kind whose CRD is
// not installed has no objects. An API server that is lost changes nothing.
type Cluster struct {
	server string
	feeds  []feed
	counts []*counts
	out    *outbox
}

// ErrNoCluster says that there is neither a kubeconfig nor a pod's service
// account to connect with.
var ErrNoCluster = rest.ErrNotInCluster

// ClusterConfig returns how to connect to an API server: as a kubeconfig file
// says, or, with "", as the pod's service account that this process runs under.
// In no pod that fails with ErrNoCluster.
func ClusterConfig(kubeconfig string) (*rest.Config, error) {
	if kubeconfig == "" {
		c, err := rest.InClusterConfig()
		if err != nil && !errors.Is(err, ErrNoCluster) {
			err = fmt.Errorf("connect as the pod's service account: %w", err)
		}
		return c, err
	}
	c, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", kubeconfig, err)
	}
	return c, nil
}

// NewCluster returns a source of the objects of an API server. It connects
// when it runs.
func NewCluster(config *rest.Config, log *slog.Logger) (*Cluster, error) {
	clients, err := newClients(config, resources())
	if err != nil {
		return nil, err
	}
	c := &Cluster{server: config.Host, out: newOutbox(log)}
	for _, k := range clients {
		c.add(k.of.kind, newFollower(k, log))
		c.counts = append(c.counts, k.counts)
	}
	return c, nil
}

func (c *Cluster) add(kind string, f feed) {
	c.feeds = append(c.feeds, f)
	c.out.inboxes = append(c.out.inboxes, newInbox(kind, c.out))
}

// Interrupted makes f be called whenever a watch of a kind that a CRD defines has
// ended, as all do when the CRD is replaced, but also after some minutes. It must
// not wait.
func (c *Cluster) Interrupted(f func()) {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	c.out.interrupted = f
}

// Run hands everything to sink, once all of it was read, and then what changes,
// until ctx is done. An API server that is not there is waited for.
func (c *Cluster) Run(ctx context.Context, sink Sink) error {
	var all sync.WaitGroup
	for n, f := range c.feeds {
		all.Go(func() { f.run(ctx, c.out.inboxes[n]) })
	}
	c.out.run(ctx, sink)
	all.Wait()
	return nil
}

// Sync returns once everything that the API server has now was read and
// accepted by the sink. It asks for the versions of all objects, which costs
// the server about as much as a new agent does. It needs a Run.
func (c *Cluster) Sync(ctx context.Context) error {
	for n, f := range c.feeds {
		in := c.out.inboxes[n]
		versions, at, err := f.look(ctx)
		if missing(in, err) {
			continue
		}
		if err != nil {
			return err
		}
		f.prod()
		if err := c.out.wait(ctx, func() bool { return !in.behind(versions, at) }); err != nil {
			return c.why(err)
		}
	}
	return c.why(c.out.wait(ctx, c.out.settled))
}

// why adds to an error of a wait what stands in the way.
func (c *Cluster) why(err error) error {
	if err == nil {
		return nil
	}
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	errs := []error{err, c.out.err}
	for _, in := range c.out.inboxes {
		if in.status.Error != "" {
			errs = append(errs, errors.New(in.status.Error))
		}
	}
	return errors.Join(errs...)
}

// Report tells what was read, and what is wrong with it.
func (c *Cluster) Report() Report {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	r := Report{Path: c.server, Kinds: map[string]int{}, Complete: c.out.whole() && c.out.intact()}
	for _, in := range c.out.inboxes {
		if in.count > 0 {
			r.Kinds[in.kind] = in.count
		}
		r.Refused += in.refused
		r.Watches = append(r.Watches, in.status)
		for _, p := range in.problems {
			r.Problems = append(r.Problems, p...)
		}
	}
	sortProblems(r.Problems)
	return r
}

// missing tells whether an error says what is known: the kind is not there.
func missing(in *inbox, err error) bool {
	if !apierrors.IsNotFound(err) {
		return false
	}
	in.out.mu.Lock()
	defer in.out.mu.Unlock()
	return in.status.Missing
}

func sortProblems(problems []Problem) {
	slices.SortStableFunc(problems, func(a, b Problem) int { return cmp.Compare(a.Object, b.Object) })
}
